"""What an operator is told, in words: the service, the history of a file, a day's books as CSV.

Commands print it and the page shows it. Pure.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..convert.tally import Tally
from ..publish.store_state import NODE, NODES, STORE
from .alarms import STARTED, ended_when_asked
from .days import span
from .deadlines import Urgency
from .reconcile import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..pickups import Delivered, Pickup
    from ..settings import Config, UserSettings
    from ..storage.records import Publication
    from .days import DayOverview
    from .deadlines import Deadline
    from .reconcile import PodcastLine
    from .snapshot import Snapshot, Trace


MOST_NODES = 4  # other nodes that are listed


def partner_users(config: Config) -> list[UserSettings]:
    """Return the partner's users: those whose pickups are required, or every user if none are."""
    return [user for user in config.sftp.users if user.required] or list(config.sftp.users)


def reads_from_store_alone(config: Config) -> bool:
    """Return whether the partner reads from the bucket and not by SFTP; the SFTP users are then other people."""
    return config.store is not None and config.store.required and not any(user.required for user in config.sftp.users)


def activation_sheet(config: Config) -> list[tuple[str, str]]:
    """Return what Triton's activation sheet asks for: (label, answer) pairs."""
    names = [
        ("Partitioned by date", "no"),
        ("Naming convention", f"{config.log.prefix}YYYYMMDD-NN.{config.log.format}.gz"),
    ]
    if reads_from_store_alone(config):
        return [*_store_answers(config, "S3 bucket"), *names]
    users = partner_users(config)
    words = ("none, this user logs in with a key", "set, handed over separately")
    passwords = [words[bool(user.password_hash)] for user in users]
    if len(set(passwords)) > 1:
        passwords = [f"{user.name}: {word}" for user, word in zip(users, passwords, strict=True)]
    return [
        ("Server address", config.sftp.address or f"{config.sftp.host}:{config.sftp.port} (set sftp.address)"),
        ("User name", ", ".join(user.name for user in users)),
        ("Password", "; ".join(dict.fromkeys(passwords))),
        ("Remote directory", "/"),
        *names,
        *_store_answers(config, "Or from S3: bucket"),
    ]


def _store_answers(config: Config, label: str) -> list[tuple[str, str]]:
    """Return what Triton needs in order to read from the bucket, if there is one; ``label`` is the bucket's."""
    if config.store is None:
        return []
    place = config.store.place
    where = f"S3 service at {place.scheme}://{place.endpoint}" if place.endpoint_url else "Amazon S3"
    return [
        (label, f"{place.bucket} ({where})"),
        ("S3 prefix", place.prefix),
        ("S3 region", place.region or "set store.region"),
        ("S3 access keys", "handed over separately; they may list and read this prefix and nothing else"),
    ]


def service_lines(facts: Mapping[str, Any], now: datetime, *, running: bool) -> list[tuple[str, str]]:
    """Return the state of the service: (label, text) pairs."""
    ended = ended_when_asked(facts)
    said = [("Service", "not running" if ended is None else f"not running, stopped at {ended:%Y-%m-%d %H:%M:%SZ}")]
    if running and STARTED in facts:
        since = datetime.fromisoformat(facts[STARTED])
        said = [("Service", f"running for {span(now - since)}, port {facts.get('service_port', '?')}")]
    if NODE in facts:
        said.append(("Node", str(facts[NODE])))
        said += _other_nodes({**facts.get(NODES, {})}, str(facts[NODE]), now)
    if facts.get(STORE):
        state = "cannot be used, see above" if facts[STORE]["error"] else "reachable"
        said.append(("Store", f"{facts[STORE]['url']}, {len(facts[STORE]['there'])} logs, {state}"))
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
        said.append(("Banned", ", ".join(_ban(ban) for ban in bans)))
    return said


def _ban(ban: Mapping[str, Any]) -> str:
    where = " from the page" if ban.get("listener") == "web" else ""
    return f"{ban['address']}{where} until {ban['until'][11:16]}Z"


def _other_nodes(nodes: dict[str, tuple[int, int]], own: str, now: datetime) -> list[tuple[str, str]]:
    """Return what this node knows of the others, those that published or pruned last first."""
    nodes.pop(own, None)
    newest = sorted(nodes.items(), key=lambda node: (-node[1][0], node[0]))
    said = [
        f"{name}: entry {entry}, {span(now - datetime.fromtimestamp(at, UTC))} ago"
        if entry
        else f"{name}: no entry yet"
        for name, (entry, at) in newest[:MOST_NODES]
    ]
    said += [f"and {len(newest) - MOST_NODES} more"] * (len(newest) > MOST_NODES)
    return [("Other nodes", "; ".join(said))] if said else []


def disk_line(snapshot: Snapshot) -> tuple[str, str]:
    """Return how much of the data folder's disk is free: (label, text)."""
    return "Disk", f"{size_text(snapshot.measured.disk_free_bytes)} free ({snapshot.measured.disk_free:.0%})"


