"""What Triton's engineer reads: the document of a handover, from the configuration in force.

Returns Markdown. Pure: what comes from outside (keys, the ledger, the sample) is handed in. Promise: its words are
Triton's and Megaphone's, never the names of our settings, and it holds nothing about a listener.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from ..convert.conversion import Conversion
from ..convert.row import RowConverter
from ..convert.tally import RowRejected
from ..episodes.catalogue import Catalogue, Episode
from ..megaphone.exports import DELIVERY_V2, METRICS, start_of
from ..sftp.algorithms import Profile
from ..status.words import activation_sheet, partner_users, reads_from_store_alone, size_text
from ..triton import COUNTED_DAYS, DEFAULT_URL, DerivedValue, LogFormat, LogName, UrlTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..megaphone.exports import ExportKind
    from ..settings import Config, ExportSettings, LogSettings
    from ..triton import ColumnSpec

SAMPLE_ROWS = 1000  # of an export: enough to show every kind of row, without a whole day's listeners
EXAMPLE_DAY = date(2026, 11, 20)
_EPISODE = "c2a1f3d6-c513-11f0-9a4e-0242ac120002"
_AT_MEGAPHONE = "EXM1234567890"
# A made-up download, for an example that shows no listener; the address is one for documentation (RFC 5737).
EXAMPLE_ROW = {
    "id": "5f0d6a3e-9c1b-4e57-8a20-2f6c1d7b9e44",
    "podcast_id": "b91e4c08-c513-11f0-9a4e-0242ac120002",
    "episode_id": _EPISODE,
    "created_at": "2026-11-20T15:19:12.000Z",
    "ip": "203.0.113.77",
    "user_agent": "Podcasts/1650.20 CFNetwork/1333.0.4 Darwin/21.5.0",
    "normalized_user_agent": "Apple Podcasts",
    "filesize": 67332401,
    "bytes_sent": 1679360,
    "seconds_downloaded": 105,
    "duration": 4208,
    "country": "US",
    "region": "TX",
    "city": "Dallas",
    "dma_name": "Dallas-Ft. Worth, TX",
    "blacklisted_ip": False,
    "blacklisted_ua": False,
    "source": 0,
}
# The same for a kind whose rows have neither an id nor sizes, and a token in place of an address.
_WITHOUT_BYTES = {
    **{name: value for name, value in EXAMPLE_ROW.items() if name in DELIVERY_V2.identity},
    "ip": "00112233445566778899aabbccddeeff",
    "delivery_type": "download",
    "media_type": "audio",
}
_EXAMPLE_EPISODE = Episode(_EPISODE, "", _AT_MEGAPHONE, f"https://traffic.megaphone.fm/{_AT_MEGAPHONE}.mp3", "67332401")


class Volume(NamedTuple):
    """What was published for a day: how many files, and their bytes and lines in total."""

    files: int
    size: int
    lines: int


class Material(NamedTuple):
    """What the document needs besides the configuration.

    ``host_keys`` are (algorithm, fingerprint) pairs; ``sample`` is a file's name or ''; ``rss`` are lines of Markdown;
    ``volumes`` are those of the last published days.
    """

    host_keys: Sequence[tuple[str, str]] = ()
    sample: str = ""
    rss: Sequence[str] = ()
    volumes: Sequence[Volume] = ()


def document(config: Config, material: Material, now: datetime) -> str:
    """Return the document in Markdown."""
    name, log, kind = config.publisher.name, config.log, config.export.export_kind
    by, secret = ("in S3", "the access keys are") if reads_from_store_alone(config) else ("by SFTP", "the password is")
    return _TEXT.format(
        title=f"Podcast logs {by}{f' from {_plain(name)}' if name else ''}, for Triton Digital",
        today=_day_text(now.date()),
        secret=secret,
        sheet=_table(("label", "answer"), _sheet(config)),
        store=_store_text(config),
        contacts="\n".join(f"- {line}" for line in _contacts(config)),
        connecting=_sftp_text(config, material),
        hours=kind.hours.format(final_at=f"{kind.final_at:%H:%M}"),
        day=_day_text(EXAMPLE_DAY),
        times=_table(
            ("when", "what"),
            [
                *_appears(config.export, _code(_name(log))),
                (_at_text(start_of(EXAMPLE_DAY) + COUNTED_DAYS), _TOO_LATE),
            ],
        ),
        late=_code(_name(log, 1)),
        pull_every=_span(config.alerts.pull_every),
        name=_code(_name(log)),
        format="W3C Extended Log File Format" if log.format == "w3c" else "Tab-separated values",
        header=_header(log),
        split=_split(log),
        volume=_volume_text(material.volumes),
        keep_days=config.retention.keep_days,
        columns=column_table(log, kind),
        export=kind.label,
        rows=_rows(log, kind),
        example=_example(log, kind),
        hashing=_hashing(log),
        sample=_SAMPLE.format(name=_code(material.sample), rows=SAMPLE_ROWS) if material.sample else "It follows.",
        rss="\n".join(material.rss or ["The list follows."]),
        questions="\n".join(f"{number}. {text}" for number, text in enumerate(questions(config), 1)),
    )  # fmt: skip


def _sftp_text(config: Config, material: Material) -> str:
    """Return the section about the server; '' if the partner does not read from it."""
    if reads_from_store_alone(config):
        return ""
    return _SFTP.format(
        connecting="\n".join(f"- {line}" for line in _connecting(config)),
        algorithms=_algorithms(config),
        host_keys="\n".join(f"- `{kind}` `{hashed}`" for kind, hashed in material.host_keys) or "- They follow.",
    )


def _store_text(config: Config) -> str:
    """Return the section about the bucket, with its reader's policy; '' if the logs are not in one."""
    if config.store is None:
        return ""
    place = config.store.place
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": place.arn,
                "Condition": {"StringLike": {"s3:prefix": [place.prefix, f"{place.prefix}*"]}},
            },
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{place.objects_arn}/{place.prefix}*"},
        ],
    }
    title, where, choice = "The bucket", f"is in `{place}/`, under its name", ""
    if not reads_from_store_alone(config):
        title, where = "The same logs in S3", f"is also in `{place}/`, under the same name and with the same bytes"
        choice = " Read\neither from there or by SFTP, not both: each name must be processed only once."
    policy_text = json.dumps(policy, indent=2)
    return _STORE.format(title=title, where=where, choice=choice, prefix=place.prefix, policy=policy_text)


