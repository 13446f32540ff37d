"""Pickups count wherever they happened: each node tells the others what its users have of each log.

Touches the shared store and the ledger; runs in a thread. An object holds one user's progress on one log at one node,
and only that node writes it; the others merge it, so that the union of what was delivered anywhere counts. A node that
finds under its name what it has not delivered (its data folder is a copy, or an old one) takes another name.
Promise: a node never claims more than was delivered; what is not merged yet counts later.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import orjson
import structlog

from ..errors import StoreError
from ..pickups import Coverage
from ..triton import LogName
from .store_state import HEARD

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..storage.ledger import Ledger
    from ..storage.shelf import Shelf

log = structlog.get_logger()

PICKUPS = "pickups"
_LOGINS = "logins"
BETWEEN = "~"  # separates log, user and node in an object's name; none of them may contain it
_MOST_BYTES = 1 << 20  # of an object; 4096 ranges take less


class SharedPickups:
    """What this node has told the others, and heard from them."""

    def __init__(
        self,
        open_shelf: Callable[[], AbstractContextManager[Shelf]],
        ledger: Ledger,
        node: str,
        new_name: Callable[[], str],
    ) -> None:
        self._open = open_shelf
        self._ledger = ledger
        self._node = node
        self._new_name = new_name
        self._told: dict[str, bytes] = {}  # by name, the content there
        self._heard: dict[str, str] = {}  # by name, the ETag of what was merged

    def exchange(self) -> None:
        """Merge what is new elsewhere, and write what is new here.

        Raises:
            StoreError: the store does not answer; the next call goes on from there.
            LedgerError: the ledger cannot be written.
        """
        with self._open() as shelf:
            there = shelf.list(PICKUPS)
            listed = {shelved.name: shelved.etag for shelved in there}
            written = {shelved.name: shelved.modified for shelved in there}
            # Merging comes first, since it needs no right to write.
            for name, etag in listed.items():
                if self._heard.get(name) != etag and not name.endswith(f"{BETWEEN}{self._node}"):
                    data = shelf.read(f"{PICKUPS}/{name}", _MOST_BYTES)
                    if data is not None:
                        self._merge(name, data, written[name])
                    self._heard[name] = etag
            self._heard = {name: etag for name, etag in self._heard.items() if name in listed}
            self._keep_apart(shelf, listed)
            nodes = sorted({name.rpartition(BETWEEN)[2] for name in listed if name.startswith(f"{_LOGINS}{BETWEEN}")})
            if nodes != self._ledger.facts().get(HEARD):
                self._ledger.note(**{HEARD: nodes})
            for name, data in self._own().items():
                # An ETag is the content's MD5 in most stores; in another, each object is written once per run.
                known = self._told.get(name) == data or listed.get(name, "").strip('"') == _digest(data)
                if not known or name not in listed:
                    shelf.put(f"{PICKUPS}/{name}", data)
                self._told[name] = data
            self._tidy(shelf, listed)

    def _keep_apart(self, shelf: Shelf, listed: dict[str, str]) -> None:
        """Take another name if another node uses ours; what lies under the old one is then that node's."""
        for name, data in self._own().items():
            told, etag = self._told.get(name), listed.get(name, "").strip('"')
            if etag in ("", _digest(data), _digest(told or b""), self._heard.get(name, "").strip('"')):
                continue
            there = shelf.read(f"{PICKUPS}/{name}", _MOST_BYTES)
            if there is not None and there != told and not _claims_no_more(there, data):
                before, self._node = self._node, self._new_name()
                self._heard = {}
                why = "another node uses its name: its data folder is a copy, or an old one"
                log.warning(f"node {before} is called {self._node} from now on", why=why)
                return
            if there != data:  # an earlier write of ours, which arrived late: what is true now is written again
                self._told.pop(name, None)
            self._heard[name] = listed[name]

    def _own(self) -> dict[str, bytes]:
        """Return what this node reports, by the names of its objects."""
        own = {
            BETWEEN.join((owner, user, self._node)): orjson.dumps(progress)
            for owner, user, progress in self._ledger.pickups.progress()
        }
        logins = {user: [at.isoformat(), *rest] for user, (at, *rest) in self._ledger.logins().items()}
        # Also without any: it tells the others of this node.
        own[BETWEEN.join((_LOGINS, "", self._node))] = orjson.dumps(logins)
        return own

    def _merge(self, name: str, data: bytes, written: datetime | None) -> None:
        owner, user, node = [*name.split(BETWEEN), "", ""][:3]

        def past(instant: str) -> str:
            # Nothing that an object reports happened after the store took it: a node whose clock is ahead reports a
            # future, and until then no silence of the partner would be noticed.
            return instant if written is None or datetime.fromisoformat(instant) <= written else written.isoformat()

        try:
            found = orjson.loads(data)
            if owner == _LOGINS:
                # A node of an earlier version reports no silence.
                self._ledger.merge_logins({who: [past(at), *rest, 0][:4] for who, (at, *rest) in found.items()})
                return
            for word in ("first", "last", "completed"):
                found[word] = found[word] and past(found[word])
            self._ledger.pickups.merge(owner, user, node, found)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            return  # a later version's, or a stranger's: ignored

    def _tidy(self, shelf: Shelf, listed: dict[str, str]) -> None:
        """Remove the objects of logs that were pruned."""
        names = {name: LogName.parse(name.partition(BETWEEN)[0]) for name in listed}
        known = self._ledger.logs_of({found for found in names.values() if found is not None})
        pruned = {entry.name for entry in known if entry.state == "pruned"}
        for name, found in names.items():
            if found in pruned:
                with suppress(StoreError):  # a store that keeps everything; what is kept claims nothing
                    shelf.remove(f"{PICKUPS}/{name}")


def _digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _claims_no_more(theirs: bytes, ours: bytes) -> bool:
    """Return whether what lies in the store claims nothing that ``ours`` does not; nor does what cannot be read."""
    try:
        there, here = orjson.loads(theirs), orjson.loads(ours)
        if here.get("completed") or "ranges" not in here or there["sha256"] != here["sha256"]:
            return True
        union = Coverage([*map(tuple, here["ranges"]), *map(tuple, there["ranges"])])
        return not there["completed"] and union.bytes == Coverage(map(tuple, here["ranges"])).bytes
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return True
