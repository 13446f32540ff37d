"""What the page shows: the overview, a day, a file, the data; and that nothing which it shows can attack the reader."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from server.cli.tables import _CELLS
from server.sftp.registry import CurrentBan
from server.status.metrics import Reading
from server.status.snapshot import Snapshot
from server.status.words import service_lines
from server.storage.records import DayRecord
from server.triton import safe_id
from server.web.answer import json as json_answer
from server.web.glossary import _WORDS, CHAPTER, glossary
from server.web.site import FOLDER
from server.web.views import LOOKS

from ..support.pages import HOSTILE, facts_at, hostile_rows, serving
from ..support.program import secrets_of
from ..support.site import DAY, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from ..support.pages import Served
    from ..support.site import Site


class Tags(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """The text, with white space as a browser shows it."""
        return re.sub(r"\s+", " ", " ".join(self.texts))


async def page(served: Served, path: str) -> Tags:
    """A page that must be there."""
    status, headers, body = await served.get(path)
    assert status == 200, body
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    return Tags(body)


async def test_yesterday_is_told_from_the_page_alone(site: Site) -> None:
    """In time, and how many rows; then the wrong day, why, who must do what, and with which command."""
    good, held = DAY, DAY + timedelta(days=1)
    site.put(rows_of(good, 100), at(1, "04:00"), good)
    await site.round(at(1, "05:30"))
    site.pick_up(at(1, "07:00"), name())
    site.ledger.note(**facts_at(at(1, "09:00")))
    async with serving(site.root, at(1, "09:00")) as served:
        text = (await page(served, "/")).text
    assert f"Yesterday {good}, picked up Yes, in time" in text
    assert "100 rows from Megaphone: 100 lines for the partner, 0 filtered, 0 rejected." in text
    assert "Who must act Nobody has to do anything." in text
    assert "OK: nothing is wrong" in text and "What is wrong" not in text

    site.put([*rows_of(held, 90), *broken_rows(10)], at(2, "04:00"), held)
    await site.round(at(2, "05:30"))
    site.ledger.note(**facts_at(at(2, "09:00")))
    async with serving(site.root, at(2, "09:00")) as served:
        shown, of_day = await page(served, "/"), await page(served, f"/days/{held}")
    command = f"pickup-point feed --day {held} --accept-rejects --config {site.root}/config.toml"
    assert f"Yesterday {held}, held No" in shown.text
    assert shown.text.index("What is wrong") < shown.text.index("Yesterday")
    for text in (shown.text, of_day.text):
        assert "10 of 100 rows were rejected" in text
        assert "Whoever runs this server" in text and command in text
    assert "rejected: malformed json 10 10.00 %" in of_day.text
    assert ("a", {"href": f"/days/{held}"}) in shown.tags


async def test_a_day_with_something_wrong_is_nobodys_peace_though_it_has_arrived(site: Site) -> None:
    """The card of the day and what is wrong with it say the same, and the day's page says both."""
    site.put(rows_of(DAY, 100), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.pick_up(at(1, "07:00"))
    site.put(rows_of(DAY, 112), at(1, "08:00"), cut=100)
    await site.round(at(1, "09:10"))
    async with serving(site.root, at(1, "09:20")) as served:
        for path in ("/", f"/days/{DAY}"):
            text = (await page(served, path)).text
            assert "Yes, in time" in text and f"late rows of {DAY} cannot be published" in text
            assert "Who must act Whoever runs this server: see what is wrong." in text
            assert "Nobody has to" not in text


async def test_a_day_that_came_too_late_is_wrong_wherever_it_is_shown(site: Site) -> None:
    """In the calendar, in the table and on its own page; the calendar's words say how, for those who see no colour."""
    site.put(rows_of(DAY, 5), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.pick_up(at(3, "02:00"))
    async with serving(site.root, at(3, "09:00")) as served:
        shown, of_day = await page(served, "/"), await page(served, f"/days/{DAY}")
    looks = [str(attributes.get("class")) for tag, attributes in shown.tags if attributes.get("href") == f"/days/{DAY}"]
    assert "cell bad" in looks and f"{DAY}: picked up, too late" in shown.text
    assert [attributes.get("class") for _, attributes in of_day.tags].count("state bad") == 1


async def test_a_day_before_the_first_one_is_not_expected(site: Site) -> None:
    """On the first mornings there is no yesterday, and the page says which day will be the first."""
    site.put(rows_of(DAY, 5), at(0, "12:00"))
    await site.round(at(0, "12:10"))
    async with serving(site.root, at(0, "12:20"), first=DAY) as served:
        text = (await page(served, "/")).text
    said = f"Nothing is expected yet: {DAY} is the first day ( export.first_day ), and it cannot be final before"
    assert f"{said} {DAY + timedelta(days=1)} 04:30Z ." in text


async def test_what_a_card_says_of_late_rows_is_not_worth_knowing_again(site: Site) -> None:
    """On the overview and on the day's own page."""
    site.put(rows_of(DAY, 100), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.put(rows_of(DAY, 100, 1000), at(1, "08:00"))
    await site.round(at(1, "09:10"))
    async with serving(site.root, at(1, "09:20")) as served:
        for path in ("/", f"/days/{DAY}"):
            text = (await page(served, path)).text
            assert "Its late rows are held: 100 of the 100" in text and "Worth knowing" not in text


async def test_many_things_wrong_leave_the_answers_in_sight(site: Site) -> None:
    """The worst three are shown and the others fold away, so that a telephone shows a few more lines and the cards."""
    days = [DAY + timedelta(days=number) for number in range(5)]
    for number, day in enumerate(days):
        bad = 10 + number  # each has a sentence, and so a line, of its own
        site.put([*rows_of(day, 100 - bad), *broken_rows(bad)], at(1, "04:00", day), day)
        await site.round(at(1, "05:30", day))
    site.ledger.note(**facts_at(at(5, "09:00")))
    async with serving(site.root, at(5, "09:00")) as served:
        shown = await page(served, "/")
    causes = [str(it["class"]) for tag, it in shown.tags if tag == "li" and it.get("class") in ("critical", "warning")]
    assert len(causes) > 4 and causes == sorted(causes)
    tags = [tag for tag, _ in shown.tags]
    assert [tag for tag in tags if tag in ("details", "li", "article")][:4] == ["li"] * 3 + ["details"]
    assert f"{len(causes) - 3} more" in shown.text


async def test_the_columns_of_a_podcast_add_up(site: Site) -> None:
    """Rows that were sent before are among its lines, and not among the filtered ones."""
    site.put(rows_of(DAY, 100), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.put(rows_of(DAY, 112), at(1, "08:00"))
    await site.round(at(1, "09:10"))
    async with serving(site.root, at(1, "09:20")) as served:
        assert "(all) 112 112 112 0 0" in (await page(served, f"/days/{DAY}")).text


async def test_the_next_deadline_is_that_of_every_day_it_concerns(site: Site) -> None:
    """One day must be picked up, and the next one published, at the same instant."""
    site.put(rows_of(DAY, 100), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.put([*rows_of(DAY + timedelta(days=1), 90), *broken_rows(10)], at(2, "04:00"), DAY + timedelta(days=1))
    await site.round(at(2, "05:30"))
    async with serving(site.root, at(2, "09:00")) as served:
        text = (await page(served, "/")).text
    by = f"by {DAY + timedelta(days=3)} 00:00Z ."
    assert (
        f"Next deadline 15 h 00 min {DAY} must be picked up {by} {DAY + timedelta(days=1)} must be published {by}"
        in text
    )


async def test_a_file_tells_its_story_and_who_has_how_much(site: Site) -> None:
    """Every pickup with user, client, grade and a bar of covered bytes; the digest; the words of `trace`."""
    site.put(rows_of(DAY, 100), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.pick_up(at(1, "07:00"), name(), whole=False)
    async with serving(site.root, at(1, "09:00")) as served:
        shown = await page(served, f"/files/{name()}")
        for path in (
            "/files/MEGA20200101-00.tsv.gz",
            "/files/../ledger.sqlite3",
            "/files/x",
            "/days/2026-02-30",
            "/days/",
        ):
            assert (await served.get(path))[0] == 404
    (log,) = site.ledger.logs()
    assert log.sha256 in shown.text
    assert "partial" in shown.text and "Client 1.0" in shown.text
    assert f"published as first bytes={log.size}" in shown.text
    (covered,) = {
        attributes["width"] for tag, attributes in shown.tags if tag == "rect" and attributes.get("class") == "full"
    }
    assert covered is not None and abs(float(covered) - 500) < 5


async def test_a_hostile_podcast_attacks_nobody(site: Site) -> None:
    """Not in HTML, not in JSON that is taken for HTML, not in a spreadsheet, not in a terminal, and not as a label."""
    site.put(hostile_rows(DAY, 8), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    async with serving(site.root, at(1, "09:00")) as served:
        shown = await page(served, f"/days/{DAY}")
        _, headers, data = await served.get(f"/days/{DAY}/podcasts.json")
        _, saved, table = await served.get(f"/days/{DAY}/podcasts.csv")
        others = [(await served.get(path))[2] for path in ("/", "/metrics", "/status.json", f"/files/{name()}")]
    hostile = safe_id(HOSTILE)
    assert "<script>" in hostile and hostile in shown.text
    assert not {"script", "img", "iframe"} & {tag for tag, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on") or name == "style"]
    assert "{{ 7 * 7 }}" in shown.text
    assert headers["Content-Type"] == "application/json"
    assert b"<" not in data and b"\\u003cscript\\u003e" in data and b"\x1b" not in data
    assert hostile in [podcast["podcast_id"] for podcast in json.loads(data)["podcasts"]]
    assert saved["Content-Disposition"].startswith("attachment") and b"\x1b" not in table
    ids = [row["podcast_id"] for row in csv.DictReader(io.StringIO(table.decode()))]
    assert "'=cmd|'/c calc'!A0" in ids and hostile in ids
    assert all(b"alert" not in body and b"calc" not in body for body in others)


async def test_nothing_of_a_listener_and_no_secret_is_shown(site: Site) -> None:
    """No address and no user agent of who listens to podcasts, no hash of a password, on no page."""
    path = site.put([*rows_of(DAY, 50), *broken_rows(1)], at(1, "04:00"))
    await site.round(at(1, "05:30"))
    await site.round(at(1, "05:30"), DAY, accept=True)
    site.pick_up(at(1, "07:00"))
    paths = ("/", "/status.json", "/metrics", f"/days/{DAY}", f"/days/{DAY}/podcasts.csv", f"/files/{name()}")
    async with serving(site.root, at(1, "09:00")) as served:
        bodies = [(await served.get(path))[2] for path in paths]
    secrets = {*secrets_of(path.read_bytes()), "argon2"}
    assert len(secrets) >= 3
    assert not [secret for secret in secrets for body in bodies if secret.encode() in body]


async def test_the_page_refreshes_itself_until_it_is_told_not_to(site: Site) -> None:
    """By a header, without a script; whoever reads slowly, or by ear, follows a link."""
    async with serving(site.root, at(1)) as served:
        _, headers, body = await served.get("/")
        assert headers["Refresh"] == "60"
        assert ("a", {"href": "/?still"}) in Tags(body).tags
        assert "Refresh" not in (await served.get("/?still"))[1]
        _, headers, body = await served.get("/nope?still")
        assert "Refresh" not in headers and ("a", {"href": "?"}) in Tags(body).tags  # an empty one would keep the query
        assert "Refresh" not in (await served.get("/status.json"))[1]


async def test_pages_of_days_lead_to_days_that_there_are(site: Site) -> None:
    """Neighbours may be apart, and the first and the last have one; beside them it says which are nearest."""
    known = [DAY, DAY + timedelta(days=1), DAY + timedelta(days=4)]
    for day in known:
        site.put(rows_of(day, 5), at(1, "04:00", day), day)
        site.ledger.see(DayRecord(day, "due", at(1, "05:00", day), None))
    async with serving(site.root, at(6), first=known[0]) as served:
        days = {day: found for day in known for found in [await page(served, f"/days/{day}")]}
        for day, found in days.items():
            for tag, attributes in found.tags:
                if tag == "a" and str(attributes["href"]).startswith("/days/2"):
                    assert (await served.get(str(attributes["href"])))[0] == 200, day
        assert [a.get("rel") for tag, a in days[known[0]].tags if tag == "a" and a.get("rel")] == ["next"]
        status, _, body = await served.get("/days/2020-01-01")
        assert status == 404 and f"The nearest day is {known[0]}" in Tags(body).text


async def test_the_words_of_the_page_are_explained_on_it(site: Site) -> None:
    """In the manual's own words, for a reader who has no manual; folded away, without a script."""
    site.put(rows_of(DAY, 5), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    chapter = (FOLDER.parent / "manual" / CHAPTER).read_text()
    wanted = {word for section in glossary(chapter) for word, _ in section.words}
    async with serving(site.root, at(1, "06:00")) as served:
        for path in ("/", f"/days/{DAY}", f"/files/{name()}"):
            shown = await page(served, path)
            assert "details" in [tag for tag, _ in shown.tags]
            assert "late rows rows that Megaphone added to a day after it was published" in shown.text
            assert "line one row as Triton gets it, in a log" in shown.text
    assert not wanted & {"state", "kind", "grade", "word"}  # the heads of its tables
    assert wanted >= {"backfill", "round", "row", *LOOKS, *_WORDS}
    assert not [text for section in glossary(chapter) for _, text in section.words if "`" in text or "](" in text]


async def test_an_error_page_tells_commands_as_every_page_does(site: Site) -> None:
    """With the configuration that the service was given."""
    async with serving(site.root, at(1)) as served:
        status, _, body = await served.get(f"/files/{name()}")
    assert status == 404 and f"pickup-point status --config {site.root}/config.toml" in Tags(body).text


async def test_a_program_is_told_what_is_wrong_in_its_own_format(site: Site) -> None:
    """JSON where JSON was asked for, text where text was; a person gets a page."""
    wanted = {
        "/status.json": "application/json", f"/days/{DAY}/podcasts.json": "application/json",
        "/metrics": "text/plain; charset=utf-8", f"/days/{DAY}/podcasts.csv": "text/plain; charset=utf-8",
        "/": "text/html; charset=utf-8", f"/days/{DAY}": "text/html; charset=utf-8",
    }  # fmt: skip
    async with serving(site.root, at(1)) as served:
        assert json.loads((await served.get("/days/tomorrow/podcasts.json"))[2]) == {
            "error": "A day is written like 2026-11-20.", "hint": [],
        }  # fmt: skip
        config = served.page._config().model_copy(update={"data_dir": site.root / ("x" * 300)})
        served.page._config = lambda: config
        served.page._read_metrics = lambda: Reading(tuple(Snapshot.take(config, at(1)).days))
        for path, kind in wanted.items():
            status, headers, body = await served.get(path)
            assert (status, headers["Content-Type"]) == (503, kind), path
            assert b"File name too long" in body


async def test_the_stylesheet_is_kept_until_there_is_another(site: Site) -> None:
    """A page that is looked at all day fetches it once; its address changes with its content."""
    async with serving(site.root, at(1)) as served:
        (link,) = [it["href"] or "" for tag, it in (await page(served, "/")).tags if it.get("rel") == "stylesheet"]
        _, headers, body = await served.get(link)
    assert link == f"/style.css?{hashlib.sha256(body).hexdigest()[:12]}"
    assert headers["Cache-Control"] == "max-age=86400"


async def test_whom_the_page_bans_is_told_beside_whom_sftp_bans(site: Site) -> None:
    """Whoever is locked out sees only a closed connection."""
    ban = CurrentBan("203.0.113.9", at(1, "10:00"), 20)
    told = facts_at(at(1, "09:30")) | {"bans": [ban.as_json("sftp"), ban.as_json("web")]}
    words = dict(service_lines(told, at(1, "09:30"), running=True))
    assert words["Banned"] == "203.0.113.9 until 10:00Z, 203.0.113.9 from the page until 10:00Z"


async def test_an_empty_installation_has_a_page(site: Site) -> None:
    """Before the first round, and before there is a ledger at all."""
    async with serving(site.root / "new", at(0)) as served:
        text = (await page(served, "/")).text
        assert "No day yet" in text and "no round has run yet" in text
        assert (await served.get(f"/days/{DAY}"))[0] == 404
        assert (await served.get(f"/files/{name()}"))[0] in (404, 503)


async def test_status_json_is_what_status_prints(site: Site) -> None:
    """With the activation sheet."""
    async with serving(site.root, at(1)) as served:
        found = json.loads((await served.get("/status.json"))[2])
    assert {"at", "running", "level", "alarms", "service", "logins", "disk", "days", "activation_sheet"} <= set(found)


async def test_many_who_ask_the_same_get_one_answer(site: Site) -> None:
    """One reading at a time, and none twice within a second: a crowd costs as much as one."""
    made = []
    async with serving(site.root, at(1)) as served:
        real = served.page._make
        served.page._make = lambda path, *, still: made.append(path) or real(path, still=still)  # type: ignore[func-returns-value, method-assign, assignment]
        for _ in range(5):
            assert (await served.get("/"))[0] == 200
    assert len(made) < 5


def test_every_state_of_a_day_has_a_look() -> None:
    """The same states as in a terminal, each with a sign of its kind."""
    assert set(LOOKS) == set(_CELLS)
    assert {LOOKS[state][1] == "!" for state in LOOKS} == {True, False}
    assert [state for state in LOOKS if (LOOKS[state][1] == "!") != (_CELLS[state] == "!")] == []


def test_json_holds_no_tag() -> None:
    """Whatever is in it, and what is read back is the same."""
    value = {"<script>": "</script>&"}
    body = json_answer(value).body
    assert not {b"<", b">", b"&"} & {bytes([byte]) for byte in body}
    assert json.loads(body) == value


def test_the_templates_hold_no_script_and_no_style_and_name_no_other_host() -> None:
    """The policy would forbid them; and nobody may mark a value as safe."""
    for path in [*(FOLDER / "templates").iterdir(), *(FOLDER / "static").iterdir()]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"<script|<style|\sstyle=|\son\w+=|https?:|\|\s*safe|autoescape|@import|url\(\"?//", text
        ), path