_STORE = """\
## {title}

Every file {where}: Content-Type `application/gzip`, no
Content-Encoding, its SHA-256 and its time of publication as metadata (`sha256`; `mtime`, seconds since 1970). An object
appears once it is complete, is never overwritten, and is removed when the file is. There is nothing else there. List it
with the prefix `{prefix}`, slash included: no other is allowed.{choice}

The policy of the reader's access keys, which are handed over separately:

```json
{policy}
```

"""
_SFTP = """\
## Connecting

{connecting}

{algorithms}

The host keys, also in the accompanying file `known_hosts`:

{host_keys}

"""
_TOO_LATE = "the day's first sessions are three days old: what has not reached you by then is not counted"
_TEXT = """\
# {title}

As of {today}. This document contains no secret: {secret} handed over separately.

## Activation sheet

{sheet}

{store}## Publisher and contacts

{contacts}

{connecting}## When files appear, and how long they count

All times are UTC, in file names and in lines. A day is final {hours}. For the sessions of {day}:

{times}

Rows that Megaphone adds to a day after its first file are sent once, in a further file for the day ({late}), within the
three days. So please pull at least every {pull_every}, and fetch every name that you have not seen.

## Files

- **Names.** {name}: prefix, date, and a number that counts from 00. {split} A name is never used a second time.
- **Whole.** A file appears only once it is complete. After that its content, size and modification time never change,
  and a newer file has a newer time.
- **Format.** {format} in UTF-8, compressed as one gzip member; lines end with `\\n`. {header} A missing value is `-`.
- **Expected volume.** {volume}
- **Removal.** A file is removed {keep_days} days after it was published.

## Columns

{columns}

The source is Megaphone's {export}. One row sums up one download; it is not one HTTP request. Values marked as derived
are not in the export. {rows}

## One line, cell by cell

The listener, the show and the episode are made up.

{example}

{hashing}## Sample

{sample}

## RSS feeds

{rss}

## What we need from you

{questions}

## Use of the data

The data is for measurement only. Megaphone requires that a measurement partner uses it for nothing else, and nobody may
try to reverse a hash.
"""
_SAMPLE = """\
{name} is made from the first {rows:,} rows of a final day, in the same way as its log. It contains listeners' data: use
it to set up the import, and for nothing else."""
_HASHING = """\
## Hashed-IP

{when} It is the HMAC-SHA-256, under a secret key of ours, of {what}: 64 lower-case hexadecimal digits. A listener has
the same hash in every file, on every day.

"""
# By the setting `rows`: what we do, and what we ask.
_ROWS = {
    "not-blacklisted": (
        "Rows that Megaphone marked as bots or as blacklisted addresses are left out.",
        "We leave out the downloads that Megaphone marked as bots. Is that right, or do you filter them yourselves?",
    ),
    "all": (
        "All rows are sent, including those that Megaphone marked as bots.",
        "We also send the downloads that Megaphone marked as bots. Do you filter them yourselves?",
    ),
    "reporting": (
        "Only rows that Megaphone itself reports are sent: not blacklisted, and of at least 60 seconds.",
        "We send only what Megaphone itself counts. Is that right, or do you apply your own rules to all downloads?",
    ),
}


