"""A block by the kernel, and by the exact rules: whatever the job, the same result.

Touches no outside world but the kernel's library; the environment may name another build of it (`LIBRARY`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.convert import kernel as binding
from server.convert.block import BlockConverter
from server.convert.job import Job, Task
from server.convert.kernel import Kernel
from server.convert.log_writer import inflate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.convert.job import Result
    from server.convert.row import Conversion

LIBRARY = "PICKUP_POINT_TEST_KERNEL"  # the path of a kernel that was built with sanitizers, or by another compiler


@cache
def kernel() -> Kernel:
    """The kernel that is tested."""
    found = Kernel.open(Path(os.environ.get(LIBRARY, binding.LIBRARY)))
    assert found is not None, "no kernel was built: pip install -e ."
    return found


class Ways:
    """The two ways of one conversion."""

    def __init__(self, made: Conversion, fresh_after: str | None = None, *, by_podcast: bool = True) -> None:
        self.by_kernel = BlockConverter(kernel(), made, fresh_after, by_podcast=by_podcast)
        self.exactly = BlockConverter(None, made, fresh_after, by_podcast=by_podcast)

    def agree(self, job: Job) -> Result:
        """Return the result, which must be the same by both."""
        result = self.by_kernel.do(job)
        expected = _values(self.exactly.do(job))
        for name, value in _values(result).items():
            if value != expected[name]:
                raise AssertionError(f"{name}: {_difference(value, expected[name])}")
        return result


def _difference(one: Any, other: Any) -> str:
    """Where two values begin to differ, in words that stay short."""
    if isinstance(one, list) and isinstance(other, list):
        for number, (mine, its) in enumerate(zip_longest(one, other)):
            if mine != its:
                return f"entry {number}: {mine!r:.2000} instead of {its!r:.2000}"
    return f"{one!r:.2000} instead of {other!r:.2000}"


def _values(result: Result) -> dict[str, Any]:
    return {
        "number": result.number,
        "line_count": result.line_count,
        "text": inflate(result.piece).split(b"\n"),
        "piece": result.piece,
        "tally": result.tally.as_json(),
        "rejects": result.rejects,
        "closing": result.closing,
        "ids": result.ids,
        "records": result.records,
        "podcasts": result.podcasts,
    }


def odd_rows(made: Conversion, text: bytes, **options: Any) -> list[bytes]:
    """The rows of a block that the kernel leaves to the exact rules."""
    rules = binding.CompiledRules(kernel(), made, options.pop("fresh_after", None), **options)
    rooms, found, start = binding.Rooms(), [], 0
    loaded = rooms.load([text])
    names = binding.Names().packed(())
    while start < len(loaded):
        block = rooms.block(start, names, array=False)
        kernel().convert(rules, block)
        found += [bytes(loaded[start + begin : start + end]) for begin, end, *_ in rooms.odd(block)]
        start += block.taken
    return found


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded_room(size: int, *, at_end: bool = True) -> ctypes.Array[ctypes.c_char]:
    """So many bytes that end (or begin) where no page can be read or written."""
    page = mmap.PAGESIZE
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = (ctypes.c_char * len(memory)).from_buffer(memory)
    for guard in (0, page + pages):
        if _libc.mprotect(ctypes.addressof(whole) + guard, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return (ctypes.c_char * size).from_buffer(memory, page + (pages - size if at_end else 0))


def cuts(text: bytes, most: int) -> Iterator[bytes]:
    """The text in blocks of whole lines, of about so many bytes."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + most) + 1 or len(text)
        yield text[start:end]
        start = end


def job(text: bytes, task: Task = Task.RENDER, **more: Any) -> Job:
    """A job with this block."""
    return Job(more.pop("number", 0), task, (text,), **{"want_ids": True, **more})
