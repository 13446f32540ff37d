"""What the conversion of a day is made of, in one process: gunzip, kernel, deflate, and all of it on two threads.

    python -m benchmarks.parts [--rows 1000000] [--folder DAYS] [--rounds 3]

Prints CPU seconds and wall seconds, the smallest of the rounds; `floor` is gunzip of the export and gzip of the log's
text with isal, one after the other. There is no child process here, no file is written and no id looked at twice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from isal import igzip, isal_zlib

from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.job import Job, Task
from server.convert.kernel import load_kernel
from server.convert.lines import GzipText, cut_blocks
from server.convert.log_writer import deflate, inflate
from server.triton import LogRules

from .days import DAYS, make_day

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = date(2026, 11, 20)
BLOCK = 1 << 20


class Clock:
    """The smallest CPU and wall time of each part."""

    def __init__(self) -> None:
        self.best: dict[str, tuple[float, float]] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Time what is done within."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        took = time.process_time() - cpu, time.perf_counter() - wall
        self.best[part] = tuple(map(min, took, self.best.get(part, took)))  # type: ignore[assignment]  # two of them


def main() -> None:
    """Measure each day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in (*DAYS, "addresses"):
            export, clock = make_day(name, folder, DAY, arguments.rows), Clock()
            for _ in range(arguments.rounds):
                odd = _round(export, clock)
            told = "  ".join(f"{part} {cpu:.3f}/{wall:.3f}" for part, (cpu, wall) in clock.best.items())
            print(f"{name:10} {told}  (CPU/wall s; {odd} rows by the exact rules)")


def _round(export: Path, clock: Clock) -> int:
    kernel = load_kernel()
    assert kernel is not None
    converter = BlockConverter(kernel, Conversion(LogRules(), bytes(32), None, DAY))
    odd, exact = [0], converter._exact.convert  # noqa: SLF001  # to count what goes there

    def counted(row: bytes) -> object:
        odd[0] += 1
        return exact(row)

    converter._exact.convert = counted  # type: ignore[method-assign,assignment]  # noqa: SLF001
    with clock.time("threads"):
        pieces = list(_on_two_threads(export, converter))
    kept = odd[0]
    with clock.time("gunzip"):
        blocks = [b"".join(block.pieces) for block in _blocks(export)]
    with clock.time("convert"):
        for number, block in enumerate(blocks):
            converter.do(Job(number, Task.RENDER, (block,), want_ids=True))
    del blocks
    texts = [inflate(piece) for piece in pieces]
    with clock.time("deflate"):
        for text in texts:
            deflate(text, 1)
    log = export.with_name("log.tsv")
    log.write_bytes(b"".join(texts))
    del texts
    with clock.time("floor"):
        with igzip.open(export) as source:  # type: ignore[no-untyped-call]  # isal annotates in part
            while source.read(1 << 20):
                pass
        packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
        with log.open("rb") as text_file, export.with_name("floor.gz").open("wb") as target:
            while data := text_file.read(1 << 20):
                target.write(packer.compress(data))
            target.write(packer.flush())
    return kept


def _blocks(export: Path) -> Iterator[object]:
    with GzipText.open(export) as text:
        yield from cut_blocks(text.read, BLOCK)


def _on_two_threads(export: Path, converter: BlockConverter) -> Iterator[object]:
    """The pieces of the log, in order; gunzip is done here, beside two threads that convert."""
    with ThreadPoolExecutor(2) as threads:
        doing = deque()  # type: ignore[var-annotated]
        for block in _blocks(export):
            doing.append(threads.submit(converter.do, Job(block.number, Task.RENDER, block.pieces, want_ids=True)))
            while len(doing) > 4:
                yield doing.popleft().result().piece
        while doing:
            yield doing.popleft().result().piece


if __name__ == "__main__":
    main()
