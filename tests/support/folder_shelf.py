"""A shared store in a folder, for nodes in several processes: one link decides who writes a name.

Touches the folder. ``weather`` is asked before and after each operation, and raises what befalls it; ``now`` is the
store's clock.
"""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from server.errors import StoreError
from server.storage.shelf import Shelved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def fair(_: str, __: str, ___: bool) -> None:
    """Nothing befalls anything."""


@dataclass
class FolderShelf:
    """The store as one node sees it."""

    root: Path
    now: Callable[[], datetime]
    weather: Callable[[str, str, bool], None] = field(default=fair)  # operation, name, whether it has been done

    @contextmanager
    def opened(self) -> Iterator[FolderShelf]:
        """A connection."""
        self._step("open", "", lambda: None)
        yield self

    @property
    def clock(self) -> datetime:
        """The store's clock."""
        return self.now()

    def _step(self, operation: str, name: str, act: Callable[[], object]) -> object:
        self.weather(operation, name, False)
        result = act()
        self.weather(operation, name, True)
        return result

    def published(self) -> list[str]:
        """The logs that lie where the partner reads: in ``logs``, if a test puts any there."""
        return sorted(path.name for path in (self.root / "logs").glob("*"))

    def list(self, folder: str, after: str = "") -> list[Shelved]:
        """The objects of a folder that come after a name."""

        def act() -> list[Shelved]:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            found = sorted((self.root / folder).iterdir())
            return [
                # No digest, as in some stores; the inode's number alone may come again.
                Shelved(path.name, datetime.fromtimestamp(stat.st_mtime, UTC), f"{stat.st_ino}-{stat.st_ctime_ns}")
                for path in found
                if path.name > after and (stat := path.stat())
            ]

        return self._step("list", folder, act)  # type: ignore[return-value]

    def read(self, name: str, most: int) -> bytes | None:
        """An object whole."""
        path = self.root / name
        data = self._step("read", name, lambda: path.read_bytes() if path.exists() else None)
        assert data is None or (isinstance(data, bytes) and len(data) <= most)
        return data

    def fetch(self, name: str, size: int, into: BinaryIO) -> None:
        """An object into a file."""
        if not (self.root / name).exists():
            raise StoreError(f"{name} is not in the store", status=404)
        data = (self.root / name).read_bytes()
        assert len(data) == size
        into.write(data[: size // 2])
        self._step("fetch", name, lambda: into.write(data[size // 2 :]))

    def put_new(self, name: str, data: bytes) -> bool:
        """A conditional write."""
        return bool(self._step("put_new", name, lambda: self._link(name, data)))

    def put(self, name: str, data: bytes) -> None:
        """A write of a node's own."""

        def act() -> None:
            self.remove(name)
            self._link(name, data)

        self._step("put", name, act)

    def put_file(self, name: str, path: Path) -> None:
        """A file's content."""
        self._step("put_file", name, lambda: self._link(name, path.read_bytes()))

    def _link(self, name: str, data: bytes) -> bool:
        (self.root / "parts").mkdir(parents=True, exist_ok=True)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        part = self.root / "parts" / uuid.uuid4().hex
        part.write_bytes(data)
        os.utime(part, (self.clock.timestamp(),) * 2)
        try:
            os.link(part, self.root / name)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def remove(self, name: str) -> None:
        """Whether it is there or not."""
        self._step("remove", name, lambda: (self.root / name).unlink(missing_ok=True))
