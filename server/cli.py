"""The commands. The only module that prints and exits.

Promise: one sentence, a hint and an exit code for every failure (2: change a file, 1: the rest, 3 from ``check``);
results on standard output, logs on standard error; a traceback only with ``-v``. What a command does not need, it does
not import.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from . import log_output
from .config import find_config, load_config
from .errors import ConfigError, PickupPointError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from .settings import Config

app = typer.Typer(
    name="pickup-point",
    help="Megaphone's daily exports, as Triton Digital's podcast logs, at an SFTP pickup point.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def main() -> None:
    """The command ``pickup-point``: the one place that exits."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    verbose = "-v" in arguments or "--verbose" in arguments
    checking = arguments[:1] == ["check"]
    try:
        app(arguments)
    except SystemExit as ended:  # typer has said what was wrong with the command line, or printed its help
        code = ended.code if isinstance(ended.code, int) else 1
        return 3 if checking and code else code
    except Out as out:
        return out.exit_code
    except PickupPointError as error:
        if verbose:
            raise
        _say(error, checking=checking)
        return 3 if checking else error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if verbose:
            raise
        _say(
            PickupPointError(f"{type(error).__name__}: {error}", hint="the same with -v shows where"), checking=checking
        )
        return 3 if checking else 1
    return 0


def _say(error: PickupPointError, *, checking: bool) -> None:
    if checking:
        why = "; ".join(str(problem) for problem in error.problems) if isinstance(error, ConfigError) else str(error)
        print(f"PICKUP-POINT UNKNOWN - {why}".replace("\n", " "))
        return
    print(f"pickup-point: {error}", file=sys.stderr)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            print(f"  {problem}\n    → {problem.cure}", file=sys.stderr)
    elif error.hint:
        print(f"  → {error.hint}", file=sys.stderr)


