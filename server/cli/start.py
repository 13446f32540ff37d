"""Where the program begins: the command ``convert`` without a configuration at once, every other one by `app`.

Prints nothing itself. What reads the command lines of all commands takes longer to load than a small export to convert,
so a plain ``convert`` does not wait for it.
"""

from __future__ import annotations

import io
import os
import sys

_VALUES = {"-o": "output", "--output": "output", "--rejects": "rejects"}


def main() -> None:
    """The command ``pickup-point``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without an arrow is no reason to fail
    plain = plain_convert(arguments)
    if plain is None:
        from . import app

        return app.run(arguments)
    from pathlib import Path

    from .convert import convert_command

    try:
        rejects = Path(plain["rejects"]) if "rejects" in plain else None
        convert_command(Path(plain["export"]), Path(plain["output"]), rejects, None, json="json" in plain)
    except BaseException as error:
        from .app import exit_code

        return exit_code(error)
    return 0


def plain_convert(arguments: list[str]) -> dict[str, str] | None:
    """What a plain ``convert`` is to do; None for all else, mistakes among it, and where a configuration lies."""
    from .privileges import SEARCHED

    if arguments[:1] != ["convert"] or any(os.path.isfile(place) for place in SEARCHED):  # noqa: PTH113
        return None
    found: dict[str, str] = {}
    words, options = iter(arguments[1:]), True
    for word in words:
        if options and word == "--":
            options = False
        elif options and word.startswith("-"):
            name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            if word == "--json":
                found["json"] = ""
            elif name in _VALUES and (value := value if equals else next(words, "")) and not value.startswith("-"):
                found[_VALUES[name]] = value
            else:
                return None
        elif "export" in found or not word:
            return None
        else:
            found["export"] = word
    return found if {"export", "output"} <= found.keys() else None
