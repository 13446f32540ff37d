"""Configured columns: lines of the default columns, taken apart and put together in another order.

No outside world.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..triton import DerivedValue, Layout, LogFormat, no_comment

if TYPE_CHECKING:
    from collections.abc import Sequence

_URL = list(DerivedValue).index(DerivedValue.URL)


class Arrangement:
    """Makes lines of configured columns from lines of the default ones (in TSV order, with the URL whole)."""

    def __init__(self, layout: Layout) -> None:
        self._clean = layout.clean
        values = [str(value) for value in DerivedValue]
        specs = layout.specs
        self._constants = [layout.clean(spec.constant) for spec in specs if spec.constant is not None]
        self._fields = [spec.field for spec in specs if spec.field is not None]
        stem = len(values)  # after the derived values: stem, query, constants, fields
        constant, field_ = stem + 2, stem + 2 + len(self._constants)
        self._picks: list[int] = []
        for spec in specs:
            if spec.constant is not None:
                self._picks.append(constant)
                constant += 1
            elif spec.field is not None:
                self._picks.append(field_)
                field_ += 1
            elif spec.value == "cs-uri-query":
                self._picks.append(stem + 1)
            elif layout.format is LogFormat.W3C and spec.name == "cs-uri-stem" and spec.value == DerivedValue.URL:
                self._picks.append(stem)
            else:
                self._picks.append(values.index(str(spec.value)))

    def __call__(self, text: str, rows: Sequence[dict[str, Any]]) -> str:
        """The lines of ``text``, each of the row beside it, with the configured columns."""
        clean, fields, picks, arranged = self._clean, self._fields, self._picks, []
        for line, row in zip(text.split("\n"), rows, strict=False):  # nothing follows the last newline
            cells = line.split("\t")
            stem, _, query = cells[_URL].partition("?")
            cells += (stem or "-", query or "-", *self._constants)
            cells += [clean(row.get(name)) for name in fields]
            arranged.append(no_comment("\t".join([cells[pick] for pick in picks])) + "\n")
        return "".join(arranged)
