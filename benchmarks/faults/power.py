"""Power cuts: the recorded writes of a round, replayed up to any instant on a disk that forgets what was not synced.

Records real rounds (`tools.tracing`), builds what the data folder may look like after a cut (`power_disk`), and lets a
real `feed` carry on from there. Promise looked for: whatever a client could see before the cut is there after it with
the same bytes, and all that holds after a kill holds here. Runs two processes at a time in folders below the
campaign's.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from server.storage.ledger import Ledger

from . import power_disk
from .crash import AT_ONCE, all_results, evenly
from .result import Fault
from .scenes import carry_on, command, make_scenes
from .tools.tracing import cannot_trace, traced

if TYPE_CHECKING:
    from pathlib import Path

    from .power_disk import Disk, Tree
    from .result import Campaign
    from .scenes import Scene
    from .tools.tracing import Call

LEDGER = ("ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-journal")
Visible = dict[str, str]  # by name: the digest of its bytes
RULES = {"POSIX": ("worst", "some"), "ext4": ("worst_ext4", "some_ext4")}


@dataclass(slots=True)
class Recording:
    """A round as it was made on a disk that begins as ``disk``; what clients could see after this many calls."""

    scene: Scene
    disk: Disk
    calls: list[Call]
    visible: list[Visible]

    def cut(self, instant: int, rules: str, dice: random.Random | None) -> Tree:
        """What is found after a cut that came after this many calls."""
        disk: Disk = pickle.loads(pickle.dumps(self.disk))
        for call in self.calls[:instant]:
            disk.apply(call)
        return _state(disk, rules, dice)


class Cut(NamedTuple):
    """One try: a recording's file, an instant, the rules, a seed (None: the worst case), whether late rows come in."""

    recording: Path
    instant: int
    rules: str
    seed: str | None
    grows: bool
    folder: Path


def run(campaign: Campaign) -> list[Fault]:
    """Cut the power at every instant, as often as there is time for."""
    worst = Fault("power cut after each recorded write: everything lost that was not synced (POSIX, ext4)")
    some = Fault("power cut after each recorded write: any part of what was not synced lost, writes torn")
    if why := cannot_trace():
        worst.figures["not run"] = some.figures["not run"] = why
        return [worst, some]
    scenes = make_scenes(campaign.folder / "scenes")
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        files = [campaign.folder / f"recording-{number}" for number in range(len(scenes))]
        instants = []
        for (calls, strange), file in zip(pool.map(record, scenes, files), files, strict=True):
            instants += [(file, instant) for instant in range(calls + 1)]
            worst.lost += strange
        worst.figures["instants"] = len(instants)
        cuts = [
            Cut(file, instant, rules, None, grows, campaign.folder / f"cut-{file.name}-{instant}-{rules}-{grows}")
            for file in files
            for instant, rules in distinct(file)
            for grows in (False, True)
        ]
        worst.figures["different disks"] = len(cuts) // 2
        until = campaign.left * 0.5
        for wrong in all_results(
            pool, cut, evenly(cuts, campaign.rng("power", "worst")), lambda: campaign.left > until
        ):
            worst.tried += 1
            worst.lost += wrong
        parts = (
            Cut(file, instant, rules, f"{campaign.seed}/{lap}", (instant + lap) % 2 == 0,
                campaign.folder / f"part-{file.name}-{instant}-{rules}-{lap}")
            for lap in range(1000)
            for file, instant in evenly(instants, campaign.rng("power", "some", lap))
            for rules in RULES
        )  # fmt: skip
        for wrong in all_results(pool, cut, parts, lambda: campaign.left > (2 if campaign.short else 5)):
            some.tried += 1
            some.lost += wrong
    return [worst, some]


def record(scene: Scene, file: Path) -> tuple[int, list[str]]:
    """In a worker: record a scene's round; how many calls it made, and which the model does not know."""
    folder = scene.copy(file.with_name(f"{file.name}-dry"))
    try:
        disk = power_disk.Disk(folder, "data")
        start = pickle.dumps(disk)
        trace = traced(lambda: command(folder, *scene.act), folder / "data", contents=True)
        assert trace.code == 0, f"{scene.name}: {(folder / 'said').read_text()}"
        published = [_published(disk, folder / "look")]
        for call in trace.calls:
            disk.apply(call)
            ledger = "ledger.sqlite3" in call.path and not call.path.endswith("-shm")
            published.append(_published(disk, folder / "look") if ledger else published[-1])
        # A record is seen by others when the writer goes on after it: with synchronous=FULL, after its sync.
        visible = [published[0], *published[:-2], published[-1]] if trace.calls else published
        begun: Disk = pickle.loads(start)
        file.write_bytes(pickle.dumps(Recording(scene, begun, trace.calls, visible)))
        left = _difference(disk.now().get("data"), folder / "data")
        strange = [f"{scene.name}: the model knows no {name}" for name in sorted(disk.unknown)]
        return len(trace.calls), strange + [f"{scene.name}: the model went astray: {left}"] * bool(left)
    finally:
        shutil.rmtree(folder)


