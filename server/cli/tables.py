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
from ..hints import Call, Step, lines, without_page
from ..status.alarms import Level
from ..status.causes import causes, notes
from ..status.days import DayOverview, span
from ..status.deadlines import Urgency
from ..status.reconcile import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..pickups import Delivered, Pickup
    from ..publish.retention import Pruned
    from ..settings import Config, UserSettings
    from ..status.alarms import Alarm
    from ..status.causes import Cause
    from ..status.reconcile import PodcastLine
    from ..status.snapshot import Snapshot, Trace
    from ..storage.records import Publication

_STATE_STYLE = {
    "picked up": "green", "published": "cyan", "open": "dim", "settling": "dim", "due": "cyan", "pruned": "dim",
    "unmarked": "dim",
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
    "picked up": "█", "published": "▄", "open": "·", "unmarked": "·", "settling": "·", "due": "·", "pruned": "░",
    "missing": "!", "stale": "!", "held": "!", "failed": "!", "unknown": "!",
}  # fmt: skip
_WIDE = 116
# (header, alignment, whether it is shown on a narrow terminal)
_COLUMNS: tuple[tuple[str, Literal["left", "right"], bool], ...] = (
    ("day", "left", True), ("state", "left", True), ("export", "right", False), ("rows", "right", True),
    ("rej.", "right", True), ("lines", "right", False), ("files", "right", False), ("published", "left", True),
    ("picked up", "left", True), ("deadline", "left", True),
)  # fmt: skip


def partner_users(config: Config) -> list[UserSettings]:
    """Return the partner's users, those whose pickups are required; every user where nobody's are."""
    return [user for user in config.sftp.users if user.required] or list(config.sftp.users)


def activation_sheet(config: Config) -> list[tuple[str, str]]:
    """Return what Triton's activation sheet asks for: pairs of label and answer."""
    users = partner_users(config)
    with_password = [bool(user.password_hash) for user in users]
    words = ("none, this user logs in with a key", "set, handed over separately")
    passwords = [words[has] for has in with_password]
    if len(set(passwords)) > 1:
        passwords = [f"{user.name}: {word}" for user, word in zip(users, passwords, strict=True)]
    return [
        ("Server address", config.sftp.address or f"{config.sftp.host}:{config.sftp.port} (set sftp.address)"),
        ("User name", ", ".join(user.name for user in users)),
        ("Password", "; ".join(dict.fromkeys(passwords))),
        ("Remote directory", "/"),
        ("Partitioned by date", "no"),
        ("Naming convention", f"{config.log.prefix}YYYYMMDD-NN.{config.log.format}.gz"),
    ]


def service_lines(facts: Mapping[str, Any], now: datetime, *, running: bool) -> list[tuple[str, str]]:
    """Return the state of the service: pairs of label and text."""
    said = [("Service", "not running")]
    if running and "service_started" in facts:
        since = datetime.fromisoformat(facts["service_started"])
        said = [("Service", f"running for {span(now - since)}, port {facts.get('service_port', '?')}")]
    for label, name in (("Last round", "last_round"), ("Next round", "next_round")):
        if name in facts and (running or name == "last_round"):
            at = datetime.fromisoformat(facts[name])
            said.append((label, f"{at:%Y-%m-%d %H:%M:%SZ}"))
    if facts.get("source_error"):
        said.append(("Export source", "cannot be used, see above"))
    elif "last_good_round" in facts:
        said.append(("Export source", "reachable"))
    bans = [ban for ban in facts.get("bans", ()) if datetime.fromisoformat(ban["until"]) > now] if running else []
    if bans:
        said.append(("Banned", ", ".join(f"{ban['address']} until {ban['until'][11:16]}Z" for ban in bans)))
    return said


def disk_line(snapshot: Snapshot) -> tuple[str, str]:
    """Return how much of the data folder's disk is free: label and text."""
    return "Disk", f"{size_text(snapshot.measured.disk_free_bytes)} free ({snapshot.measured.disk_free:.0%})"


def label_lines(pairs: Sequence[tuple[str, str]]) -> list[Text]:
    """Return pairs of label and text as aligned lines."""
    width = max(len(label) for label, _ in pairs)
    return [Text.assemble((label.ljust(width), "bold"), f"  {answer}") for label, answer in pairs]


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
    snapshot: Snapshot,
    users: Sequence[str],
    width: int,
    call: Call,
    *,
    sheet: Sequence[tuple[str, str]] = (),
    installed: Callable[[str], bool] = lambda _: True,
) -> list[tuple[Table | Text, bool]]:
    """Return what ``status`` shows, part by part, each with whether it may be wider than the terminal.

    What is wrong comes first, then the days, then the service and its ``users``, last an activation ``sheet``. A
    command, which somebody will paste, is never wrapped.
    """
    now, blank = snapshot.at, (Text(), False)
    days = snapshot.days[:DAYS_SHOWN]
    found = causes(snapshot.alarms, snapshot.days)
    page = [part for cause in found for part in _cause_parts(cause, call, installed)]
    if not found:
        page.append((Text.assemble(("OK", "green"), ": nothing is wrong"), False))
    if days:
        page += [blank, *((line, True) for line in calendar_strip(snapshot.days, now.date())), blank]
        page += [(Text("Days and times are UTC.", style="dim"), False), (day_table(days, width), False)]
        remarks = notes(days, found)
        page += [blank] * bool(remarks)
        page += [(_beside("" if n else "Remarks", "bold", remark), False) for n, remark in enumerate(remarks)]
    service = service_lines(snapshot.facts, now, running=snapshot.running)
    service += [disk_line(snapshot), *episode_lines(snapshot, now), *login_lines(snapshot, users, now)]
    page += [blank, *((_beside(label, "bold", answer), False) for label, answer in service)]
    if sheet:
        page += [blank, *((line, True) for line in label_lines(sheet))]
    return page


