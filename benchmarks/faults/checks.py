"""What must be true of an installation after any fault, once the service has had a round without one.

Reads the data folder of a `tests.support.program.ServiceSite`. Each broken promise is a sentence.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.storage.ledger import Ledger
from server.triton import LogName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date
    from pathlib import Path

ID_COLUMN = 12  # of the default layout


def whole(data: bytes) -> str:
    """What is wrong with the bytes of a log file, or an empty text: one gzip member of whole lines."""
    inflate = zlib.decompressobj(31)
    try:
        text = inflate.decompress(data)
    except zlib.error as error:
        return f"is no gzip: {error}"
    if not inflate.eof:
        return "is cut short"
    if inflate.unused_data:
        return "has something after its one member"
    return "" if text.endswith(b"\n") else "ends in mid-line"


@dataclass(slots=True)
class Seen:
    """What clients could see so far: every name with the digest, size and mtime that it had at first sight."""

    files: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def look(self, pickup: Path) -> list[str]:
        """Look at the folder now; what is wrong with it."""
        wrong = []
        for path in sorted(pickup.iterdir()) if pickup.is_dir() else ():
            try:
                data, stat = path.read_bytes(), path.stat()
            except FileNotFoundError:
                continue  # pruned between the listing and the look
            if torn := whole(data):
                wrong.append(f"{path.name} was visible, and {torn}")
            now = (hashlib.sha256(data).hexdigest(), stat.st_size, stat.st_mtime_ns)
            if self.files.setdefault(path.name, now) != now:
                wrong.append(f"{path.name} changed after it was visible")
        return wrong


def standing(data_dir: Path, expected: Mapping[date, Iterable[str]]) -> list[str]:
    """What is wrong with a data folder at rest, given the ids of every day that had to be published by now."""
    wrong: list[str] = []
    pickup, staging = data_dir / "pickup", data_dir / "staging"
    with closing(Ledger.read(data_dir / "ledger.sqlite3")) as ledger:
        logs = ledger.logs()
    published = {str(log.name): log for log in logs if log.state == "published"}
    there = {path.name for path in pickup.iterdir()}
    wrong += [f"{name} is in the folder, but not in the ledger" for name in sorted(there - published.keys())]
    wrong += [f"{name} is in the ledger, but not in the folder" for name in sorted(published.keys() - there)]
    wrong += [f"{log.name} is still only intended" for log in logs if log.state == "intended"]
    wrong += [f"{path.name} is left in staging" for path in staging.iterdir()]
    sent: dict[date, Counter[str]] = {day: Counter() for day in expected}
    for name in sorted(there & published.keys()):
        path, log = pickup / name, published[name]
        data, stat = path.read_bytes(), path.stat()
        if torn := whole(data):
            wrong.append(f"{name} {torn}")
            continue
        facts = (hashlib.sha256(data).hexdigest(), stat.st_size, int(stat.st_mtime))
        if facts != (log.sha256, log.size, log.mtime):
            wrong.append(f"{name} is not what the ledger says")
        if stat.st_mode & 0o777 != 0o440 or stat.st_nlink != 1:
            wrong.append(f"{name} has mode {stat.st_mode & 0o777:o} and {stat.st_nlink} links")
        parsed = LogName.parse(name)
        lines = gzip.decompress(data).decode().splitlines()[1:]
        if parsed is None or parsed.day not in sent:
            wrong.append(f"{name} was not to be published")
        elif log.superseded_by is None:
            sent[parsed.day].update(line.split("\t")[ID_COLUMN] for line in lines)
    for day, ids in expected.items():
        wanted = set(ids)
        twice = [one for one, times in sent[day].items() if times > 1]
        lacking, strange = wanted - sent[day].keys(), sent[day].keys() - wanted
        wrong += [f"{len(twice)} ids of {day} were sent twice"] * bool(twice)
        wrong += [f"{len(lacking)} ids of {day} were lost"] * bool(lacking)
        wrong += [f"{len(strange)} ids of {day} came from nowhere"] * bool(strange)
    return wrong
