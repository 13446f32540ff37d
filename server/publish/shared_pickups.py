"""Pickups count wherever they happened: each node tells the others what its users have of each log.

Touches the shared store and the ledger; runs in a thread. An object holds one user's progress on one log at one node,
and only that node writes it; the others merge it, so that the union of what was delivered anywhere counts. Promise: a
node never claims more than was delivered; what is not merged yet counts later.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from ..triton import LogName

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..storage.ledger import Ledger
    from ..storage.shelf import Shelf

FOLDER = "pickups"
_LOGINS = "logins"
_BETWEEN = "~"  # separates log, user and node in an object's name; none of them may contain it
_MOST_BYTES = 1 << 20  # of an object; 4096 ranges take less


class SharedPickups:
    """What this node has told the others, and heard from them."""

    def __init__(self, open_shelf: Callable[[], AbstractContextManager[Shelf]], ledger: Ledger, node: str) -> None:
        self._open = open_shelf
        self._ledger = ledger
        self._node = node
        self._told: dict[str, bytes] = {}  # by name, the content there
        self._heard: dict[str, str] = {}  # by name, the ETag of what was merged

    def exchange(self) -> None:
        """Write what is new here, and merge what is new elsewhere.

        Raises:
            StoreError: the store does not answer; the next call goes on from there.
            LedgerError: the ledger cannot be written.
        """
        own = {
            _BETWEEN.join((log, user, self._node)): orjson.dumps(progress)
            for log, user, progress in self._ledger.pickups.progress()
        }
        logins = {user: [at.isoformat(), address, client] for user, (at, address, client, _) in self._logins()}
        if logins:
            own[_BETWEEN.join((_LOGINS, "", self._node))] = orjson.dumps(logins)
        with self._open() as shelf:
            listed = {shelved.name: shelved.etag for shelved in shelf.list(FOLDER)}
            for name, data in own.items():
                # An ETag is the content's MD5 in most stores; in another, each object is written once per run.
                digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if self._told.get(name) != data and listed.get(name, "").strip('"') != digest:
                    shelf.put(f"{FOLDER}/{name}", data)
                self._told[name] = data
            for name, etag in listed.items():
                if self._heard.get(name) != etag and not name.endswith(f"{_BETWEEN}{self._node}"):
                    there = shelf.read(f"{FOLDER}/{name}", _MOST_BYTES)
                    if there is not None:
                        self._merge(name, there)
                    self._heard[name] = etag
            self._tidy(shelf, listed)
        self._heard = {name: etag for name, etag in self._heard.items() if name in listed}

    def _logins(self) -> list[tuple[str, Any]]:
        return list(self._ledger.logins().items())

    def _merge(self, name: str, data: bytes) -> None:
        log, user, node = [*name.split(_BETWEEN), "", ""][:3]
        try:
            found = orjson.loads(data)
            if log == _LOGINS:
                self._ledger.merge_logins(found)
            else:
                self._ledger.pickups.merge(log, user, node, found)
        except (ValueError, KeyError, TypeError, IndexError):
            return  # a later version's, or a stranger's: ignored

    def _tidy(self, shelf: Shelf, listed: dict[str, str]) -> None:
        """Remove the objects of logs that were pruned."""
        names = {name: LogName.parse(name.partition(_BETWEEN)[0]) for name in listed}
        known = self._ledger.logs_of({log for log in names.values() if log is not None})
        pruned = {entry.name for entry in known if entry.state == "pruned"}
        for name, log in names.items():
            if log in pruned:
                shelf.remove(f"{FOLDER}/{name}")
