"""What the commands show: the status page, the strip and the table of days, the line of `check`.

Returns texts and tables; prints nothing.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from ..hints import Call, Step, lines, steps, without_page
from ..status.alarms import Level
from ..status.causes import Cause, causes, notes
from ..status.deadlines import Urgency
from ..status.words import (
    calendar_state,
    disk_line,
    episode_lines,
    login_lines,
    next_deadline,
    pickup_words,
    service_lines,
    size_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..publish.retention import Pruned
    from ..status.alarms import Alarm
    from ..status.days import DayOverview
    from ..status.reconcile import PodcastLine
    from ..status.snapshot import Snapshot

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
# One cell per day. Shapes differ as well as colours: not everybody sees colours, and not every terminal has them.
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


def label_lines(pairs: Sequence[tuple[str, str]]) -> list[Text]:
    """Return (label, text) pairs as aligned lines."""
    width = max(len(label) for label, _ in pairs)
    return [Text.assemble((label.ljust(width), "bold"), f"  {answer}") for label, answer in pairs]


def day_table(days: Sequence[DayOverview], width: int) -> Table:
    """Return a table with a row per day, newest first; if ``width`` is narrow, it has fewer columns."""
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
            "\n".join(pickup_words(day)) or "-",
            _deadline(day),
        ]
        table.add_row(*(cell for cell, (_, _, always) in zip(cells, _COLUMNS, strict=True) if wide or always))
    return table


def _deadline(day: DayOverview) -> Text:
    """Return how the next deadline stands, in its colour."""
    words, urgency = next_deadline(day)
    return Text(words, style="dim" if urgency is None else _URGENCY_STYLE[urgency])


def calendar_strip(days: Sequence[DayOverview], today: date) -> list[Text]:
    """Return the last `STRIP_DAYS` days, a cell each, today on the right, and a legend; a day never seen is blank."""
    states = {day.day: calendar_state(day) for day in days}
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


def status_page(
    snapshot: Snapshot,
    users: Sequence[str],
    width: int,
    call: Call,
    *,
    sheet: Sequence[tuple[str, str]] = (),
    installed: Callable[[str], bool] = lambda _: True,
) -> list[tuple[Table | Text, bool]]:
    """Return what ``status`` shows: (part, whether it may be wider than the terminal) pairs.

    What is wrong comes first, then the days, then the service and its ``users``, last an activation ``sheet``.
    Commands, which will be pasted, are never wrapped.
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


def _beside(label: str, style: str, text: str, width: int = _LABEL, gap: int = 2) -> Table:
    """Return a label with a text beside it; the text's further lines are aligned with its first."""
    grid = Table.grid(padding=(0, gap, 0, 0))
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
            yield _beside(" " * (_LEVEL + 2) + "→", "", line.text, _LEVEL + 3, gap=1), False


def prune_lines(pruned: Pruned, *, dry_run: bool) -> list[str]:
    """Return what a retention pass did, one line per file."""
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {name}" for name in (*pruned.logs, *pruned.rejects)]
    lines += [
        f"never picked up, will be removed {file.remove_after:%Y-%m-%d %H:%MZ}: {file.log.name}"
        for file in pruned.unclaimed
    ]
    if not pruned.logs and not pruned.rejects:
        lines.append("nothing is older than keep_days")
    return lines


LEAST_OF_A_CAUSE = 40  # characters; less of a cause's beginning would say nothing
CHECK_LINE = 300  # characters; the line of `check` is shorter, since some monitors cut it there


def check_line(alarms: Sequence[Alarm], days: Sequence[DayOverview], call: Call, node: str = "") -> tuple[Level, str]:
    """Return the level and the one line of a Nagios plug-in: the worst cause first, and how many more there are.

    ``node`` is this node's name, if there are several.
    """
    level = max((alarm.level for alarm in alarms), default=Level.OK)
    waiting = sum(1 for day in days if day.state == "published")
    at = f" at {node}" if node else ""
    head, perfdata = f"PICKUP-POINT {level.name}{at} - ", f" | alarms={len(alarms)} waiting={waiting}"
    if not alarms:
        newest = next((day for day in days if day.published_at is not None), None)
        return level, f"{head}{f'{newest.day} is {newest.state}' if newest is not None else 'nothing is due'}{perfdata}"
    return level, _in_one_line(head, [_ways_to_say(cause, call) for cause in causes(alarms, days)], perfdata)


def unknown_line(problems: Sequence[tuple[str, str]], call: Call) -> str:
    """Return the line of `check` when it cannot look: (what is wrong, hint) pairs, at least one."""
    found = [Cause(Level.UNKNOWN, sentence, tuple(steps(hint))) for sentence, hint in problems]
    return _in_one_line("PICKUP-POINT UNKNOWN - ", [_ways_to_say(cause, call) for cause in found], "")


def _in_one_line(head: str, found: Sequence[Sequence[str]], perfdata: str) -> str:
    """Return causes, each in several ways to say it, the shortest last, in a line shorter than `CHECK_LINE`."""
    room = CHECK_LINE - 1 - len(head) - len(perfdata)

    def text(said: Sequence[str]) -> str:
        more = len(found) - len(said)
        return "; ".join([*said, f"and {more} more"] if more else said)

    # First what is wrong, as much as there is room for; then what to do, the worst cause's before the others'.
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
    # Last, the beginning of the next cause: more than that there is one.
    for *_, sentence in found[len(said) :][:1]:
        over = len(text([*said, sentence])) - room
        if len(sentence) - over > LEAST_OF_A_CAUSE:
            said.append(f"{sentence[: -over - 1]}…")
    return f"{head}{text(said)}{perfdata}".replace("\n", " ")


def _ways_to_say(cause: Cause, call: Call) -> list[str]:
    """Return a cause with all hints, with one, and last with none; without bars, which begin the performance data."""
    said = [Step(step.prose, call.command(step.command)) for step in cause.steps if "|" not in step.command]
    hints = ["; ".join(": ".join(filter(None, step)) for step in said[:count]).replace("|", "/") for count in (9, 1)]
    sentence = cause.sentence.replace("|", "/")
    return [f"{sentence} [{hint}]" for hint in hints if hint] + [sentence]


def reconciliation_text(podcasts: Sequence[PodcastLine], matched: float | None) -> str:
    """Return a day by podcast as text: one line each, with reasons; last, what the episode catalogue matched."""
    shown = [f"{'podcast':36}  {'rows':>9}  {'reporting':>9}  {'lines':>9}  filtered and rejected"]
    for line in podcasts:
        reasons = [f"{reason} {count}" for counts in (line.filtered, line.rejected) for reason, count in counts.items()]
        text = f"{line.podcast:36}  {line.rows:9}  {line.reporting:9}  {line.lines:9}  {', '.join(reasons)}"
        shown.append(text.rstrip())
    if matched is not None:
        shown.append(f"{matched:.1%} of the lines belong to an episode in the catalogue")
    return "".join(f"{line}\n" for line in shown)
