"""What every command shares: its options, the configuration with the log set up, a result as JSON, a loop to run on.

Prints for `app` and the modules of commands beside it.
"""

from __future__ import annotations

import io
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from ..errors import PickupPointError
from .privileges import become_owner, config_path, find_aws_key

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ..settings import Config

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Else config.toml here, then /etc/pickup-point/config.toml."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Debug log lines, and tracebacks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


class Out(PickupPointError):
    """A result with an exit code of its own; nothing more is said."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Usage(PickupPointError):
    """The command line itself is wrong."""

    exit_code = 2


def settings_of(path: Path | None, *, verbose: bool, quiet: bool = False) -> Config:
    """The configuration, with the log set up; ``quiet`` commands log nothing unless verbose."""
    from .. import log_output
    from ..config import load_config

    settings = load_config(config_path(path))
    stream = None if verbose or not quiet else io.StringIO()
    log_output.configure(settings.log_output.format, verbose=verbose, stream=stream)
    find_aws_key(settings)
    return settings


def reading_as_owner(path: Path | None, *, verbose: bool) -> Config:
    """For a command that only looks: the configuration, and root become the data folder's owner."""
    settings = settings_of(path, verbose=verbose, quiet=True)
    become_owner(settings)
    return settings


def run_loop(job: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop's event loop.

    Raises:
        KeyboardInterrupt: it was cancelled by a signal.
    """
    import asyncio

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(job)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def day_of(text: str, command: str) -> date:
    """A day as typed.

    Raises:
        Usage: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Usage(f"{text} is not a day; write 2026-11-20", hint=f"pickup-point {command} --help") from None


def program() -> str:
    """How this program was called, for a line that is to be typed again."""
    return sys.argv[0] if sys.argv[0].endswith("pickup-point") else f"{sys.executable} -m server"


def print_json(value: Any) -> None:
    """The whole result, on standard output."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