def _sheet(config: Config) -> list[tuple[str, str]]:
    """Return the activation sheet; without a public address, or the bucket's region, it says that one follows."""
    known = dict(activation_sheet(config))
    if config.sftp.address is None and "Server address" in known:
        known["Server address"] = "It follows."
    if config.store is not None and config.store.region is None:
        known["S3 region"] = "It follows."
    return [(label, _plain(answer)) for label, answer in known.items()]


def _contacts(config: Config) -> list[str]:
    who = [f"Publisher: {_plain(config.publisher.name)}"] if config.publisher.name else []
    return [*who, *(f"Contact: {_plain(contact)}" for contact in config.publisher.contacts)] or ["They follow."]


def _connecting(config: Config) -> list[str]:
    """Return, line by line, how to log in, from where, and what a client may do."""
    users = partner_users(config)
    networks = sorted({str(network) for user in users for network in user.allow_from})
    addresses = "Tell us which addresses your client connects from: we will admit no others."
    if all(user.allow_from for user in users):
        addresses = f"We admit only {', '.join(map(_code, networks))}. Tell us before your client's addresses change."
    key = "We prefer it to a password: send us your public key in OpenSSH's format."
    if any(user.authorized_keys for user in users):
        key = "Your public key is registered."
    most = f"{config.sftp.max_connections_per_address} connections from one address"
    most += f" and {config.sftp.max_sessions_per_user} sessions of one user"
    return [
        f"**Your addresses.** {addresses}",
        f"**Login with a key.** {key} It may be Ed25519, ECDSA, or RSA (with SHA-2 signatures).",
        "**What a client may do.** List `/`, stat, and read. Everything else (delete, rename, upload) is refused.",
        f"**In parallel.** Up to {most}. Downloads may be resumed, or split into parallel ranges.",
    ]


def _algorithms(config: Config) -> str:
    profile = Profile.of(legacy=config.sftp.legacy_algorithms, chacha20=config.sftp.chacha20)
    lists = (
        ("Key exchange", profile.kex),
        ("Host keys", profile.host_keys),
        ("Ciphers", profile.ciphers),
        ("MACs", profile.macs),
        ("Signatures of a client's key", profile.signatures),
    )
    return _table(("SSH", "what we offer"), [(what, ", ".join(map(_code, names))) for what, names in lists])


