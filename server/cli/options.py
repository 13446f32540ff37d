"""What the commands share: options, loading the configuration, the journal, hints, JSON, an event loop.

Prints for `app` and the other modules of commands.
"""

from __future__ import annotations

import faulthandler
import io
import os
import shlex
import shutil
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import orjson
import typer

from ..config import load_config
from ..errors import PickupPointError
from ..hints import OURS, Call, Step, lines, steps
from ..megaphone.exports import calendar_day
from .privileges import become_owner, config_path, find_aws_key

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from datetime import date

    from ..settings import Config

ConfigOption = Annotated[
    Path | None,
    # Not for typer to read: whoever may not is told more by `read_config`.
    typer.Option("--config", "-c", readable=False, help="Default: ./config.toml, then /etc/pickup-point/config.toml."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Debug log lines, and tracebacks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


class Out(PickupPointError):
    """Ends a command with an exit code, and without a sentence."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Usage(PickupPointError):
    """The command line itself is wrong."""

    exit_code = 2


def load_settings(path: Path | None, *, verbose: bool, quiet: bool = False) -> Config:
    """Load the configuration and set up the journal; ``quiet`` commands log nothing unless verbose."""
    from .. import log_output

    settings = load_config(config_path(path))
    stream = None if verbose or not quiet else io.StringIO()
    # `demo` has a configuration that was not given on the command line.
    hint = Call(program(), config_given(sys.argv[1:]) or str(path or "")).text
    log_output.configure(settings.log_output.format, verbose=verbose, stream=stream, hint=hint)
    find_aws_key(settings)
    return settings


def load_settings_as_owner(path: Path | None, *, verbose: bool) -> Config:
    """Load the configuration for a command that only reads, and become the data folder's owner."""
    settings = load_settings(path, verbose=verbose, quiet=True)
    become_owner(settings)
    return settings


def run_loop(job: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop's event loop.

    Raises:
        KeyboardInterrupt: a signal cancelled it.
    """
    import asyncio

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(job)
    # `feed` cancels its own task on Ctrl-C and SIGTERM: to the shell, both mean an interrupted command.
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def exit_within(seconds: float) -> None:
    """End this process with exit code 1 if it still runs after this many seconds; print where each thread is.

    Not by the event loop or a thread that works: either may be what hangs.
    """

    def end() -> None:
        print(f"Timeout after {seconds:g} s. Where each thread is:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    # If one keeps the interpreter lock for ever. This reads frames of running threads, and may crash: an end, too.
    faulthandler.dump_traceback_later(seconds + 2, exit=True)


def parse_day(text: str, command: str) -> date:
    """Parse a day that was typed as YYYY-MM-DD.

    Raises:
        Usage: it is not a day, or has not begun.
    """
    day, today = calendar_day(text), datetime.now(UTC).date()
    if day is None:
        raise Usage(f"{text} is not a day; write it like 2026-11-20", hint=f"pickup-point {command} --help")
    if day > today:
        sentence = f"{text} has not begun: by this machine's clock it is {today} (UTC)"
        raise Usage(sentence, hint="see whether the clock is right: timedatectl")
    return day


def program() -> str:
    """Return how this program was called, quoted, for a command that can be pasted."""
    if not sys.argv[0].endswith(OURS):
        return f"{shlex.quote(sys.executable)} -m server"
    # If the shell finds it by its name, the name is enough.
    return OURS if shutil.which(OURS) == sys.argv[0] else shlex.quote(sys.argv[0])


def call() -> Call:
    """Return how this program was called, --config included."""
    return Call(program(), config_given(sys.argv[1:]))


def config_given(arguments: Sequence[str]) -> str:
    """Return the value of --config on a command line, or ''."""
    given = ""
    for word, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if word in ("--config", "-c"):
            given = value
        elif word.startswith("--config="):
            given = word.partition("=")[2]
        elif word.startswith("-c"):
            given = word[2:]
    return given


def print_hint(found: str | list[Step], indent: int = 2, file: TextIO | None = None) -> None:
    """Print a hint: prose after an arrow, each command alone on its line, ready to be pasted."""
    for line in lines(steps(found) if isinstance(found, str) else found, call(), is_installed):
        print(" " * indent + ("    " if line.is_command else "→ ") + line.text, file=file)


def is_installed(name: str) -> bool:
    """Return whether the shell would find a program."""
    return name == "ulimit" or shutil.which(name) is not None


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def port_of(address: str) -> int:
    """Return the port of the partner's address; 2222 if it has none."""
    _, separator, port = address.rpartition(":")
    return int(port) if separator and port.isdecimal() and len(port) < 6 else 2222
