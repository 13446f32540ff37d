"""One export converted by hand, outside any data folder: what ``pickup-point convert`` does.

Touches the export (read), the output file and, if asked for, a rejects file. Promise: both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import tempfile
import threading
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..config import IP_HASH_KEY, load_ip_hash_key
from ..convert.day import convert_export
from ..convert.row import Conversion
from ..errors import ConfigError, LedgerError, PickupPointError
from ..publish.holds import HoldPolicy, warnings
from ..triton import LogRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..convert.tally import Tally
    from ..episodes.catalogue import Catalogue
    from ..settings import Config


@dataclass(frozen=True, slots=True)
class ConvertedByHand:
    """The tally of a conversion, and the warnings about it."""

    tally: Tally
    warnings: list[str]


class _OutputFiles:
    """The sink of a conversion by hand: one log, and the rejected rows if they are wanted."""

    def __init__(self, output: Path, rejects: Path | None) -> None:
        self._wanted = {"log": output, "rejects": rejects}
        self._written: dict[str, Path] = {}

    def restart(self) -> None:
        for path in self._written.values():
            path.unlink(missing_ok=True)
        self._written.clear()

    def open_log(self, index: int) -> BinaryIO:
        assert index == 0  # noqa: S101  # max_rows_per_file is not used by hand
        return self._open("log")

    def open_rejects(self) -> BinaryIO:
        return self._open("rejects")

    def _open(self, kind: str) -> BinaryIO:
        wanted = self._wanted[kind]
        if wanted is None:
            return open(os.devnull, "wb")  # noqa: PTH123  # Path has no null device
        # Beside the wanted file, so that `keep` can rename it; with a name of its own, so that two commands can run.
        part = wanted.with_name(f".{wanted.name}.{secrets.token_hex(4)}.part")
        self._written[kind] = part
        return part.open("xb")

    def keep(self) -> None:
        """Move what was written to the names that were asked for."""
        for kind, part in self._written.items():
            wanted = self._wanted[kind]
            assert wanted is not None  # noqa: S101  # only wanted files are written
            part.replace(wanted)
        self._written.clear()


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
    rules = config.log.log_rules if config is not None else LogRules()
    key, key_known = _hash_key(config)
    catalogue, notes = _catalogue(config)
    conversion = Conversion(rules, key, catalogue, _day_in(export.name))
    files = _OutputFiles(output, rejects)
    stop = threading.Event()
    try:
        with _signals(stop), tempfile.TemporaryDirectory(prefix="pickup-point-") as scratch:
            converted = convert_export(
                export,
                conversion,
                files,
                scratch=Path(scratch),
                workers=config.log.workers if config is not None else 0,
                progress=progress,
                stop=stop,
            )
        files.keep()
    except OSError as error:
        where = error.filename or output
        hint = f"ls -l {export}; ls -ld {output.absolute().parent}; df -h"
        raise PickupPointError(f"{where}: {error.strerror or error}", hint=hint) from error
    finally:
        files.restart()
    tally = converted.tally
    policy = HoldPolicy(tokens=config.log.tokens if config is not None else None)
    notes += warnings(tally, policy)
    if not key_known and (tally.not_an_address or rules.ip == "truncated"):
        notes.append(f"there is no {IP_HASH_KEY}, so the hashes in this file were made with a key that is not kept")
    return ConvertedByHand(tally, notes)


def _catalogue(config: Config | None) -> tuple[Catalogue | None, list[str]]:
    """Return the catalogue that the service would use now, and a warning if its ledger cannot be read.

    Raises:
        ConfigError: a file has to be corrected.
    """
    if config is None:
        return None, []
    if config.feeds.configured:
        # Imported only here: without RSS feeds a conversion needs neither SQLite nor HTTP.
        from ..episodes.source import CatalogueSource
        from ..storage.ledger import Ledger

        try:
            with contextlib.closing(Ledger.read(config.data_dir / "ledger.sqlite3")) as ledger:
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
    if not (keys_dir / IP_HASH_KEY).exists() and "CREDENTIALS_DIRECTORY" not in os.environ:
        return secrets.token_bytes(32), False
    with contextlib.suppress(ConfigError):
        return load_ip_hash_key(keys_dir), True
    return secrets.token_bytes(32), False


def _day_in(name: str) -> date | None:
    """Return the first day that an export's name contains, or None."""
    for match in re.finditer(r"\d{4}-\d{2}-\d{2}", name, re.ASCII):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(match[0])
    return None


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the workers at once, and then the command."""
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
