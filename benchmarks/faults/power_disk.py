"""A file system that forgets: what a folder may look like after the power failed, by the least that is promised.

Pure: it is told the system calls of a recording (`tools.tracing.Call`), one by one. Two sets of rules:

* *POSIX*: a file's bytes, size, mode and times are on disk when that file was synced, a name when its folder was.
  Of the rest any part may be there, in any order, a write torn at any sector.
* *ext4* (ordered journal, delayed allocation): names reach the disk in the order in which they changed, and syncing
  any file or folder brings every earlier change of a name with it; bytes as above.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .tools.tracing import WRITES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from .tools.tracing import Call

SECTOR = 512


@dataclass(slots=True)
class File:
    """A file: what is on disk, and what was changed since it was synced, in order."""

    data: bytes = b""
    mode: int = 0o600
    mtime: int = 0
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)  # bytes at an offset, or a new size
    facts: list[tuple[str, int]] = field(default_factory=list)  # mode, mtime

    def content(self, kept: Callable[[int], bool] = lambda _: True) -> bytes:
        """The bytes, with those sectors of the writes that are ``kept``."""
        found = bytearray(self.data)
        for offset, data in self.writes:
            if data is None:
                if kept(0):
                    found = found[:offset] + bytes(max(0, offset - len(found)))
                continue
            at = 0
            while at < len(data):
                upto = min(len(data), at + SECTOR - (offset + at) % SECTOR)
                if kept(upto - at):
                    found += bytes(max(0, offset + upto - len(found)))
                    found[offset + at : offset + upto] = data[at:upto]
                at = upto
        return bytes(found)

    def synced(self, *, facts: bool) -> None:
        """What fsync does, or without ``facts`` fdatasync."""
        self.data, self.writes = self.content(), []
        if facts:
            self.mode, self.mtime = self.fact("mode"), self.fact("mtime")
            self.facts = []

    def fact(self, name: str, kept: Callable[[], bool] = lambda: True) -> int:
        """The mode, or the mtime in nanoseconds."""
        value: int = getattr(self, name)
        for changed, new in self.facts:
            if changed == name and kept():
                value = new
        return value


@dataclass(slots=True)
class Folder:
    """A folder: the names on disk, and those that changed since: when, which, and what it is now (None: gone)."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[tuple[int, str, File | Folder | None]] = field(default_factory=list)

    def listed(self, kept: Callable[[int], bool] = lambda _: True) -> dict[str, File | Folder]:
        """The names, with those changes that are ``kept``."""
        found: dict[str, File | Folder] = dict(self.names)
        for when, name, node in self.changes:
            if kept(when):
                if node is None:
                    found.pop(name, None)
                else:
                    found[name] = node
        return found


Tree = dict[str, "bytes | tuple[bytes, int, int] | Tree"]


