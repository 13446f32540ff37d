"""The operator's file and the RSS feeds combined: matching, versions, and the URLs of lines.

No outside world.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.job import Job, Task
from server.convert.log_writer import inflate
from server.convert.messages import LENGTH, FileNames, Request
from server.convert.row import RowConverter
from server.episodes.catalogue import Catalogue, CatalogueStamp, Episode, make_catalogue
from server.triton import DEFAULT_URL, Layout, LogFormat, LogRules

from ..support.reference_conversion import KERNEL
from ..support.rows import GOOD, KEY, cells, converted, row, rules

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EPISODE = GOOD["episode_id"]


def item(guid: str, enclosure_url: str = "", token: str = "") -> Episode:
    return Episode(guid, "", token, enclosure_url)


def test_what_the_operator_wrote_comes_first() -> None:
    """Then the guid that is the id, whatever its case; of two equal guids, the first; never anything else."""
    published = [
        item("AB-1", "https://x.example/1.mp3", "T1"),
        item("foreign", "https://x.example/3.mp3", "T3"),
        item("ab-1", "https://x.example/2.mp3", "T2"),
        item("", "https://x.example/ab-2.mp3", "ab-2"),
    ]
    catalogue = make_catalogue(None, published)
    assert catalogue.find("ab-1") == Episode("AB-1", "", "T1", "https://x.example/1.mp3")
    assert catalogue.find("ab-2") is None
    assert catalogue.find("") is None
    written = Catalogue({"ab-1": Episode("foreign", ""), "ab-2": Episode("unknown", "/u"), "ab-3": Episode("", "")})
    catalogue = make_catalogue(written, published)
    assert catalogue.find("AB-1") == Episode("foreign", "", "T3", "https://x.example/3.mp3")
    assert catalogue.find("ab-2") == Episode("unknown", "/u")
    assert catalogue.find("ab-3") == Episode("", "")


def test_a_url_alone_leaves_the_rss_feeds_guid() -> None:
    """A row of the CSV may correct the URL without giving a guid."""
    written = Catalogue({"ab-1": Episode("", "/mine.mp3")})
    found = make_catalogue(written, [item("AB-1", "https://x.example/1.mp3")]).find("ab-1")
    assert found == Episode("AB-1", "/mine.mp3", "", "https://x.example/1.mp3")


def test_a_version_is_its_content() -> None:
    """The same whenever it is made; different after every change."""
    one = item("g", "https://x.example/1.mp3")
    stamps = [
        make_catalogue(None, [one], [NOW]).stamp,
        make_catalogue(None, [one], [NOW + timedelta(days=1), NOW]).stamp,
        make_catalogue(None, [one, item("h")]).stamp,
        make_catalogue(Catalogue({"g": Episode("g", "/u")}), [one]).stamp,
    ]
    versions = [stamp.version for stamp in stamps if stamp is not None]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
    assert stamps[1] == CatalogueStamp(versions[0], 1, 2, "2026-11-22T12:00:00Z")
    assert stamps[2] == CatalogueStamp(versions[2], 2)


URL = "https://op3.dev/e/traffic.megaphone.fm/ABC1.mp3?a=b c"
KNOWN = Catalogue({EPISODE: Episode("g", "", "ABC1", URL)})
DEFAULT = f"/{GOOD['podcast_id']}/{EPISODE}.mp3"


@pytest.mark.parametrize(
    ("template", "known", "unknown"),
    [
        ("{enclosure_url}", "https://op3.dev/e/traffic.megaphone.fm/ABC1.mp3?a=b%20c", DEFAULT),
        (
            "/x?u={enclosure_url}",
            "/x?u=https%3A%2F%2Fop3.dev%2Fe%2Ftraffic.megaphone.fm%2FABC1.mp3%3Fa%3Db%20c",
            DEFAULT,
        ),
        ("https://traffic.megaphone.fm/{token}.mp3", "https://traffic.megaphone.fm/ABC1.mp3", DEFAULT),
        ("/{token}/{guid}/{region}", "/ABC1/g/TX", DEFAULT),
        ("/{guid}.mp3", "/g.mp3", f"/{EPISODE}.mp3"),
    ],
)
def test_a_url_may_be_made_of_the_rss_feed(template: str, known: str, unknown: str) -> None:
    """{enclosure_url} alone is used as published; an unknown value gives the default URL, not half a URL."""
    assert cells(row(), rules(url=template), catalogue=KNOWN)["url"] == known
    assert cells(row(), rules(url=template), catalogue=Catalogue({}))["url"] == unknown
    assert cells(row(), rules(url=template))["url"] == unknown
    # A field of that name in a row is not the catalogue's.
    assert cells(row(token="evil", enclosure_url="evil"), rules(url=template))["url"] == unknown


@pytest.mark.parametrize(
    ("template", "episode", "fallback", "unmatched"),
    [
        ("/{token}.mp3", Episode("g", "", "ABC1", URL), False, False),
        ("/{token}.mp3", Episode("g", ""), True, True),
        ("/{token}.mp3", None, True, True),
        ("/{token}.mp3", Episode("g", "/own.mp3"), False, False),
        ("/{token}.mp3", Episode("", "/own.mp3"), False, True),
        ("/{token}/{enclosure_url}", Episode("g", "", "ABC1"), True, True),
        ("{enclosure_url}", Episode("g", "", "", URL), False, False),
        ("/?{enclosure_url}", Episode("g", "", "", "https://x.example/" + "ä" * 1000), True, True),
        (DEFAULT_URL, Episode("g", ""), False, False),
        (DEFAULT_URL, None, False, True),
    ],
)
def test_a_url_that_falls_back_is_told_and_matches_nothing(
    template: str, episode: Episode | None, fallback: bool, unmatched: bool
) -> None:
    """Triton was to find the episode by that URL; a known guid does not make up for it."""
    catalogue = Catalogue({EPISODE: episode} if episode is not None else {})
    conversion = Conversion(rules(url=template), KEY, catalogue)
    found = RowConverter(conversion).convert(row())
    assert (found.fallback_url, found.unmatched) == (fallback, unmatched)
    for kernel in (KERNEL, None):
        tally = BlockConverter(kernel, conversion).do(Job(0, Task.RENDER, (row(),))).tally
        assert (tally.fallback_urls, tally.unmatched) == (fallback, unmatched)
    without = RowConverter(Conversion(rules(url=template), KEY)).convert(row())
    assert (without.fallback_url, without.unmatched) == (template != DEFAULT_URL, False)


def test_an_rss_feed_never_costs_a_row() -> None:
    """Where a value would make the URL too long, the default URL is sent."""
    long = Catalogue({EPISODE: Episode("g", "", "T", f"https://x.example/{'ä' * 1000}")})
    assert cells(row(), rules(url="/?u={enclosure_url}"), catalogue=long)["url"] == DEFAULT
    assert cells(row(), rules(url="{enclosure_url}"), catalogue=long)["url"].startswith("https://x.example/ää")


def test_only_lines_that_nothing_matches_are_unmapped() -> None:
    """Neither the CSV nor an RSS feed."""
    catalogue = make_catalogue(Catalogue({"x": Episode("g", "")}), [item(EPISODE.upper())])
    assert not converted(row(), catalogue=catalogue).unmapped
    assert cells(row(), catalogue=catalogue)["episode-guid"] == EPISODE.upper()
    assert not converted(row(episode_id="X"), catalogue=catalogue).unmapped
    assert converted(row(episode_id="y"), catalogue=catalogue).unmapped


@pytest.mark.parametrize("template", ["{enclosure_url}", "/{token}/{guid}", "/{token}/{region}", DEFAULT_URL])
@pytest.mark.parametrize("log_format", list(LogFormat))
def test_the_fast_path_matches_as_the_exact_one_does(template: str, log_format: LogFormat) -> None:
    """Lines and counts, row for row: known, unknown, in capitals, without a URL, too long, without an id."""
    catalogue = make_catalogue(
        Catalogue({"written": Episode("g w", "/w.mp3"), "half": Episode("", "/h?x=1")}),
        [
            item("Known", "https://x.example/a b?c=d", "T1"),
            item("bare"),
            item("long", f"https://x.example/{'ä' * 900}"),
        ],
    )
    ids: list[object] = ["known", "KNOWN ", "Known", "written", "half", "bare", "long", "nobody", "", None, 7, "known"]
    found = [row(id=f"{EPISODE[:-2]}{place:02d}", episode_id=episode) for place, episode in enumerate(ids)]
    conversion = Conversion(rules(Layout(log_format), url=template), KEY, catalogue)
    exact = [RowConverter(conversion).convert(raw) for raw in found]
    assert KERNEL is not None
    block = BlockConverter(KERNEL, conversion).do(Job(0, Task.RENDER, (b"\n".join(found),)))
    assert inflate(block.piece).decode() == "".join(f"{outcome.line}\n" for outcome in exact)
    assert block.tally.unmapped_episodes == sum(outcome.unmapped for outcome in exact) == 5


@pytest.mark.parametrize("template", ["{enclosure_url}", "/{token}", "/{guid}"])
def test_the_process_gets_what_its_template_asks_for(template: str) -> None:
    """And makes the same lines of it."""
    request = Request(Conversion(LogRules(url=template), KEY, KNOWN), 3, 4, (5, FileNames("a", 0, "b")))
    other = Request.unpack(request.pack()[LENGTH:]).conversion
    assert cells(row(), rules(url=template), catalogue=other.catalogue) == cells(
        row(), rules(url=template), catalogue=KNOWN
    )
