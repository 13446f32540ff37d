"""The episode catalogue: guids and URLs by Megaphone's episode id, and every mistake in the file.

Reads CSV files in a temporary folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.episodes.catalogue import Catalogue, Episode, load_catalogue
from server.errors import ConfigError

from ..support.rows import GOOD, cells, converted, result, row, rules

if TYPE_CHECKING:
    from pathlib import Path

EPISODE = GOOD["episode_id"]


def load(folder: Path, content: str | bytes) -> Catalogue:
    file = folder / "episodes.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_catalogue(file)


def problems(folder: Path, content: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, content)
    assert all(problem.cure for problem in caught.value.problems)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_a_catalogue_knows_guid_and_url(tmp_path: Path) -> None:
    """Both, one of them, or none; blanks around cells and empty lines are ignored."""
    catalogue = load(
        tmp_path,
        "episode_id,guid,url\r\n"
        'a,guid-a,https://example.com/a.mp3\r\n B ,"guid, with ""comma""",\r\n\r\n'
        'c,,/c.mp3\r\n,,\r\nd\r\n"e","x\ny",\r\n',
    )
    assert catalogue.episodes == {
        "a": Episode("guid-a", "https://example.com/a.mp3"),
        "b": Episode('guid, with "comma"', ""),
        "c": Episode("", "/c.mp3"),
        "d": Episode("", ""),
        "e": Episode("x\ny", ""),
    }
    assert catalogue.find("nobody") is None
    assert catalogue.find("") is None


def test_ids_are_compared_without_case_and_blanks(tmp_path: Path) -> None:
    """A UUID is the same in capitals."""
    catalogue = load(tmp_path, f"episode_id,guid,url\n{EPISODE.upper()},g,\n")
    assert catalogue.find(f" {EPISODE}") == Episode("g", "")


@pytest.mark.parametrize(
    "content",
    ["\ufeffepisode_id,guid,url\na,g,u\n", "url,episode_id,guid\nu,a,g\n", " episode_id , guid , url \na,g,u\n",
     '"episode_id","guid","url"\n"a","g","u"\n', "episode_id,guid,url\ra,g,u\r"],
)  # fmt: skip
def test_spreadsheets_may_write_it_their_way(tmp_path: Path, content: str) -> None:
    """A byte order mark, another order, quotes, blanks in the first line, old line ends."""
    assert load(tmp_path, content).find("a") == Episode("g", "u")


