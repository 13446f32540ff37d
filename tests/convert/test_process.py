"""The conversion process: apart, without a network, not trusted; it ends when it is stopped, and with its parent.

Programs planted in its place stand for one that an export has taken over.
"""

from __future__ import annotations

import gzip
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from server.convert import apart, process
from server.convert.apart import SentFile
from server.convert.conversion import Conversion
from server.convert.day import Tuning
from server.convert.messages import FileNames, WrittenLog
from server.convert.tally import Tally
from server.episodes.catalogue import Catalogue, Episode
from server.errors import ConversionDied, ConversionFailed, DataFolderError, ExportTorn, SourceError
from server.storage.staging import Staging
from server.triton import Layout, LogRules

from ..support.apart import apart_from
from ..support.planted import planted
from ..support.reference_conversion import (
    DAY,
    KERNEL,
    KEY,
    convert,
    convert_slowly,
    export_file,
    sample,
    with_repetitions,
)
from ..support.rows import row
from ..support.site import COLD_START, log_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
SECRET = "203.0.113.99"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A staging folder."""
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


@contextmanager
def no_process_left() -> Iterator[None]:
    """Check that whatever happens inside leaves no child of this process and no descriptor."""
    children, descriptors = _children(), _descriptors()
    yield
    assert _children() == children
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the processes as the service does: a forked one is no child of ours, and an installation forks them."""
    monkeypatch.setattr(process, "start", COLD_START)


def _children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


# What it writes and reports


@pytest.mark.parametrize("exact", [False, True])
def test_what_comes_out_is_what_comes_out_in_this_process(tmp_path: Path, folder: Path, exact: bool) -> None:
    """Bytes, books, rejected rows, and what is reported of each file."""
    export = export_file(tmp_path, with_repetitions(sample()))
    here, sink = convert(export, tuning=Tuning(), kernel=None if exact else KERNEL, max_rows_per_file=150,
                         by_podcast=True)  # fmt: skip
    seen: list[int] = []
    with no_process_left():
        there = apart_from(export, folder, max_rows_per_file=150, by_podcast=True, exact=exact, progress=seen.append)
    assert there.tally.as_json() == here.tally.as_json()
    assert there.podcasts.as_json() == here.podcasts.as_json()
    assert [log.lines for log in there.logs] == here.lines_per_log
    for index, log in enumerate(sink.logs):
        written = folder / f"log-{index:02}.gz"
        assert written.read_bytes() == log.content
        assert (there.logs[index].size, there.logs[index].sha256) == (len(log.content), sha256(log.content).hexdigest())
        assert written.stat().st_mode & 0o777 == 0o440
    assert sink.rejects is not None and there.rejects
    assert gzip.decompress((folder / "rejects").read_bytes()) == gzip.decompress(sink.rejects.content)
    assert len(list(folder.iterdir())) == len(sink.logs) + 1
    assert seen[-1] == export.stat().st_size


