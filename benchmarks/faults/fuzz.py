"""The part `fuzz`: coverage-guided fuzzing of everything that reads what others wrote; the corpus replayed first.

Runs a fuzzer of its own on the kernel alone (`tests.support.fuzz_kernel`, wants gcc), then `fuzz_process` for each
target, one or two at a time at the lowest priority, for its share of the time; the inputs that reached something new
lie, as few and as small as libFuzzer can make them, in the campaign's folder afterwards (`corpus/TARGET`, kept with
`--folder`), and those that broke a promise beside them (`findings`). Wants the extra `fuzz`; without it the corpus is
replayed, and the rows say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.support import fuzz_kernel
from tests.support.fuzz_targets import CORPUS, TARGETS

from .result import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from .result import Campaign

AT_ONCE = 2
MOST_KEPT = 280_000  # bytes of a corpus that is kept, all targets together
_NICE = 10
_SHARES = {"rows": 8, "day": 4, "config": 2, "rss": 2, "sftp": 2, "names": 1, "stored": 1}
_LIMITS = ("-max_len=4096", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1")
_AFTER_FINDING = 2.0  # seconds that must be left for another try
_TITLES = {
    "rows": "fuzzed: rows of an export, the fast path beside the exact rules",
    "day": "fuzzed: whole exports, blocks, late rows",
    "stored": "fuzzed: gzip files, and how they are cut into lines",
    "names": "fuzzed: names of logs and exports, headers, URL templates",
    "config": "fuzzed: configuration files",
    "rss": "fuzzed: RSS feeds",
    "sftp": "fuzzed: SFTP sessions",
}


def run(campaign: Campaign) -> list[Fault]:
    """A row for the kernel, and one for each target."""
    kernel = Fault("fuzzed: the kernel alone, under AddressSanitizer and UndefinedBehaviorSanitizer")
    _fuzz_kernel(campaign, max(1.0, campaign.left * (0.1 if campaign.short else 0.25)), kernel)
    return [kernel, *_run(campaign)]


def _fuzz_kernel(campaign: Campaign, seconds: float, row: Fault) -> None:
    """The compiled kernel on any bytes, for this long."""
    if shutil.which("gcc") is None:
        row.figures["not fuzzed"] = "apt-get install gcc"
        return
    folder = campaign.folder / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    seed = campaign.rng("fuzzing", "kernel", 0).randrange(1, 1 << 31)
    done = fuzz_kernel.fuzz(fuzz_kernel.build(folder), seconds, seed, folder)
    row.tried, row.figures["branches reached"] = done.tried, done.branches
    row.expect(done.code == 0, f"the kernel (seed {seed}): {done.said[-2000:]}; the input lies in {folder}")


def _run(campaign: Campaign) -> list[Fault]:
    """A row for each target."""
    rows = {name: Fault(_TITLES[name]) for name in TARGETS}
    for name, row in rows.items():
        _replay(name, row)
    if find_spec("atheris") is None:
        for row in rows.values():
            row.figures["not fuzzed"] = "pip install 'pickup-point[fuzz]'"
        return list(rows.values())
    total = sum(_SHARES[name] for name in TARGETS)
    spare = 5.0 if campaign.short else 60.0  # to start processes, and to make the corpus small
    each = {name: AT_ONCE * max(1.0, campaign.left - spare) * _SHARES[name] / total for name in TARGETS}
    if campaign.short:  # every target has its turn, however long a process takes to start
        each = dict.fromkeys(TARGETS, max(1.0, (campaign.left - spare) * AT_ONCE / len(TARGETS) - 2.5))
    with ThreadPoolExecutor(AT_ONCE) as turns:
        doing = [turns.submit(_fuzz, campaign, name, each[name], row) for name, row in rows.items()]
    for one in doing:
        one.result()
    return list(rows.values())


def _replay(name: str, row: Fault) -> None:
    """The kept corpus, in this process."""
    files, broken = sorted((CORPUS / name).iterdir()), []
    for path in files:
        row.tried += 1
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            broken.append(f"{path.name}: {error!r}")
    row.expect(not broken, f"{len(broken)} files of the corpus, the first of them {''.join(broken[:1])}")
    row.figures["of them kept as a corpus"] = len(files)


def _fuzz(campaign: Campaign, name: str, seconds: float, row: Fault) -> None:
    """Fuzz one target for this long; a finding ends a process, not the time."""
    found, findings = campaign.folder / "corpus" / name, campaign.folder / "findings"
    found.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    until, turn, kinds = time.monotonic() + seconds, 0, set[str]()
    while (left := until - time.monotonic()) > _AFTER_FINDING or not turn:
        seed = campaign.rng("fuzzing", name, turn).randrange(1, 1 << 31)
        turn += 1
        options = (f"-seed={seed}", f"-max_total_time={max(1, round(left))}", f"-artifact_prefix={findings}/{name}-")
        code, said = _process(name, left + 60, *_LIMITS, *options, found, CORPUS / name)
        row.tried += max((int(count) for count in re.findall(r"^#(\d+)\s", said, re.MULTILINE)), default=0)
        for covered in re.findall(r" cov: (\d+) ", said)[-1:]:
            row.figures["branches reached"] = max(int(row.figures.get("branches reached", 0)), int(covered))
        if code:
            kind = _kind(said)
            if kind not in kinds:
                kinds.add(kind)
                row.lost.append(f"{name}: {kind} (seed {seed}); the input: {_newest(findings)}")
            if "== ERROR: libFuzzer" not in said:
                return  # it did not even begin
    if not campaign.short and not kinds:
        _make_small(name, found)


def _process(name: str, seconds: float, *arguments: str | Path) -> tuple[int, str]:
    """Run the fuzzer to its end: exit code, and what it said."""
    command = [sys.executable, "-P", "-m", "benchmarks.faults.fuzz_process", name, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(CORPUS.parent.parent), "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        ["nice", "-n", str(_NICE), *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            said += b"\n== ERROR: libFuzzer came to no end in time"
            return 1, said.decode(errors="replace")
    return process.returncode, said.decode(errors="replace")


def _kind(said: str) -> str:
    """What a finding is, in a line: the exception and where it was raised, or what libFuzzer calls it."""
    places = re.findall(r'File ".*?((?:server|tests)/\w+\.py)", line (\d+)', said)
    exceptions = re.findall(r"Uncaught Python exception: ===\n(.*)", said)
    if exceptions:
        return f"{exceptions[-1][:200]} at {':'.join(places[-1]) if places else 'an unknown place'}"
    errors = re.findall(r"ERROR: (libFuzzer.*)", said)
    return errors[-1][:200] if errors else f"it ended: {said[-300:]}"


def _newest(findings: Path) -> str:
    """The last input that broke something, in base64 of its deflated bytes, if it is short enough to print."""
    paths = sorted(findings.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    packed = b64encode(zlib.compress(paths[-1].read_bytes(), 9)).decode() if paths else ""
    return packed if 0 < len(packed) < 4000 else f"lies in {findings}"


def _make_small(name: str, found: Path) -> None:
    """Leave of all inputs, old and new, the smallest ones that together reach what all reach, up to `MOST_KEPT`."""
    whole = found.with_name(f"{name}-whole")
    found.rename(whole)
    found.mkdir()
    _process(name, 300, "-merge=1", *_LIMITS, found, CORPUS / name, whole)
    for path in whole.iterdir():
        path.unlink()
    whole.rmdir()
    room = MOST_KEPT * _SHARES[name] // sum(_SHARES.values())
    for path in sorted(found.iterdir(), key=lambda path: path.stat().st_size):
        room -= path.stat().st_size
        if room < 0:
            path.unlink()
