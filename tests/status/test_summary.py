"""A day in plain words: whether the partner has it, in time or not, and who must do what."""

from __future__ import annotations

from datetime import time, timedelta
from typing import TYPE_CHECKING

import pytest

from server.publish.store_state import StoreState
from server.status.summary import left_out, rows_sentence, summary
from server.status.words import calendar_state

from ..support.pages import page_config
from ..support.site import DAY, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from server.settings import Config

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
        pytest.param("04:00", 5, None, at(1, "08:00"), "No", "bad", "as it is after 2026-11-21 23:00Z.", "this server",
                     id="held"),
        pytest.param("04:00", 60, None, at(1, "08:00"), "No", "bad", "most of them malformed_json.", "this server",
                     id="held for good"),
        pytest.param(None, 0, None, at(1, "08:00"), "No", "bad", "no export", "publisher", id="missing"),
        pytest.param("05:20", 0, None, at(1, "05:35"), "Not yet", "waiting", "after 2026-11-21 06:25Z", "Nobody",
                     id="settling"),
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
    assert told.sentence.endswith(sentence) or not sentence.endswith(".")
    assert bool(told.steps) == (who in ("publisher", "this server"))


def config_of(site: Site, users: Sequence[tuple[str, bool]]) -> Config:
    """A configuration with these users: (name, whether their pickups are required)."""
    config = page_config(site.root)
    made = [config.sftp.users[0].model_copy(update={"name": name, "required": needed}) for name, needed in users]
    return config.model_copy(update={"sftp": config.sftp.model_copy(update={"users": made})})


@pytest.mark.parametrize(
    ("whole", "now", "word", "sentence", "who"),
    [
        (True, at(1, "08:00"), "In part", "triton picked it up at 2026-11-21 07:00Z, other has not", "other comes"),
        (True, at(2, "20:00"), "In part", "other has not fetched it yet", "ask whether other's puller runs"),
        (True, at(3, "20:00"), "In part", "20 h ago", "ask why other did not pull and whether the day still counts"),
        (False, at(1, "08:00"), "In part", "% of it, other has not", "triton and other come once"),
        (False, at(2, "20:00"), "In part", "; triton has ", "triton fetches the rest and whether other's puller"),
        (False, at(3, "20:00"), "In part", "; triton has ", "did not pull all of it, why other did not pull and w"),
    ],
)
async def test_of_several_partners_only_those_who_lack_something_are_asked(
    whole: bool, now: datetime, word: str, sentence: str, who: str, site: Site
) -> None:
    """And whoever is not required is not spoken of."""
    await lived(site, put="04:00")
    site.pick_up(TAKEN, name(), whole=whole)
    users = [("triton", True), ("other", True), ("backup", False)]
    told = summary(site.days(now, users)[DAY], config_of(site, users))
    assert told.word == word and sentence in told.sentence and who in told.who
    assert "backup" not in told.sentence + told.who


async def test_a_partner_that_fell_silent_is_asked_long_before_the_deadline(site: Site) -> None:
    """Beside an alarm about its silence, "nobody has to do anything, it comes every day" would be wrong."""
    await lived(site, put="04:00")
    told = summary(site.days(at(1, "08:00"))[DAY], page_config(site.root), silent={"triton"})
    assert (told.word, told.mood) == ("Not yet", "warn") and told.who.endswith("ask whether triton's puller runs")


async def test_what_is_not_final_says_when_it_is_published_all_the_same(make_site: Callable[..., Site]) -> None:
    """An hour, not the name of a setting; and an export that cannot be read is not the first word of a sentence."""
    stale, broken, unmarked = (
        make_site(f"{kind}{n}", kind=kind) for n, kind in enumerate(("metrics", "metrics", "delivery-v2"))
    )
    stale.put(rows_of(DAY, 10), at(0, "23:00"))
    unmarked.put(rows_of(DAY, 10), at(1, "11:30"))
    for site in (stale, unmarked):
        await site.round(at(1, "15:00"))
        told = summary(site.days(at(1, "15:01"))[DAY], page_config(site.root))
        assert told.sentence.endswith("published as it is after 2026-11-21 23:00Z.")
        assert [step.prose[:3] for step in told.steps] == ["ask"]
    broken.put(rows_of(DAY, 10), at(1, "04:00"), cut=20)
    await broken.round(at(1, "05:30"))
    told = summary(broken.days(at(1, "05:31"))[DAY], page_config(broken.root))
    assert told.sentence.startswith("The day could not be published: metrics-day-2026-11-20.json.gz is not")