def login_lines(snapshot: Snapshot, users: Sequence[str], now: datetime) -> list[tuple[str, str]]:
    """Return when each user last logged in, and with what client: (label, text) pairs."""
    said: list[tuple[str, str]] = []
    for user in users:
        login = snapshot.logins.get(user)
        text = "has never logged in"
        if login is not None:
            client = f", client {login[2]}" if login[2] else ""
            text = f"last login {login[0]:%Y-%m-%d %H:%M}, {span(now - login[0])} ago{client}"
        said.append(("Users" if not said else "", f"{user}: {text}"))
    return said


def episode_lines(snapshot: Snapshot, now: datetime) -> list[tuple[str, str]]:
    """Return what the episode catalogue knows and how old that is: (label, text) pairs, none without a catalogue."""
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


def pickup_words(day: DayOverview) -> list[str]:
    """Return who has picked up a day and when, or how much of it: one text per user who has begun."""
    lines = []
    for user in day.pickups:
        if user.done and user.last is not None:
            lines.append(f"{user.user} {user.last:%m-%d %H:%M}")
        elif user.begun or user.whole:
            lines.append(f"{user.user} {user.whole} of {user.files}")
    return lines


def next_deadline(day: DayOverview) -> tuple[str, Urgency | None]:
    """Return how the next deadline stands (the publication's, then the pickup's; ``-`` for none), and its urgency."""
    unwatched = day.published_at is not None and not day.waits_for_pickup
    if unwatched or day.state in ("open", "pruned"):
        return "-", None
    deadline = day.deadlines.picked_up if day.published_at is not None else day.deadlines.published
    if deadline.done is not None:
        return "met" if deadline.urgency is Urgency.MET else f"late {span(deadline.left)}", deadline.urgency
    if deadline.urgency is Urgency.LATE:
        return f"{span(deadline.left)} ago", deadline.urgency
    return f"in {span(deadline.left)}", deadline.urgency


def deadline_words(deadline: Deadline) -> str:
    """Return how a deadline stands: ``in time``, ``3 h late``, ``in 20 h``, ``3 h ago``."""
    left = span(deadline.left)
    if deadline.urgency is Urgency.LATE:
        return f"{left} {'ago' if deadline.done is None else 'late'}"
    return f"in {left}" if deadline.done is None else "in time"


def calendar_state(day: DayOverview) -> str:
    """Return the state that a calendar shows: a day that was not picked up in time counts as failed."""
    late = day.waits_for_pickup and day.deadlines.picked_up.urgency is Urgency.LATE
    return "failed" if day.state in ("published", "picked up") and late else day.state


def history(trace: Trace) -> list[tuple[str, str]]:
    """Return the history of one file in order: (when, or '' if unknown; what happened) pairs."""
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
        counts = f"rows changed since they were sent: {publication.changed}; rows gone: {publication.removed}"
        lines.append((_at(publication.published_at), counts))
    lines += [(_at(pickup.started), _pickup_text(pickup)) for pickup in trace.pickups]
    lines += [(_at(what.completed or what.last), _delivered_text(what)) for what in trace.delivered]
    for check in trace.checks:
        counts = f"{check.unsent} new rows came too late, {check.changed} changed, {check.removed} gone"
        lines.append((_at(check.at), f"the export had changed (etag {check.etag}): {counts}"))
    if trace.superseded_by is not None:
        names = ", ".join(str(log.name) for log in trace.superseded_by.logs)
        lines.append((_at(trace.superseded_by.published_at), f"superseded by {names}"))
    if trace.no_late_rows:
        lines.append(("", f"rows that came late to its day would not be sent: {trace.no_late_rows}"))
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
    """Return what a user has of a file, over all handles; the addresses are those of the user's client."""
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


def _tally_text(tally: Mapping[str, Any]) -> str:
    parts = [f"rows={tally['rows']}", f"lines={tally['lines']}"]
    for kind in ("filtered", "rejected"):
        parts += [f"{kind}.{reason}={count}" for reason, count in tally[kind].items()]
    parts += [f"{name}={tally[name]}" for name in Tally.NUMBERS]
    return " ".join(parts)


def _at(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%SZ}"


def reconciliation_csv(podcasts: Sequence[PodcastLine]) -> str:
    """Return a day by podcast as CSV with a header line (`COLUMNS`); no id can be a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in podcasts:
        podcast, *counts = line.cells()
        # A leading quote makes a cell text; "-" alone is not a formula.
        writer.writerow([f"'{podcast}" if len(podcast) > 1 and podcast[0] in "=+-@" else podcast, *counts])
    return text.getvalue()


def size_text(size: int) -> str:
    """Return a number of bytes in a readable unit: ``48.1 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""
