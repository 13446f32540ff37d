"""The columns, explained: where each comes from, and what in it is derived.

Says to people what `row` does; a test holds it against every value that a column can have. No outside world.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..triton import DEFAULT_URL

if TYPE_CHECKING:
    from ..settings import LogSettings
    from ..triton import ColumnSpec

QUESTIONS = (
    "The columns and the header line as above, or others? (`columns`, `header`, `format`)",
    "`rows`: are rows that Megaphone marked as bots or as blacklisted addresses left out, or sent?",
    "`tokens`: do lines count whose address came to us as a hash-like token, so that IP is `-` beside a keyed hash?",
    "`partial_status`: is a partial download 206 with a derived byte range, or always 200?",
    "`episode-guid`: is Megaphone's episode id the guid in the RSS feed, or is a catalogue of episodes needed?",
    "The list of RSS feeds.",
    "The hour of the daily pull, and that the client neither deletes nor renames what it has fetched.",
    "The first day to be counted.",
)


def explained(log: LogSettings) -> dict[str, tuple[str, str]]:
    """By derived value: the fields of the export that it comes from, and how, with what is derived marked so."""
    truncated = log.ip == "truncated"
    partial = log.partial_status == 206
    url = log.url + (" or the URL of the episode catalogue" if log.url == DEFAULT_URL else "")
    hashed = "HMAC-SHA-256 under our secret: of the IPv4 address, of the IPv6 /64, or of the token"
    return {
        "date": ("created_at", "UTC day"),
        "start-time": ("created_at", "UTC, fraction cut off; the one instant there is"),
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
        "x-metric-id": ("id", "as it came; the same row has it for ever"),
        "user-agent": ("user_agent", "control characters become blanks, `\"` is `%22`, `\\` is `%5C`"
                       if log.text == "safe" and log.format == "tsv" else "percent-encoded"),
        "cs-uri-query": ("podcast_id, episode_id", "derived: what follows `?` in the URL, else `-`"),
    }  # fmt: skip


def column_table(log: LogSettings) -> str:
    """The columns in order, as a table in Markdown."""
    known = explained(log)
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


def rules_text(log: LogSettings) -> str:
    """Which rows become lines, and how the file is written, in sentences."""
    rows = {
        "not-blacklisted": "Rows that Megaphone marked as bots or as blacklisted addresses are left out",
        "all": "All rows are sent, those that Megaphone marked as bots among them",
        "reporting": "Only rows that Megaphone itself reports are sent: not blacklisted, and of at least 60 seconds",
    }[log.rows]
    header = {
        "plain": "the first line holds the names of the columns",
        "comment": "the first line holds the names of the columns, behind a `#`",
        "none": "there is no header line",
    }[log.header]
    if log.format == "w3c":
        header = "the directives of the W3C format stand before the first entry"
    return (
        f'{rows} (`rows = "{log.rows}"`); rows that transferred nothing are never sent. Each file is one gzip member, '
        f"UTF-8, tab-separated, lines end with `\\n`; {header}."
    )
