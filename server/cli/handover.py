"""The handover: everything to send to Triton, from the configuration in force.

Touches the folder that it writes, the keys (read), and the newest export (read, for the sample). Promise: it writes no
secret, neither the password nor its hash nor ``ip_hash.key``; it warns of what is missing, and writes the rest.
"""

from __future__ import annotations

import gzip
import shlex
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..episodes.rss import safe_url
from ..errors import ConfigError, DataFolderError, LedgerError, PickupPointError
from ..megaphone.exports import METRICS
from ..megaphone.source import open_source
from ..paths import make_folder, write_file
from ..sftp.keys import known_hosts_lines, public_host_keys
from ..status.alarms import NOT_AGREED
from ..status.episodes import handover_lines
from ..status.words import activation_sheet
from ..triton import DEFAULT_URL
from .convert import convert_by_hand
from .privileges import as_owner

if TYPE_CHECKING:
    from ..megaphone.exports import ExportKind
    from ..settings import Config, ExportSettings, LogSettings
    from ..triton import ColumnSpec

_PRIVATE = 0o600  # the sample is listeners' data, and the rest goes with it
SAMPLE_ROWS = 1000  # of the newest export: enough to see every kind of row, without a whole day's listeners


@dataclass(frozen=True, slots=True)
class Handover:
    """The files that were written, and warnings about what is missing."""

    written: list[Path]
    warnings: list[str]


async def write_handover(config: Config, folder: Path) -> Handover:
    """Write the handover to a folder, which is created if it is missing.

    Raises:
        PickupPointError: it cannot be written.
    """
    warnings: list[str] = []
    written: list[Path] = []
    try:
        make_folder(folder)
        # As root only keys are read: an export may be a link to what neither the service nor Triton may see.
        sample = await _sample(config, folder, warnings)
        if sample is not None:
            written.append(sample)
        hosts = _known_hosts(config, warnings)
        if hosts:
            write_file(folder / "known_hosts", "".join(f"{line}\n" for line in hosts).encode(), _PRIVATE)
            written.append(folder / "known_hosts")
        if not config.export.agreed and config.export.export_kind.unknown:
            warnings.append(f"{config.export.export_kind.unknown} ({NOT_AGREED})")
        write_file(folder / "handover.md", _document(config, warnings, sample).encode(), _PRIVATE)
        written.append(folder / "handover.md")
    except OSError as error:
        quoted = shlex.quote(str(folder)), shlex.quote(str(folder.absolute().parent))
        hint = f"ls -ld {quoted[0]}; df -h {quoted[1]}"
        where = error.filename if isinstance(error.filename, str) else folder
        raise PickupPointError(f"cannot write {where}: {error.strerror or error}", hint=hint) from error
    return Handover(written, warnings)


def _known_hosts(config: Config, warnings: list[str]) -> list[str]:
    """Return the lines of a known_hosts file; without host keys, none and a warning."""
    try:
        return known_hosts_lines(public_host_keys(config.sftp, config.keys_dir), config.sftp.address or "127.0.0.1")
    except ConfigError as error:
        warnings.append(f"there are no host keys: {error.problems[0]} ({error.problems[0].cure})")
        return []


