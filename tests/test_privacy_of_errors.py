"""An error that nobody thought of tells where it happened, and nothing of a listener."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.convert.job import Setup
from server.convert.render import BlockRenderer

from .support.reference_conversion import conversion
from .support.site import DAY, at, rows_of

if TYPE_CHECKING:
    import pytest

    from .support.site import Site

SECRET = "203.0.113.99"


async def test_a_day_that_fails_in_an_unknown_way_is_told_without_what_was_in_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger, and so status and check, and the log hold the place, not the words."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(BlockRenderer, "render", fail)
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "failed"
    failure = site.ledger.days()[DAY].failure
    assert failure is not None
    assert "KeyError at " in failure.sentence
    said = capsys.readouterr()
    assert SECRET not in failure.sentence + said.out + said.err


def test_a_worker_that_fails_in_an_unknown_way_says_where_and_no_more() -> None:
    """Its standard error is the service's."""
    code = (
        f"import sys, server.convert.worker as w\ndef fail(*_): raise KeyError('{SECRET}')\nw.Hand.do = fail\nw.main()"
    )
    job = b"\0" * 25
    done = subprocess.run(
        [sys.executable, "-c", code], input=Setup(conversion()).pack() + job, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"worker failed error=KeyError" in done.stderr
    assert SECRET.encode() not in done.stderr
