"""The errors about a file that is not a complete gzip file, or cannot be read.

Pure. Apart from `lines`, which finds out, so that whoever only reports it loads no gzip.
"""

from __future__ import annotations

import errno
import os
import shlex

from ..errors import DataFolderError, ExportTorn, SourceError

# Why a file is not a complete gzip file: a word, and the end of the sentence about it, which quotes nothing from it.
TORN = {
    "empty": "is empty, so it is not a gzip file",
    "not gzip": "is not a complete gzip file: it is not gzip",
    "truncated": "is not a complete gzip file: it is truncated",
    "followed": "is not a complete gzip file: something else follows its end",
    "damaged": "is not a complete gzip file: it is damaged",
    "unclosed": "is not a complete export: its JSON array has no closing bracket",
}


def torn(name: str, word: str) -> ExportTorn:
    """Return the error about a file that is not whole, for one of the words of `TORN`."""
    quoted = shlex.quote(name)
    look = f"gzip -dc {quoted} | tail -c 100" if word == "unclosed" else f"gzip -t {quoted}"
    return ExportTorn(f"{name} {TORN[word]}", hint=f"{look}; wait for its next version", word=word)


def unreadable(name: str, number: int | None) -> SourceError:
    """Return the error about a file that the system cannot read."""
    return SourceError(f"{name} cannot be read: {os.strerror(number or errno.EIO)}", hint=f"ls -l {shlex.quote(name)}")


def damaged(name: str, word: str) -> DataFolderError:
    """Return the error about a published log that is no longer a complete gzip file."""
    hint = f"gzip -t {shlex.quote(name)}; restore it from a backup, with its mtime"
    return DataFolderError(f"the published log {name} is damaged: it {TORN[word]}", hint=hint)
