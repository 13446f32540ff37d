"""Hints: what an error, an alarm or a finding tells the reader to do, and how it is printed so that it can be pasted.

A hint is one text, as JSON and the ledger hold it: steps with ``; `` between them, each of which is prose, a command,
or prose and a command with ``: `` between them. A command begins with the name of a program. Our own is written
``pickup-point COMMAND …``; whoever prints it fills in how it was called. Pure: the caller says what is installed.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

OURS = "pickup-point"
# The programs that a hint may name. If a word of prose, or of our journal, looks like one, an option must follow: "free
# some space" is not a command, "free -m" is.
PROGRAMS = (
    "aws", "cat", "chmod", "chown", "curl", "df", "dmesg", "findmnt", "gzip", "head", "iconv", "journalctl", "ls",
    "mkdir", "mv", "namei", "openssl", "pip", "quota", "setfacl", "ss", "ssh-keygen", "ssh-keyscan",
    "systemctl", "timedatectl", "ulimit",
)  # fmt: skip
_COMMAND = re.compile(
    rf"(?:{'|'.join(map(re.escape, PROGRAMS))})(?= |$)|{OURS}(?= [a-z-])|(?:free|ip|sftp)(?= -)|/\S+(?= -m )"
)
# A quoted text is one word whatever it holds; the apostrophe in "the day's end" follows a letter and begins none.
_STEP = re.compile(r"""(?:(?<!\w)'[^']*'|"[^"]*"|(?!;[ ]).)+""")
_PROSE = re.compile(r"""(?:(?<!\w)'[^']*'|"[^"]*"|.)*?:[ ]+""")
_OUR_CALL = re.compile(rf"""(?:^|(?<=\| )){OURS} (\S+)((?:'[^']*'|"[^"]*"|(?! [|<>] ).)*)""")
WITHOUT_CONFIG = frozenset({"demo", "hash-password", "manual"})  # our commands that read no configuration


class Step(NamedTuple):
    """One thing to do: ``prose``, a ``command`` to paste, or both, the prose first; either may be ''."""

    prose: str
    command: str


class Call(NamedTuple):
    """How this program was called: its path, quoted for a shell, and the value of --config, or ''."""

    program: str = OURS
    config: str = ""

    def command(self, text: str) -> str:
        """Return a hint's command, made to reach this program and this configuration."""
        return _OUR_CALL.sub(lambda found: self._filled(found[1], found[2]), text)

    def _filled(self, name: str, arguments: str) -> str:
        knows = name not in WITHOUT_CONFIG and not re.search(r"(^| )--(config|help)\b", f"{name}{arguments}")
        config = f" --config {shlex.quote(self.config)}" if self.config and knows else ""
        return f"{self.program} {name}{arguments}{config}"

    def text(self, hint: str) -> str:
        """Return a hint on one line, with its commands filled in."""
        return written(self._steps(hint))

    def _steps(self, hint: str) -> Iterator[Step]:
        return (Step(step.prose, self.command(step.command)) for step in steps(hint))


class Line(NamedTuple):
    """A line of a hint as it is printed: prose, or a command that stands alone on it."""

    text: str
    is_command: bool


def steps(hint: str) -> list[Step]:
    """Return the steps of a hint, in order."""
    return [_step(found[0].strip()) for found in _STEP.finditer(hint) if found[0].strip("; ")]


def written(found: Iterable[Step]) -> str:
    """Return steps as a hint."""
    return "; ".join(f"{prose}: {command}" if prose and command else prose or command for prose, command in found)


def _step(text: str) -> Step:
    text = text.removeprefix("; ")
    if _COMMAND.match(text):
        return Step("", text)
    if text.startswith("or ") and _COMMAND.match(text, 3):
        return Step("or", text[3:])
    for colon in _PROSE.finditer(text):
        if _COMMAND.match(text, colon.end()):
            return Step(text[: colon.end()].rstrip(": "), text[colon.end() :])
    return Step(text, "")


def without_page(found: Iterable[Step], page: str) -> list[Step]:
    """Return steps without those that send readers to the ``page`` (``status``) that they are reading."""
    return [step for step in found if step.command != f"{OURS} {page}"]


def lines(found: Iterable[Step], call: Call, installed: Callable[[str], bool] = lambda _: True) -> list[Line]:
    """Return steps as lines to print; if a program is not ``installed``, a line says so."""
    printed = []
    for prose, command in found:
        if prose:
            printed.append(Line(f"{prose}:" if command else prose, is_command=False))
        if command:
            printed.append(Line(call.command(command), is_command=True))
            name = command.split()[0]
            if name != OURS and not installed(name):
                printed.append(Line(f"({name} is not installed here)", is_command=False))
    return printed
