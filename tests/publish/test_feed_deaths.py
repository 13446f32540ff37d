"""The process that converts dies, or lies: the day fails in a sentence and is repeated, at last the exact way.

Programs that are planted in its place stand for one that dies of its export.
"""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from server.publish.feed import DEATHS
from tests.support.planted import planted
from tests.support.rows import row
from tests.support.site import DAY, Site, at, name, rows_of

# Dies as one whose kernel has a fault: in the midst of its work, with files half written; by the exact way it lives.
DIES_BY_THE_KERNEL = """
import os, signal
from server.convert import __main__ as program, messages
unpack = messages.Request.unpack.__func__
def unpacked(cls, data):
    request = unpack(cls, data)
    if request.kernel:
        folder, names = request.logs
        os.write(os.open(names.at(0), os.O_WRONLY | os.O_CREAT, dir_fd=folder), b"half")
        os.write(os.open(names.at(1), os.O_WRONLY | os.O_CREAT, dir_fd=folder), b"half")
        os.write(os.open(request.rejects[1], os.O_WRONLY | os.O_CREAT, dir_fd=folder), b"half")
        signal.raise_signal(signal.SIGSEGV)
    assert request.threads == 1
    return request
messages.Request.unpack = classmethod(unpacked)
program.main()
"""
# Does its work, and then something to the files of it.
TOUCHES_ITS_FILES = """
import os, sys
from server.convert import __main__ as program
answer = program.answer
def answered(*arguments, **more):
    with open("MEGA20261120-00.tsv.gz", "ab" if {append} else "r+b", opener=lambda *a: os.open(a[0], a[1])) as file:
        file.write(b"x")
    return answer(*arguments, **more)
program.answer = answered
program.main()
"""


async def test_a_day_whose_process_died_is_repeated_by_the_next_round(site: Site) -> None:
    """In one sentence with something to type; what was half written is gone, and the next round publishes."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    with planted(DIES_BY_THE_KERNEL):
        assert await site.word(at(1, "05:35")) == "failed"
    failure = site.ledger.days()[DAY].failure
    assert failure is not None
    assert failure.sentence == "the conversion process was killed by signal 11 before it finished"
    assert "journalctl -k" in failure.hint
    assert site.files() == [] and list(site.point.staging_dir.iterdir()) == []
    assert await site.word(at(1, "05:45")) == "published"
    site.check_folder()
    assert len(site.ids()) == 20
    assert site.ledger.facts()[DEATHS] == {}


async def test_after_three_deaths_a_day_goes_without_the_kernel_and_this_is_told(site: Site) -> None:
    """The deaths are counted across restarts; the log, the publication's remark and so `status` say what was done."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    with planted(DIES_BY_THE_KERNEL), capture_logs() as entries:
        for hour in (6, 8, 10):
            assert await site.word(at(1, f"{hour:02}:00")) == "failed"
            site.restart()
        assert site.ledger.facts()[DEATHS][str(DAY)][1] == 3
        assert await site.word(at(1, "14:00")) == "published"
    site.check_folder()
    assert len(site.ids()) == 20
    (publication,) = site.ledger.publications(DAY)
    assert publication.remark == "converted without the kernel: the conversion had died 3 times"
    assert [entry["log_level"] for entry in entries if entry["event"] == f"feed converts {DAY} without the kernel"] == [
        "warning"
    ]
    assert site.ledger.facts()[DEATHS] == {}


async def test_another_version_of_a_day_is_tried_with_the_kernel_again(site: Site) -> None:
    """Deaths are counted by version."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    with planted(DIES_BY_THE_KERNEL):
        for hour in (6, 8, 10):
            assert await site.word(at(1, f"{hour:02}:00")) == "failed"
        site.put(rows_of(DAY, 21), at(1, "10:30"))
        assert await site.word(at(1, "13:00")) == "failed"
    assert site.ledger.facts()[DEATHS][str(DAY)][1] == 1
    assert await site.word(at(1, "16:00")) == "published"
    assert site.ledger.publications(DAY)[0].remark == ""


@pytest.mark.parametrize("append", [True, False])
async def test_a_log_that_was_touched_is_not_published(site: Site, append: bool) -> None:
    """What is in staging is compared with what was said of it before anything is intended."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    with planted(TOUCHES_ITS_FILES.format(append=append)):
        assert await site.word(at(1, "05:35")) == "failed"
    failure = site.ledger.days()[DAY].failure
    assert failure is not None and "cannot be right" in failure.sentence
    assert site.ledger.publications() == [] and site.files() == []
    assert list(site.point.staging_dir.iterdir()) == []
    assert await site.word(at(1, "05:50")) == "published"
    assert site.served() == [name()]


async def test_torn_exports_and_stops_are_no_deaths(site: Site) -> None:
    """A day that is torn three times is not the kernel's fault."""
    site.put([row(id=str(n)) for n in range(50)], at(1, "04:10"), cut=9)
    for hour in (6, 8, 10):
        assert await site.word(at(1, f"{hour:02}:00")) == "failed"
    assert DEATHS not in site.ledger.facts()
