"""How well today's episode catalogue matches the last published days, and what is left to match by hand.

Reads published files through `DataFolder`, and writes the CSV that an operator asked for. Promise: it counts what was
sent, and keeps nothing about a listener.
"""

from __future__ import annotations

import contextlib
import csv
import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from isal import igzip

from ..episodes.catalogue import COLUMNS, NOTES
from ..episodes.rss import safe_url
from ..episodes.source import CatalogueSource
from ..errors import PickupPointError
from ..paths import create, place_of
from ..storage.folder import DataFolder
from ..storage.ledger import LEDGER_FILE, Ledger
from ..storage.records import matched_share
from ..triton import DerivedValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path
    from typing import TextIO

    from ..episodes.catalogue import Catalogue, Episode
    from ..settings import Config
    from ..storage.records import LedgerLog, Publication

DAYS = 7  # published days to read, unless the operator says otherwise


@dataclass(frozen=True, slots=True)
class Unmatched:
    """An episode that neither the operator's file nor an RSS feed knows, with its number of lines in the days read."""

    episode_id: str
    podcast_id: str
    lines: int
    last: date

    def as_json(self) -> dict[str, Any]:
        """Return the episode as ``episodes --unmatched --json`` prints it."""
        return {
            "episode_id": self.episode_id,
            "podcast_id": self.podcast_id,
            "lines": self.lines,
            "last_day": self.last.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Matching:
    """How well today's catalogue matches the last published days; in ``unmatched`` most lines come first."""

    days: tuple[date, ...]
    lines: int
    unmatched: tuple[Unmatched, ...]

    @property
    def share(self) -> float | None:
        """The share of lines, 0 to 1, whose episode is known; None without lines."""
        return 1 - sum(episode.lines for episode in self.unmatched) / self.lines if self.lines else None

    def as_json(self) -> dict[str, Any]:
        """Return the result as ``episodes --unmatched --json`` prints it."""
        return {
            "days": [day.isoformat() for day in self.days],
            "lines": self.lines,
            "matched_share": None if self.share is None else round(self.share, 4),
            "unmatched": [episode.as_json() for episode in self.unmatched],
        }


def matching(config: Config, ledger: Ledger, catalogue: Catalogue | None, days: int = DAYS) -> Matching:
    """Read the published files of the last ``days`` days, and match them with today's catalogue.

    Raises:
        PickupPointError: the logs have no column for the episode.
    """
    folder = DataFolder(config.data_dir)
    by_day: dict[date, list[tuple[Publication, LedgerLog]]] = {}
    for publication in ledger.live_publications():
        for entry in publication.logs:
            if entry.state == "published" and entry.superseded_by is None and publication.published_at is not None:
                by_day.setdefault(publication.day, []).append((publication, entry))
    newest = sorted(by_day, reverse=True)[:days]
    lines: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], date] = {}
    known: dict[bool, set[str]] = {}
    episodes = catalogue.episodes.values() if catalogue is not None else ()
    total = 0
    for day in newest:
        for publication, entry in by_day[day]:
            clean = publication.rules.layout.clean
            guids = known.setdefault(clean("%") == "%", {clean(e.guid).lower() for e in episodes if e.guid})
            with folder.open_log(entry.name) as packed, igzip.IGzipFile(fileobj=packed) as file:  # type: ignore[no-untyped-call]  # no types in isal
                found = Counter(_episodes(file, publication, day))
            total += found.total()
            for cells, count in found.items():
                if not _is_known(cells[0], guids, catalogue):
                    lines[cells] += count
                    last.setdefault(cells, day)
    most = [Unmatched(*cells, lines=count, last=last[cells]) for cells, count in lines.most_common()]
    return Matching(tuple(newest), total, tuple(most))


def _is_known(episode: str, guids: set[str], catalogue: Catalogue | None) -> bool:
    """Return whether a line's episode is matched: by the guid it was sent with, or by what the catalogue knows now."""
    if episode.lower() in guids:
        return True
    found = catalogue.find(episode) if catalogue is not None else None
    return found is not None and bool(found.guid)


def _episodes(file: Iterable[bytes], publication: Publication, day: date) -> Iterator[tuple[str, str]]:
    """Yield the (episode, podcast) cells of each line.

    Raises:
        PickupPointError: the logs have no column for the episode.
    """
    layout = publication.rules.layout
    specs = layout.specs
    # Megaphone's own id is the safer key; the guid column also holds it if the catalogue had nothing better.
    episode = next((i for i, s in enumerate(specs) if s.field == "episode_id"), None)
    if episode is None:
        episode = next((i for i, s in enumerate(specs) if s.value == DerivedValue.EPISODE_GUID), None)
    if episode is None:
        hint = "the share of the lines that match: pickup-point status"
        raise PickupPointError("the logs have no column for the episode", hint=hint)
    podcast = next(
        (i for i, s in enumerate(specs) if s.field == "podcast_id" or s.value == DerivedValue.PODCAST_ID), -1
    )
    # Only as far as needed: what follows the two columns is not split.
    cut = max(episode, podcast) + 1
    for line in islice(file, layout.header_lines(day).count("\n"), None):
        cells = line.rstrip(b"\n").split(b"\t", cut)
        yield cells[episode].decode(), cells[podcast].decode() if podcast >= 0 else "-"


def handover_lines(config: Config) -> list[str]:
    """Return, in Markdown and for Triton, the RSS feeds and the share of the newest day's lines that they match.

    Without an RSS feed there are no lines.

    Raises:
        ConfigError: a file has to be corrected.
        LedgerError: the ledger cannot be read.
    """
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        urls = CatalogueSource(config, ledger.rss).urls()
        publications = ledger.live_publications()
    lines = [f"- {safe_url(url)}" for url in urls]
    for day in sorted({publication.day for publication in publications}, reverse=True):
        share = matched_share(publication for publication in publications if publication.day == day)
        if share is not None:
            return [
                *lines,
                "",
                f"{share:.1%} of the lines of {day} belong to an episode whose guid is in them.",
            ]
    return lines


@contextlib.contextmanager
def new_csv(path: Path) -> Iterator[TextIO]:
    """Open a new file for `write_export`, and remove it again on failure.

    Raises:
        PickupPointError: the file already exists, or cannot be written.
    """
    try:
        with place_of(path, follow=False) as (folder, name):
            descriptor = create(folder, name, 0o666)
        with open(descriptor, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123  # a descriptor
            try:
                yield file
            except BaseException:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError as error:
        raise PickupPointError(f"{path} already exists", hint="give --export another name") from error
    except OSError as error:
        sentence = f"cannot write {path}: {error.strerror}"
        raise PickupPointError(sentence, hint=f"ls -ld {shlex.quote(str(path.absolute().parent))}") from error


def write_export(file: TextIO, written: Mapping[str, Episode], unmatched: Sequence[Unmatched]) -> int:
    """Write a CSV to fill in by hand: what the operator's file has, then episodes that match nothing.

    Its columns are `COLUMNS` and `NOTES` of the catalogue. Return how many episodes match nothing.
    """
    rows: list[tuple[object, ...]] = [(*COLUMNS, *NOTES)]
    rows += [(key, episode.guid, episode.url, "", "") for key, episode in written.items()]
    missing = [e for e in unmatched if e.episode_id != "-" and e.episode_id.lower() not in written]
    rows += [(e.episode_id, "", "", e.podcast_id, e.lines) for e in missing]
    csv.writer(file).writerows(rows)
    return len(missing)
