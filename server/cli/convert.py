"""One export converted by hand, outside any data folder: what ``pickup-point convert`` does.

Touches the export (read), the output and, if asked for, the rejected rows: files appear whole or not at all; something
else in their place (a device, a FIFO) is written into. The conversion process is started before anything else that is
needed is imported: that halves the time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..convert.apart import Outputs, convert_apart
from ..errors import ConfigError, DataFolderError, LedgerError, PickupPointError
from ..paths import destination, is_standard_output
from .progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

    from ..convert.conversion import Conversion
    from ..convert.messages import FileNames
    from ..convert.tally import Tally
    from ..episodes.catalogue import Catalogue
    from ..publish.holds import HoldPolicy
    from ..settings import Config


class ConvertedByHand(NamedTuple):
    """The tally of a conversion, and the warnings about it."""

    tally: Tally
    warnings: list[str]


def convert_by_hand(
    export: Path,
    output: Path,
    rejects: Path | None,
    config: Config | None,
    progress: Callable[[int], None] | None = None,
    *,
    mode: int = 0o666,
) -> ConvertedByHand:
    """Convert one export by the configuration's ``[log]`` rules, or by the defaults without one.

    ``output`` or ``rejects`` may be ``-``, standard output; new files get ``mode``, less the umask. ``progress`` gets
    the number of bytes of the export read so far.

    Raises:
        ExportTorn: the export is not a complete gzip file.
        PickupPointError: a file cannot be read or written.
    """
    _check_apart(export, [output] if rejects is None else [output, rejects])
    # Filled by `conversion`, which is called once the process has started: both prepare at the same time.
    made: list[_Made] = []

    def conversion() -> Conversion:
        made.append(_make(export, config))
        return made[0].conversion

    stop = threading.Event()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_signals(stop))
            log = stack.enter_context(destination(output))
            refused = None if rejects is None else stack.enter_context(destination(rejects))
            converted = convert_apart(
                export,
                conversion,
                Outputs(log.folder, _file_names, None if refused is None else (refused.folder, "rejects"), mode=mode),
                scratch=log.folder,
                workers=config.log.workers if config is not None else 0,
                digests=False,
                progress=progress,
                stop=stop,
            )
            # Only after the whole conversion was checked: an old output file stays until the new one is complete.
            log.deliver(_file_names().at(0))
            if refused is not None:
                refused.deliver("rejects" if converted.rejects else None)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else output
        folder = shlex.quote(str(output.absolute().parent))
        hint = f"ls -l {shlex.quote(str(export))}; ls -ld {folder}; df -h {folder}"
        raise PickupPointError(f"{where}: {error.strerror or error}", hint=hint) from error
    from ..publish.holds import ON_ONE_LINE, warnings

    tally, rules = converted.tally, made[0].conversion.rules
    notes = made[0].warnings + ([ON_ONE_LINE[1]] if converted.one_line else []) + warnings(tally, made[0].policy)
    if not made[0].key_known and (tally.not_an_address or rules.ip == "truncated" or rules.export_kind.identity):
        notes.append("there is no ip_hash.key, so the hashes in this file were made with a key that was thrown away")
    return ConvertedByHand(tally, notes)


def convert_command(
    export: Path, output: Path, rejects: Path | None, config: Config | None, *, json: bool = False
) -> None:
    """Do what ``pickup-point convert`` does, and print the result."""
    to_output = any(is_standard_output(path) for path in (output, rejects) if path is not None)
    if json and to_output:
        raise PickupPointError("standard output is taken twice: by --json and by -", hint="give a file instead of -")
    with progress_bars() as show:
        total = 0
        with contextlib.suppress(OSError):
            total = export.stat().st_size
        progress = None if show is None else lambda read: show(export.name, read, total)
        done = convert_by_hand(export, output, rejects, config, progress)
    tally = done.tally
    if json:
        from json import dumps  # only here: ``json`` is the option

        print(dumps(tally.as_json(), indent=2))
    else:
        print(f"{output}: {tally.lines} lines of {tally.rows} rows, {tally.filtered.total()} filtered, "
              f"{tally.rejected.total()} rejected", file=sys.stderr if to_output else None)  # fmt: skip
    for warning in done.warnings:
        print(f"pickup-point: {warning}", file=sys.stderr)


class _Made(NamedTuple):
    """What a conversion by hand needs, the rules for warnings about it, and warnings about its catalogue.

    ``key_known``: the hash key is the site's.
    """

    conversion: Conversion
    policy: HoldPolicy
    key_known: bool
    warnings: list[str]


def _make(export: Path, config: Config | None) -> _Made:
    """Return what a conversion of this export needs."""
    from ..convert.conversion import Conversion
    from ..publish.holds import HoldPolicy
    from ..triton import LogRules

    rules = config.log_rules if config is not None else LogRules()
    # An export's own name says which kind it is; if it does not, the configuration decides.
    rules = rules._replace(kind=next((name for name, at in _named(export.name) if at is not None), rules.kind))
    key, key_known = _hash_key(config)
    catalogue, notes = _catalogue(config)
    policy = HoldPolicy(tokens=config.log.tokens if config is not None else None)
    return _Made(Conversion(rules, key, catalogue, day_in(export.name)), policy, key_known, notes)


def _file_names() -> FileNames:
    """Return the names in the output's private folder; there is only one log."""
    from ..convert.messages import FileNames

    return FileNames("log-", 0, ".part")


