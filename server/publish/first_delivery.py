"""Whether the source has ever delivered an export, as recorded in the ledger's facts.

Pure. Promise: a source that has delivered once never counts as one that has not. A new `export.url` is another source,
and so is another kind of export at the same place.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..megaphone.exports import METRICS, Others

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..megaphone.exports import Listing

NOTHING_DELIVERED = "nothing_delivered"  # a fact of the ledger: a `NothingDelivered` as JSON; None once there was one
_DELIVERED_BY = "delivered_by"  # a fact of the ledger: the source that last had an export, as `_identity` names it


class NothingDelivered(NamedTuple):
    """A source that has had no export ``since`` it was first listed, and what it holds instead."""

    source: str
    since: datetime
    others: Others

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> NothingDelivered | None:
        """Return what the facts say; None if the source has delivered, or was never listed."""
        fact = facts.get(NOTHING_DELIVERED)
        if fact is None:
            return None
        others = Others(**{**fact["others"], "looks": tuple(fact["others"]["looks"])})
        return cls(fact["source"], datetime.fromisoformat(fact["since"]), others)

    @property
    def sentence(self) -> str:
        """What is at the source instead of exports."""
        return self.others.sentence(self.source)


def source_facts(
    facts: Mapping[str, Any], source: str, listing: Listing, *, delivered: bool, kind: str = METRICS.name
) -> dict[str, Any]:
    """Return the facts that a listing changes; ``delivered``: the ledger knows an export or a publication."""
    identity = _identity(source, kind)
    if listing.exports:
        changed: dict[str, Any] = {_DELIVERED_BY: identity, NOTHING_DELIVERED: None}
    elif facts.get(_DELIVERED_BY, identity if delivered else None) == identity:
        changed = {NOTHING_DELIVERED: None}
    else:
        known = NothingDelivered.of(facts)
        since = known.since if known is not None and known.source == source else listing.now
        others = {**listing.others._asdict(), "looks": list(listing.others.looks)}
        changed = {NOTHING_DELIVERED: {"source": source, "since": since.isoformat(), "others": others}}
    return {name: value for name, value in changed.items() if facts.get(name) != value}


def _identity(source: str, kind: str) -> str:
    """Return a source's identity: its name, and its kind of export unless that is metrics, as earlier versions did."""
    return source if kind == METRICS.name else f"{source} ({kind})"
