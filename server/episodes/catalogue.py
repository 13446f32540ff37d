"""The episode catalogue: which RSS guid and which URL belong to a Megaphone episode id.

Reads the operator's files: a CSV, ``episode_id,guid,url`` (guid or url may be empty), and a list of RSS feeds.
Megaphone's ``episode_id`` is the id of its CMS; Triton matches a line by the guid "as represented in the RSS feed", or
by the URL. The operator's file comes first, then a guid that equals the ``episode_id``, ignoring case. Nothing is ever
matched by size or duration: a wrong match is worse than none.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError, Problem
from ..paths import read_file
from ..rights import without_read_right
from ..triton import URL_LIMIT, url_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path


COLUMNS = ("episode_id", "guid", "url")
NOTES = ("podcast_id", "lines")  # for information: written by `episodes --export`, and never read
MOST_BYTES = 64 << 20  # of one file
MOST_PROBLEMS = 20  # reported for one file
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
TOKEN = re.compile(r"[A-Za-z]+[0-9]+", re.ASCII)  # Megaphone's id of an episode in its enclosure URL


class Episode(NamedTuple):
    """What the catalogue knows about one episode; '' for what it does not.

    ``url`` is the operator's; ``enclosure_url`` is the RSS feed's, as published, ``token`` is Megaphone's id in it, and
    ``length`` its size in bytes as the RSS feed states it, in digits.
    """

    guid: str
    url: str
    token: str = ""
    enclosure_url: str = ""
    length: str = ""

    def parts(self) -> dict[str, str]:
        """Return the values that a URL template may use besides the guid."""
        return {"token": self.token, "enclosure_url": self.enclosure_url}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Episodes by their Megaphone episode id in lower case; ``stamp`` identifies the version."""

    episodes: dict[str, Episode]
    stamp: CatalogueStamp | None = None

    def find(self, episode_id: str) -> Episode | None:
        """Return the episode, or None; ids are compared ignoring case."""
        return self.episodes.get(episode_id.strip().lower())


def make_catalogue(written: Catalogue | None, published: Sequence[Episode], read: Sequence[datetime] = ()) -> Catalogue:
    """Merge the operator's catalogue and the items of the RSS feeds, which were read at the instants ``read``.

    Of two equal guids, the first counts. Called once per conversion, so it must stay fast for 20,000 episodes.
    """
    # Reversed, because the last of two equal keys wins in a dictionary.
    episodes = {item.guid.lower(): item for item in reversed(published)}
    episodes.pop("", None)
    # Of the content alone, without times: the same catalogue has the same version on every machine.
    digest = blake2b("\n".join("\t".join(item[:4]) for item in published).encode(), digest_size=6)
    if written is not None:
        found = {key: episodes.get(row.guid.lower() or key, _NOTHING) for key, row in written.episodes.items()}
        for key, row in written.episodes.items():
            episodes[key] = found[key]._replace(guid=row.guid or found[key].guid, url=row.url)
            digest.update(f"\n{key}\t{row.guid}\t{row.url}".encode())
    read_at = f"{min(read):%Y-%m-%dT%H:%M:%SZ}" if read else ""
    return Catalogue(episodes, CatalogueStamp(digest.hexdigest(), len(episodes), len(read), read_at))


_NOTHING = Episode("", "")


