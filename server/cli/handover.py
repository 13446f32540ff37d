"""The handover: everything to send to Triton, from the configuration in force.

Touches the folder that it writes, the keys (read), the ledger (read), and the newest final export (read, for the
sample). Promise: it writes no secret, neither the password nor its hash nor ``ip_hash.key``; it warns about what is
missing, and writes the rest.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import shlex
import tempfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from markdown_it import MarkdownIt

from ..episodes.rss import safe_url
from ..errors import ConfigError, DataFolderError, LedgerError, PickupPointError
from ..megaphone.source import open_source
from ..paths import make_folder, write_file
from ..sftp.keys import known_hosts_lines, public_host_keys
from ..status.alarms import NOT_AGREED
from ..status.episodes import handover_lines
from ..status.words import reads_from_store_alone
from ..storage.ledger import LEDGER_FILE, Ledger
from .convert import convert_by_hand
from .handover_document import SAMPLE_ROWS, Material, Volume, document
from .privileges import as_owner

if TYPE_CHECKING:
    from datetime import date

    from ..settings import Config
    from ..storage.records import LedgerLog

_PRIVATE = 0o600  # the sample is listeners' data, and the rest goes with it
VOLUME_DAYS = 7  # published days from which the expected volume is computed


@dataclass(frozen=True, slots=True)
class Handover:
    """The files written, and warnings about what is missing, each with a hint."""

    written: list[Path]
    warnings: list[PickupPointError]


async def write_handover(config: Config, folder: Path) -> Handover:
    """Write the handover to a folder, which is created if it is missing.

    Raises:
        PickupPointError: it cannot be written.
    """
    now = datetime.now(UTC)
    warnings = lacks_of(config)
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        write_file(folder / name, text.encode(), _PRIVATE)
        written.append(folder / name)

    try:
        make_folder(folder)
        # As root, only keys are read: an export may be a link to something that neither the service nor Triton may see.
        sample = await _sample(config, folder, warnings)
        if sample is not None:
            written.append(sample)
        hosts = [] if reads_from_store_alone(config) else _known_hosts(config, warnings)
        if hosts:
            write("known_hosts", "".join(f"{line}\n" for line in hosts))
        keys = _fingerprints(config)
        material = Material(keys, sample.name if sample else "", _rss_lines(config), _volumes(config))
        text = document(config, material, now)
        write("handover.md", text)
        write("handover.html", as_html(text))
    except OSError as error:
        quoted = shlex.quote(str(folder)), shlex.quote(str(folder.absolute().parent))
        hint = f"ls -ld {quoted[0]}; df -h {quoted[1]}"
        where = error.filename if isinstance(error.filename, str) else folder
        raise PickupPointError(f"cannot write {where}: {error.strerror or error}", hint=hint) from error
    return Handover(written, warnings)


def lacks_of(config: Config) -> list[PickupPointError]:
    """Return what the configuration does not say although Triton needs it."""
    alone = reads_from_store_alone(config)
    wanted = (
        ("the publisher's name is missing", "publisher.name", config.publisher.name),
        ("nobody is named whom Triton can ask", "publisher.contacts", config.publisher.contacts),
        ("the address at which Triton reaches this machine is missing", "sftp.address", alone or config.sftp.address),
        ("the region of the store's bucket is missing", "store.region", config.store is None or config.store.region),
        ("the list of RSS feeds is missing", "feeds.urls", config.feeds.configured),
    )
    found = [PickupPointError(sentence, hint=f"set {key}") for sentence, key, there in wanted if not there]
    if not config.export.agreed and config.export.export_kind.unknown:
        found.append(PickupPointError(config.export.export_kind.unknown, hint=NOT_AGREED))
    if not alone and not any(user.required for user in config.sftp.users):
        hint = "set required = true for the partner's users"
        found.append(PickupPointError("all users are on the sheet, since nobody's pickups are required", hint=hint))
    return found


def _fingerprints(config: Config) -> list[tuple[str, str]]:
    """Return (algorithm, fingerprint) of each host key that clients are offered; none if they are not made yet.

    `_known_hosts` warns about that.
    """
    with contextlib.suppress(ConfigError):
        keys = public_host_keys(config.sftp, config.keys_dir)
        return [(key.public.split()[0], key.fingerprint) for key in keys]
    return []


def _volumes(config: Config) -> list[Volume]:
    """Return what was published for the last days, newest first; nothing without a ledger."""
    with contextlib.suppress(LedgerError, DataFolderError), as_owner(config):
        with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
            publications = ledger.live_publications()
        by_day: dict[date, list[LedgerLog]] = {}
        for publication in publications:
            if publication.published_at is not None:
                standing = [entry for entry in publication.logs if entry.superseded_by is None]
                by_day.setdefault(publication.day, []).extend(standing)
        days = [by_day[day] for day in sorted(by_day, reverse=True)[:VOLUME_DAYS] if by_day[day]]
        return [Volume(len(logs), sum(log.size for log in logs), sum(log.lines for log in logs)) for logs in days]
    return []


def _known_hosts(config: Config, warnings: list[PickupPointError]) -> list[str]:
    """Return the lines of a known_hosts file; without host keys, none and a warning."""
    try:
        return known_hosts_lines(public_host_keys(config.sftp, config.keys_dir), config.sftp.address or "127.0.0.1")
    except ConfigError as error:
        problem = error.problems[0]
        warnings.append(PickupPointError(f"there are no host keys: {problem}", hint=problem.cure))
        return []


async def _sample(config: Config, folder: Path, warnings: list[PickupPointError]) -> Path | None:
    """Convert the first rows of the newest final export; return the log file, or None and a warning without one."""
    with tempfile.TemporaryDirectory(prefix="pickup-point-") as scratch, tempfile.TemporaryFile() as whole:
        try:
            with as_owner(config):
                source = await open_source(config.export.place, config.export.export_kind)
                try:
                    listing = await source.day_exports()
                    final = [
                        export
                        for day, export in listing.exports.items()
                        if config.export.finality.state(day, export, listing.now, listing.markers.get(day)) == "due"
                    ]
                    if not final:
                        lack = "holds no final day yet" if listing.exports else "holds no export yet"
                        warnings.append(PickupPointError(f"there is no sample: {source.name} {lack}"))
                        return None
                    newest = max(final)
                    await source.fetch(newest, whole)
                finally:
                    await source.close()
            whole.seek(0)
            part = Path(scratch, config.export.export_kind.file_name.replace("YYYY-MM-DD", str(newest.day)))
            _first_rows(whole, part)
            target = folder / f"SAMPLE-{config.log.prefix}{newest.day:%Y%m%d}-00.{config.log.format}.gz"
            convert_by_hand(part, target, None, config, mode=_PRIVATE)
        except (PickupPointError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            hint = error.hint if isinstance(error, PickupPointError) else ""
            warnings.append(PickupPointError(f"there is no sample: {error}", hint=hint))
            return None
        return target


def _first_rows(whole: IO[bytes], part: Path) -> None:
    """Copy the first `SAMPLE_ROWS` rows of an export into another one."""
    with gzip.open(whole) as rows, gzip.open(part, "wb") as kept:
        for _, row in zip(range(SAMPLE_ROWS), rows, strict=False):
            kept.write(row if row.endswith(b"\n") else row + b"\n")


def _rss_lines(config: Config) -> list[str]:
    """Return the RSS feeds and how much of the newest day they match; without a ledger only the feeds."""
    with contextlib.suppress(LedgerError, DataFolderError), as_owner(config):
        return handover_lines(config)
    return [f"- {safe_url(url)}" for url in config.feeds.urls]


def as_html(text: str) -> str:
    """Return a Markdown document as one self-contained HTML page, to be mailed or printed."""
    # HTML in the Markdown stays text: a column's constant may look like it.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    title = text.partition("\n")[0].removeprefix("# ")
    return _PAGE.format(title=html.escape(title.replace("\\", "")), style=_STYLE, body=body)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""
_STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { margin-top: 2rem; padding-bottom: .2rem; border-bottom: 1px solid #d0d7de; font-size: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .35rem .6rem; border: 1px solid #d0d7de; text-align: left; vertical-align: top; }
th { background: #f6f8fa; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em; }
td:first-child code { white-space: nowrap; }
code { overflow-wrap: anywhere; }
pre { padding: .7rem; tab-size: 4; background: #f6f8fa; white-space: pre-wrap; overflow-wrap: anywhere; }
li { margin: .25rem 0; }
@page { margin: 16mm; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  tr, li, pre { break-inside: avoid; }
}
"""
