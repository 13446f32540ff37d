"""What a conversion needs besides the export.

No outside world. Apart from `row`, so that whoever hands it to the conversion process does not load the rules of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import date

    from ..episodes.catalogue import Catalogue
    from ..triton import LogRules


class Conversion(NamedTuple):
    """The rules, the key for hashing addresses (32 bytes), the catalogue, and the file's day.

    ``day`` is None for an export whose name contains no day; then no row is outside its day.
    """

    rules: LogRules
    hash_key: bytes
    catalogue: Catalogue | None = None
    day: date | None = None