class Disk:
    """The parent of the data folder, as it is and as it may be after a power cut."""

    def __init__(self, root: Path, name: str) -> None:
        """All that is there now is on disk."""
        self._path = str(root)
        self._files: dict[int, File] = {}  # by inode number
        self.root = Folder()
        self.unknown: set[str] = set()
        self._now = self._committed = 0
        if (root / name).exists():
            self.root.names[name] = self._read(root / name)

    def _read(self, path: Path) -> File | Folder:
        if path.is_dir():
            return Folder({entry.name: self._read(entry) for entry in path.iterdir()})
        stat = path.stat()
        if stat.st_ino not in self._files:
            self._files[stat.st_ino] = File(path.read_bytes(), stat.st_mode & 0o7777, stat.st_mtime_ns)
        return self._files[stat.st_ino]

    # The recording

    def apply(self, call: Call) -> None:
        """One call was made."""
        if not call.done:
            return
        self._now += 1
        name = call.name
        if name in ("open", "openat", "openat2", "creat"):
            self._opened(call)
        elif name.startswith("mkdir"):
            self._change(call.path, Folder())
        elif name.startswith(("unlink", "rmdir")):
            self._change(call.path, None)
        elif name.startswith("link"):
            self._change(call.to, self._at(call.path))
        elif name.startswith("rename"):
            if call.to != call.path:  # rename(2) to itself changes nothing
                self._change(call.to, self._at(call.path))
                self._change(call.path, None)
        elif name in ("fsync", "fdatasync", "syncfs"):
            self._synced(call)
        elif (file := self._files.get(call.inode)) is None:
            if not isinstance(self._at(call.path), Folder):
                self.unknown.add(name)
        elif name in WRITES:
            file.writes.append((call.offset, call.data))
        elif name in ("ftruncate", "truncate"):
            file.writes.append((call.size, None))
        elif name in ("utime", "utimes", "futimesat", "utimensat"):
            file.facts.append(("mtime", call.mtime))
        elif name.startswith(("chmod", "fchmod")):
            file.facts.append(("mode", call.mode))
        elif not name.startswith(("chown", "fchown")):  # nobody's promise
            self.unknown.add(name)

    def _opened(self, call: Call) -> None:
        if not isinstance(self._at(call.path), File):
            self._files[call.inode] = File(mode=call.mode, mtime=call.mtime)
            self._change(call.path, self._files[call.inode])
        elif call.size == 0 and self._files[call.inode].content():
            self._files[call.inode].writes.append((0, None))  # O_TRUNC

    def _synced(self, call: Call) -> None:
        node = self._at(call.path) if call.inode not in self._files else self._files[call.inode]
        if isinstance(node, File):
            node.synced(facts=call.name != "fdatasync")
        elif isinstance(node, Folder):
            node.names, node.changes = node.listed(), []
        self._committed = self._now

    def _change(self, path: str, node: File | Folder | None) -> None:
        folder = self._at(os.path.dirname(path))  # noqa: PTH120  # pure
        assert isinstance(folder, Folder), path
        folder.changes.append((self._now, os.path.basename(path), node))  # noqa: PTH119  # pure

    def _at(self, path: str) -> File | Folder | None:
        node: File | Folder | None = self.root
        for part in os.path.relpath(path, self._path).split("/"):
            if part != ".":
                node = node.listed().get(part) if isinstance(node, Folder) else None
        return node

    # What may be found

    def now(self) -> Tree:
        """As every process sees it."""
        return _tree(self.root, lambda _: True, lambda _: True)

    def worst(self) -> Tree:
        """By POSIX: only what was synced."""
        return _tree(self.root, lambda _: False, lambda _: False)

    def worst_ext4(self) -> Tree:
        """By ext4's rules: names up to the last commit, and of the bytes only what was synced."""
        return _tree(self.root, lambda when: when <= self._committed, lambda _: False)

    def some(self, dice: random.Random) -> Tree:
        """By POSIX: what was synced, and any part of the rest."""
        names, sectors = dice.choice([0.2, 0.5, 0.8, 1]), dice.choice([0, 0.1, 0.5, 0.9])
        return _tree(self.root, lambda _: dice.random() < names, lambda _: dice.random() < sectors)

    def some_ext4(self, dice: random.Random) -> Tree:
        """By ext4's rules: names up to any instant since the last commit, and any part of the bytes."""
        upto, sectors = dice.randint(self._committed, self._now), dice.choice([0, 0.1, 0.5, 0.9, 1])
        return _tree(self.root, lambda when: when <= upto, lambda _: dice.random() < sectors)


def _tree(folder: Folder, names: Callable[[int], bool], sectors: Callable[[int], bool]) -> Tree:
    made: dict[int, tuple[bytes, int, int]] = {}  # a file with two names is one file
    return _part(folder, names, sectors, made)


def _part(
    folder: Folder,
    names: Callable[[int], bool],
    sectors: Callable[[int], bool],
    made: dict[int, tuple[bytes, int, int]],
) -> Tree:
    tree: Tree = {}
    for name, node in sorted(folder.listed(names).items()):
        if isinstance(node, Folder):
            tree[name] = _part(node, names, sectors, made)
        else:
            if id(node) not in made:
                kept = lambda: sectors(0)  # noqa: E731
                made[id(node)] = (node.content(sectors), node.fact("mode", kept), node.fact("mtime", kept))
            tree[name] = made[id(node)]
    return tree


def write(tree: Tree, folder: Path) -> None:
    """Make it so. Files that are one file with two names become one again."""
    _write(tree, folder, {})


def _write(tree: Tree, folder: Path, made: dict[int, Path]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, node in tree.items():
        path = folder / name
        if isinstance(node, dict):
            _write(node, path, made)
        elif isinstance(node, tuple):
            if id(node) in made:
                os.link(made[id(node)], path)
                continue
            data, mode, mtime = node
            path.write_bytes(data)
            path.chmod(mode)
            os.utime(path, ns=(mtime, mtime))
            made[id(node)] = path