@app.command()
def serve(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Run the service: SFTP, feed and retention, until SIGTERM. SIGHUP reads users, keys and limits again."""
    from .service import serve as run_service
    from .systemd import Supervisor

    supervisor = Supervisor.from_environment()
    settings = _settings(config, verbose=verbose)
    _become_owner(settings)
    _run(run_service(settings, supervisor))


@app.command()
def feed(
    config: ConfigOption = None,
    day: Annotated[
        list[str] | None, typer.Option("--day", help="Only this day (YYYY-MM-DD), if it is final; repeatable.")
    ] = None,
    accept_rejects: Annotated[
        bool, typer.Option("--accept-rejects", help="Publish the --day though it is held.")
    ] = False,
    resend: Annotated[
        str,
        typer.Option("--resend", metavar="REASON", help="Send the whole --day again: the partner voided the first."),
    ] = "",
    verbose: VerboseOption = False,
) -> None:
    """Run one round now: publish what is newly final. Prints a line a day; exit 1 if a due day failed or is held."""
    from .assembly import assembled
    from .private_files import load_ip_hash_key
    from .rounds import Wish

    if (accept_rejects or resend) and not day:
        raise _usage("--accept-rejects and --resend need the --day they are meant for")
    wish = Wish(tuple(_day(text) for text in day or ()), accept_rejects, resend)
    settings = _settings(config, verbose=verbose)
    hash_key = load_ip_hash_key(settings.keys_dir)
    _become_owner(settings)

    async def one_round() -> bool:
        with _progress() as progress:
            async with assembled(settings, hash_key, progress=progress) as parts:
                with _stopping(parts.stop.set):
                    outcome = await parts.feed.run_round(datetime.now(UTC), wish)
        for result in outcome.results:
            print(f"{result.day}  {result.word:10}  {result.sentence}")
        return any(result.bad for result in outcome.results)

    if _run(one_round()):
        raise Out(1)


@app.command()
def prune(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run one retention pass: remove log files and rejects that are older than keep_days."""
    from .ledger import Ledger
    from .pickup import PickupPoint
    from .retention import prune as prune_pass

    settings = _settings(config, verbose=verbose)
    _become_owner(settings)
    point = PickupPoint(settings.data_dir)
    point.prepare()
    with (
        contextlib.closing(Ledger.open(point.ledger_path)) as ledger,
        point.round_lock(lambda: print("waiting for another round to end", file=sys.stderr), lambda: False),
    ):
        pruned = prune_pass(ledger, point, settings.retention.keep_days, datetime.now(UTC), dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    for name in (*pruned.logs, *pruned.rejects):
        print(f"{verb} {name}")
    for file in pruned.unclaimed:
        print(f"picked up by nobody, goes {file.goes_at:%Y-%m-%d %H:%MZ}: {file.log.name}")
    if not pruned.logs and not pruned.rejects:
        print("nothing is older than keep_days")


@app.command()
def status(config: ConfigOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Show the last days at a glance, with the lines for Triton's activation sheet on top."""
    from . import report
    from .glance import Glance

    settings = _settings(config, verbose=verbose, quiet=True)
    _become_owner(settings)
    now = datetime.now(UTC)
    glance = Glance.take(settings, now)
    sheet = report.activation_sheet(settings)
    if json:
        _print_json(glance.as_json() | {"activation_sheet": dict(sheet)})
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    console.print(report.label_table(sheet))
    console.print()
    console.print(report.label_table(report.service_lines(glance.facts, now, running=glance.running)))
    console.print()
    console.print(report.day_table(glance.days[:14], now))
    for line in report.advice_lines(glance.days[:14]):
        console.print(f"  {line}", markup=False)
    for alarm in glance.alarms:
        console.print(
            f"{alarm.level.name}: {alarm.sentence}" + (f" → {alarm.hint}" if alarm.hint else ""), markup=False
        )


@app.command()
def check(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """One line for monitoring; exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (the Nagios plug-in convention)."""
    from . import report
    from .glance import Glance

    settings = _settings(config, verbose=verbose, quiet=True)
    _become_owner(settings)
    glance = Glance.take(settings, datetime.now(UTC))
    level, line = report.check_line(glance.alarms, glance.days)
    print(line)
    if level:
        raise Out(int(level))


@app.command()
def trace(
    name: Annotated[str, typer.Argument(help="A log file's name.")],
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell the whole story of one file: export, tally, publication, every pickup, pruning."""
    from . import report
    from .glance import trace_of
    from .triton import LogName

    settings = _settings(config, verbose=verbose, quiet=True)
    _become_owner(settings)
    log_name = LogName.parse(Path(name).name)
    if log_name is None:
        hint = f"the names are like {settings.log.prefix}20261120-00.{settings.log.format}.gz; pickup-point status"
        raise PickupPointError(f"{name} is no log file's name", hint=hint)
    found = trace_of(settings, log_name)
    if json:
        _print_json(found.as_json())
        return
    print(name)
    for at, what in report.story(found.log, found.publication, found.pickups, found.checks):
        print(f"  {at:20}  {what}")


@app.command()
def convert(
    export: Annotated[Path, typer.Argument(help="An export file of Megaphone, metrics-day-YYYY-MM-DD.json.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The log file to write.")],
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Write the rejected rows there, with reasons.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert one export on disk by hand, by the configuration's [log] rules or the defaults. Publishes nothing."""
    from .by_hand import convert_by_hand

    found = find_config(config)
    settings = load_config(found) if found is not None else None
    log_output.configure(settings.log_output.format if settings else "text", verbose=verbose)
    with _progress_of(export) as progress:
        done = convert_by_hand(export, output, rejects, settings, progress)
    if json:
        _print_json(done.tally.as_json())
    else:
        tally = done.tally
        print(f"{output}: {tally.lines} lines of {tally.rows} rows, {tally.filtered.total()} filtered, "
              f"{tally.rejected.total()} rejected")  # fmt: skip
    for warning in done.warnings:
        print(f"pickup-point: {warning}", file=sys.stderr)


@app.command()
def keygen(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Make what is missing in keys/: host keys and ip_hash.key; print fingerprints and known_hosts lines."""
    from .keys import known_hosts_lines, make_keys

    found = find_config(config)
    log_output.configure(verbose=verbose)
    address, keys_dir = "", Path("keys")
    if found is not None:
        keys_dir, address = _keys_place(found)
    made = make_keys(keys_dir)
    for key in made:
        print(f"{'made' if key.made else 'kept'}  {key.path}  {key.fingerprint}".rstrip())
    print("\nFor the partner's known_hosts file:")
    for line in known_hosts_lines(made, address or "127.0.0.1:2222"):
        print(line)


@app.command(name="hash-password")
def hash_password() -> None:
    """Read a password (prompt, or standard input) and print its Argon2id hash for the configuration."""
    from .access import hash_password as hashed

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise PickupPointError("the password is empty", hint="openssl rand -base64 24 | pickup-point hash-password")
    print(hashed(password))


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--directory", help="Where the demo lives.")] = Path("demo"),
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 2222 at first.")
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Everything at once, for a newcomer: sample exports, keys, a user, a configuration, and the service on it."""
    from .assembly import assembled, load_keys
    from .demo import prepare
    from .service import serve as run_service
    from .systemd import Supervisor

    now = datetime.now(UTC)
    try:
        made = prepare(directory, 2222 if port is None else port, now)
    except OSError as error:
        hint = "pickup-point demo --directory /tmp/pickup-point-demo"
        raise PickupPointError(f"the demo cannot be made in {directory}: {error}", hint=hint) from error
    settings = _settings(made.config, verbose=verbose)
    if port is not None and port != settings.sftp.port:
        settings = settings.model_copy(update={"sftp": settings.sftp.model_copy(update={"port": port})})

    async def publish() -> list[str]:
        _, hash_key = load_keys(settings)
        async with assembled(settings, hash_key) as parts:
            await parts.feed.run_round(now)
            return sorted(parts.point.served)

    def tell(files: list[str], listening: int) -> None:
        print()
        print(f"The demo is in {made.folder.absolute()}, and serves:")
        for name in files:
            print(f"  {name}")
        print(f"{made.open_day}, today, is not there: Megaphone still writes it. A day is published once it is final, "
              "at 04:30Z of the next day.")  # fmt: skip
        print("\nIn another terminal:\n")
        print(f"sftp -P {listening} demo@127.0.0.1")
        print(f"password: {made.password}")
        print(f"\nThen: ls -l, get {files[-1] if files else 'NAME'}, bye; and afterwards:")
        print(f"{_program()} status --config {made.config}")
        print("Ctrl-C ends it.", flush=True)

    files = _run(publish())
    _run(run_service(settings, Supervisor.from_environment(), lambda listening: tell(files, listening)))


@app.command(name="systemd-unit")
def systemd_unit(
    config: ConfigOption = None,
    socket: Annotated[bool, typer.Option("--socket", help="The socket unit (port 22 without any right).")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Print the systemd unit for this installation."""
    from .systemd import service_unit, socket_unit

    found = find_config(config)
    drain, port = 30, 22
    if found is not None:
        settings = load_config(found)
        drain = settings.sftp.drain_seconds
    log_output.configure(verbose=verbose)
    path = (config or found or Path("/etc/pickup-point/config.toml")).absolute()
    print(socket_unit(port) if socket else service_unit(path, drain), end="")


def _settings(path: Path | None, *, verbose: bool, quiet: bool = False) -> Config:
    """The configuration, with the log set up; ``quiet`` commands log warnings only when verbose."""
    found = find_config(path)
    if found is None:
        wrong = "there is no config.toml here and no /etc/pickup-point/config.toml"
        cure = "pickup-point demo; or copy config.example.toml to config.toml and change it"
        raise ConfigError("the configuration", [Problem("--config", wrong, cure)])
    settings = load_config(found)
    if quiet and not verbose:
        log_output.configure(settings.log_output.format, stream=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # for life
    else:
        log_output.configure(settings.log_output.format, verbose=verbose)
    return settings


def _keys_place(path: Path) -> tuple[Path, str]:
    """keys_dir and the public address, also of a configuration whose keys are yet to be made."""
    import tomllib

    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        raw = {}
    sftp = raw.get("sftp")
    address = sftp.get("address", "") if isinstance(sftp, dict) else ""
    keys = raw.get("keys_dir", "keys")
    keys_dir = Path(path.absolute().parent, Path(keys if isinstance(keys, str) else "keys").expanduser())
    return keys_dir, address if isinstance(address, str) else ""


def _become_owner(settings: Config) -> None:
    """As root: become the owner of data_dir, so that nothing is left behind that the service cannot open."""
    if os.geteuid() != 0 or not settings.data_dir.exists():
        return
    owner = settings.data_dir.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _run(job: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop's event loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(job)


@contextlib.contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a conversion, or a download, at once."""
    import signal

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in a task

    def end() -> None:
        stop()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[date, int, int], None] | None]:
    """A progress bar a day on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[date, Any] = {}

        def show(day: date, done: int, total: int) -> None:
            if day not in tasks:
                tasks[day] = bars.add_task(str(day), total=total)
            bars.update(tasks[day], completed=done)

        yield show


@contextlib.contextmanager
def _progress_of(path: Path) -> Iterator[Callable[[int], None] | None]:
    with _progress() as show:
        if show is None:
            yield None
            return
        total = path.stat().st_size if path.exists() else 0
        yield lambda done: show(date.min, done, total)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _usage(f"{text} is not a day; write --day 2026-11-20") from None


def _usage(sentence: str) -> PickupPointError:
    error = PickupPointError(sentence, hint="pickup-point feed --help")
    error.exit_code = 2
    return error


def _program() -> str:
    return sys.argv[0] if sys.argv[0].endswith("pickup-point") else f"{sys.executable} -m server"


def _print_json(value: Any) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
