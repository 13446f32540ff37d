"""The manual on the machine: the chapters in `server/manual/`, and the example configuration, as they were installed.

Reads those files. On a terminal a chapter is rendered and goes through the pager; elsewhere it is printed as it is
written.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .options import Usage

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = Path(__file__).parent.parent / "manual"
# A checkout's own file before the copy that an installed package has (see build_kernel/kernel_backend.py).
EXAMPLES = (Path(__file__).parent.parent.parent / "config.example.toml", FOLDER / "config.example.toml")
CONFIG = "config"
# In the order in which a person needs them.
CHAPTERS = (
    "installing",
    "first-week",
    "telling-triton",
    "bucket",
    "delivery-v2",
    "logs",
    "episodes",
    "operating",
    "glossary",
    "monitoring",
    "web",
    "trouble",
    "restoring",
    "changing-keys",
    "upgrading",
    "partners-client",
    "limits",
    "measured",
    "broken-on-purpose",
)


class Chapter(NamedTuple):
    """A chapter: its name on the command line, its heading, and its text in Markdown (TOML for ``config``)."""

    name: str
    title: str
    text: str


def read_chapter(name: str) -> Chapter:
    """Read a chapter by its name.

    Raises:
        Usage: there is none of this name.
    """
    if name == CONFIG:
        text = next(path for path in EXAMPLES if path.is_file()).read_text(encoding="utf-8")
        return Chapter(name, "Every key of the configuration, with its default: config.example.toml", text)
    if name not in CHAPTERS:
        close = get_close_matches(name, (*CHAPTERS, CONFIG), 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise Usage(f"the manual has no chapter {name!r}{meant}", hint="pickup-point manual")
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return Chapter(name, text.partition("\n")[0].removeprefix("# "), text)


def contents() -> str:
    """Return the list of chapters, a line each: name and heading."""
    chapters = [read_chapter(name) for name in (*CHAPTERS, CONFIG)]
    width = max(len(chapter.name) for chapter in chapters)
    return "".join(f"{chapter.name:{width}}  {chapter.title}\n" for chapter in chapters)


def show(chapter: Chapter, console: Console) -> None:
    """Show a chapter: on a terminal rendered and through the pager, elsewhere as it is written."""
    if not console.is_terminal:
        console.file.write(chapter.text)
        return
    from rich.markdown import Markdown
    from rich.syntax import Syntax

    os.environ.setdefault("LESS", "-R")  # or less shows the colours as codes
    body = Syntax(chapter.text, "toml") if chapter.name == CONFIG else Markdown(chapter.text)
    with console.pager(styles=True):
        console.print(body)