async def test_late_rows_that_come_too_late_do_not_make_the_day_too_late(site: Site) -> None:
    """The day's first file was there in time; nobody can see that from one word, so the sentence counts the files."""
    await lived(site, put="04:00", taken=TAKEN)
    site.put(rows_of(DAY, 112), at(1, "06:30"))
    await site.round(at(1, "08:10"))
    before = site.days(at(3, "01:00"))[DAY]
    told = summary(before, page_config(site.root))
    assert told.word == "In part" and "triton has 1 of 2 files" in told.sentence
    site.pick_up(LATE, name(1))
    day = site.days(at(3, "08:00"))[DAY]
    told = summary(day, page_config(site.root))
    assert (told.word, told.mood) == ("Yes, partly too late", "bad")
    assert told.sentence.endswith("Triton had 1 of 2 files in time.")
    assert [calendar_state(it) for it in (before, day)] == ["failed", "failed"]


async def test_where_the_partner_reads_from_the_store_the_day_has_to_lie_there(site: Site) -> None:
    """Nobody picks up anything over SFTP then, so "no user is required" alone would sound as if all were well."""
    await lived(site, put="04:00")
    config, users = config_of(site, [("ops", False)]), [("ops", False)]
    day = site.days(at(1, "08:00"), users)[DAY]
    told = {
        state: summary(day, config, StoreState("s3://logs/", there, (), error))
        for state, there, error in (("there", (name(),), ""), ("coming", (), ""), ("refused", (), "AccessDenied"))
    }
    assert {state: (it.word, it.mood) for state, it in told.items()} == {
        "there": ("Ready", "good"), "coming": ("Not yet", "waiting"), "refused": ("Not yet", "bad"),
    }  # fmt: skip
    assert "It is in the store" in told["there"].sentence and f"does not have {name()}" in told["coming"].sentence
    assert told["refused"].who.startswith("Whoever runs this server")


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
    assert told.sentence.endswith("it is final once Megaphone marks it, usually by 2026-11-21 11:00Z.")


async def test_rows_that_an_earlier_file_sent_are_not_called_filtered(site: Site) -> None:
    """Rows, lines, filtered and rejected balance for a reader, also after late rows."""
    await lived(site, put="04:00")
    site.put(rows_of(DAY, 112), at(1, "06:30"))
    await site.round(at(1, "08:10"))
    day = site.days(at(1, "09:00"))[DAY]
    assert day.filtered == 100 and left_out(day) == 0
    assert rows_sentence(day) == "112 rows from Megaphone: 112 lines for the partner, 0 filtered, 0 rejected."


async def test_a_day_that_is_sent_again_has_to_be_fetched_again(site: Site) -> None:
    """The partner has fetched what it voided: "published at 05:30, not fetched yet" would be wrong."""
    await lived(site, put="04:00", taken=TAKEN)
    await site.round(at(1, "08:10"), DAY, resend="void")
    told = summary(site.days(at(1, "09:00"))[DAY], page_config(site.root))
    assert told.sentence.startswith("Sent again at 2026-11-21 08:10Z; triton has not fetched it yet.")


async def test_rows_that_were_lost_with_a_ledger_are_not_none(site: Site) -> None:
    """A new ledger adopts the files of the folder: their lines are known, and nothing about the rows."""
    await lived(site, put="04:00")
    site.stop()
    for path in site.point.ledger_path.parent.glob("ledger.sqlite3*"):
        path.unlink()
    site.start()
    site.publisher.adopt(site.feed.rules, at(1, "08:00"))
    day = site.days(at(1, "09:00"))[DAY]
    assert rows_sentence(day).startswith("100 lines for the partner; how many rows they come from was lost")
    assert not day.counted


async def test_a_day_that_nobody_has_to_fetch_is_ready(site: Site) -> None:
    """As in the demo, whose user is not required; and the alarm's time is not counted."""
    await lived(site, put="04:00")
    users = [("triton", False)]
    config, later = config_of(site, users), at(1) + timedelta(days=5)
    assert summary(site.days(later, users)[DAY], config).word == "Ready"
    site.pick_up(later, name())
    told = summary(site.days(later, users)[DAY], config)
    assert (told.word, told.mood) == ("Yes", "good") and "no user is required" in told.sentence


async def test_late_rows_that_are_held_are_for_somebody_to_decide(site: Site) -> None:
    """The day itself has arrived."""
    await lived(site, put="04:00", taken=TAKEN)
    site.put(rows_of(DAY, 100, 1000), at(1, "08:00"))
    await site.round(at(1, "09:10"))
    told = summary(site.days(at(1, "09:20"))[DAY], page_config(site.root))
    assert told.word == "Yes, in time" and "Its late rows are held: 100 of the 100 rows sent before" in told.sentence
    assert told.who.startswith("Whoever runs this server") and [step.command.split()[-1] for step in told.steps] == [
        "ids'", "--accept-rejects",
    ]  # fmt: skip
