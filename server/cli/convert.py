"""One export converted by hand, outside any data folder: what ``pickup-point convert`` does.

Touches the export (read), the output file and, if asked for, a rejects file; both appear whole or not at all. It starts
the conversion process before it imports whatever else it needs: that halves its time.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..convert.apart import Outputs, convert_apart
from ..errors import ConfigError, LedgerError, PickupPointError
from .progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

    from ..convert.messages import FileNames
    from ..convert.row import Conversion
    from ..convert.tally import Tally
    from ..episodes.catalogue import Catalogue
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
) -> ConvertedByHand:
    """Convert one export by the configuration's ``[log]`` rules, or by the defaults without one.

    Raises:
        ExportTorn: the export is not a complete gzip file.
        PickupPointError: a file cannot be read or written.
    """
    for wanted in filter(None, (output, rejects)):
        if wanted.exists() and export.exists() and wanted.samefile(export):
            raise PickupPointError(f"{wanted} is the export itself", hint="give --output another name")
        if not wanted.absolute().parent.is_dir():
            folder = wanted.absolute().parent
            raise PickupPointError(f"there is no folder {folder} to write {wanted.name} to", hint=f"mkdir -p {folder}")
        if wanted.is_dir():
            raise PickupPointError(f"{wanted} is a folder", hint=f"give a file in it: {wanted / 'export.tsv.gz'}")
    token = os.urandom(4).hex()
    parts = {output: output.with_name(f".{output.name}.{token}.00.part")}
    if rejects is not None:
        parts[rejects] = rejects.with_name(f".{rejects.name}.{token}.rejects.part")
    # Filled by `conversion`, which is called once the process has started: both prepare at the same time.
    made: list[_Made] = []

    def conversion() -> Conversion:
        made.append(_make(export, config))
        return made[0].conversion

    stop = threading.Event()
    try:
        with _signals(stop):
            converted = convert_apart(
                export,
                conversion,
                Outputs(
                    output.absolute().parent,
                    lambda: _file_names(parts[output].name),
                    None if rejects is None else (rejects.absolute().parent, parts[rejects].name),
                    mode=0o666,
                ),
                scratch=output.absolute().parent,
                workers=config.log.workers if config is not None else 0,
                digests=False,
                progress=progress,
                stop=stop,
            )
        # Renamed only after the whole conversion was checked: an old output file stays until the new one is complete.
        for wanted, part in parts.items():
            if wanted == output or converted.rejects:
                part.replace(wanted)
    except OSError as error:
        where = error.filename or output
        hint = f"ls -l {export}; ls -ld {output.absolute().parent}; df -h"
        raise PickupPointError(f"{where}: {error.strerror or error}", hint=hint) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    from ..publish.holds import ON_ONE_LINE, HoldPolicy, warnings

    tally = converted.tally
    policy = HoldPolicy(tokens=config.log.tokens if config is not None else None)
    notes = made[0].warnings + ([ON_ONE_LINE[1]] if converted.one_line else []) + warnings(tally, policy)
    if not made[0].key_known and (tally.not_an_address or made[0].conversion.rules.ip == "truncated"):
        notes.append("there is no ip_hash.key, so the hashes in this file were made with a key that is not kept")
    return ConvertedByHand(tally, notes)


def convert_command(
    export: Path, output: Path, rejects: Path | None, config: Config | None, *, json: bool = False
) -> None:
    """Do what ``pickup-point convert`` does, and print the result."""
    with progress_bars() as show:
        total = export.stat().st_size if show is not None and export.exists() else 0
        progress = None if show is None else lambda read: show(export.name, read, total)
        done = convert_by_hand(export, output, rejects, config, progress)
    tally = done.tally
    if json:
        import orjson

        print(orjson.dumps(tally.as_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        print(f"{output}: {tally.lines} lines of {tally.rows} rows, {tally.filtered.total()} filtered, "
              f"{tally.rejected.total()} rejected")  # fmt: skip
    for warning in done.warnings:
        print(f"pickup-point: {warning}", file=sys.stderr)


class _Made(NamedTuple):
    """The rules of a conversion by hand, whether its hash key is the site's, and warnings about its catalogue."""

    conversion: Conversion
    key_known: bool
    warnings: list[str]


def _make(export: Path, config: Config | None) -> _Made:
    """Return what a conversion of this export needs."""
    from ..convert.row import Conversion
    from ..triton import LogRules

    rules = config.log.log_rules if config is not None else LogRules()
    key, key_known = _hash_key(config)
    catalogue, notes = _catalogue(config)
    return _Made(Conversion(rules, key, catalogue, day_in(export.name)), key_known, notes)


def _file_names(part: str) -> FileNames:
    """Return the names that make this part the first file."""
    from ..convert.messages import FileNames

    return FileNames(part.removesuffix("00.part"), 0, ".part")


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

        try:
            with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
                return CatalogueSource(config, ledger.rss).snapshot(), []
        except LedgerError as error:
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
    if not (keys_dir / "ip_hash.key").exists() and "CREDENTIALS_DIRECTORY" not in os.environ:
        return os.urandom(32), False
    from ..config import load_ip_hash_key  # only here: it loads the checks of a whole configuration

    with contextlib.suppress(ConfigError):
        return load_ip_hash_key(keys_dir), True
    return os.urandom(32), False


def day_in(name: str) -> date | None:
    """Return the day of an export's name: that of ``metrics-day-…``, wherever it stands, else the first one in it."""
    from datetime import date

    for pattern in (r"metrics-day-(\d{4}-\d{2}-\d{2})", r"(\d{4}-\d{2}-\d{2})"):
        for match in re.finditer(pattern, name, re.ASCII):
            with contextlib.suppress(ValueError):
                return date.fromisoformat(match[1])
    return None


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