def load_urls(path: Path) -> list[str]:
    """Return the RSS feeds in a file, one per line; blank lines and lines that begin with # are ignored.

    Raises:
        ConfigError: the file cannot be read, or a line is not a web address; with up to `MOST_PROBLEMS` problems.
    """
    try:
        lines = _text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        cure = f"ls -l {shlex.quote(str(path))}"
        raise ConfigError(str(path), [Problem(str(path), f"cannot be read: {why}", cure)]) from error
    urls, problems = [], []
    for number, line in enumerate(lines, 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        if _is_web_address(url):
            urls.append(url)
        else:
            problems.append(
                Problem(f"{path} line {number}", "is not a web address", "write one https://host/path per line")
            )
    if problems:
        raise ConfigError(str(path), problems[:MOST_PROBLEMS])
    return urls


def _text(path: Path) -> str:
    """Return a file of the operator's as text; its folder may be writable by others than root."""
    with without_read_right():
        return read_file(path, MOST_BYTES).decode("utf-8-sig")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", url)
    except ValueError:
        return False


def check_episodes(path: Path) -> list[Problem]:
    """Return everything wrong with an operator's CSV file, including ids that are not Megaphone's."""
    problems: list[Problem] = []
    _read(path, problems, ids=True)
    return problems


def load_catalogue(path: Path) -> Catalogue:
    """Read the operator's CSV file.

    Raises:
        ConfigError: the file cannot be read, has unknown columns, an id twice or empty, or a URL over 2048 characters;
            with up to `MOST_PROBLEMS` problems.
    """
    problems: list[Problem] = []
    episodes = _read(path, problems)
    if problems:
        raise ConfigError(str(path), problems[:MOST_PROBLEMS])
    return Catalogue(episodes)


def _read(path: Path, problems: list[Problem], *, ids: bool = False) -> dict[str, Episode]:
    """Return the correct rows, and add the others' problems; with ``ids``, an id must look like Megaphone's."""
    episodes: dict[str, Episode] = {}
    try:
        with io.StringIO(_text(path), newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            unknown = [name for name in header if name not in COLUMNS + NOTES]
            if unknown or "episode_id" not in header or len(header) != len(set(header)):
                wrong = f"its first line is {','.join(header)!r}"
                problems.append(Problem(f"{path} line 1", wrong, f"write as the first line: {','.join(COLUMNS)}"))
            else:
                for row in reader:
                    _read_row(f"{path} line {reader.line_num}", row, episodes, problems)
                    if ids and (episode_id := (row["episode_id"] or "").strip()) and not _ID.fullmatch(episode_id):
                        problems.append(_not_an_id(f"{path} line {reader.line_num}", episode_id))
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(path))}"))
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(path), f"is not a CSV file in UTF-8: {error}", "save it as CSV, UTF-8"))
    return episodes


def _not_an_id(line: str, episode_id: str) -> Problem:
    what = "the token of an enclosure URL" if TOKEN.fullmatch(episode_id) else "not a Megaphone id"
    cure = "write Megaphone's id of the episode, a UUID; to list them: pickup-point episodes --unmatched"
    return Problem(line, f"has the episode_id {episode_id[:80]!r}, which is {what}", cure)


def _read_row(line: str, row: dict[str, str | None], episodes: dict[str, Episode], problems: list[Problem]) -> None:
    if "" in row:
        problems.append(Problem(line, "has more cells than columns", "put cells with commas in double quotes"))
        return
    episode_id, guid, url = ((row.get(name) or "").strip() for name in COLUMNS)
    if not episode_id and not guid and not url:
        return
    if not episode_id:
        problems.append(Problem(line, "has no episode_id", "fill it in, or remove the line"))
    elif episode_id.lower() in episodes:
        problems.append(Problem(line, f"repeats the episode_id {episode_id}", "keep one of the two lines"))
    elif len(url_text(url)) > URL_LIMIT:
        problems.append(
            Problem(line, f"has a URL over {URL_LIMIT} characters", "shorten it; Triton accepts no longer URL")
        )
    else:
        episodes[episode_id.lower()] = Episode(guid, url_text(url))


@dataclass(frozen=True, slots=True)
class CatalogueStamp:
    """Which episode catalogue a file was made with; the same content has the same ``version`` on every machine.

    ``episodes`` is how many it knew; ``rss_feeds`` is how many RSS feeds it includes, the oldest of them read at
    ``read_at`` (ISO 8601 in UTC, '' if no RSS feed was read).
    """

    version: str
    episodes: int
    rss_feeds: int = 0
    read_at: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the stamp as the ledger and ``--json`` hold it."""
        return {
            "version": self.version,
            "episodes": self.episodes,
            "rss_feeds": self.rss_feeds,
            "read_at": self.read_at,
        }
