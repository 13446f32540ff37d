"""The webhook and the heartbeat: the real service pushes to a real HTTP server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from server.publish.store_state import NODE, NODES
from server.settings import AlertSettings
from server.status.alarms import Alarm, Level
from server.status.snapshot import Snapshot
from server.status.webhook import AlarmWatch, Pushes, message

from ..support.program import day_before, export_of
from ..support.site import HEALTHY, at

if TYPE_CHECKING:
    from pathlib import Path

    from server.settings import Config
    from server.storage.ledger import Ledger

    from ..support.program import ServiceSite
    from ..support.webhook_server import Ear

BROKEN = b"this is no JSON"


def held_site(site: ServiceSite, ear: Ear) -> None:
    """Deliver a day that is held, because a third of its rows cannot become lines."""
    yesterday = day_before(1)
    site.put(yesterday, export_of(yesterday, 2, BROKEN))
    site.configure(export=f'url = "exports"\nfirst_day = "{yesterday}"', more=ear.alerts)


async def test_an_alarm_and_its_end_are_pushed_once_also_across_a_restart(service_site: ServiceSite, ear: Ear) -> None:
    """A held day is raised once; nothing more is pushed about it until an operator has decided."""
    held_site(service_site, ear)
    first = await service_site.serve()
    await ear.until(lambda: bool(ear.hooks), "the day that is held")
    message = ear.hooks[0]
    assert message["level"] == "CRITICAL"
    (alarm,) = [alarm for alarm in message["raised"] if alarm["name"] == "day_held"]
    assert alarm["level"] == "CRITICAL" and alarm["subject"] == str(day_before(1))
    assert "--accept-rejects" in alarm["hint"] and str(day_before(1)) in message["text"]
    assert "feed_not_running" not in {alarm["name"] for alarm in message["raised"]}  # a start is no alarm
    assert await first.running.stops() == 0

    second = await service_site.serve()
    beats = ear.beats
    await ear.until(lambda: ear.beats >= beats + 3, "three more rounds")
    assert ear.told("raised", "day_held") == ["CRITICAL"]

    done = service_site.run("feed", "--day", str(day_before(1)), "--accept-rejects")
    assert done.returncode == 0, done.stderr
    await ear.until(lambda: bool(ear.told("cleared", "day_held")), "the end of it")
    assert ear.told("cleared", "day_held") == [f"day_held {day_before(1)}"]
    assert ear.told("raised", "day_held") == ["CRITICAL"]
    assert await second.running.stops() == 0


HELD = Alarm(Level.CRITICAL, "day_held", "2026-11-20 is held", "", "2026-11-20")
LOW = Alarm(Level.WARNING, "disk", "the disk is nearly full")


@pytest.mark.parametrize(("standing", "raised", "cleared", "facts", "text"), [
    ([HELD], [HELD], [], {}, "CRITICAL: 2026-11-20 is held"),
    ([HELD, LOW], [LOW], [], {NODE: "a"}, "CRITICAL: the disk is nearly full; 1 alarm stands as before"),
    ([HELD, LOW], [], ["source"], {}, "CRITICAL: cleared: source; 2 alarms stand as before"),
    ([LOW], [LOW], ["day_held 2026-11-20"], {}, "WARNING: the disk is nearly full; cleared: day_held 2026-11-20"),
    ([], [], ["day_held 2026-11-20", "disk"], {NODE: "a", NODES: {}},
     "OK at a: cleared: day_held 2026-11-20, disk; nothing is wrong any more"),
])  # fmt: skip
def test_the_text_says_what_changed_and_what_stands(
    standing: list[Alarm], raised: list[Alarm], cleared: list[str], facts: dict[str, Any], text: str
) -> None:
    """An alarm that clears does not clear the others; one of several nodes gives its name."""
    snapshot = Snapshot(at(1), [], facts, True, {}, HEALTHY, standing)
    assert message(snapshot, raised, cleared)["text"] == f"pickup-point {text}"


async def test_a_webhook_that_does_not_accept_an_alarm_gets_it_again_until_it_does(
    service_site: ServiceSite, ear: Ear
) -> None:
    """After two answers of 503, one redirect and a 200 the same was pushed four times, and no more."""
    held_site(service_site, ear)
    ear.answers = [503, 503, 302]
    serving = await service_site.serve()
    await ear.until(lambda: len(ear.hooks) >= 4, "the fourth try")
    beats = ear.beats
    await ear.until(lambda: ear.beats >= beats + 3, "three more rounds")
    assert ear.told("raised", "day_held") == ["CRITICAL"] * 4
    assert await serving.running.stops() == 0
    assert serving.running.count("webhook did not accept alarms") == 3
    assert serving.running.count("webhook accepted alarms") == 1


async def test_a_webhook_that_is_down_holds_nothing_up(service_site: ServiceSite, ear: Ear) -> None:
    """With nobody listening the day is published and served all the same, and the address stays out of the journal."""
    yesterday = day_before(1)
    service_site.put(yesterday, export_of(yesterday))
    nobody = 'webhook_url = "http://127.0.0.1:1/hook/s3cret"\nheartbeat_url = "http://127.0.0.1:1/s3cret"\n'
    first = f'url = "exports"\nfirst_day = "{day_before(2)}"'  # of which there is no export: an alarm
    service_site.configure(export=first, more=f"[alerts]\n{nobody}")
    serving = await service_site.serve()
    await serving.sees(f"TEST{yesterday:%Y%m%d}-00.tsv.gz")
    await serving.running.says("webhook did not accept alarms", 2)
    await serving.running.says("heartbeat failed")
    assert await serving.running.stops() == 0
    assert serving.running.count("heartbeat failed") == 1  # a state, logged once
    assert "s3cret" not in serving.running.text


@pytest.mark.parametrize(("host", "why"), [
    (f"{'a' * 70}.example", "UnicodeError"),  # no name: only its use shows it
    ("127.0.0.1:1", "Connection refused"),
])  # fmt: skip
async def test_a_push_that_cannot_connect_has_failed_and_says_why(host: str, why: str) -> None:
    """The tasks that push go on; the address stays secret."""
    url = f"http://{host}/s3cret"
    pushes = Pushes(lambda: AlertSettings(webhook_url=url, heartbeat_url=url))
    with capture_logs() as entries:
        assert not await pushes.alarm({})
        await pushes.heartbeat()
    await pushes.close()
    assert [entry["event"] for entry in entries] == ["webhook did not accept alarms", "heartbeat failed"]
    assert {entry["why"] for entry in entries} == {why}
    assert "s3cret" not in str(entries)


async def test_a_watch_that_is_woken_while_it_is_cancelled_ends() -> None:
    """At whatever turn of the loop: a round that ends as the service stops must not keep it from stopping."""
    for turns in range(5):
        watch = AlarmWatch(lambda: cast("Config", None), cast("Ledger", None), Pushes(AlertSettings))
        task = asyncio.create_task(watch.watch())
        for _ in range(3):
            await asyncio.sleep(0)
        watch.check_now()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert task.cancelled(), turns


async def test_the_heart_beats_after_good_rounds_only(service_site: ServiceSite, ear: Ear) -> None:
    """While the exports cannot be reached there is no heartbeat; afterwards there is again."""
    service_site.configure(export=f'url = "exports"\nfirst_day = "{day_before(1)}"', more=ear.alerts)
    away: Path = service_site.folder / "away"
    serving = await service_site.serve()
    await ear.until(lambda: ear.beats >= 2, "two good rounds")
    service_site.exports.rename(away)
    await serving.running.says("feed lost the source")
    silent = ear.beats
    await ear.until(lambda: bool(ear.told("raised", "source")), "the source's alarm")
    rounds = len(ear.hooks)
    assert rounds and ear.beats == silent
    away.rename(service_site.exports)
    await serving.running.says("feed reached the source again")
    await ear.until(lambda: ear.beats > silent, "a beat after the source came back")
    await ear.until(lambda: bool(ear.told("cleared", "source")), "the end of the source's alarm")
    assert await serving.running.stops() == 0