def _check_apart(export: Path, outputs: list[Path]) -> None:
    """Refuse outputs that are the export, the same file, a folder, or in no folder, before anything is read.

    Raises:
        PickupPointError: naming the paths as they were typed.
    """
    if len(set(outputs)) < len(outputs):
        hint = "give --rejects another name"
        raise PickupPointError(f"the log and the rejected rows cannot both go to {outputs[0]}", hint=hint)
    for wanted in outputs:
        if is_standard_output(wanted):
            continue
        with contextlib.suppress(OSError):  # whoever opens it reports what is wrong
            if wanted.samefile(export):
                raise PickupPointError(f"{wanted} is the export itself", hint="give --output another name")
        folder = wanted.absolute().parent
        if not os.path.isdir(folder):  # noqa: PTH112  # unlike Path.is_dir, it raises nothing
            raise PickupPointError(
                f"there is no folder {folder} to write {wanted.name} to", hint=f"mkdir -p {shlex.quote(str(folder))}"
            )
        if os.path.isdir(wanted):  # noqa: PTH112
            raise PickupPointError(f"{wanted} is a folder", hint=f"give a file in it: {wanted / 'export.tsv.gz'}")


def _catalogue(config: Config | None) -> tuple[Catalogue | None, list[str]]:
    """Return the catalogue that the service would use now, and a warning if its ledger cannot be read.

    Raises:
        ConfigError: a file must be corrected.
    """
    if config is None:
        return None, []
    if config.feeds.configured:
        # Imported only here: without RSS feeds a conversion needs neither SQLite nor HTTP.
        from ..episodes.source import CatalogueSource
        from ..storage.ledger import LEDGER_FILE, Ledger
        from .privileges import as_owner

        try:
            # As its owner: SQLite may create a file beside it, which the service must be able to open.
            with as_owner(config), contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
                return CatalogueSource(config, ledger.rss).snapshot(), []
        except (LedgerError, DataFolderError) as error:
            notes = [f"the RSS feeds are not used: {error}"]
    else:
        notes = []
    if config.log.episodes is None:
        return None, notes
    from ..episodes.catalogue import load_catalogue  # only here: without one, a conversion starts sooner

    return load_catalogue(config.log.episodes), notes


def _hash_key(config: Config | None) -> tuple[bytes, bool]:
    """Return the site's key and True, or a random one and False if there is none."""
    keys_dir = config.keys_dir if config is not None else Path("keys")
    if not os.path.lexists(keys_dir / "ip_hash.key") and "CREDENTIALS_DIRECTORY" not in os.environ:
        return os.urandom(32), False
    from ..config import load_ip_hash_key  # only here: it loads the checks of a whole configuration

    with contextlib.suppress(ConfigError):
        return load_ip_hash_key(keys_dir), True
    return os.urandom(32), False


def day_in(name: str) -> date | None:
    """Return the day in an export's name: that after ``metrics-day-`` and the like, else the first one, or None."""
    return next((day for _, day in _named(name) if day is not None), _first_day(name, ""))


def _named(name: str) -> list[tuple[str, date | None]]:
    """Return (kind, day) for each kind of export: the day that follows the beginning of its file name, or None."""
    from ..megaphone.exports import KINDS

    return [(kind.name, _first_day(name, kind.file_name.partition("YYYY")[0])) for kind in KINDS.values()]


def _first_day(name: str, before: str) -> date | None:
    """Return the first day in a name that directly follows the text ``before``."""
    from ..megaphone.exports import calendar_day

    days = (calendar_day(match[1]) for match in re.finditer(rf"{before}(\d{{4}}-\d{{2}}-\d{{2}})", name, re.ASCII))
    return next((day for day in days if day is not None), None)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C end the conversion at once, and then the command."""
    before = {}
    # Only the main thread may set handlers (signal.signal).
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, lambda *_: stop.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