def test_the_bytes_are_the_same_for_any_number_of_threads(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting `workers` changes nothing but the speed."""
    monkeypatch.setattr(apart, "SMALL_EXPORT", 0)
    export = export_file(tmp_path, sample(8000))
    answers = [apart_from(export, folder, workers=workers) for workers in (1, 2, 3)]
    assert answers[0] == answers[1] == answers[2]


def test_rules_key_catalogue_and_late_rows_get_there(tmp_path: Path, folder: Path) -> None:
    """Late rows are those that were not sent; the same catalogue and key made both logs."""
    episode = str(orjson.loads(sample(1)[0])["episode_id"])
    catalogue = Catalogue({episode.lower(): Episode("the guid", "", "TOK1", "https://x.example/a b.mp3")})
    made = Conversion(LogRules(ip="truncated", url="{enclosure_url}"), KEY, catalogue, DAY)
    rows = sample(300)
    first = apart_from(export_file(tmp_path, rows[:200]), folder, made, FileNames("first-", 0, ".gz"))
    sent = [SentFile(Layout(), lambda: (folder / "first-00.gz").open("rb"), "first-00.gz")]
    late = apart_from(export_file(tmp_path, rows), folder, made, sent=sent, fresh_after=f"{DAY} 23:00:00")
    slow = convert_slowly(rows[:200], made)
    assert gzip.decompress((folder / "first-00.gz").read_bytes()).decode().splitlines(keepends=True)[1:] == slow.lines
    expected = convert_slowly(rows, made, sent=slow.cells, fresh_after=f"{DAY} 23:00:00")
    assert late.tally.as_json() == expected.tally.as_json()
    assert gzip.decompress((folder / "log-00.gz").read_bytes()).decode().splitlines(keepends=True)[1:] == expected.lines
    assert (first.changed, late.changed, late.removed) == (0, 0, 0)


def test_a_server_py_in_the_folder_is_no_trap(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is not looked for in a folder that has a server.py of its own."""
    (tmp_path / "server.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert apart_from(export_file(tmp_path, sample(20)), folder).tally.lines > 0


def test_an_export_without_rows_loads_neither_kernel_nor_the_rules_of_rows(tmp_path: Path, folder: Path) -> None:
    """What takes longest to load is loaded for the first row, or not at all."""
    with planted(f"""
import os, sys
def leave(code, really=os._exit):
    open({str(tmp_path / "loaded")!r}, "w").write(" ".join(sys.modules))
    really(code)
os._exit = leave
import server.convert.__main__ as main
main.main()
"""):  # fmt: skip
        assert apart_from(export_file(tmp_path, []), folder, digests=False).tally.rows == 0
    loaded = set((tmp_path / "loaded").read_text().split())
    assert "server.convert.day" in loaded
    needless = {"dataclasses", "inspect", "orjson", "hashlib", "tempfile"}
    needless |= {f"server.convert.{name}" for name in ("block", "kernel", "row")}
    assert not needless & loaded


# How it fails


@pytest.fixture
def long_day(tmp_path: Path) -> Path:
    """A day that is not over before somebody interferes."""
    path = export_file(tmp_path, sample(600))
    path.write_bytes(path.read_bytes() * 100)
    return path


def test_a_torn_export_is_reported_as_such(tmp_path: Path, folder: Path) -> None:
    """By its name, quoting nothing of its content."""
    export = export_file(tmp_path, sample(300))
    whole = export.read_bytes()
    for data, why in (
        (whole[:-20], "truncated"),
        (b"", "empty"),
        (f'{{"ip":"{SECRET}"}}'.encode(), "not gzip"),
        (whole + SECRET.encode(), "something else follows"),
        (whole[:-8] + bytes(8), "damaged"),
    ):
        export.write_bytes(data)
        with no_process_left(), pytest.raises(ExportTorn, match=f"{export.name} is .*{why}") as caught:
            apart_from(export, folder)
        assert SECRET not in f"{caught.value} {caught.value.hint}"
    export.write_bytes(gzip.compress(f'[\n{{"ip":"{SECRET}"}}'.encode()))
    with no_process_left(), pytest.raises(ExportTorn, match=f"{export.name} is .*no closing bracket") as caught:
        apart_from(export, folder)
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_rows_in_an_array_on_one_line_are_reported_as_such(tmp_path: Path, folder: Path) -> None:
    """The answer says so, so that the day can be held with a sentence about it."""
    for rows, one_line in ((b"[" + row() + b"]", True), (row(), False)):
        assert apart_from(export_file(tmp_path, rows), folder).one_line is one_line


def test_what_cannot_be_read_is_reported_as_such(tmp_path: Path, folder: Path) -> None:
    """A missing file, a folder, a damaged log."""
    for path in (tmp_path / "nothing.gz", tmp_path):
        with no_process_left(), pytest.raises(SourceError, match="cannot be read"):
            apart_from(path, folder)
    export = export_file(tmp_path, sample(50))
    (folder / "torn").write_bytes(export.read_bytes()[:-4])
    torn = SentFile(Layout(), lambda: (folder / "torn").open("rb"), "MEGA-00.tsv.gz")
    with no_process_left(), pytest.raises(DataFolderError, match=r"log MEGA-00\.tsv\.gz is damaged.*truncated"):
        apart_from(export, folder, sent=[torn])
    failing = SentFile(Layout(), lambda: open("/proc/self/mem", "rb"), "MEGA-01.tsv.gz")  # noqa: PTH123, SIM115
    with pytest.raises(
        DataFolderError, match=r"^the published log MEGA-01\.tsv\.gz cannot be read: Input/output error"
    ):
        apart_from(export, folder, sent=[failing])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_is_killed_is_reported_in_a_sentence(long_day: Path, folder: Path, how: signal.Signals) -> None:
    """In the middle of a day: the signal is named, there is something to type, and nothing is left of the process."""

    def kill(_: int) -> None:
        for child in _children() - before:
            os.kill(child, how)

    before = _children()
    sentence = f"killed by signal {how.value} before it finished"
    with no_process_left(), pytest.raises(ConversionDied, match=sentence) as caught:
        apart_from(long_day, folder, exact=True, progress=kill)
    assert "next round" in caught.value.hint


def test_a_stop_ends_it_at_once(long_day: Path, folder: Path) -> None:
    """Even while it reads nothing: no process is left."""
    stop = threading.Event()
    with no_process_left(), pytest.raises(ConversionFailed, match="stopped") as caught:
        apart_from(long_day, folder, exact=True, progress=lambda _: stop.set(), stop=stop)
    assert not isinstance(caught.value, ConversionDied)


_PARENT = """
import sys, time
from pathlib import Path
from tests.support.apart import apart_from
def wait(_):
    import os
    children = [c for task in Path("/proc/self/task").iterdir() for c in (task / "children").read_text().split()]
    print(*children, flush=True)
    time.sleep(60)
apart_from(Path(sys.argv[1]), Path(sys.argv[2]), exact=True, progress=wait)
"""


def test_it_ends_with_its_parent(long_day: Path, folder: Path) -> None:
    """Even kill -9, which no process can handle, leaves none behind."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(long_day), str(folder)], stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        (child,) = map(int, parent.stdout.readline().split())
        assert _is_running(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_an_unforeseen_error_says_where_and_no_more(tmp_path: Path, folder: Path) -> None:
    """Not the error's own words, which may hold a listener's address."""
    export = export_file(tmp_path, [row(ip=SECRET)])
    with planted(f"""
import server.convert.__main__ as main
def fail(*_, **__): raise KeyError("{SECRET}")
main.convert_export = fail
main.main()
"""), pytest.raises(ConversionDied, match="failed: KeyError at ") as caught:  # fmt: skip
        apart_from(export, folder)
    assert "planted.py:3" in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.hint}"


# What it is allowed to do


def test_it_is_handed_files_and_nothing_else(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable or socket of the service, no other file than those it must have, nothing in its arguments."""
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "AWS_SECRET_ACCESS_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "secret")
    with planted(f"""
import json, os, sys
paths = [f"/proc/self/fd/{{n}}" for n in os.listdir("/proc/self/fd") if int(n) > 2]
links = [os.readlink(path) for path in paths if os.path.exists(path)]
json.dump([sorted(os.environ), links, sys.argv], open({str(tmp_path / "seen")!r}, "w"))
"""), pytest.raises(ConversionDied, match="status 0 and no answer"):  # fmt: skip
        apart_from(export_file(tmp_path, sample(5)), folder)
    names, links, arguments = orjson.loads((tmp_path / "seen").read_bytes())
    assert set(names) <= {*process._ENVIRONMENT, "PYTHONPATH", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
                          "MALLOC_ARENA_MAX", "LC_CTYPE"}  # fmt: skip
    files = {link for link in links if not link.startswith("/proc/")}
    assert files == {str(folder), str(tmp_path / "metrics-day-2026-11-20.json.gz")}
    assert len(arguments) == 1


# Its answer is not trusted

PAUSE = b"a while\n"
GOOD_TALLY = Tally(rows=3, lines=2, reporting=2).as_json() | {"filtered": {"no_bytes": 1}}
GOOD_LOG = [2, 100, "0" * 64]
GOOD_PODCASTS = {"p": [3, 2, 2, {"no_bytes": 1}, {}]}
GOOD_END = {"tally": GOOD_TALLY, "changed": 0, "removed": 0, "rejects": False, "one_line": False}


def liar(*lines: object) -> str:
    """Return a program that takes a request and answers these lines; `PAUSE` is not one of them."""
    each = [line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines]
    texts = b"".join(each).split(PAUSE)
    return f"""
import os, time
size = int.from_bytes(os.read(0, 8), "little")
while size: size -= len(os.read(0, size))
for text in {texts!r}:
    while text: text = text[os.write(1, text):]
    time.sleep({0.1 if len(texts) > 1 else 0})
"""


def spoken(**changes: Any) -> list[object]:
    """Return a right answer with some of it changed."""
    end = GOOD_END | {name: value for name, value in changes.items() if name in GOOD_END}
    end |= {name: value for name, value in changes.items() if name not in ("log", "podcasts", *GOOD_END)}
    logs = changes.get("log", [GOOD_LOG])
    return [{"read": 1}, {"logs": logs}, {"podcasts": changes.get("podcasts", GOOD_PODCASTS)}, {"done": end}]


def tally(**changes: Any) -> dict[str, Any]:
    return {"tally": GOOD_TALLY | changes}


LIES: dict[str, list[object]] = {
    "no JSON": [b"{\n"],
    "no object": [b"[1]\n"],
    "two in one": [{"read": 1, "logs": []}],
    "NaN": [b'{"read": NaN}\n'],
    "nested": [b"[" * 500_000 + b"\n"],
    "a long line": [b'{"read": ' + b" " * (1 << 20) + b"1}\n", *spoken()],
    "a long line without an end": [b"x" * (3 << 20)],
    "another kind": [{"publish": "MEGA20261120-00.tsv.gz"}],
    "no end": spoken()[:-1],
    "half an end": [*spoken()[:-1], b'{"done": '],
    "more after its end": [*spoken(), {"read": 1}],
    "two ends": [*spoken(), spoken()[-1]],
    "another end after a while": [*spoken(), PAUSE, spoken()[-1]],
    "read more than there is": [{"read": 1 << 40}],
    "read less than nothing": [{"read": -1}],
    "read a boolean": [{"read": True}],
    "read a text": [{"read": "1"}],
    "logs that are not a list": spoken(log={}),
    "a log that is not a list": spoken(log=[7]),
    "a log with more": spoken(log=[[*GOOD_LOG, "../../etc/passwd"]]),
    "a log with a fraction of lines": spoken(log=[[2.0, *GOOD_LOG[1:]]]),
    "a log of negative size": spoken(log=[[2, -1, GOOD_LOG[2]]]),
    "a log of too large a size": spoken(log=[[2, 2**63, GOOD_LOG[2]]]),
    "a digest that is not one": spoken(log=[[2, 100, "0" * 63 + "/"]]),
    "a digest that is too short": spoken(log=[[2, 100, ""]]),
    "other lines than counted": spoken(log=[[1, *GOOD_LOG[1:]]]),
    "no log": spoken(log=[]),
    "a log too many": spoken(log=[GOOD_LOG, [0, 30, "0" * 64]]),
    "two logs": spoken(log=[[1, *GOOD_LOG[1:]], [1, *GOOD_LOG[1:]]]),
    "podcasts that are a list": spoken(podcasts=[]),
    "a podcast without a name": spoken(podcasts={"": GOOD_PODCASTS["p"]}),
    "a podcast with a long name": spoken(podcasts={"p" * 201: GOOD_PODCASTS["p"]}),
    "a podcast with half a letter in its name": [
        b'{"podcasts": {"\\ud800": [3, 2, 2, {"no_bytes": 1}, {}]}}\n', spoken()[1], spoken()[-1],
    ],
    "a podcast's books that do not balance": spoken(podcasts={"p": [3, 2, 3, {"no_bytes": 1}, {}]}),
    "a podcast's books that are short": spoken(podcasts={"p": [3, 2]}),
    "a podcast's unknown reason": spoken(podcasts={"p": [3, 2, 2, {SECRET: 1}, {}]}),
    "podcasts that are not the day": spoken(podcasts={"p": [2, 2, 2, {}, {}]}),
    "a podcast twice": [*spoken()[:-1], {"podcasts": GOOD_PODCASTS}, spoken()[-1]],
    "too many podcasts": [{"podcasts": {f"{lap}-{n}": GOOD_PODCASTS["p"] for n in range(5000)}} for lap in range(5)],
    "an end with more": spoken(name="MEGA20261120-00.tsv.gz"),
    "an end with less": [*spoken()[:-1], {"done": {"tally": GOOD_TALLY}}],
    "rejected rows that are not there": spoken(rejects=True),
    "rejected rows by number": spoken(rejects=0),
    "rows on one line that became lines": spoken(one_line=True),
    "rows on one line by number": spoken(one_line=0),
    "changed rows of none sent": spoken(changed=1),
    "removed rows of none sent": spoken(removed=1),
    "books that do not balance": spoken(**tally(rows=4)),
    "books with a field more": spoken(**tally(more=1)),
    "books with an unknown reason": spoken(**tally(filtered={SECRET: 1})),
    "books with a reason of the other kind": spoken(**tally(filtered={"no_id": 1})),
    "books with negative rejects": spoken(**tally(rejected={"no_id": -1}, filtered={"no_bytes": 2})),
    "books in words": spoken(**tally(lines="2")),
    "books that are a list": spoken(tally=[]),
    "more reported than there are": spoken(**tally(reporting=4)),
    "more clamped than lines": spoken(**tally(clamped=3)),
    "a number over 63 bits": spoken(**tally(clamped=2**63)),
    "a failure of no kind": [{"failed": {"kind": "x"}}],
    "a failure that is a text": [{"failed": SECRET}],
    "a failure in words of its own": [{"failed": {"kind": "torn", "word": SECRET}}],
    "a failure of a log that was not sent": [{"failed": {"kind": "sent", "log": 0, "word": "empty"}}],
    "a failure with a number that is not one": [{"failed": {"kind": "disk", "errno": SECRET}}],
    "a type that is a sentence": [{"failed": {"kind": "error", "type": f"of {SECRET}", "at": []}}],
}  # fmt: skip


def test_the_liar_is_believed_when_it_tells_no_lie(tmp_path: Path, folder: Path) -> None:
    """Otherwise the lies would prove nothing."""
    with planted(liar(*spoken())):
        answer = apart_from(export_file(tmp_path, sample(5)), folder, by_podcast=True)
    assert answer.tally.as_json() == GOOD_TALLY
    assert answer.podcasts.as_json() == GOOD_PODCASTS


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_right_is_refused(tmp_path: Path, folder: Path, lie: str) -> None:
    """Field by field; the sentence about it is in our own words."""
    with planted(liar(*LIES[lie])), no_process_left(), pytest.raises(ConversionDied) as caught:
        apart_from(export_file(tmp_path, sample(5)), folder, by_podcast=True)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert lie in ("no end", "half an end") or "cannot be right" in str(caught.value)


def test_what_is_not_a_place_in_the_program_is_left_out(tmp_path: Path, folder: Path) -> None:
    """Only what looks like a file and a line is quoted."""
    failed = {"kind": "error", "type": "KeyError", "at": [f"ip {SECRET}", "row.py:7", 9]}
    with planted(liar({"failed": failed})), pytest.raises(ConversionDied, match=r"KeyError at row\.py:7$"):
        apart_from(export_file(tmp_path, sample(5)), folder)


def test_one_that_never_ends_is_ended(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends its last message and stays, or says nothing at all: it is killed before its files are examined."""
    export = export_file(tmp_path, sample(5))
    with planted(f"{liar(*spoken())}\nos._exit(3)"), pytest.raises(ConversionDied, match="status 3"):
        apart_from(export, folder, by_podcast=True)
    monkeypatch.setattr(process, "_PATIENCE", 0.2)
    monkeypatch.setattr(process, "SILENCE", 0.5)
    for program in (f"{liar(*spoken())}\nos.close(1)\nimport time; time.sleep(60)", "import time; time.sleep(60)"):
        with planted(program), no_process_left(), pytest.raises(ConversionDied, match=r"did not end|said nothing"):
            apart_from(export, folder, by_podcast=True)


# Neither are its files


@pytest.fixture
def staging(tmp_path: Path, folder: Path) -> Staging:
    """A staging folder with one converted log in it."""
    for name in ("pickup", "rejects"):
        (tmp_path / name).mkdir()
    return Staging(folder, tmp_path / "pickup", tmp_path / "rejects", log_name())


HEADER = Layout().header_lines(DAY)


def test_a_log_that_is_not_as_reported_is_never_sealed(tmp_path: Path, staging: Staging) -> None:
    """Another size, digest, number of lines or header; no file, a link, two names, more than one member."""
    answer = apart_from(export_file(tmp_path, sample(100)), staging.folder, names=staging.file_names)
    (log,) = answer.logs
    path = staging.folder / str(log_name())
    assert staging.seal(answer.logs, HEADER, 1)[0].sha256 == log.sha256
    assert path.stat().st_mtime == 1
    whole = path.read_bytes()

    def seal(content: bytes, lines: int = log.lines, header: str = HEADER) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        reported = log._replace(lines=lines, size=len(content), sha256=sha256(content).hexdigest())
        staging.seal([reported], header, 1)

    seal(whole)
    text = gzip.decompress(whole)
    for content, lines, header in (
        (whole[:-1], log.lines, HEADER),
        (whole + b"x", log.lines, HEADER),
        (whole + whole, 2 * log.lines + 1, HEADER),
        (whole, log.lines - 1, HEADER),
        (whole, log.lines, f"#{HEADER}"),
        (text, log.lines, HEADER),
        (_gzipped(text[:-1]), log.lines - 1, HEADER),
        (_gzipped(text[:-1] + b"x"), log.lines - 1, HEADER),
        (gzip.compress(text, mtime=7), log.lines, HEADER),
        (whole[:-8] + bytes(8), log.lines, HEADER),
        (b"", 0, ""),
    ):
        with pytest.raises(ConversionDied, match="cannot be right"):
            seal(content, lines, header)
    seal(whole)
    for wrong in (log._replace(size=log.size - 1), log._replace(size=log.size + 1), log._replace(sha256="0" * 64)):
        with pytest.raises(ConversionDied, match="another size or digest"):
            staging.seal([wrong], HEADER, 1)
    os.link(path, tmp_path / "second")
    with pytest.raises(ConversionDied, match="not a regular file with a single name"):
        staging.seal(answer.logs, HEADER, 1)
    for make in (os.mkfifo, os.mkdir, lambda name: name.symlink_to(tmp_path / "second")):
        path.unlink()
        make(path)
        with pytest.raises(ConversionDied):
            staging.seal(answer.logs, HEADER, 1)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            path.touch()
    path.unlink()
    with pytest.raises(ConversionDied, match="there is no file"):
        staging.seal(answer.logs, HEADER, 1)
    with pytest.raises(ConversionDied, match="there is no file"):
        staging.keep_rejects(written=True)


def _gzipped(text: bytes) -> bytes:
    """Compress a text with the gzip header that a conversion writes."""
    packed = bytearray(gzip.compress(text, 1, mtime=0))
    packed[8:10] = b"\x00\xff"
    return bytes(packed)


def test_a_log_that_swells_is_read_in_small_pieces(staging: Staging) -> None:
    """Hundreds of megabytes of lines in a few hundred kilobytes of gzip cost no such memory."""
    packer, lines = zlib.compressobj(9, wbits=-15), bytes([ord("\n")]) * (1 << 20)
    crc, packed = zlib.crc32(HEADER.encode()), packer.compress(HEADER.encode()) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += 200 * (packer.compress(lines) + packer.flush(zlib.Z_FULL_FLUSH))
    for _ in range(200):
        crc = zlib.crc32(lines, crc)
    size = len(HEADER) + 200 * len(lines)
    content = _gzipped(b"")[:10] + packed + packer.flush() + struct.pack("<II", crc, size)
    (staging.folder / str(log_name())).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    staging.seal([WrittenLog(200 << 20, len(content), sha256(content).hexdigest())], HEADER, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_names_are_those_of_the_logs() -> None:
    """In staging a log has the name under which it will be published, beyond a hundred too."""
    names = Staging(Path(), Path(), Path(), log_name(97)).file_names
    assert [names.at(index) for index in range(5)] == [str(log_name(97 + index)) for index in range(5)]
    assert all(one < other or len(one) < len(other) for one, other in pairwise(map(names.at, range(5))))
