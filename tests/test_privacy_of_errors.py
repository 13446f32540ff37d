"""An error that nobody thought of tells where it happened, and nothing of a listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.publish import publisher

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

    monkeypatch.setattr(publisher, "convert_apart", fail)
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "failed"
    failure = site.ledger.days()[DAY].failure
    assert failure is not None
    assert "KeyError at " in failure.sentence
    said = capsys.readouterr()
    assert SECRET not in failure.sentence + said.out + said.err
