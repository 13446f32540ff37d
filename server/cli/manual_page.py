"""How a chapter of the manual looks on a terminal: Markdown from which every command can be pasted as it stands.

Prints to the console that it is given. Promise: however narrow the terminal is, no command in a block or a table is
wrapped, and no letter is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.markdown import CodeBlock, Markdown, TableElement
from rich.padding import Padding
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..hints import steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

_CODE = "markdown.code"  # rich's style of code within a sentence
_INDENT = 4


def render(text: str, console: Console, *, toml: bool = False) -> None:
    """Print a chapter in Markdown, or a file in TOML."""
    console.print(Syntax(text, "toml") if toml else _Page(text), crop=False)


class _Block(CodeBlock):
    """A block of code, verbatim, with a margin."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in str(self.text).rstrip().splitlines():
            yield _whole(f"  {line}")


class _Table(TableElement):
    """A table; if it is too wide and has commands, a list of its rows."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        code = console.get_style(_CODE)
        width = sum(max(map(len, column)) + 3 for column in zip(head, *rows, strict=True))
        if width > options.max_width and any(is_command for row in rows for _, is_command in _parts(row, code)):
            yield from _listed(rows, code)
            return
        for part in super().__rich_console__(console, options):
            for column in part.columns if isinstance(part, Table) else ():
                column.overflow = "fold"
            yield part


class _Page(Markdown):
    elements: ClassVar = {**Markdown.elements, "fence": _Block, "table_open": _Table}


def _listed(rows: list[list[Text]], code: Style) -> Iterator[Text | Padding]:
    """Yield the first cell of each row, and below it the other cells, each command on a line of its own."""
    for first, *others in rows:
        yield Text(f"\n{first.plain}", "bold")
        for part, is_command in _parts(others, code):
            yield _whole(f"{' ' * _INDENT}{part}") if is_command else Padding(Text(part), (0, 0, 0, _INDENT))


def _parts(cells: list[Text], code: Style) -> Iterator[tuple[str, bool]]:
    """Yield the parts of cells in order, commands and the prose around them: (text, whether it is a command).

    ``code`` is the style of code, the only thing by which it can be recognised.
    """
    for cell in cells:
        text, done = cell.plain, 0
        for start, end, style in sorted(cell.spans, key=lambda span: span.start):
            looks = isinstance(style, Style) and (style.color, style.bgcolor) == (code.color, code.bgcolor)
            if (
                looks
                and " " in text[start:end]
                and [step.command for step in steps(text[start:end])] == [text[start:end]]
            ):
                yield from _prose(text[done:start])
                yield text[start:end], True
                done = end
        yield from _prose(text[done:])


def _prose(text: str) -> Iterator[tuple[str, bool]]:
    if text := text.strip(" ;,:"):
        yield text, False


def _whole(line: str) -> Text:
    return Text(line, _CODE, no_wrap=True, overflow="ignore")
