"""Whether a hostile export came to what it must come to: by the ledger, and by the file of rejected rows.

Reads a data folder. Each broken promise is a sentence.
"""

from __future__ import annotations

import gzip
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import orjson

from server.storage.ledger import Ledger
from server.triton import LogFormat, LogName

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    from server.convert.tally import Tally

    from .exports_cases import Outcome

_LONGEST_RAW = 64 << 10


def judge(data_dir: Path, day: date, outcome: Outcome) -> list[str]:
    """What is wrong with what became of a day."""
    with closing(Ledger.read(data_dir / "ledger.sqlite3")) as ledger:
        record = ledger.days().get(day)
        published = [one for one in ledger.publications(day) if one.published_at is not None]
    tally: Tally | None = None
    if published:
        state, said, tally = "published", "", published[0].tally
    elif record is None:
        return ["its day was never seen"]
    elif record.hold is not None:
        state, said, tally = "held", record.hold.why, record.hold.tally
    elif record.failure is not None:
        state, said = "failed", record.failure.sentence
    else:
        state, said = record.seen, ""
    if state != outcome.state:
        return [f"is {state} ({said}), not {outcome.state}"]
    wrong = [f"is said to be {said!r}, without {outcome.why!r}"] if outcome.why not in said else []
    if tally is None:
        return wrong
    if not tally.balanced:
        wrong.append(f"its books do not balance: {tally.as_json()}")
    counted = Counter({str(reason): count for reason, count in tally.rejected.items() if count})
    if (outcome.rejected or state == "published") and counted != outcome.rejected:
        wrong.append(f"rejected are {dict(counted)}, not {dict(outcome.rejected)}")
    if state == "published" and tally.lines != len(outcome.ids):
        wrong.append(f"{tally.lines} lines were written of {len(outcome.ids)} good rows")
    path = data_dir / "rejects" / LogName("TEST", day, 0, LogFormat.TSV).rejects
    return wrong + _wrong_rejects(path, counted, outcome.at)


def _wrong_rejects(path: Path, counted: Counter[str], at: dict[int, str]) -> list[str]:
    if not counted:
        return [f"there is a file {path.name}, of no row"] if path.exists() else []
    if not path.exists():
        return [f"there is no file {path.name}"]
    found: Counter[str] = Counter()
    places, longest = dict(at), 0
    with gzip.open(path) as file:
        for line in file:
            entry = orjson.loads(line)
            found[entry["reason"]] += 1
            longest = max(longest, len(entry["raw"].encode()))
            if places.get(entry["line"]) == entry["reason"]:
                del places[entry["line"]]
    wrong = [f"{path.name} has {dict(found)}, not {dict(counted)}"] if found != counted else []
    wrong += [f"{path.name} has no {reason} at line {line}" for line, reason in places.items()]
    return wrong + ([f"{path.name} has a text of {longest} bytes"] if longest > _LONGEST_RAW else [])
