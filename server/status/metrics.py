"""Metrics for Prometheus: the days' deadlines, rounds, rows, and what the SFTP listener does.

Reads the ledger and the listener's counters; the page serves the text. Promise: no label holds an address, a podcast,
or anything about somebody who listens to one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .alarms import ALARMING_DAYS
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from ..settings import Config
    from ..sftp.registry import Registry
    from .days import DayOverview

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DAYS = 8  # the newest days that have gauges of their own: labels must not grow without bound


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that one scrape shows; the mappings are from a label's value to a number.

    ``rows`` are by outcome (``line``, a filter or reject reason); ``last_success`` are instants by what succeeded.
    """

    days: tuple[DayOverview, ...] = ()
    rounds: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    pickups: Mapping[str, int] = field(default_factory=dict)
    alarms: Mapping[str, int] = field(default_factory=dict)
    last_success: Mapping[str, datetime] = field(default_factory=dict)
    bytes_sent: int = 0
    logins: int = 0
    connections: int = 0
    sessions: int = 0
    served_files: int = 0
    disk_free_bytes: int = 0


def take_reading(config: Config, registry: Registry, rounds: Mapping[str, int], served_files: int) -> Reading:
    """Read the ledger and the listener's counters for one scrape; ``rounds`` counts them by ``good`` and ``failed``."""
    snapshot = Snapshot.take(config, datetime.now(UTC), ALARMING_DAYS)
    counters = registry.counters
    return Reading(
        days=tuple(snapshot.days),
        rounds=dict(rounds),
        rows=snapshot.row_totals,
        refusals=dict(counters.refusals),
        pickups=dict(counters.pickups),
        alarms=dict(Counter(alarm.level.name.lower() for alarm in snapshot.alarms)),
        last_success=_last_success(snapshot),
        bytes_sent=counters.bytes_sent,
        logins=counters.logins,
        connections=registry.connected,
        sessions=registry.sessions,
        served_files=served_files,
        disk_free_bytes=snapshot.measured.disk_free_bytes,
    )


def _last_success(snapshot: Snapshot) -> dict[str, datetime]:
    """Return when something last succeeded, by what."""
    found = {}
    if "last_good_round" in snapshot.facts:
        found["round"] = datetime.fromisoformat(snapshot.facts["last_good_round"])
    published = [p.published_at for day in snapshot.days for p in day.publications if p.published_at is not None]
    taken = [user.last for day in snapshot.days for user in day.pickups if user.last is not None]
    if published:
        found["publication"] = max(published)
    if taken:
        found["pickup"] = max(taken)
    if snapshot.rss_feeds and all(feed.read_at is not None for feed in snapshot.rss_feeds):
        # The oldest: an RSS feed that is no longer read must not hide behind the others.
        found["rss"] = min(feed.read_at for feed in snapshot.rss_feeds if feed.read_at is not None)
    if snapshot.logins:
        found["login"] = max(login[0] for login in snapshot.logins.values())
    return found


def exposition(reading: Reading) -> bytes:
    """Return a reading in Prometheus's text format, whose media type is `METRICS_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ReadingCollector(reading))
    return generate_latest(registry)


class _ReadingCollector(Collector):
    """Turns a `Reading` into metrics."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        reading = self._reading
        yield from _day_gauges(reading.days)
        yield _counter("rounds", "Rounds of the feed, by result.", "result", reading.rounds)
        yield _counter("rows", "Export rows of everything published, by outcome.", "outcome", reading.rows)
        yield _counter("sftp_refusals", "What the listener refused, by reason.", "reason", reading.refusals)
        yield _counter("pickups", "Ended pickups, by grade.", "grade", reading.pickups)
        yield _gauge("alarms", "Alarms that stand now, by level.", "level", reading.alarms)
        stamps = {what: int(at.timestamp()) for what, at in reading.last_success.items()}
        yield _gauge("last_success_timestamp_seconds", "When something last succeeded.", "what", stamps)
        sent = CounterMetricFamily("pickup_point_sftp_sent_bytes", "Bytes of log files sent to clients.")
        sent.add_metric([], reading.bytes_sent)
        yield sent
        logins = CounterMetricFamily("pickup_point_sftp_logins", "Successful logins.")
        logins.add_metric([], reading.logins)
        yield logins
        for name, text, value in (
            ("sftp_connections", "Connections now.", reading.connections),
            ("sftp_sessions", "SFTP sessions now.", reading.sessions),
            ("served_files", "Log files that are served now.", reading.served_files),
            ("disk_free_bytes", "Free bytes on the data folder's disk.", reading.disk_free_bytes),
        ):
            yield GaugeMetricFamily(f"pickup_point_{name}", text, value=value)


def _day_gauges(days: tuple[DayOverview, ...]) -> Iterator[Metric]:
    """Yield the gauges of the newest `DAYS` days."""
    deadline = GaugeMetricFamily(
        "pickup_point_day_deadline_timestamp_seconds", "By when a day must be done.", labels=["day", "deadline"]
    )
    done = GaugeMetricFamily("pickup_point_day_done", "Whether it is done, 1 or 0.", labels=["day", "deadline"])
    state = GaugeMetricFamily("pickup_point_day_state", "1 for the state that a day is in.", labels=["day", "state"])
    lines = GaugeMetricFamily("pickup_point_day_lines", "Log lines of a day.", labels=["day"])
    rejected = GaugeMetricFamily("pickup_point_day_rejected_rows", "Rejected rows of a day.", labels=["day"])
    matched = GaugeMetricFamily(
        "pickup_point_day_matched_share", "Share of a day's lines, 0 to 1, whose episode is known.", labels=["day"]
    )
    for day in days[:DAYS]:
        name = day.day.isoformat()
        for kind, each in (("published", day.deadlines.published), ("picked_up", day.deadlines.picked_up)):
            deadline.add_metric([name, kind], each.by.timestamp())
            done.add_metric([name, kind], float(each.done is not None))
        state.add_metric([name, day.state], 1)
        lines.add_metric([name], day.lines)
        rejected.add_metric([name], day.rejected)
        if day.matched_share is not None:
            matched.add_metric([name], day.matched_share)
    yield from (deadline, done, state, lines, rejected, matched)


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"pickup_point_{name}", text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"pickup_point_{name}", text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family
