"""The episode catalogue: which RSS guid and which URL belong to a Megaphone episode id.

Reads the operator's files: a CSV, ``episode_id,guid,url`` (guid or url may be empty), and a list of RSS feeds.
Megaphone's ``episode_id`` is the id of its CMS; Triton matches a line by the guid "as represented in the RSS feed", or
by the URL. What the operator wrote comes first, then a guid that is the ``episode_id``, whatever its case. Nothing is
ever matched by size or duration: a wrong match is worse than none.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError, Problem
from ..triton import URL_LIMIT, url_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path


COLUMNS = ("episode_id", "guid", "url")
NOTES = ("podcast_id", "lines")  # written beside them by `episodes --export` for the eye, and never read
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z]{2,10}[0-9]{4,20}", re.ASCII)


class Episode(NamedTuple):
    """What the catalogue says of one episode; an empty text where it says nothing.

    ``url`` is the operator's; ``enclosure_url`` is the RSS feed's, as published, and ``token`` Megaphone's id in it.
    """

    guid: str
    url: str
    token: str = ""
    enclosure_url: str = ""

    def parts(self) -> dict[str, str]:
        """What a URL template may ask for beside the guid."""
        return {"token": self.token, "enclosure_url": self.enclosure_url}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Episodes by their Megaphone episode id, in lower case; ``stamp`` says which version this is."""

    episodes: dict[str, Episode]
    stamp: CatalogueStamp | None = None

    def find(self, episode_id: str) -> Episode | None:
        """The episode, or None; ids are compared without case."""
        return self.episodes.get(episode_id.strip().lower())


def make_catalogue(written: Catalogue | None, published: Sequence[Episode], read: Sequence[datetime] = ()) -> Catalogue:
    """One catalogue of what the operator wrote and what the RSS feeds publish, which were read at these instants.

    Of two equal guids the first one counts. Called once for each conversion: it must stay quick for 20,000 episodes.
    """
    episodes = {item.guid.lower(): item for item in reversed(published)}
    episodes.pop("", None)
    digest = blake2b("\n".join(map("\t".join, published)).encode(), digest_size=6)
    if written is not None:
        found = {key: episodes.get(row.guid.lower() or key, _NOTHING) for key, row in written.episodes.items()}
        for key, row in written.episodes.items():
            episodes[key] = Episode(row.guid or found[key].guid, row.url, found[key].token, found[key].enclosure_url)
            digest.update(f"\n{key}\t{row.guid}\t{row.url}".encode())
    read_at = f"{min(read):%Y-%m-%dT%H:%M:%SZ}" if read else ""
    return Catalogue(episodes, CatalogueStamp(digest.hexdigest(), len(episodes), len(read), read_at))


_NOTHING = Episode("", "")


def load_urls(path: Path) -> list[str]:
    """The RSS feeds in a file, one a line; blank lines and lines that begin with # are none.

    Raises:
        ConfigError: the file cannot be read, or a line is no web address; with all problems (the first 20 of them).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise ConfigError(str(path), [Problem(str(path), f"cannot be read: {why}", f"ls -l {path}")]) from error
    urls, problems = [], []
    for number, line in enumerate(lines, 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        if _is_web_address(url):
            urls.append(url)
        else:
            problems.append(Problem(f"{path} line {number}", "is no web address", "write one https://host/path a line"))
    if problems:
        raise ConfigError(str(path), problems[:20])
    return urls


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", url)
    except ValueError:
        return False


def check_episodes(path: Path) -> list[Problem]:
    """Everything that is wrong in an operator's CSV file, ids that are no ids of Megaphone's among it."""
    problems: list[Problem] = []
    _read(path, problems, ids=True)
    return problems


def load_catalogue(path: Path) -> Catalogue:
    """Read the operator's CSV file.

    Raises:
        ConfigError: the file cannot be read, has unknown columns, an id twice or empty, or a URL over 2048 characters;
            with all problems (the first 20 of them).
    """
    problems: list[Problem] = []
    episodes = _read(path, problems)
    if problems:
        raise ConfigError(str(path), problems[:20])
    return Catalogue(episodes)


def _read(path: Path, problems: list[Problem], *, ids: bool = False) -> dict[str, Episode]:
    """The rows that are right; the others' problems are added. With ``ids``, an id must look like Megaphone's."""
    episodes: dict[str, Episode] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            unknown = [name for name in header if name not in COLUMNS + NOTES]
            if unknown or "episode_id" not in header or len(header) != len(set(header)):
                wrong = f"its first line is {','.join(header)!r}"
                problems.append(Problem(f"{path} line 1", wrong, f"write as first line: {','.join(COLUMNS)}"))
            else:
                for row in reader:
                    _read_row(f"{path} line {reader.line_num}", row, episodes, problems)
                    if ids and (episode_id := (row["episode_id"] or "").strip()) and not _ID.fullmatch(episode_id):
                        problems.append(_no_id(f"{path} line {reader.line_num}", episode_id))
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {path}"))
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(path), f"is not a CSV file in UTF-8: {error}", "save it as CSV, UTF-8"))
    return episodes


def _no_id(place: str, episode_id: str) -> Problem:
    what = "the token of an enclosure URL" if _TOKEN.fullmatch(episode_id) else "no id of Megaphone's"
    cure = "write the episode's id in Megaphone, a UUID: pickup-point episodes --unmatched"
    return Problem(place, f"has the episode_id {episode_id[:80]!r}, which is {what}", cure)


def _read_row(place: str, row: dict[str, str | None], episodes: dict[str, Episode], problems: list[Problem]) -> None:
    if "" in row:
        problems.append(Problem(place, "has more cells than columns", "put cells with commas in double quotes"))
        return
    episode_id, guid, url = ((row.get(name) or "").strip() for name in COLUMNS)
    if not episode_id and not guid and not url:
        return
    if not episode_id:
        problems.append(Problem(place, "has no episode_id", "fill it in, or remove the line"))
    elif episode_id.lower() in episodes:
        problems.append(Problem(place, f"has the episode_id {episode_id} a second time", "keep one line of the two"))
    elif len(url_text(url)) > URL_LIMIT:
        problems.append(Problem(place, f"has a URL over {URL_LIMIT} characters", "shorten it; Triton takes no longer"))
    else:
        episodes[episode_id.lower()] = Episode(guid, url_text(url))


@dataclass(frozen=True, slots=True)
class CatalogueStamp:
    """Which episode catalogue a file was made with: ``version`` is the same for the same content, wherever it is made.

    ``episodes`` it knew, ``rss_feeds`` it was made of beside the operator's file, the oldest of them read at
    ``read_at`` (ISO 8601 in UTC, empty where no RSS feed was read).
    """

    version: str
    episodes: int
    rss_feeds: int = 0
    read_at: str = ""

    def as_json(self) -> dict[str, Any]:
        """As the ledger and ``--json`` hold it."""
        return {
            "version": self.version,
            "episodes": self.episodes,
            "rss_feeds": self.rss_feeds,
            "read_at": self.read_at,
        }
