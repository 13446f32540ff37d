"""The words of the pages, explained for people without a shell: rows of the manual's glossary. Pure."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAPTER = "glossary.md"
_WORDS = frozenset({
    "export", "log, log file", "row", "line", "filtered", "rejected", "late rows", "late check", "backfill",
    "round", "settle", "withheld", "superseded", "the three days", "tokens", "RSS feed",
})  # fmt: skip
# The chapter's sections, and which of their words the pages use; None is all of them.
_SECTIONS = {
    "Other words": _WORDS,
    "The state of a day": None,
    "The kind of a publication": None,
    "How far a pickup came": None,
}
_HEADING = re.compile(r"## (.+)")
_ROW = re.compile(r"\| (?P<word>[^|]+) \| (?P<meaning>[^|]+) \|.*")
_MARKDOWN = re.compile(r"`|\[([^]]+)\]\([^)]*\)")


class Section(NamedTuple):
    """A heading, and pairs of a word and its meaning."""

    title: str
    words: tuple[tuple[str, str], ...]


def glossary(chapter: str) -> tuple[Section, ...]:
    """Return what the chapter, in Markdown, says about the pages' words, the most general ones first."""
    found: dict[str, list[tuple[str, str]]] = {title: [] for title in _SECTIONS}
    for title, word, meaning in _rows(chapter):
        wanted = _SECTIONS.get(title, frozenset())
        if wanted is None or word in wanted:
            found[title].append((word, meaning))
    return tuple(Section(title, tuple(words)) for title, words in found.items())


def _rows(chapter: str) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the chapter's tables: heading, word and meaning, without Markdown."""
    title, lines = "", chapter.splitlines()
    for line, below in pairwise([*lines, ""]):
        if heading := _HEADING.fullmatch(line):
            title = heading[1]
        elif not below.startswith("|---") and (row := _ROW.fullmatch(line)):  # what is above that is not a row
            yield title, _plain(row["word"]), _plain(row["meaning"])


def _plain(text: str) -> str:
    return _MARKDOWN.sub(lambda it: it[1] or "", text)
