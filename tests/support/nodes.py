"""Weeks of several nodes on one store, in virtual time: the walk of `months`, by whichever node it is.

Each of them is killed, loses its ledger, is cut off from the store, loses answers, and is overtaken in mid-round by
another; their clocks are minutes apart, and the store loses what it has confirmed. What one of them shows, all must
show, for ever the same.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from server.errors import SourceUnreachable, StoreError
from server.storage.sequence import from_bytes

from .apart import conversions_here, one_thread
from .months import HOUR, Walk
from .site import Site

if TYPE_CHECKING:
    import random
    from datetime import datetime
    from pathlib import Path


class NodesWalk(Walk):
    """A wild walk of ``count`` nodes, of which a last one joins in the middle."""

    def __init__(
        self, root: Path, dice: random.Random, days: int, *, count: int = 2, kills: bool = False, kind: str = "metrics"
    ) -> None:
        self._more: dict[str, Any] = {"store": root / "store", "exports": root / "exports", "kind": kind}
        super().__init__(root / "node-0", dice, days, wild=True, kills=kills, **self._more)
        self._root = root
        self.nodes = [self.site]
        for number in range(1, count):
            self._join(number)
        self.faults = self.overtaken = 0
        self._cut_off: dict[str, datetime] = {}
        self._busy: set[str] = set()
        self._shown_to_clients: dict[str, tuple[int, int, str]] = {}
        self._middle = self.end - timedelta(days=days // 2 + 6)
        self._calm = False

    def _join(self, number: int) -> None:
        # Files that differ from those of the others, though the rows are the same.
        settings = {"keep_days": 15, "max_rejected": 0.2, "max_rows_per_file": 7 * number, **self._more}
        self.nodes.append(Site(self._root / f"node-{number}", **settings))
        self.nodes[-1].skew = timedelta(minutes=self.dice.choice((-10, -3, 0, 5, 10)))

    def _settings(self) -> dict[str, Any]:
        choose = self.dice.choice
        return {"max_rows_per_file": choose((0, 7, 15)), "look_back_days": choose((1, 2, 3, 5)),
                "pull_every": HOUR * choose((1, 6, 24))}  # fmt: skip

    def _lose_the_ledger(self) -> None:
        before = set(self.muddled)
        super()._lose_the_ledger()
        self.muddled = before  # the sequence knows what stands

    def _step(self, now: datetime) -> None:
        if now >= self._middle and len(self.nodes) < 3:
            self._join(len(self.nodes))
        if self.dice.random() < 0.1:
            self._lose_an_object()
        for node in self.dice.sample(self.nodes, k=len(self.nodes)):
            if self.dice.random() < 0.3:
                continue  # not up, or not in step
            self.site = node
            if self.dice.random() < 0.03:
                self._cut_off[node.root.name] = now + HOUR * self.dice.randrange(1, 40)
            self._set_weather(node, now)
            super()._step(now)
        self.look_as_a_client(now)

    def _lose_an_object(self) -> None:
        """The store loses its newest entry or the copy of it, not both; or older ones, or a content, which all have."""
        store: Path = self._more["store"]
        copies = {path.name.partition("~")[0]: path for path in (store / "copies").glob("*")}
        entries = {path.name: path for path in (store / "sequence").glob("*")}
        if twice := sorted(copies.keys() & entries.keys()):
            self.dice.choice((copies, entries))[twice[-1]].unlink()
            self.faults += 1
        least = min(node.ledger.entries.head() for node in self.nodes)
        known = [path for number, path in sorted(entries.items())[:-1] if int(number) <= least]
        if least >= max(map(int, entries), default=1):
            known += sorted((store / "blobs").glob("*"))
        for path in self.dice.sample(known, k=min(len(known), self.dice.choice((0, 0, 1, 3)))):
            path.unlink(missing_ok=True)

    def _set_weather(self, node: Site, now: datetime) -> None:
        away = self._cut_off.get(node.root.name, now) > now
        rate = self.dice.choice((0.0, 0.0, 0.02, 0.5))

        def weather(operation: str, what: str, done: bool) -> None:
            if self._calm:
                return
            # The answer that counts most is lost more often.
            lost = operation == "put_new" and done and self.dice.random() < 0.2
            if away or lost or self.dice.random() < rate:
                self.faults += 1
                raise StoreError("the store is away" if not done else "the answer was lost")
            # Just before its entry, or before its turn: what it has decided by then is stale.
            turn = {"put_new": 0.4 if what.startswith("sequence/") else 0.0, "open": 0.15}.get(operation, 0.0)
            if not done and self.dice.random() < turn:
                self._overtake(node, now)

        node.shelf.weather = weather

    def _overtake(self, node: Site, now: datetime) -> None:
        """Another node has a whole round, in a thread, while this one is about to write its entry."""
        others = [other for other in self.nodes if other is not node and other.root.name not in self._busy]
        if not others or node.root.name in self._busy:
            return
        self._busy.add(node.root.name)
        other = self.dice.choice(others)

        def its_round() -> None:
            with one_thread() as runner, suppress(SourceUnreachable, StoreError):
                runner.run(other.round(now))
                other.prune(now)

        thread = threading.Thread(target=its_round)
        thread.start()
        thread.join()
        self.overtaken += 1
        self._busy.discard(node.root.name)

    def _killed_in(self, now: datetime) -> None:
        super()._killed_in(now)
        self._set_weather(self.site, now)

    def _check_folder(self) -> None:
        if self._calm:
            super()._check_folder()
            return
        # An entry whose files are there, or gone, and the ledger does not know yet: until the store answers again.
        ledger = self.site.ledger
        later = [
            path for path in (self._more["store"] / "sequence").glob("*") if int(path.name) > ledger.entries.head()
        ]
        gone = {str(name) for path in later for name in from_bytes(int(path.name), path.read_bytes()).pruned}
        published = {str(log.name) for log in ledger.logs() if log.state == "published"}
        served = set(self.site.served())
        assert published - gone <= served <= published & set(self.site.files())

    def look_as_a_client(self, now: datetime) -> None:
        """Look at every node: a name has one content, one size and one mtime, wherever and whenever it is seen."""
        for node in self.nodes:
            for file, log in node.point.served.items():
                path = node.point.pickup_dir / file
                facts = (log.size, log.mtime, hashlib.sha256(path.read_bytes()).hexdigest())
                if self._shown_to_clients.setdefault(file, facts) != facts or _odd(path, log.mtime):
                    self.wrong.append(f"at {now}: {file} is another one on {node.root.name}")

    def settle(self) -> None:
        """Let every node work without a fault for some days; then all must be the same."""
        self._calm = True
        now = self.end + timedelta(days=5)
        self._loop = one_thread()
        with self._loop, conversions_here():
            for _ in range(2):
                for node in self.nodes:
                    self.site = node
                    self.site.source.away = False
                    now += HOUR
                    self._deliver(now)
                    self._round(now)
                    self._look(now)
        # An hour later retention has tended the store, and everybody has heard of what it pruned.
        for node in self.nodes:
            node.prune(now)
        for node in self.nodes:
            node.publisher.catch_up()
        self.look_as_a_client(now)
        shown = [sorted(node.served()) for node in self.nodes]
        self.wrong += ["the nodes do not show the same"] * any(files != shown[0] for files in shown)
        states = [[(log.name, log.state, log.superseded_by is None) for log in n.ledger.logs()] for n in self.nodes]
        self.wrong += ["the ledgers do not know the same"] * any(state != states[0] for state in states)
        entries = sorted((self._more["store"] / "sequence").glob("*"))
        written = [path.read_bytes() for path in entries]
        taken = [[node.ledger.entries.data(n) for n in range(1, len(entries) + 1)] for node in self.nodes]
        self.wrong += ["a node has applied what is not in the sequence"] * any(data != written for data in taken)
        for node in self.nodes:
            self.site = node
            self._check_folder()
            self.wrong += self.accounts()

    def stop(self) -> None:
        """Let go of everything."""
        for node in self.nodes:
            node.stop()


def _odd(path: Path, mtime: int) -> bool:
    """Whether a file has other properties than a published one."""
    found = path.stat()
    return (found.st_mtime, found.st_mode & 0o777, found.st_nlink) != (mtime, 0o440, 1)
