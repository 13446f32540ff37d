"""The entry point: runs a plain ``convert``, one without a configuration, at once; every other command through `app`.

Prints nothing itself. The parser of all commands takes longer to load than a small export takes to convert, so a plain
``convert`` does not wait for it.
"""

from __future__ import annotations

import gc
import io
import os
import sys

_VALUES = {"-o": "output", "--output": "output", "--rejects": "rejects"}


def main() -> None:
    """Run the command ``pickup-point``, and exit."""
    gc.disable()  # modules leave no garbage while they load, and looking for it takes milliseconds
    _fill_in_streams()
    code = run(sys.argv[1:])
    if "server.cli.app" in sys.modules:
        sys.exit(code)
    # A plain convert has written and flushed everything. Tearing the interpreter down takes as long as starting it.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show an arrow is no reason to fail
    if arguments[:1] == ["serve"]:
        _keep_reloads_waiting()
    plain = plain_convert(arguments)
    if plain is None:
        gc.enable()
        from . import app

        return app.run(arguments)
    from pathlib import Path

    from .convert import convert_command

    try:
        rejects = Path(plain["rejects"]) if "rejects" in plain else None
        convert_command(Path(plain["export"]), Path(plain["output"]), rejects, None, json="json" in plain)
        sys.stdout.flush()
    except BaseException as error:
        from .app import exit_code

        return exit_code(error)
    return 0


def _fill_in_streams() -> None:
    """Open /dev/null in place of a standard stream that was closed: no other file may get its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # a descriptor


def _keep_reloads_waiting() -> None:
    """Let SIGHUP wait until the service handles it: one that comes while it starts would end the process."""
    import signal  # only here: a plain convert needs none of it

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def plain_convert(arguments: list[str]) -> dict[str, str] | None:
    """Return the arguments of a plain ``convert``; None for anything else, a mistake, or if there is a configuration.

    Never accept what `app` would refuse: in doubt return None, and `app` reports the mistake.
    """
    from ..paths import SEARCHED

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