def _appears(export: ExportSettings, log: str) -> list[tuple[str, str]]:
    """Return (when, what happens then) for the example day: it is final, its ``log`` usually appears, at the latest."""
    given_up = _at_text(start_of(EXAMPLE_DAY) + export.give_up_waiting)
    last = given_up, "at the latest, what Megaphone has delivered is published as it stands"
    if export.finality.marked:
        # Megaphone's own hour: when we call a day overdue does not concern Triton.
        marked = export.finality._replace(final_at=export.export_kind.final_at).final_time(EXAMPLE_DAY)
        return [
            (f"{_at_text(marked)}, or about an hour later", "Megaphone has marked its export of the day as final"),
            (f"within {_span(export.poll_every)} after that", f"{log} is made; it appears once it is whole"),
            last,
        ]
    final = export.finality.final_time(EXAMPLE_DAY)
    return [
        (_at_text(final), "Megaphone's export of the day counts as final, at the earliest"),
        (f"by about {_at_text(final + export.settle + export.poll_every)}", f"{log} appears, on an ordinary day"),
        last,
    ]


def _header(log: LogSettings) -> str:
    if log.format == "w3c":
        return "The directives (`#Version`, `#Software`, `#Start-Date`, `#Fields`) come before the first entry."
    return {
        "plain": "The first line has the names of the columns.",
        "comment": "The first line has the names of the columns, after a `#`.",
        "none": "There is no header line.",
    }[log.header]


def _split(log: LogSettings) -> str:
    if not log.max_rows_per_file:
        return "There is one file for each UTC day, and a further one only for late rows."
    most = f"{log.max_rows_per_file:,} lines"
    return f"A UTC day with more than {most} has several files, which appear together."


def _volume_text(volumes: Sequence[Volume]) -> str:
    if not volumes:
        return "Usually one file a day. Its size is not known yet."
    count, sizes = len(volumes), [volume.size for volume in volumes]
    files, lines = max(volume.files for volume in volumes), sum(volume.lines for volume in volumes) // count
    days = "On the last day that was published" if count == 1 else f"On the last {count} days that were published"
    return (
        f"{days}: {'one file' if files == 1 else f'up to {files} files'} a day, {size_text(sum(sizes) // count)} "
        f"compressed on average and {size_text(max(sizes))} at most, about {lines:,} lines."
    )


def _rows(log: LogSettings, kind: ExportKind) -> str:
    """Return which rows become lines, in sentences."""
    nothing = "Rows that say they transferred nothing" if kind.bytes_optional else "Rows that transferred nothing"
    said = f"{_ROWS[log.rows][0]} {nothing} are never sent."
    if kind.bytes_optional:
        said += " Rows that do not say how much they transferred are sent."
    if kind.delivery_types is not None:
        sent, left_out = kind.delivery_types
        said += f" Rows whose delivery_type is {_code(left_out)}, not {_code(sent)}, are left out: plays inside an app."
    return said


class _Column(NamedTuple):
    """A derived value: its format, the export's fields that it comes from, how, and the example in words."""

    format: str
    source: str
    how: str
    reads: str


def explained(log: LogSettings, kind: ExportKind = METRICS) -> dict[str, _Column]:
    """Return what there is to know about each derived value, marked as derived if it is not in the export."""
    known = _explained(log)
    if not kind.bytes_optional:
        return known
    lack = "if the row has no filesize and no bytes_sent"
    none = size = "`-`", "the row has none"
    if log.object_size == "rss":
        size = "the enclosure's length in the RSS feed", "the file's size in the RSS feed"
    for name, (cell, reads) in {"bytes": none, "object-size": size, "byte-range": none}.items():
        usual = known[name]
        form = f"{usual.format.partition(',')[0]}, or `-`"
        known[name] = usual._replace(format=form, how=f"{cell} {lack}; else {usual.how}", reads=reads)
    status, hashed = known["status"], known["Hashed-IP"]
    known["status"] = status._replace(
        how=f"derived: 200 {lack}; else {status.how.removeprefix('derived: ')}", reads="audio was delivered"
    )
    ours = f"of {', '.join(kind.identity)}, and of its number among equal rows"
    known["x-metric-id"] = known["x-metric-id"]._replace(
        how=f"Megaphone's id of the row; for a row without one, the HMAC-SHA-256 under our secret {ours}",
        reads="our name for this download, since Megaphone's row has none",
    )
    known["IP"] = known["IP"]._replace(reads="no address, since Megaphone's row has a token for it")
    known["Hashed-IP"] = hashed._replace(
        how=f"{hashed.how}; as far as is known, every ip is a token",
        reads="the hash of Megaphone's token, here under an example key",
    )
    return known


