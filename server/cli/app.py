"""The commands, and the one place that exits.

Prints. Promise: one sentence, a hint and an exit code for every failure (2: change a file or the command line, 1: the
rest, 3 from ``check``); results on standard output, the journal on standard error; a traceback only with ``-v``.
A command imports only what it needs.
"""

from __future__ import annotations

import io
import os
import select
import shlex
import sys
import traceback
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, PickupPointError
from ..hints import Step, steps
from .episodes import episode_commands
from .options import (
    ConfigOption,
    JsonOption,
    Out,
    Usage,
    VerboseOption,
    call,
    exit_within,
    is_installed,
    load_settings,
    load_settings_as_owner,
    parse_day,
    print_hint,
    print_json,
    program,
    run_loop,
)
from .privileges import KeysPlace, become_owner, become_owner_of, find_config, find_keys
from .setup import setup

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    name="pickup-point",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cache
def commands() -> Callable[[list[str]], object]:
    """Return all commands as `run` reads them, kept: building them takes longer than most commands run."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line of ``pickup-point``, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; return the exit code."""
    verbose = "-v" in arguments or "--verbose" in arguments
    checking = arguments[:1] == ["check"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show an arrow is no reason to fail
    try:
        try:
            commands()(arguments)
        finally:
            sys.stdout.flush()  # not only when Python exits: a full disk, or a reader who left, gets its sentence
    except BaseException as error:
        return exit_code(error, verbose=verbose, checking=checking)
    return 0


def exit_code(error: BaseException, *, verbose: bool = False, checking: bool = False) -> int:
    """Print what ended a command; return its exit code."""
    if isinstance(error, SystemExit):  # typer has printed help, or what is wrong with the command line
        code = error.code if isinstance(error.code, int) else 1
        return 3 if checking and code else code
    if isinstance(error, Out):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if not isinstance(error, Exception):
        raise error
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError) and not _output_works():
        return 141  # as if ended by SIGPIPE: whoever reads the output has seen enough
    if isinstance(error, OSError) and error.strerror:
        error = _of_the_system(error)
    if not isinstance(error, PickupPointError):
        error = PickupPointError(f"{type(error).__name__}: {error}", hint="the same command with -v shows where")
    return _report(error, checking=checking)


def _output_works() -> bool:
    """Return whether standard output can be flushed and somebody reads it; if not, redirect it to nowhere."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it was replaced by something that is not a file
        return True
    try:
        sys.stdout.flush()
        reader = select.poll()
        reader.register(output, 0)
        if any(event & select.POLLERR for _, event in reader.poll(0)):
            raise BrokenPipeError
    except OSError:
        # Otherwise Python would flush again when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return False
    return True


def _of_the_system(error: OSError) -> PickupPointError:
    """Return an unforeseen error of the system, in words."""
    if not _output_works():
        return PickupPointError(f"standard output: {error.strerror}", hint="write it to a disk with free space; df -h")
    if isinstance(error.filename, str):
        where = shlex.quote(error.filename)
        return PickupPointError(
            f"{error.filename}: {error.strerror}", hint=f"namei -l {where}; the same command with -v shows where"
        )
    return PickupPointError(f"the system refused: {error.strerror}", hint="the same command with -v shows where")


def _report(error: PickupPointError, *, checking: bool) -> int:
    """Print an error and its hints; return the exit code."""
    if checking:
        from . import tables

        found = [(str(error), error.hint)]
        if isinstance(error, ConfigError):
            found = [(str(problem), problem.cure) for problem in error.problems]
        print(tables.unknown_line(found, call()))
        return 3
    print(f"pickup-point: {error}", file=sys.stderr)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
            print_hint(problem.cure, 4, sys.stderr)
    else:
        print_hint(error.hint, file=sys.stderr)
    return error.exit_code


@app.command()
def serve(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Run the service (SFTP, feed, retention) until SIGTERM. SIGHUP reloads users, keys, limits and alerts."""
    from ..service import load_keys
    from ..service import serve as run_service
    from ..systemd import Supervisor

    supervisor = Supervisor.from_environment()
    settings = load_settings(config, verbose=verbose)
    keys = load_keys(settings)
    become_owner(settings)
    run_loop(run_service(settings, keys, supervisor, exit_within=exit_within))


