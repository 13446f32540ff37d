"""Killed: `feed` and `prune` at every system call that changes the disk, `feed` and `serve` at any instant.

Runs two processes at a time in folders below the campaign's. Promise looked for: no partial file was ever visible, no
name and no id twice, no day lost, nothing left over, nothing for a person to do.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from server.sftp.keys import make_keys

from .checks import Seen
from .crash_instants import Life, feed_life, serve_life
from .result import Fault
from .scenes import Scene, carry_on, command, make_scenes
from .tools.tracing import cannot_trace, traced

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from .result import Campaign

T = TypeVar("T")
AT_ONCE = 2
LIVES = 500  # the random instants of the whole form


class Death(NamedTuple):
    """A scene that dies at one call. ``thorough``: one more round must change nothing; ``grows``: late rows come in."""

    scene: Scene
    call: int
    after: bool
    folder: Path
    thorough: bool
    grows: bool


def run(campaign: Campaign) -> list[Fault]:
    """Die in every way there is time for."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, context) as pool:
        return [_at_calls(campaign, pool), *_at_instants(campaign, pool)]


# At every call


def _at_calls(campaign: Campaign, pool: ProcessPoolExecutor) -> Fault:
    fault = Fault("SIGKILL before and after each system call that changes the disk (`feed`, `prune`)")
    if why := cannot_trace():
        fault.figures["not run"] = why
        return fault
    scenes = make_scenes(campaign.folder / "scenes")
    recorded = {scene.name: pool.submit(record, scene, campaign.folder / "dry").result() for scene in scenes}
    deaths = [
        (scene, call, after)
        for scene in scenes
        for call, done in enumerate(recorded[scene.name])
        for after in (False, True)
        if done
    ]
    fault.figures["calls in the scenes"] = len(deaths) // 2
    orders = evenly(deaths, campaign.rng("killing", "calls"))
    until = campaign.left * 0.5
    jobs = (
        Death(scene, call, after, campaign.folder / f"death-{number}", number % 4 == 0, number % 3 == 0)
        for number, (scene, call, after) in enumerate(orders)
    )
    for killed, wrong in all_results(pool, die, jobs, lambda: campaign.left > until):
        fault.tried += killed
        fault.lost += wrong
    return fault


def evenly(all_of_them: Sequence[T], dice: random.Random) -> list[T]:
    """All of them, in an order whose every beginning is spread evenly over the whole."""
    offset, golden = dice.random(), 0.6180339887498949
    order = sorted(range(len(all_of_them)), key=lambda at: (offset + at * golden) % 1)
    return [all_of_them[at] for at in order]


def record(scene: Scene, folder: Path) -> list[bool]:
    """In a worker: which calls the scene's round makes, each with whether it succeeded."""
    scene.copy(folder)
    try:
        trace = traced(lambda: command(folder, *scene.act), folder / "data")
        assert trace.code == 0, f"{scene.name}: {(folder / 'said').read_text()}"
        return [call.done for call in trace.calls]
    finally:
        shutil.rmtree(folder)


def die(death: Death) -> tuple[bool, list[str]]:
    """In a worker: die at one call, carry on; whether it died there, and what is wrong."""
    scene, folder = death.scene, death.scene.copy(death.folder)
    try:
        seen = Seen()
        seen.look(folder / "data" / "pickup")
        trace = traced(lambda: command(folder, *scene.act), folder / "data", kill_at=death.call, after=death.after)
        wrong = seen.look(folder / "data" / "pickup")
        expected = scene.grow(folder) if death.grows else scene.expected
        wrong += carry_on(scene, folder, expected)
        wrong += seen.look(folder / "data" / "pickup")
        wrong += [f"{name} was not removed" for name in scene.goes if (folder / "data" / "pickup" / name).exists()]
        if death.thorough and not wrong:
            names = sorted(seen.files)
            wrong += carry_on(scene, folder, expected) + seen.look(folder / "data" / "pickup")
            wrong += ["one more round published something"] * (names != sorted(seen.files))
        where = f"{scene.name}, killed {'after' if death.after else 'before'} call {death.call}"
        return trace.code == -signal.SIGKILL, [f"{where}: {one}" for one in wrong]
    finally:
        shutil.rmtree(folder)


# At random instants


def _at_instants(campaign: Campaign, pool: ProcessPoolExecutor) -> list[Fault]:
    feeds = Fault("SIGKILL at a random instant of `feed`, while days and late rows come in")
    serves = Fault("SIGKILL at a random instant of `serve`, while a client lists and reads")
    keys = campaign.folder / "life-keys"
    keys.mkdir()
    make_keys(keys)
    reads = 0
    each = (1, 1) if campaign.short else (8, 4)
    jobs = (
        (number % 2 == 1, Life(campaign.folder / f"life-{number}", keys, campaign.rng("killing", "life", number),
                               each[number % 2]))
        for number in range(10_000)
    )  # fmt: skip
    reserve = 6 if campaign.short else 20

    def more() -> bool:
        enough = not campaign.short and feeds.tried >= LIVES * 0.7 and serves.tried >= LIVES * 0.3
        return campaign.left > reserve and not enough

    for serving, tried, read, wrong in all_results(pool, live, jobs, more):
        fault = serves if serving else feeds
        fault.tried += tried
        fault.lost += wrong
        reads += read
    serves.figures["files read whole meanwhile"] = reads
    return [feeds, serves]


def live(job: tuple[bool, Life]) -> tuple[bool, int, int, list[str]]:
    """In a worker: one installation's life; its kills, what clients read, what is wrong."""
    serving, life = job
    try:
        return serving, *(serve_life if serving else feed_life)(life)
    finally:
        shutil.rmtree(life.folder, ignore_errors=True)


def all_results(pool: ProcessPoolExecutor, work: Any, jobs: Iterable[Any], more: Any) -> Iterator[Any]:
    """The results of the first jobs, however late it is, and of others while there is time for ``more``."""
    waiting: set[Future[Any]] = set()
    source = iter(jobs)
    started = 0
    while True:
        while len(waiting) < AT_ONCE + 1 and (started < AT_ONCE or more()):
            job = next(source, None)
            if job is None:
                break
            waiting.add(pool.submit(work, job))
            started += 1
        if not waiting:
            return
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for one in done:
            yield one.result()