async def _sample(config: Config, folder: Path, warnings: list[str]) -> Path | None:
    """Convert the first rows of the newest export; return the log file, or None and a warning without an export."""
    with tempfile.TemporaryDirectory(prefix="pickup-point-") as scratch, tempfile.TemporaryFile() as whole:
        try:
            with as_owner(config):
                source = await open_source(config.export.place, config.export.export_kind)
                try:
                    exports = (await source.day_exports()).exports
                    if not exports:
                        warnings.append(f"there is no sample: {source.name} holds no export yet")
                        return None
                    newest = exports[max(exports)]
                    await source.fetch(newest, whole)
                finally:
                    await source.close()
            whole.seek(0)
            part = Path(scratch, config.export.export_kind.file_name.replace("YYYY-MM-DD", str(newest.day)))
            _first_rows(whole, part)
            target = folder / f"SAMPLE-{config.log.prefix}{newest.day:%Y%m%d}-00.{config.log.format}.gz"
            convert_by_hand(part, target, None, config, mode=_PRIVATE)
        except (PickupPointError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            warnings.append(f"there is no sample: {error}")
            return None
        return target


def _first_rows(whole: IO[bytes], part: Path) -> None:
    """Copy the first `SAMPLE_ROWS` rows of an export into another one."""
    with gzip.open(whole) as rows, gzip.open(part, "wb") as kept:
        for _, row in zip(range(SAMPLE_ROWS), rows, strict=False):
            kept.write(row if row.endswith(b"\n") else row + b"\n")


def _document(config: Config, warnings: list[str], sample: Path | None) -> str:
    sheet = "\n".join(f"| {label} | {_cell(answer)} |" for label, answer in activation_sheet(config))
    keys = ""
    with suppress(ConfigError):
        made = public_host_keys(config.sftp, config.keys_dir)
        keys = "\n".join(f"- `{key.public.split()[0]}` {key.fingerprint}" for key in made)
    prefix, kind = config.log.prefix, config.log.format
    return _TEXT.format(
        sheet=sheet,
        example=f"{prefix}20261120-00.{kind}.gz",
        late=f"{prefix}20261120-01.{kind}.gz",
        keys=keys or "(there are none yet: `pickup-point keygen`)",
        columns=column_table(config.log, config.export.export_kind),
        rules=rules_text(config.log, config.export.export_kind),
        export=config.export.export_kind.label,
        hours=config.export.export_kind.hours.format(final_at=f"{config.export.final_at:%H:%M}"),
        keep_days=config.retention.keep_days,
        sample=f"`{sample.name}`, of at most {SAMPLE_ROWS} rows" if sample is not None else "not made: " + warnings[-1],
        rss="\n".join(_rss_lines(config)),
        questions="\n".join(f"{number}. {text}" for number, text in enumerate(_questions(config.export), 1)),
    )


def _rss_lines(config: Config) -> list[str]:
    """Return the RSS feeds and how much of the newest day they match; without a ledger only the feeds."""
    with suppress(LedgerError, DataFolderError), as_owner(config):
        return handover_lines(config)
    return [f"- {safe_url(url)}" for url in config.feeds.urls] or ["(none is configured: set `feeds.urls`)"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_TEXT = """\
# Podcast logs by SFTP: what Triton Digital needs

Made by `pickup-point handover` from the configuration in force. It contains no secret; the password is handed over
separately, never in the same mail.

## Activation sheet

| label | answer |
|---|---|
{sheet}

There is one file for each UTC day, for example `{example}`. Rows that Megaphone adds later come once, in another file
of the same day: `{late}`. A name is never used twice, a file never changes, and it appears only once it is complete.
Files stay for {keep_days} days.

Times are UTC, in names and in lines. A day is final {hours}, and is published
soon after. Please pull at least once a day, leave the files where they are (deleting and renaming is
refused), and tell us the hour.

## Host keys

{keys}

The file `known_hosts` beside this one has them in OpenSSH's format.

## Columns

{columns}

A missing value is `-`. The source is Megaphone's {export}: one row sums up one download, it is not one HTTP request.
What is marked as derived is not in the export. {rules}

## Sample

{sample}. It contains listeners' data: use it to set up the import, and for nothing else.

## RSS feeds

{rss}

## To settle

{questions}

The data is for measurement only. Megaphone requires a measurement partner to use the data for nothing else; nobody may
try to reverse a hash.
"""


QUESTIONS = (
    "Are the columns and the header line as above what you need, or others? (`columns`, `header`, `format`)",
    "`rows`: are rows that Megaphone marked as bots or as blacklisted addresses left out, or sent?",
    "`tokens`: do lines count if their address reached us as a hash-like token, so that IP is `-` beside a keyed hash?",
    "`partial_status`: is a partial download 206 with a derived byte range, or always 200?",
    "`episode-guid`: is Megaphone's episode id the guid in the RSS feed, or is a catalogue of episodes needed?",
    "The list of RSS feeds.",
    "The hour of the daily pull, and that the client neither deletes nor renames what it has fetched.",
    "The first day to be counted.",
)


def _questions(export: ExportSettings) -> list[str]:
    """Return what to settle with Triton: first what nobody knows of this kind of export, unless it was agreed."""
    question = "" if export.agreed else export.export_kind.question
    return [f"{export.export_kind.label}: {question}", *QUESTIONS] if question else list(QUESTIONS)


def explained(log: LogSettings, kind: ExportKind = METRICS) -> dict[str, tuple[str, str]]:
    """Return, by derived value, the fields of the export that it comes from, and how; marked if it is derived."""
    known = _explained(log)
    if not kind.bytes_optional:
        return known
    lack = "`-` where the row has no filesize and no bytes_sent"
    sizes = "the enclosure's length in the RSS feed" if log.object_size == "rss" else "`-`"
    for name in ("bytes", "byte-range"):
        known[name] = (known[name][0], f"{lack}; else {known[name][1]}")
    known["status"] = (known["status"][0], f"derived: 200 {lack.removeprefix('`-` ')}; else {known['status'][1]}")
    known["object-size"] = ("filesize", f"{sizes} where the row has no filesize and no bytes_sent; else as it came")
    ours = f"of {', '.join(kind.identity)}, and of its number among equal rows"
    known["x-metric-id"] = ("id", f"as it came; in a row without one, HMAC-SHA-256 under our secret {ours}")
    known["Hashed-IP"] = ("ip", f"{known['Hashed-IP'][1]}; as far as it is known, every ip is a token")
    return known


def _explained(log: LogSettings) -> dict[str, tuple[str, str]]:
    truncated = log.ip == "truncated"
    partial = log.partial_status == 206
    url = log.url + (" or the URL of the episode catalogue" if log.url == DEFAULT_URL else "")
    hashed = "HMAC-SHA-256 under our secret: of the IPv4 address, of the IPv6 /64, or of the token"
    return {
        "date": ("created_at", "UTC day"),
        "start-time": ("created_at", "UTC, without the fraction; the only instant in a row"),
        "IP": ("ip", "IPv4 with a last octet of 0, IPv6 cut to /48" if truncated else "the whole address, or `-`"),
        "Hashed-IP": ("ip", hashed if truncated else f"`-` beside an address; else {hashed}"),
        "method": ("", "derived: always `GET`, audio was delivered"),
        "url": ("podcast_id, episode_id", f"derived: {url}"),
        "status": ("bytes_sent, filesize", "derived: 200 whole, 206 less" if partial else "derived: always 200"),
        "bytes": ("bytes_sent", "at most object-size" if log.bytes == "clamped" else "as it came"),
        "object-size": ("filesize", "as it came"),
        "byte-range": ("bytes_sent, filesize", "derived: `0-{bytes-1}` or `-`" if partial else "always `-`"),
        "episode-guid": ("episode_id", "the guid of the episode catalogue, else the episode_id"),
        "podcast-id": ("podcast_id", "as it came"),
        "x-metric-id": ("id", "as it came; what a log cannot hold is percent-encoded; a row always keeps it"),
        "user-agent": ("user_agent", "control characters become blanks, `\"` is `%22`, `\\` is `%5C`"
                       if log.text == "safe" and log.format == "tsv" else "percent-encoded"),
        "cs-uri-query": ("podcast_id, episode_id", "derived: what follows `?` in the URL, else `-`"),
    }  # fmt: skip


def column_table(log: LogSettings, kind: ExportKind = METRICS) -> str:
    """Return the columns in order, as a Markdown table."""
    known = explained(log, kind)
    lines = ["| # | column | from Megaphone's | how |", "|---|---|---|---|"]
    lines += [
        f"| {number} | `{spec.name}` | {source or 'nothing'} | {how} |"
        for number, spec in enumerate(log.log_rules.layout.specs, 1)
        for source, how in [_of(spec, known)]
    ]
    return "\n".join(lines)


def _of(spec: ColumnSpec, known: dict[str, tuple[str, str]]) -> tuple[str, str]:
    if spec.constant is not None:
        return "", f"always `{spec.constant}`"
    if spec.field is not None:
        return spec.field, "as it came, cleaned as user-agent is"
    return known[str(spec.value)]


def rules_text(log: LogSettings, kind: ExportKind = METRICS) -> str:
    """Return which rows become lines and how the file is written, in sentences."""
    rows = {
        "not-blacklisted": "Rows that Megaphone marked as bots or as blacklisted addresses are left out",
        "all": "All rows are sent, including those that Megaphone marked as bots",
        "reporting": "Only rows that Megaphone itself reports are sent: not blacklisted, and of at least 60 seconds",
    }[log.rows]
    header = {
        "plain": "the first line has the names of the columns",
        "comment": "the first line has the names of the columns, after a `#`",
        "none": "there is no header line",
    }[log.header]
    if log.format == "w3c":
        header = "the directives of the W3C format come before the first entry"
    if kind.delivery_types is not None:
        sent, left_out = kind.delivery_types
        rows = f"Rows whose `delivery_type` is `{left_out}`, not `{sent}`, are left out: plays inside an app. {rows}"
    return (
        f'{rows} (`rows = "{log.rows}"`); rows that transferred nothing are never sent. Each file is one gzip member, '
        f"UTF-8, tab-separated, lines end with `\\n`; {header}."
    )