def _difference(tree: object, folder: Path) -> str:
    """Where the model's folder is not what the real one became: the model must not be wrong in silence."""
    if not isinstance(tree, dict):
        return f"{folder.name} is missing"
    if tree.keys() != {path.name for path in folder.iterdir()}:
        return f"{sorted(tree)} in {folder.name}"
    for name, node in tree.items():
        path = folder / name
        if path.is_dir():
            if found := _difference(node, path):
                return found
        elif name.endswith("-shm"):
            continue  # it is written through a mapping, and made anew after a cut
        elif not isinstance(node, tuple) or (*node[:2],) != (path.read_bytes(), path.stat().st_mode & 0o7777):
            return str(path)
    return ""


def _published(disk: Disk, folder: Path) -> Visible:
    """What the ledger says is published, as every process would read it now, with the digests of the files."""
    found = disk.now().get("data", {})
    assert isinstance(found, dict)
    ledger: Tree = {name: found[name] for name in LEDGER if name in found}
    power_disk.write(ledger, folder)
    try:
        with closing(Ledger.read(folder / "ledger.sqlite3")) as read:
            names = [str(log.name) for log in read.logs() if log.state == "published"]
    except Exception:  # there is none, or it is being made, or it is damaged: nobody sees anything
        return {}
    finally:
        shutil.rmtree(folder)
    pickup = found["pickup"]
    assert isinstance(pickup, dict)
    files = {name: node for name, node in pickup.items() if isinstance(node, tuple) and name in names}
    return {name: hashlib.sha256(data).hexdigest() for name, (data, _, _) in files.items()}


@lru_cache(maxsize=16)
def _recording(file: Path) -> Recording:
    found: Recording = pickle.loads(file.read_bytes())
    return found


def _state(disk: Disk, rules: str, dice: random.Random | None) -> Tree:
    worst, some = RULES[rules]
    tree: Tree = getattr(disk, worst)() if dice is None else getattr(disk, some)(dice)
    return tree


def distinct(file: Path) -> list[tuple[int, str]]:
    """The instants and rules whose worst cases differ; of equal ones the latest, when clients had seen most."""
    recording = _recording(file)
    disk: Disk = pickle.loads(pickle.dumps(recording.disk))
    found: dict[bytes, tuple[int, str]] = {}
    for instant in range(len(recording.calls) + 1):
        if instant:
            disk.apply(recording.calls[instant - 1])
        for rules in RULES:
            found[hashlib.sha256(repr(_state(disk, rules, None)).encode()).digest()] = (instant, rules)
    return sorted(found.values())


def cut(job: Cut) -> list[str]:
    """In a worker: the disk after one cut, the rounds after it; what is wrong."""
    recording = _recording(job.recording)
    scene, visible = recording.scene, recording.visible[job.instant]
    dice = None if job.seed is None else random.Random(f"{job.seed}/{job.recording.name}/{job.instant}/{job.rules}")
    folder = scene.copy(job.folder, data=False)
    try:
        power_disk.write(recording.cut(job.instant, job.rules, dice), folder)
        expected = scene.grow(folder) if job.grows else scene.expected
        wrong = carry_on(scene, folder, expected)
        for name, digest in visible.items():
            path = folder / "data" / "pickup" / name
            if not path.exists():
                wrong += [f"{name} was visible before the cut, and is gone"] * (name not in scene.goes)
            elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                wrong.append(f"{name} was visible before the cut, and has other bytes now")
        case = "the worst case" if job.seed is None else f"case {job.seed}"
        where = f"{scene.name}, cut after call {job.instant} of {len(recording.calls)}, {case} by {job.rules}"
        return [f"{where}: {one}" for one in wrong]
    finally:
        shutil.rmtree(folder)