@pytest.mark.parametrize("content", ["episode_id\na\n", "episode_id,guid\na,\n", "episode_id,guid,url\n"])
def test_columns_may_be_missing_but_the_id(tmp_path: Path, content: str) -> None:
    """guid and url are optional, and so are episodes."""
    assert set(load(tmp_path, content).episodes.values()) <= {Episode("", "")}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "episodes.csv line 1: its first line is ''"),
        ("guid,url\ng,u\n", "episodes.csv line 1: its first line is 'guid,url'"),
        ("episode_id,guid,link\n", "episodes.csv line 1: its first line is 'episode_id,guid,link'"),
        ("episode_id,guid,guid\n", "episodes.csv line 1: its first line is 'episode_id,guid,guid'"),
        ("episode_id;guid;url\n", "episodes.csv line 1: its first line is 'episode_id;guid;url'"),
        ("episode_id,guid,url\n,g,u\n", "episodes.csv line 2: has no episode_id"),
        ("episode_id,guid,url\na,g,u,x\n", "episodes.csv line 2: has more cells than columns"),
        ("episode_id,guid,url\na,g,u\nA,h,v\n", "episodes.csv line 3: repeats the episode_id A"),
        (f"episode_id,guid,url\na,g,/{'x' * 2048}\n", "episodes.csv line 2: has a URL over 2048 characters"),
        (f"episode_id,guid,url\na,g,/{' ' * 700}x\n", "episodes.csv line 2: has a URL over 2048 characters"),
        (b"episode_id,guid,url\na,\xff,u\n", "episodes.csv: is not a CSV file in UTF-8"),
        ('episode_id,guid,url\na,"g"x,u\n', "episodes.csv: is not a CSV file in UTF-8"),
        ('episode_id,guid,url\na,"g', "episodes.csv: is not a CSV file in UTF-8"),
        (f"episode_id,guid,url\na,{'g' * 140_000},u\n", "episodes.csv: is not a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_catalogue_is_reported_with_its_line(tmp_path: Path, content: str | bytes, wrong: str) -> None:
    """Each names the line and says what to do."""
    assert problems(tmp_path, content)[0].startswith(wrong)


def test_all_mistakes_are_reported_at_once_but_no_more_than_twenty(tmp_path: Path) -> None:
    """One run shows them; a file of another kind does not flood the screen."""
    assert len(problems(tmp_path, "episode_id,guid,url\n,g,u\na,g,u,x\n")) == 2
    assert len(problems(tmp_path, "episode_id,guid,url\n" + ",g,u\n" * 100)) == 20


def test_a_catalogue_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(ConfigError, match="1 problem") as caught:
            load_catalogue(path)
        assert "cannot be read" in str(caught.value.problems[0])


def test_a_url_of_exactly_2048_characters_is_taken(tmp_path: Path) -> None:
    """Triton's limit itself is allowed."""
    url = "/" + "x" * 2047
    catalogue = load(tmp_path, f"episode_id,guid,url\n{EPISODE},,{url}\n")
    assert cells(row(), catalogue=catalogue)["url"] == url


# (guid and url in the catalogue, or None; episode-guid; url; unmapped)
DEFAULT_URL = f"/{GOOD['podcast_id']}/{EPISODE}.mp3"
MAPPED = [
    (("g-1", "https://example.com/a.mp3?x=1"), "g-1", "https://example.com/a.mp3?x=1", False),
    (("g-1", ""), "g-1", DEFAULT_URL, False),
    (("", "/a.mp3"), EPISODE, "/a.mp3", True),
    (("", ""), EPISODE, DEFAULT_URL, True),
    (None, EPISODE, DEFAULT_URL, True),
]


@pytest.mark.parametrize(("episode", "guid", "url", "unmapped"), MAPPED)
def test_a_line_takes_what_the_catalogue_knows(
    episode: tuple[str, str] | None, guid: str, url: str, unmapped: bool
) -> None:
    """The RSS guid and the real URL where they are known; else Megaphone's id, counted as unmapped."""
    catalogue = Catalogue({EPISODE: Episode(*episode)} if episode else {})
    line = cells(row(), catalogue=catalogue)
    assert (line["episode-guid"], line["url"]) == (guid, url)
    assert converted(row(), catalogue=catalogue).unmapped is unmapped


def test_without_a_catalogue_nothing_is_unmapped() -> None:
    """The count is about the catalogue, so it needs one."""
    assert not converted(row()).unmapped
    assert cells(row())["episode-guid"] == EPISODE


def test_a_row_without_an_episode_is_unmapped_and_written_with_a_dash() -> None:
    """podcast_id alone makes a line."""
    catalogue = Catalogue({})
    line = cells(row(episode_id=None), catalogue=catalogue)
    assert (line["episode-guid"], line["url"]) == ("-", f"/{GOOD['podcast_id']}/-.mp3")
    assert converted(row(episode_id=None), catalogue=catalogue).unmapped


def test_the_guid_fills_the_template_too() -> None:
    """``{guid}`` is the RSS guid where it is known, percent-encoded, and the episode id elsewhere."""
    template = rules(url="/x/{guid}.mp3")
    catalogue = Catalogue({EPISODE: Episode("https://example.com/?p=1 2", "")})
    assert cells(row(), template, catalogue=catalogue)["url"] == "/x/https%3A%2F%2Fexample.com%2F%3Fp%3D1%202.mp3"
    assert cells(row(), template)["url"] == f"/x/{EPISODE}.mp3"


def test_a_catalogue_saves_a_row_whose_template_would_be_too_long() -> None:
    """The limit applies to the URL that is sent."""
    raw = row(podcast_id="x" * 2100)
    assert result(raw) == "url_too_long"
    assert result(raw, catalogue=Catalogue({EPISODE: Episode("", "/short.mp3")})) == "line"


def test_what_would_break_a_line_is_encoded_in_a_catalogues_url(tmp_path: Path) -> None:
    """A URL with a blank, a quote or a tab inside stays one cell."""
    catalogue = load(tmp_path, f'episode_id,guid,url\n{EPISODE},"g\tg","/a b""c\td\u2028%41.mp3"\n')
    line = cells(row(), catalogue=catalogue)
    assert line["url"] == "/a%20b%22c%09d%E2%80%A8%41.mp3"
    assert line["episode-guid"] == "g g"
