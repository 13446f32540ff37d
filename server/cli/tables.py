"""What the commands show: the status page, the activation sheet, the history of one file, the line of a check.

Returns texts and tables; prints nothing. No outside world.
"""

from __future__ import annotations

import csv
import io
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from ..convert.tally import Tally
from ..status.alarms import Level
from ..status.days import DayOverview, span
from ..status.deadlines import Urgency
from ..status.reconcile import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..pickups import Delivered, Pickup
    from ..publish.retention import Pruned
    from ..settings import Config
    from ..status.alarms import Alarm
    from ..status.reconcile import PodcastLine
    from ..status.snapshot import Snapshot, Trace
    from ..storage.records import Publication

_STATE_STYLE = {
    "picked up": "green", "published": "cyan", "open": "dim", "settling": "dim", "due": "cyan", "pruned": "dim",
    "missing": "bold red", "stale": "bold red", "held": "bold red", "failed": "bold red",
    "unknown": "bold red",
}  # fmt: skip
_URGENCY_STYLE = {
    Urgency.MET: "green", Urgency.AHEAD: "", Urgency.WARNING: "yellow", Urgency.CRITICAL: "bold red",
    Urgency.LATE: "bold red",
}  # fmt: skip
DAYS_SHOWN = 14
STRIP_DAYS = 60
# One cell a day. Shapes differ as well as colours: not everybody sees colours, and not every terminal has them.
_CELLS = {
    "picked up": "█", "published": "▄", "open": "·", "settling": "·", "due": "·", "pruned": "░",
    "missing": "!", "stale": "!", "held": "!", "failed": "!", "unknown": "!",
}  # fmt: skip
_WIDE = 116
# (header, alignment, whether it is shown on a narrow terminal)
_COLUMNS: tuple[tuple[str, Literal["left", "right"], bool], ...] = (
    ("day", "left", True), ("state", "left", True), ("export", "right", False), ("rows", "right", True),
    ("rej.", "right", True), ("lines", "right", False), ("files", "right", False), ("published", "left", True),
    ("picked up", "left", True), ("deadline", "left", True),
)  # fmt: skip


def activation_sheet(config: Config) -> list[tuple[str, str]]:
    """Return what Triton's activation sheet asks for: pairs of label and answer."""
    user = config.sftp.users[0]
    password = "set, handed over separately" if user.password_hash else "none, this user logs in with a key"
    return [
        ("Server address", config.sftp.address or f"{config.sftp.host}:{config.sftp.port} (set sftp.address)"),
        ("User name", ", ".join(user.name for user in config.sftp.users)),
        ("Password", password),
        ("Remote directory", "/"),
        ("Partitioned by date", "no"),
        ("Naming convention", f"{config.log.prefix}YYYYMMDD-NN.{config.log.format}.gz"),
    ]


def service_lines(facts: Mapping[str, Any], now: datetime, *, running: bool) -> list[tuple[str, str]]:
    """Return the state of the service: pairs of label and text."""
    lines = [("Service", "not running")]
    if running and "service_started" in facts:
        since = datetime.fromisoformat(facts["service_started"])
        lines = [("Service", f"running for {span(now - since)}, port {facts.get('service_port', '?')}")]
    for label, name in (("Last round", "last_round"), ("Next round", "next_round")):
        if name in facts and (running or name == "last_round"):
            at = datetime.fromisoformat(facts[name])
            lines.append((label, f"{at:%Y-%m-%d %H:%M:%SZ}"))
    if facts.get("source_error"):
        lines.append(("Export source", f"{facts['source_error']}; {facts.get('source_hint', '')}"))
    elif "last_good_round" in facts:
        lines.append(("Export source", "reachable"))
    bans = [ban for ban in facts.get("bans", ()) if datetime.fromisoformat(ban["until"]) > now] if running else []
    if bans:
        lines.append(("Banned", ", ".join(f"{ban['address']} until {ban['until'][11:16]}Z" for ban in bans)))
    return lines


def disk_line(snapshot: Snapshot) -> tuple[str, str]:
    """Return how much of the data folder's disk is free: label and text."""
    return "Disk", f"{size_text(snapshot.measured.disk_free_bytes)} free ({snapshot.measured.disk_free:.0%})"