_LABEL, _LEVEL = 14, 8  # columns


def _beside(label: str, style: str, text: str, width: int = _LABEL) -> Table:
    """Return a label with a text beside it, whose further lines begin where the first did."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width, no_wrap=True, style=style)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), Text(text))
    return grid


def _cause_parts(cause: Cause, call: Call, installed: Callable[[str], bool]) -> Iterator[tuple[Table | Text, bool]]:
    """Yield one line about what is wrong, then what to do, each command on a line of its own."""
    style = "bold red" if cause.level is Level.CRITICAL else "yellow"
    yield _beside(cause.level.name, style, cause.sentence, _LEVEL), False
    for line in lines(without_page(cause.steps, "status"), call, installed):
        if line.is_command:
            yield Text(" " * (_LEVEL + 4) + line.text), True
        else:
            yield _beside("", "", f"→ {line.text}", _LEVEL), False


def login_lines(snapshot: Snapshot, users: Sequence[str], now: datetime) -> list[tuple[str, str]]:
    """Return when each user logged in last, and with what: label and text."""
    said: list[tuple[str, str]] = []
    for user in users:
        login = snapshot.logins.get(user)
        text = "has never logged in"
        if login is not None:
            client = f", client {login[2]}" if login[2] else ""
            text = f"last login {login[0]:%Y-%m-%d %H:%M}, {span(now - login[0])} ago{client}"
        said.append(("Users" if not said else "", f"{user}: {text}"))
    return said


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


CHECK_LINE = 300  # characters that no line of `check` reaches: some monitors cut it there


def check_line(alarms: Sequence[Alarm], days: Sequence[DayOverview], call: Call) -> tuple[Level, str]:
    """Return the level and the one line of a Nagios plug-in: the worst first, and how many more there are."""
    level = max((alarm.level for alarm in alarms), default=Level.OK)
    waiting = sum(1 for day in days if day.state == "published")
    head, perfdata = f"PICKUP-POINT {level.name} - ", f" | alarms={len(alarms)} waiting={waiting}"
    if not alarms:
        newest = next((day for day in days if day.published_at is not None), None)
        return level, f"{head}{f'{newest.day} is {newest.state}' if newest is not None else 'nothing is due'}{perfdata}"
    found = [_ways_to_say(cause, call) for cause in causes(alarms, days)]
    room = CHECK_LINE - 1 - len(head) - len(perfdata)

    def text(said: Sequence[str]) -> str:
        more = len(found) - len(said)
        return "; ".join([*said, f"and {more} more"] if more else said)

    # First what is wrong, as much of it as there is room for; then what to do, the worst's before all others'.
    said = [found[0][-1]]
    if (over := len(text(said)) - room) > 0:
        said = [f"{said[0][: -over - 1]}…"]
    for *_, sentence in found[1:]:
        if len(text([*said, sentence])) > room:
            break
        said.append(sentence)
    for place, ways in enumerate(found[: len(said)]):
        for way in ways:
            longer = [*said[:place], way, *said[place + 1 :]]
            if len(text(longer)) <= room:
                said = longer
                break
    return level, f"{head}{text(said)}{perfdata}".replace("\n", " ")


def _ways_to_say(cause: Cause, call: Call) -> list[str]:
    """Return a cause with what to do, with less of that, and, last, without. A bar would begin the performance data."""
    said = [Step(step.prose, call.command(step.command)) for step in cause.steps if "|" not in step.command]
    hints = ["; ".join(": ".join(filter(None, step)) for step in said[:count]).replace("|", "/") for count in (9, 1)]
    sentence = cause.sentence.replace("|", "/")
    return [f"{sentence} [{hint}]" for hint in hints if hint] + [sentence]


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
        failing = f", {failed} of them cannot be read now" if failed else ""
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


def reconciliation_csv(podcasts: Sequence[PodcastLine]) -> str:
    """Return a day by podcast as CSV with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(line.cells() for line in podcasts)
    return text.getvalue()


def reconciliation_text(podcasts: Sequence[PodcastLine], matched: float | None) -> str:
    """Return a day by podcast as text: a line for each, with reasons; last, what the episode catalogue matched."""
    shown = [f"{'podcast':36}  {'rows':>9}  {'reporting':>9}  {'lines':>9}  filtered and rejected"]
    for line in podcasts:
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
