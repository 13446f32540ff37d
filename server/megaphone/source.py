"""The source: the place where Megaphone delivers, a bucket or a folder.

No outside world of its own. `ExportSource` is what the feed asks of it; `open_source` picks the edge that the
configuration names, and only then imports it, so that whoever needs no bucket never loads the AWS SDK.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .exports import METRICS

if TYPE_CHECKING:
    from ..s3.errors import BucketPlace
    from .exports import DayExport, ExportKind, Listing


class ExportSource(Protocol):
    """Where exports of one kind are listed and read.

    Every method raises `SourceUnreachable` (wait) or `SourceRefused` (an operator must act) when it cannot.
    """

    @property
    def name(self) -> str:
        """How log lines call it: ``s3://bucket/prefix`` or the folder."""

    async def day_exports(self) -> Listing:
        """The exports that are there now, by day, with the time by the source's own clock."""

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Write the whole object, exactly in the version that was listed, to ``into`` from where it stands.

        Raises `ExportChanged` when that version is no longer there. After any exception ``into`` holds nothing that
        may be used. An OSError is the disk of ``into``.
        """

    async def close(self) -> None:
        """Let go of everything."""


async def open_source(place: Path | BucketPlace, kind: ExportKind = METRICS) -> ExportSource:
    """Return the source in a folder or a bucket; it is not asked anything yet."""
    if isinstance(place, Path):
        from .folder import Folder

        return Folder(place, kind)
    from .bucket import Bucket

    return await Bucket.open(place, kind)
