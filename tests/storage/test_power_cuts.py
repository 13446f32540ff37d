"""A power cut takes nothing away that a client could see: what a publication stands on is on disk before it.

Each of these was found by the fault campaign (`python -m benchmarks.faults power`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from server.storage.folder import DataFolder

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_new_folders_are_on_disk_before_anything_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is on disk when its folder was synced: that of the data folder itself, and those above it, included."""
    synced: dict[int, set[str]] = {}
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = set(os.listdir(descriptor))

    monkeypatch.setattr(os, "fsync", noted)
    data_dir = tmp_path / "srv" / "point" / "data"
    DataFolder(data_dir).prepare()
    for folder in (data_dir / "pickup", data_dir / "rejects", data_dir, data_dir.parent, data_dir.parent.parent):
        assert folder.name in synced.get(folder.parent.stat().st_ino, set()), f"{folder} would be lost"