def _explained(log: LogSettings) -> dict[str, _Column]:
    cut, partial, clamped = log.ip == "truncated", log.partial_status == 206, log.bytes == "clamped"
    url = _code(log.url) + (", or the URL of the episode" if log.url == DEFAULT_URL else "")
    ids = "podcast_id, episode_id"
    where = ", ".join(sorted(set(UrlTemplate(log.url).fields))) or "nothing"
    text = "percent-encoded" if log.text == "percent" or log.format == "w3c" else (
        "control characters become blanks, `\"` is `%22`, `\\` is `%5C`"
    )  # fmt: skip
    return {
        "date": _Column("`YYYY-MM-DD`", "created_at", "UTC", "the download was on 20 November 2026, UTC"),
        "start-time": _Column("`HH:MM:SS`", "created_at", "UTC; the only instant in a row, its fraction cut off",
                              "at 15:19:12, UTC"),
        "IP": _Column("IPv4 or IPv6, or `-`", "ip", "IPv4 with a last octet of 0, IPv6 cut to its /48" if cut else
                      "the whole address; `-` if Megaphone has none",
                      "the listener's address without its last part" if cut else "the listener's address"),
        "Hashed-IP": _Column("64 hexadecimal digits, or `-`", "ip", "HMAC-SHA-256, see below" if cut
                             else "`-` beside an address; else HMAC-SHA-256, see below",
                             "the hash of the whole address, here under an example key" if cut else
                             "no hash, since the whole address is beside it"),
        "method": _Column("`GET`", "", "derived: audio was delivered", "audio was delivered"),
        "url": _Column("text, up to 2048 characters", where, f"derived: {url}", "which episode of which show"),
        "status": _Column("`200` or `206`" if partial else "`200`", "bytes_sent, filesize",
                          "derived: 200 if all bytes were sent, else 206" if partial else "derived: always 200",
                          "a part of the file was sent" if partial else "audio was delivered"),
        "bytes": _Column("whole number", "bytes_sent", "at most object-size" if clamped else "as received",
                         "1,679,360 bytes were sent"),
        "object-size": _Column("whole number", "filesize", "as received", "the whole file has 67,332,401 bytes"),
        "byte-range": _Column("`0-N`, or `-`" if partial else "`-`", "bytes_sent, filesize",
                              "derived: from 0 to bytes minus 1 if status is 206" if partial else "always `-`",
                              "the first 1,679,360 bytes of it" if partial else "nothing is said about ranges"),
        "episode-guid": _Column("text", "episode_id", "the GUID in the RSS feed, or else Megaphone's id of the episode",
                                "the episode"),
        "podcast-id": _Column("text", "podcast_id", "Megaphone's id of the show", "the show"),
        "x-metric-id": _Column("text", "id", "Megaphone's id of the row, different for every line of a day",
                               "Megaphone's name for this download"),
        "user-agent": _Column("text", "user_agent", text, "the listener's software, as it named itself"),
        "cs-uri-query": _Column("text, or `-`", ids, "derived: what follows `?` in the URL", "the URL has no query"),
    }  # fmt: skip


def column_table(log: LogSettings, kind: ExportKind = METRICS) -> str:
    """Return the columns in order, as a Markdown table."""
    known, cells = explained(log, kind), example_line(log, kind).split("\t")
    return _table(
        ("#", "column", "format", "example", "from Megaphone's", "how"),
        [
            (str(number), _code(spec.name), found.format, _code(cell), found.source or "nothing", found.how)
            for number, (spec, cell) in enumerate(zip(log.log_rules.layout.specs, cells, strict=True), 1)
            for found in [_of(spec, known)]
        ],
    )


def _of(spec: ColumnSpec, known: dict[str, _Column]) -> _Column:
    if spec.constant is not None:
        return _Column("text", "", f"always {_code(spec.constant)}", "the same in every line")
    if spec.field is not None:
        return _Column("text", spec.field, "as received, cleaned as user-agent is", f"Megaphone's {_code(spec.field)}")
    return known[str(spec.value)]