@app.command()
def feed(
    config: ConfigOption = None,
    day: Annotated[
        list[str] | None,
        typer.Option("--day", metavar="DAY", help="Only this day (YYYY-MM-DD), if it is final; repeatable."),
    ] = None,
    accept_rejects: Annotated[bool, typer.Option("--accept-rejects", help="Publish it although it is held.")] = False,
    resend: Annotated[
        str | None,
        typer.Option(
            "--resend", metavar="REASON", help="Send the whole day again, because the partner has voided its files."
        ),
    ] = None,
    change_rules: Annotated[
        bool, typer.Option("--change-rules", help="First make this node's [log] the rules of the shared store.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run one round now: publish what is newly final. Prints a line per day; exit 1 if a due day failed or is held."""
    from ..config import load_ip_hash_key
    from ..publish.decisions import FeedRequest

    typed = day or []
    if (accept_rejects or resend is not None) and not typed:
        raise Usage("--accept-rejects and --resend need --day", hint="pickup-point feed --help")
    # An empty reason (a script's unset variable) is not an order to send a day again.
    if resend is not None and not (resend.strip() and resend.isprintable()):
        hint = f'pickup-point feed --day {shlex.quote(typed[0])} --resend "voided by the partner on the phone"'
        raise Usage("--resend needs a reason, on one line", hint=hint)
    days = tuple(dict.fromkeys(parse_day(text, "feed") for text in typed))
    request = FeedRequest(days, accept_rejects, resend or "", by_hand=True)
    settings = load_settings(config, verbose=verbose)
    hash_key = load_ip_hash_key(settings.keys_dir)
    from .feed import one_round  # only here: it takes a second to load, and typing errors are reported before

    become_owner(settings)

    results = run_loop(one_round(settings, hash_key, request, change_rules=change_rules))
    for result in results:
        # The sentence may end with what to type.
        what, *to_do = steps(result.sentence)
        print(f"{result.day}  {result.word:10}  {what.prose}")
        print_hint([Step("", what.command), *to_do], 24)
    if any(result.bad for result in results):
        raise Out(1)


@app.command()
def prune(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    clock_is_right: Annotated[
        bool, typer.Option("--clock-is-right", help="Prune although the clock jumped ahead, because you checked it.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove log files and rejects that are older than keep_days."""
    from ..publish.clock import LEAP_HINT
    from . import tables
    from .feed import one_prune

    settings = load_settings(config, verbose=verbose)
    become_owner(settings)
    waiting = "waiting for another round to end"
    pruned = run_loop(
        one_prune(
            settings,
            dry_run=dry_run,
            clock_is_right=clock_is_right,
            on_wait=lambda: print(waiting, file=sys.stderr),
        )
    )
    if dry_run or not pruned.doubt:
        for line in tables.prune_lines(pruned, dry_run=dry_run):
            print(line)
    if pruned.doubt:
        raise PickupPointError(pruned.doubt, hint=LEAP_HINT)


@app.command()
def status(
    config: ConfigOption = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also show Triton's activation sheet.")] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is wrong, the last days, and the service. Works whether or not the service is running."""
    from ..status import words
    from ..status.snapshot import Snapshot
    from . import tables

    settings = load_settings_as_owner(config, verbose=verbose)
    snapshot = Snapshot.take(settings, datetime.now(UTC))
    activation = words.activation_sheet(settings)
    if json:
        print_json(snapshot.as_json() | {"activation_sheet": dict(activation)})
        return
    from rich.console import Console

    console = Console(highlight=False)
    users = [user.name for user in settings.sftp.users]
    shown = activation if sheet else ()
    for part, long in tables.status_page(snapshot, users, console.width, call(), sheet=shown, installed=is_installed):
        console.print(part, soft_wrap=long)


@app.command()
def check(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Print one line for monitoring. Exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN: the Nagios plug-in convention."""
    from ..status.snapshot import Snapshot
    from . import tables

    settings = load_settings_as_owner(config, verbose=verbose)
    snapshot = Snapshot.take(settings, datetime.now(UTC))
    level, line = tables.check_line(snapshot.alarms, snapshot.days, call(), snapshot.node)
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
    """Show the history of one file. Export, tally, publication, every pickup and pruning, in order."""
    from ..status import words
    from ..status.snapshot import trace_of
    from ..triton import LogName

    settings = load_settings_as_owner(config, verbose=verbose)
    log_name = LogName.parse(Path(name).name)
    if log_name is None:
        like = f"{settings.log.prefix}20261120-00.{settings.log.format}.gz"
        hint = f"log files are named like {like}; to list them: pickup-point status --json"
        raise PickupPointError(f"{name} is not the name of a log file", hint=hint)
    found = trace_of(settings, log_name)
    if json:
        print_json(found.as_json())
        return
    print(name)
    for at, what in words.history(found):
        print(f"  {at:20}  {what}")


@app.command()
def reconcile(
    day: Annotated[str, typer.Argument(help="A day that was published, YYYY-MM-DD.")],
    config: ConfigOption = None,
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on standard output.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare a day with Megaphone's dashboard. For each podcast: rows, reporting count, lines, filtered, rejected."""
    from ..status import words
    from ..status.snapshot import reconciliation_of
    from . import tables

    wanted = parse_day(day, "reconcile")
    lines, matched = reconciliation_of(load_settings_as_owner(config, verbose=verbose), wanted)
    if json:
        print_json({"day": day, "matched_share": matched, "podcasts": [line.as_json() for line in lines]})
    else:
        print(words.reconciliation_csv(lines) if csv else tables.reconciliation_text(lines, matched), end="")


@app.command()
def convert(
    export: Annotated[Path, typer.Argument(help="Megaphone's export file, such as metrics-day-2026-11-20.json.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The log file to write.")],
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Write the rejected rows to this file, with reasons.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert one export file by hand. Follows the configuration's [log] rules, or the defaults; publishes nothing."""
    from .convert import convert_command

    found = find_config(config)
    settings = load_settings(found, verbose=verbose) if found is not None else None
    convert_command(export, output, rejects, settings, json=json)


@app.command()
def keygen(
    config: ConfigOption = None,
    new_secret: Annotated[bool, typer.Option("--new-secret", help="Replace lost keys that have no backup.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Create the missing keys. Host keys and ip_hash.key; prints fingerprints and known_hosts lines."""
    from .. import log_output
    from ..sftp.algorithms import HOST_KEY_FILES
    from ..sftp.keys import known_hosts_lines, lost_keys, make_keys, offered_host_keys
    from ..storage.ledger import LEDGER_FILE

    found = find_config(config)
    log_output.configure(verbose=verbose)
    keys_dir, data_dir, address, legacy = find_keys(found) if found is not None else KeysPlace()
    lost, shown_by = lost_keys(keys_dir, legacy=legacy, ledger=data_dir / LEDGER_FILE)
    if lost and not new_secret:
        _ask_for_new_secret(keys_dir, lost, shown_by)
    try:
        made = make_keys(keys_dir)
    except OSError as error:
        sentence = f"cannot create the keys in {keys_dir}: {error.strerror or error}"
        raise PickupPointError(sentence, hint=f"ls -ld {shlex.quote(str(keys_dir.absolute()))}") from error
    made = [
        key for key in made if key.path.name not in HOST_KEY_FILES or key.path.name in offered_host_keys(legacy=legacy)
    ]
    for key in made:
        print(f"{'made' if key.made else 'kept'}  {key.path}  {key.fingerprint}".rstrip())
    print("\nFor the partner's known_hosts file:")
    for line in known_hosts_lines(made, address or "127.0.0.1:2222"):
        print(line)


def _ask_for_new_secret(keys_dir: Path, lost: list[str], shown_by: str) -> None:
    """Ask on the terminal whether to replace lost keys.

    Raises:
        Usage: the answer is no, or there is no terminal.
    """
    names = " and ".join(filter(None, [", ".join(lost[:-1]), lost[-1]]))
    sentence = f"{names} {'is' if len(lost) == 1 else 'are'} not in {keys_dir}, but {shown_by} is there"
    why = "a new ip_hash.key gives every listener another hash, and a new host key looks like an attack to the partner"
    hint = f"restore {names} from the backup: {why}; without a backup: pickup-point keygen --new-secret"
    if not sys.stdin.isatty():
        raise Usage(sentence, hint=hint)
    print(f"pickup-point: {sentence}", file=sys.stderr)
    print_hint(f"restore {names} from the backup: {why}", file=sys.stderr)
    if not typer.confirm("Make new ones? Do it only if there is no backup.", default=False, err=True):
        raise Usage("nothing was made", hint=hint)


@app.command(name="hash-password")
def hash_password(
    weak: Annotated[bool, typer.Option("--weak", help="Accept fewer than 12 characters.")] = False,
) -> None:
    """Hash a password for the configuration. Asks for it, or reads a line of standard input; prints Argon2id."""
    from ..sftp.users import check_length
    from ..sftp.users import hash_password as hashed

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        # Read as bytes: a client does not send them as this locale would decode them.
        password = sys.stdin.buffer.readline().rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    result = hashed(password)
    if not weak:
        check_length(password)
    print(result)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--directory", help="Where the demo lives.")] = Path("demo"),
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="The port on 127.0.0.1. Default: the one configured, 2222 in a new demo."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Which exports: metrics or delivery-v2.", show_default=False)
    ] = "",
    verbose: VerboseOption = False,
) -> None:
    """Run a complete demo. Creates sample exports, keys, a user and a configuration, and serves them."""
    from ..errors import CannotListen
    from ..rights import without_read_right
    from ..service import assembled, load_keys, round_facts
    from ..service import serve as run_service
    from ..systemd import Supervisor
    from .demo import introduction, on_port, prepare

    supervisor = Supervisor.from_environment()
    now = datetime.now(UTC)
    try:
        # What is already there, including links, may be its owner's doing.
        become_owner_of(directory)
        with without_read_right():
            made = prepare(directory, 2222 if port is None else port, now, kind)
    except OSError as error:
        hint = "pickup-point demo --directory /tmp/pickup-point-demo"
        which = f"{error.filename}: " if isinstance(error.filename, str) else ""
        sentence = f"cannot create the demo in {directory}: {which}{error.strerror or error}"
        raise PickupPointError(sentence, hint=hint) from error
    settings = load_settings(made.config, verbose=verbose)
    if port is not None and port != settings.sftp.port:
        settings = on_port(settings, port)

    keys = load_keys(settings)

    async def publish() -> list[str]:
        async with assembled(settings, keys[1]) as installation:
            outcome = await installation.feed.run_round(now)
            # Otherwise `status`, and the page, which is opened at once, would say that no round has run.
            installation.ledger.note(**round_facts(now, outcome))
            return sorted(installation.folder.served)

    def introduce(listening: int, page: int | None) -> None:
        print("\n".join(introduction(made, files, listening, page, program(), now)), flush=True)

    # Published before the service starts: whoever connects first finds the files.
    files = run_loop(publish())
    try:
        run_loop(run_service(settings, keys, supervisor, introduce, exit_within=exit_within))
    except CannotListen as error:
        hint = f"to use any free port: pickup-point demo --directory {shlex.quote(str(directory))} --port 0"
        raise CannotListen(str(error), hint=hint) from error


@app.command(name="systemd-unit")
def systemd_unit(
    config: ConfigOption = None,
    socket: Annotated[
        bool, typer.Option("--socket", help="Print the socket unit (port 22 without privileges).")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Print the systemd unit for this installation."""
    from .. import log_output
    from ..config import load_config
    from .units import STATE_FOLDER, service_unit, socket_unit

    log_output.configure(verbose=verbose)
    if socket:
        print(socket_unit(22), end="")
        return
    found = find_config(config)
    path = (found or Path("/etc/pickup-point/config.toml")).absolute()
    settings = load_config(found) if found is not None else None
    keys_dir = settings.keys_dir if settings is not None else path.parent / "keys"
    print(service_unit(path, keys_dir, settings.sftp.drain_seconds if settings is not None else 30), end="")
    if settings is not None and not settings.data_dir.is_relative_to(STATE_FOLDER):
        warning = f"data_dir is {settings.data_dir}, but this unit may only write below {STATE_FOLDER}"
        print(f"pickup-point: {warning}", file=sys.stderr)
        print_hint(f'set data_dir = "{STATE_FOLDER}" in {path}', file=sys.stderr)


@app.command()
def manual(
    chapter: Annotated[str, typer.Argument(help="A chapter's name; 'config' is the example configuration.")] = "",
) -> None:
    """Show a chapter of the manual, or the list of chapters."""
    from rich.console import Console

    from .manual import contents, read_chapter, show

    if chapter:
        show(read_chapter(chapter), Console())
    else:
        print(contents(), end="")


def _print_version(wanted: bool) -> None:
    """Print the version, and whether the kernel is in use."""
    if not wanted:
        return
    from importlib.metadata import version

    from ..convert.apart import kernel_lack

    lack = kernel_lack()
    print("pickup-point", version("pickup-point"), f"({'kernel in use' if lack is None else lack[0]})")
    raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[  # typer calls back
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version, and whether the kernel is used.",
        ),
    ] = False,
) -> None:
    """Turn Megaphone's daily exports into podcast logs for Triton Digital, and serve them over SFTP."""


app.add_typer(setup)
app.add_typer(episode_commands)