def label_lines(lines: Sequence[tuple[str, str]]) -> list[Text]:
    """Return pairs of label and text as aligned lines."""
    width = max(len(label) for label, _ in lines)
    return [Text.assemble((label.ljust(width), "bold"), f"  {answer}") for label, answer in lines]


def day_table(days: Sequence[DayOverview], width: int) -> Table:
    """Return a table with a row for each day, the newest first; in a narrow ``width`` it has fewer columns."""
    wide = width >= _WIDE
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="bold", pad_edge=False)
    for header, justify, always in _COLUMNS:
        if wide or always:
            table.add_column(header, justify=justify, no_wrap=True)
    for day in days:
        counted = bool(day.publications or day.rows)
        cells: list[str | Text] = [
            str(day.day),
            Text(day.state, style=_STATE_STYLE.get(day.state, "")),
            size_text(day.export.size) if day.export is not None else "-",
            str(day.rows) if counted else "-",
            str(day.rejected) if counted else "-",
            str(day.lines) if counted else "-",
            str(len(day.logs)) if day.publications else "-",
            f"{day.published_at:%m-%d %H:%M}" if day.published_at is not None else "-",
            "\n".join(_picked_up(day)) or "-",
            _deadline(day),
        ]
        table.add_row(*(cell for cell, (_, _, always) in zip(cells, _COLUMNS, strict=True) if wide or always))
    return table


def _picked_up(day: DayOverview) -> list[str]:
    lines = []
    for user in day.pickups:
        if user.done and user.last is not None:
            lines.append(f"{user.user} {user.last:%m-%d %H:%M}")
        elif user.begun or user.whole:
            lines.append(f"{user.user} {user.whole} of {user.files}")
    return lines


def _deadline(day: DayOverview) -> Text:
    """Return how the next deadline stands: that of the publication, then that of the pickup."""
    unwatched = day.published_at is not None and not day.waits_for_pickup
    if unwatched or day.state in ("open", "pruned"):
        return Text("-", style="dim")
    deadline = day.deadlines.picked_up if day.published_at is not None else day.deadlines.published
    style = _URGENCY_STYLE[deadline.urgency]
    if deadline.done is not None:
        return Text("met" if deadline.urgency is Urgency.MET else f"late {span(deadline.left)}", style=style)
    if deadline.urgency is Urgency.LATE:
        return Text(f"{span(deadline.left)} ago", style=style)
    return Text(f"in {span(deadline.left)}", style=style)


def calendar_strip(days: Sequence[DayOverview], today: date) -> list[Text]:
    """Return the last `STRIP_DAYS` days, a cell for each, today on the right, and a key; a day never seen is blank."""
    states = {day.day: _strip_state(day) for day in days}
    strip = Text.assemble((f"Last {STRIP_DAYS} days".ljust(14), "bold"), "  ")
    for back in range(STRIP_DAYS - 1, -1, -1):
        state = states.get(today - timedelta(days=back), "")
        strip.append(_CELLS.get(state, " "), style=_STATE_STYLE.get(state, ""))
    key = Text(" " * 16, style="dim")
    for cell, meaning, state in (
        ("█", "picked up", "picked up"), ("▄", "published", "published"), ("·", "not due", "open"),
        ("!", "wrong", "failed"), ("░", "pruned", "pruned"),
    ):  # fmt: skip
        key.append(cell, style=_STATE_STYLE[state])
        key.append(f" {meaning}   ", style="dim")
    key.rstrip()
    return [strip, key]


def _strip_state(day: DayOverview) -> str:
    """Return the state to show: a published day whose pickup is overdue is as bad as a failed one."""
    overdue = (
        day.waits_for_pickup and day.deadlines.picked_up.alarming and day.deadlines.picked_up.urgency is Urgency.LATE
    )
    return "failed" if day.state == "published" and overdue else day.state


