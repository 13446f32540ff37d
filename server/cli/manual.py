"""The manual on the machine: the chapters in `server/manual/`, and the example configuration, as they were installed.

Reads those files. On a terminal a chapter is rendered and shown in the pager; elsewhere its source is printed.
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
_TREE = Path(__file__).parent.parent.parent
CONFIG, ENGINEER = "config", "next-engineer"
# Files at the top of a checkout; an installed package has copies in `FOLDER` (see build_kernel/kernel_backend.py).
_AT_THE_TOP = {f"{ENGINEER}.md": "CONTRIBUTING.md", "config.example.toml": "config.example.toml"}
# In the order in which they are needed.
CHAPTERS = (
    "installing",
    "first-week",
    "telling-triton",
    "bucket",
    "store",
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
    "two-nodes",
    "upgrading",
    "partners-client",
    "limits",
    "measured",
    "broken-on-purpose",
    ENGINEER,
)


class Chapter(NamedTuple):
    """A chapter: its name on the command line, its heading, and its text in Markdown (TOML for ``config``)."""

    name: str
    title: str
    text: str


def read_chapter(name: str) -> Chapter:
    """Read a chapter by its name.

    Raises:
        Usage: there is no chapter of that name.
    """
    if name == CONFIG:
        text = _text_of("config.example.toml")
        return Chapter(name, "Every key of the configuration, with its default: config.example.toml", text)
    if name not in CHAPTERS:
        close = get_close_matches(name, (*CHAPTERS, CONFIG), 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise Usage(f"the manual has no chapter {name!r}{meant}", hint="pickup-point manual")
    text = _text_of(f"{name}.md")
    return Chapter(name, text.partition("\n")[0].removeprefix("# "), text)


def _text_of(file: str) -> str:
    path = FOLDER / file
    if file in _AT_THE_TOP and (_TREE / "pyproject.toml").is_file():
        path = _TREE / _AT_THE_TOP[file]
    return path.read_text(encoding="utf-8")


def contents() -> str:
    """Return the list of chapters, a line each: name and heading."""
    chapters = [read_chapter(name) for name in (*CHAPTERS, CONFIG)]
    width = max(len(chapter.name) for chapter in chapters)
    return "".join(f"{chapter.name:{width}}  {chapter.title}\n" for chapter in chapters)


def show(chapter: Chapter, console: Console) -> None:
    """Show a chapter: rendered in the pager on a terminal, elsewhere its source."""
    if not console.is_terminal:
        console.file.write(chapter.text)
        return
    from .manual_page import render  # only here: rich's Markdown takes longer to load than most chapters to read

    os.environ.setdefault("LESS", "-R")  # otherwise less shows colours as codes
    with console.pager(styles=True):
        render(chapter.text, console, toml=chapter.name == CONFIG)
