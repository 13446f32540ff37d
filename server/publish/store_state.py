"""What the ledger's facts say about the store of published logs.

Pure; a file of its own, so that whoever reads the facts does not load the AWS SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..storage.records import LedgerLog

STORE = "store"  # a fact of the ledger: a `StoreState` as JSON
NODE = "node"  # a fact of the ledger: this node's name among those of a shared store
HEARD = "nodes_heard"  # a fact of the ledger: the names of the nodes that have ever looked at the store
NODES = "nodes"  # as if it were a fact: what is known of the nodes of a shared store, see `EntryStore.nodes`


class StoreState(NamedTuple):
    """What is known about the store at ``url``: the names of the logs that lie ``there`` as they were published.

    ``wrong`` are sentences about objects that only an operator can put right; ``error`` is why the last pass failed,
    or ''.
    """

    url: str
    there: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any], url: str) -> StoreState:
        """Return what the facts say about the store at ``url``; nothing if they are about another one."""
        fact = facts.get(STORE)
        if fact is None or fact["url"] != url:
            return cls(url)
        return cls(**{**fact, "there": tuple(fact["there"]), "wrong": tuple(fact["wrong"])})

    def lacks(self, entry: LedgerLog) -> bool:
        """Return whether a published log is missing from the store."""
        return entry.state == "published" and str(entry.name) not in self.there