def status_page(
    snapshot: Snapshot, sheet: Sequence[tuple[str, str]], now: datetime, width: int
) -> list[tuple[Table | Text, bool]]:
    """Return what ``status`` shows, part by part, each with whether the terminal may wrap its long lines."""
    days = snapshot.days[:DAYS_SHOWN]
    page: list[tuple[Table | Text, bool]] = [(line, True) for line in label_lines(sheet)]
    page.append((Text(), True))
    service = service_lines(snapshot.facts, now, running=snapshot.running)
    page += [(line, True) for line in label_lines([*service, disk_line(snapshot), *episode_lines(snapshot, now)])]
    if days:
        page.append((Text(), True))
        page += [(line, True) for line in calendar_strip(snapshot.days, now.date())]
        page += [(Text(), True), (Text("Days and times are UTC.", style="dim"), True), (day_table(days, width), False)]
    if any(day.advice or day.remarks for day in days) or snapshot.alarms:
        page.append((Text(), True))
    page += [(Text(line), False) for line in advice_lines(days)]
    for alarm in snapshot.alarms:
        style = "bold red" if alarm.level is Level.CRITICAL else "yellow"
        hint = f" → {alarm.hint}" if alarm.hint else ""
        page.append((Text.assemble((alarm.level.name, style), f": {alarm.sentence}{hint}"), False))
    return page


def prune_lines(pruned: Pruned, *, dry_run: bool) -> list[str]:
    """Return what a retention pass did, a line for each file."""
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {name}" for name in (*pruned.logs, *pruned.rejects)]
    lines += [
        f"never picked up, will be removed {file.remove_after:%Y-%m-%d %H:%MZ}: {file.log.name}"
        for file in pruned.unclaimed
    ]
    if not pruned.logs and not pruned.rejects:
        lines.append("nothing is older than keep_days")
    return lines


def advice_lines(days: Sequence[DayOverview]) -> list[str]:
    """Return what is wrong, day by day, and what to type."""
    lines = [f"{day.day} {day.state}: {day.advice}" for day in days if day.advice]
    lines += [f"{day.day}: {remark}" for day in days for remark in day.remarks]
    return lines


def check_line(alarms: Sequence[Alarm], days: Sequence[DayOverview]) -> tuple[Level, str]:
    """Return the level and the one line of a Nagios plug-in."""
    level = max((alarm.level for alarm in alarms), default=Level.OK)
    waiting = sum(1 for day in days if day.state == "published")
    perfdata = f"alarms={len(alarms)} waiting={waiting}"
    if not alarms:
        newest = next((day for day in days if day.published_at is not None), None)
        what = f"{newest.day} is {newest.state}" if newest is not None else "nothing is due"
        return level, f"PICKUP-POINT OK - {what} | {perfdata}"
    # A bar would begin the performance data, so no sentence may have one.
    text = "; ".join(alarm.sentence + (f" [{alarm.hint}]" if alarm.hint else "") for alarm in alarms).replace("|", "/")
    return level, f"PICKUP-POINT {level.name} - {text} | {perfdata}".replace("\n", " ")


def history(trace: Trace) -> list[tuple[str, str]]:
    """Return the history of one file in order: pairs of when ('' if unknown) and what happened."""
    entry, publication = trace.log, trace.publication
    export = publication.export
    lines = []
    if export.key:
        wrote = f"Megaphone wrote {export.key} etag={export.etag} bytes={export.size}"
        lines.append((_at(export.last_modified), wrote))
    if publication.tally is not None:
        lines.append((_at(publication.intended_at), f"converted: {_tally_text(publication.tally.as_json())}"))
    if publication.catalogue is not None:
        lines.append((_at(publication.intended_at), _catalogue_text(publication)))
    published = f"published as {publication.kind} bytes={entry.size} lines={entry.lines} sha256={entry.sha256}"
    lines.append((_at(publication.published_at), published))
    if publication.remark:
        lines.append((_at(publication.published_at), f"remark: {publication.remark}"))
    if publication.kind == "late":
        counts = f"rows changed since they were sent: {publication.changed}; no longer there: {publication.removed}"
        lines.append((_at(publication.published_at), counts))
    lines += [(_at(pickup.started), _pickup_text(pickup)) for pickup in trace.pickups]
    lines += [(_at(what.completed or what.last), _delivered_text(what)) for what in trace.delivered]
    for check in trace.checks:
        counts = f"{check.unsent} new rows came too late, {check.changed} changed, {check.removed} gone"
        lines.append((_at(check.at), f"the export had changed (etag {check.etag}): {counts}"))
    if trace.superseded_by is not None:
        names = ", ".join(str(log.name) for log in trace.superseded_by.logs)
        lines.append((_at(trace.superseded_by.published_at), f"superseded by {names}"))
    if entry.pruned_at is not None:
        lines.append((_at(entry.pruned_at), "pruned; its name is never used again"))
    return sorted(lines, key=lambda line: line[0] or "9")


