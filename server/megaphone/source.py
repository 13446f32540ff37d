"""The source: the place where Megaphone delivers, a bucket or a folder.

Touches nothing itself. `ExportSource` is what a feed needs of it; `open_source` picks the one that the configuration
names, and only then imports it, so that whoever needs no bucket never loads the AWS SDK.
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

    Every method raises `SourceUnreachable` (wait) or `SourceRefused` (an operator must act) if it cannot do its work.
    """

    @property
    def name(self) -> str:
        """The name for log lines: ``s3://bucket/prefix`` or the folder."""

    async def day_exports(self) -> Listing:
        """Return the exports that are there now, and the time by the source's own clock, if it has one."""

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Write the whole object, in exactly the version that was listed, to ``into`` from its current position.

        After any exception, nothing in ``into`` may be used.

        Raises:
            ExportChanged: that version is no longer there.
            OSError: ``into`` cannot be written.
        """

    async def close(self) -> None:
        """Release everything."""


async def open_source(place: Path | BucketPlace, kind: ExportKind = METRICS) -> ExportSource:
    """Return the source for a folder or a bucket, without reading anything from it yet."""
    if isinstance(place, Path):
        from .folder import Folder

        return Folder(place, kind)
    from .bucket import Bucket

    return await Bucket.open(place, kind)