def example_line(log: LogSettings, kind: ExportKind = METRICS) -> str:
    """Return the line that the made-up row becomes under these rules, with a made-up key and episode."""
    catalogue = Catalogue({_EPISODE: _EXAMPLE_EPISODE})
    rules = log.log_rules._replace(kind=kind.name)
    conversion = Conversion(rules, bytes(32), catalogue, EXAMPLE_DAY)
    row = json.dumps(_WITHOUT_BYTES if kind.bytes_optional else EXAMPLE_ROW).encode()
    try:
        return RowConverter(conversion).convert(row).line
    except RowRejected:  # a template that is too long for every row
        return RowConverter(conversion._replace(rules=rules._replace(url=DEFAULT_URL))).convert(row).line


def _example(log: LogSettings, kind: ExportKind) -> str:
    known, line = explained(log, kind), example_line(log, kind)
    cells = zip(log.log_rules.layout.specs, line.split("\t"), strict=True)
    rows = [(_code(spec.name), _code(cell), _of(spec, known).reads) for spec, cell in cells]
    return f"```text\n{line}\n```\n\n" + _table(("column", "cell", "what it says"), rows)


def _hashing(log: LogSettings) -> str:
    """Return the section about how addresses are hashed; '' if no column has a hash."""
    if not any(spec.value == DerivedValue.HASHED_IP for spec in log.log_rules.layout.specs):
        return ""
    if log.ip == "truncated":
        what = "the whole IPv4 address, of the /64 of an IPv6 address, or of a token, as received"
        return _HASHING.format(when="Every line has one.", what=what)
    return _HASHING.format(when="It is there only if Megaphone gave a token for an IP.", what="that token, as received")


def questions(config: Config) -> list[str]:
    """Return what Triton has to answer, in Triton's words."""
    log, users, first = config.log, partner_users(config), config.export.first_day
    alone = reads_from_store_alone(config)
    partial = "Every line has status 200, even for a partial download. Is that right, or do you need 206 and a range?"
    if log.partial_status == 206:
        partial = "A partial download has status 206 and a byte range from 0. Is that right, or do you always need 200?"
    unknown = re.sub(r" \(`agreed.*?\)", "", config.export.export_kind.question)  # without the name of our setting
    asked = [
        "Does one of your log parsing schemes match the columns (names, order, header line)? If not, what do you need?",
        _ROWS[log.rows][1],
        partial,
        "Which part of the URL is the key to a station, and do you match episodes by URL or by the RSS feed's GUID?",
        "" if config.export.agreed else unknown[:1].upper() + unknown[1:],
        "Do lines count whose IP is `-`, so that only the hash tells listeners apart?" if log.tokens is None else "",
        "" if alone or all(user.allow_from for user in users) else "Which addresses does your client connect from?",
        "At which hour (UTC), and how often, do you pull? Does your client leave the files where they are?",
        "" if alone else "Which SSH software does your client use, and will it log in with a password or with a key?",
        f"Our first day is {_day_text(first)}. Is that the first day that you count?" if first else
        "Which day is the first that you count?",
        "Whom do we tell when a day is late, or has to be sent again?",
    ]  # fmt: skip
    return [question for question in asked if question]


# Markdown, and texts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; bars in cells are escaped, since they would end the cell."""
    lines = ["|".join(("", *(f" {cell} " for cell in cells), "")) for cells in [head, *_escaped(rows)]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]


def _code(text: str) -> str:
    """Return a text as Markdown code, whatever is in it."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _plain(text: str) -> str:
    """Return a text that means nothing in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)


def _name(log: LogSettings, number: int = 0) -> str:
    return str(LogName(log.prefix, EXAMPLE_DAY, number, LogFormat(log.format)))


def _day_text(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


def _at_text(at: datetime) -> str:
    return f"{at.day} {at:%B, %H:%M}"


def _span(span: timedelta) -> str:
    minutes = int(span.total_seconds()) // 60
    return f"{minutes // 60} hours" if minutes >= 120 and minutes % 60 == 0 else f"{minutes} minutes"