def _pickup_text(pickup: Pickup) -> str:
    end = "still open" if pickup.ended is None and pickup.ending is None else str(pickup.ending)
    took = f" seconds={(pickup.ended - pickup.started).total_seconds():.1f}" if pickup.ended else ""
    return (
        f"{pickup.grade} pickup by {pickup.user} from {pickup.address} client={pickup.client} "
        f"covered={pickup.covered}/{pickup.size}{took} {end}"
    )


def _delivered_text(what: Delivered) -> str:
    """Return what a user has of a file, over all handles; the addresses are the client's."""
    words = {"complete": f"picked up by {what.user}: all of it was delivered"}
    has = words.get(what.state, f"{what.state}: {what.user} has {what.bytes} of {what.size} bytes")
    by = f" from {', '.join(what.addresses)}" if what.addresses else ""
    return f"{has}, handles={what.handles}{by}"


def _catalogue_text(publication: Publication) -> str:
    stamp, share = publication.catalogue, publication.matched_share
    assert stamp is not None  # noqa: S101  # only publications that were made with one come here
    matched = f", which match {share:.1%} of the lines" if share is not None else ""
    read = f", RSS read {stamp.read_at[:16].replace('T', ' ')}Z" if stamp.read_at else ""
    return f"episode catalogue {stamp.version}: {stamp.episodes} episodes{matched}{read}"


def episode_lines(snapshot: Snapshot, now: datetime) -> list[tuple[str, str]]:
    """Return what the episode catalogue knows and how old that is: label and text, or nothing without a catalogue."""
    newest = next((day for day in snapshot.days if day.matched_share is not None), None)
    parts = []
    if newest is not None and newest.matched_share is not None:
        parts.append(f"{newest.matched_share:.1%} of the lines of {newest.day} match")
    if snapshot.rss_feeds:
        read = [feed.read_at for feed in snapshot.rss_feeds if feed.read_at is not None]
        items = sum(feed.item_count for feed in snapshot.rss_feeds)
        age = f"read {span(now - min(read))} ago" if read else "not read yet"
        failed = sum(1 for feed in snapshot.rss_feeds if feed.error)
        failing = f", {failed} of them cannot be read now: pickup-point episodes" if failed else ""
        count = "1 RSS feed" if len(snapshot.rss_feeds) == 1 else f"{len(snapshot.rss_feeds)} RSS feeds"
        parts.append(f"{items} items in {count}, {age}{failing}")
    return [("Episodes", "; ".join(parts))] if parts else []


def _tally_text(tally: Mapping[str, Any]) -> str:
    parts = [f"rows={tally['rows']}", f"lines={tally['lines']}"]
    for kind in ("filtered", "rejected"):
        parts += [f"{kind}.{reason}={count}" for reason, count in tally[kind].items()]
    parts += [f"{name}={tally[name]}" for name in Tally.NUMBERS]
    return " ".join(parts)


def _at(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%SZ}"


def reconciliation_csv(lines: Sequence[PodcastLine]) -> str:
    """Return a day by podcast as CSV with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(line.cells() for line in lines)
    return text.getvalue()


def reconciliation_text(lines: Sequence[PodcastLine], matched: float | None) -> str:
    """Return a day by podcast as text: a line for each, with reasons; last, what the episode catalogue matched."""
    shown = [f"{'podcast':36}  {'rows':>9}  {'reporting':>9}  {'lines':>9}  filtered and rejected"]
    for line in lines:
        reasons = [f"{reason} {count}" for counts in (line.filtered, line.rejected) for reason, count in counts.items()]
        text = f"{line.podcast:36}  {line.rows:9}  {line.reporting:9}  {line.lines:9}  {', '.join(reasons)}"
        shown.append(text.rstrip())
    if matched is not None:
        shown.append(f"{matched:.1%} of the lines belong to an episode in the catalogue")
    return "".join(f"{line}\n" for line in shown)


def size_text(size: int) -> str:
    """Return a number of bytes in a readable unit: ``48.1 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""
