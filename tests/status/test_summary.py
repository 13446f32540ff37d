"""A day in plain words: whether the partner has it, in time or not, and who must do what."""

from __future__ import annotations

from datetime import time, timedelta
from typing import TYPE_CHECKING

import pytest

from server.status.summary import left_out, rows_sentence, summary

from ..support.pages import page_config
from ..support.site import DAY, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from datetime import datetime

    from ..support.site import Site


TAKEN, LATE = at(1, "07:00"), at(3, "02:00")


async def lived(
    site: Site, *, put: str | None, bad: int = 0, round_at: str = "05:30", taken: datetime | None = None
) -> None:
    """Let a day pass: its export, written at an hour of the next day; one round; a pickup."""
    if put is not None:
        site.put([*rows_of(DAY, 100 - bad), *broken_rows(bad)], at(1, put))
    await site.round(at(1, round_at))
    if taken is not None:
        site.pick_up(taken, name())


@pytest.mark.parametrize(
    ("put", "bad", "taken", "now", "word", "mood", "sentence", "who"),
    [
        pytest.param("04:00", 0, TAKEN, at(1, "08:00"), "Yes, in time", "good", "41 h before", "Nobody", id="in time"),
        pytest.param("04:00", 0, LATE, at(3, "08:00"), "Yes, too late", "bad", "2 h after", "in touch", id="late"),
        pytest.param("04:00", 0, None, at(1, "08:00"), "Not yet", "waiting", "not fetched", "Nobody", id="ahead"),
        pytest.param("04:00", 0, None, at(2, "20:00"), "Not yet", "bad", "in 4 h", "puller runs", id="soon"),
        pytest.param("04:00", 0, None, at(3, "20:00"), "No", "bad", "20 h ago", "did not pull", id="never"),
        pytest.param("04:00", 5, None, at(1, "08:00"), "No", "bad", "5 of 100 rows", "runs this server", id="held"),
        pytest.param(None, 0, None, at(1, "08:00"), "No", "bad", "no export", "publisher", id="missing"),
        pytest.param("05:20", 0, None, at(1, "05:35"), "Not yet", "waiting", "rewrote", "Nobody", id="settling"),
    ],
)  # fmt: skip
async def test_a_day_is_told_in_one_word_and_with_who_must_act(
    put: str | None, bad: int, taken: datetime | None, now: datetime, word: str, mood: str, sentence: str, who: str,
    site: Site,
) -> None:  # fmt: skip
    """As somebody asks who has never used a shell."""
    await lived(site, put=put, bad=bad, taken=taken)
    told = summary(site.days(now)[DAY], page_config(site.root))
    assert (told.word, told.mood) == (word, mood)
    assert sentence in told.sentence and who in told.who
    assert bool(told.steps) == (who in ("publisher", "runs this server"))


async def test_a_day_that_is_still_written_says_from_when_it_can_be_final(site: Site) -> None:
    """Before 04:30 of the next day nothing is wrong, and nothing to be done."""
    site.put(rows_of(DAY, 10), at(1, "03:00"))
    await site.round(at(1, "03:30"))
    told = summary(site.days(at(1, "03:40"))[DAY], page_config(site.root))
    assert (told.word, told.mood) == ("Not yet", "waiting")
    assert "2026-11-21 04:30Z" in told.sentence
    # Of Delivery exports V2 a marker decides, and final_at is our own word for when its lack is worth one.
    config = page_config(site.root)
    export = config.export.model_copy(update={"kind": "delivery-v2", "final_at": time(23)})
    told = summary(site.days(at(1, "03:40"))[DAY], config.model_copy(update={"export": export}))
    assert told.sentence.endswith("it is final once Megaphone marks it, by about 2026-11-21 11:00Z as a rule.")


async def test_rows_that_an_earlier_file_sent_are_not_called_filtered(site: Site) -> None:
    """Rows, lines, filtered and rejected balance for a reader, also after late rows."""
    await lived(site, put="04:00")
    site.put(rows_of(DAY, 112), at(1, "06:30"))
    await site.round(at(1, "08:10"))
    day = site.days(at(1, "09:00"))[DAY]
    assert day.filtered == 100 and left_out(day) == 0
    assert rows_sentence(day) == "112 rows from Megaphone: 112 lines for the partner, 0 filtered, 0 rejected."


async def test_a_day_that_nobody_has_to_fetch_is_ready(site: Site) -> None:
    """As in the demo, whose user is not required; and the alarm's time is not counted."""
    await lived(site, put="04:00")
    config = page_config(site.root)
    users = [config.sftp.users[0].model_copy(update={"required": False})]
    config = config.model_copy(update={"sftp": config.sftp.model_copy(update={"users": users})})
    day = site.days(at(1) + timedelta(days=5), [("triton", False)])[DAY]
    assert summary(day, config).word == "Ready"


async def test_late_rows_that_are_held_are_for_somebody_to_decide(site: Site) -> None:
    """The day itself has arrived."""
    await lived(site, put="04:00", taken=TAKEN)
    site.put(rows_of(DAY, 100, 1000), at(1, "08:00"))
    await site.round(at(1, "09:10"))
    told = summary(site.days(at(1, "09:20"))[DAY], page_config(site.root))
    assert told.word == "Yes, in time" and "Late rows of it are held: 100 of the 100 rows sent before" in told.sentence
    assert told.who.startswith("Whoever runs this server") and [step.command.split()[-1] for step in told.steps] == [
        "ids'", "--accept-rejects",
    ]  # fmt: skip
