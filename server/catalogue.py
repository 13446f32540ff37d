"""The episode catalogue: which RSS guid and which URL belong to a Megaphone episode id.

Reads one CSV file, ``episode_id,guid,url`` (guid or url may be empty). Megaphone's ``episode_id`` is the id of its CMS;
Triton matches a line by the guid "as represented in the RSS feed", or by the URL.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError, Problem
from .triton import URL_LIMIT, url_text

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = ("episode_id", "guid", "url")


@dataclass(frozen=True, slots=True)
class Episode:
    """What the catalogue says of one episode; an empty text where it says nothing."""

    guid: str
    url: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Episodes by their Megaphone episode id, in lower case."""

    episodes: dict[str, Episode]

    def find(self, episode_id: str) -> Episode | None:
        """The episode, or None; ids are compared without case."""
        return self.episodes.get(episode_id.strip().lower())


def load_catalogue(path: Path) -> Catalogue:
    """Read the operator's CSV file.

    Raises:
        ConfigError: the file cannot be read, has unknown columns, an id twice or empty, or a URL over 2048 characters;
            with all problems (the first 20 of them).
    """
    problems: list[Problem] = []
    episodes: dict[str, Episode] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            unknown = [name for name in header if name not in COLUMNS]
            if unknown or "episode_id" not in header or len(header) != len(set(header)):
                wrong = f"its first line is {','.join(header)!r}"
                problems.append(Problem(f"{path} line 1", wrong, f"write as first line: {','.join(COLUMNS)}"))
            else:
                for row in reader:
                    _read_row(f"{path} line {reader.line_num}", row, episodes, problems)
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {path}"))
    except (UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(path), f"is not a CSV file in UTF-8: {error}", "save it as CSV, UTF-8"))
    if problems:
        raise ConfigError(str(path), problems[:20])
    return Catalogue(episodes)


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
