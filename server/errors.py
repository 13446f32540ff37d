"""What can go wrong: one class for each remedy.

    PickupPointError            exit 1   something outside needs attention
    ├── ConfigError             exit 2   a file must be changed: the configuration, a key, the episode catalogue
    ├── SourceError                      the place where Megaphone delivers
    │   ├── SourceUnreachable            wait: it may come back by itself
    │   ├── SourceRefused                an operator must act: credentials, rights, region, name of the bucket
    │   └── ExportChanged                the object was rewritten while it was read: begin the day again
    ├── StoreError                       the bucket of published logs gave no usable answer: nothing is lost by it
    ├── Overtaken                        another node of a shared store was first: decide again, at once
    ├── NodesDiffer                      this node's key, rules or history differ from the other nodes': correct it
    ├── ExportTorn                       the object is not a complete gzip file: wait for its next version
    ├── ConversionFailed                 the conversion was stopped: repeat the day
    │   └── ConversionDied               its process died: repeat the day, after three deaths the exact way
    ├── CannotListen                     the configured address cannot be bound: free it, or choose another
    ├── NameSpent                        a log name was used before: never publish it again
    ├── DataFolderError                  the data folder cannot be used: disk full, wrong owner, read-only
    │   └── DataFolderBusy               another process holds it
    └── LedgerError                      the ledger cannot be read or written

Every error carries one sentence (``str(error)``) and a ``hint``: something to type or to do. Pure.
"""

from __future__ import annotations

import errno
from typing import NamedTuple


class PickupPointError(Exception):
    """Something outside needs attention: one sentence that says what, and a hint that is something to type."""

    exit_code = 1

    def __init__(self, sentence: str, *, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


class Problem(NamedTuple):
    """One mistake in a file that the operator wrote: the key, what is wrong with it, and the cure."""

    key: str
    wrong: str
    cure: str

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong}"


class ConfigError(PickupPointError):
    """The configuration, a key file or the episode catalogue must be changed; carries all its problems at once."""

    exit_code = 2

    def __init__(self, file: str, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{file} has {count}", hint=problems[0].cure if len(problems) == 1 else "")
        self.file = file
        self.problems = problems


class SourceError(PickupPointError):
    """The place where Megaphone delivers gave no usable answer."""


class SourceUnreachable(SourceError):
    """The source does not answer, or answers that it is overloaded: it may come back by itself."""


class SourceRefused(SourceError):
    """The source answers, but refuses: an operator must act."""


class ExportChanged(SourceError):
    """The export is no longer the version that was listed: begin the day again."""


class StoreError(PickupPointError):
    """The bucket of published logs gave no usable answer; ``status`` is the HTTP status, 0 if there was none."""

    def __init__(self, sentence: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(sentence, hint=hint)
        self.status = status


class Overtaken(PickupPointError):
    """Another node has published meanwhile: what was decided before must be decided again."""


class NodesDiffer(PickupPointError):
    """This node may not publish to the shared store: it differs from the others in what all must agree on."""


class ExportTorn(PickupPointError):
    """The export is not one complete, correct gzip file; it is never published. ``word`` is one of `torn.TORN`."""

    def __init__(self, sentence: str, *, hint: str = "", word: str = "") -> None:
        super().__init__(sentence, hint=hint)
        self.word = word


class ConversionFailed(PickupPointError):
    """The conversion ended early; nothing of it was published."""


class ConversionDied(ConversionFailed):
    """The conversion process ended before it answered, or its answer cannot be right."""


class CannotListen(PickupPointError):
    """A configured address and port cannot be bound."""

    @classmethod
    def because(
        cls, error: OSError | UnicodeError, where: str, port: int, keys: str, purpose: str = ""
    ) -> CannotListen:
        """Return it with the cure of its cause; ``keys`` are the settings that name the address."""
        cures = {
            errno.EADDRINUSE: f"ss -ltnp 'sport = :{port}'; set {keys}",
            errno.EADDRNOTAVAIL: f"set {keys} to an address of this machine: ip -brief address",
            errno.EACCES: f"set {keys} to a port from 1024 on; how port 22 is served: pickup-point manual installing",
        }
        # asyncio puts the address before the cause; a UnicodeError is of a host that cannot be a name.
        why = (getattr(error, "strerror", None) or "not a host name").rpartition(": ")[2]
        hint = cures.get(getattr(error, "errno", None) or 0, f"set {keys}")
        return cls(f"cannot listen on {where}{purpose}: {why[0].upper()}{why[1:]}", hint=hint)


class NameSpent(PickupPointError):
    """The log name was used before, and a name is never used twice."""


class DataFolderError(PickupPointError):
    """The data folder cannot be read or written."""


class DataFolderBusy(DataFolderError):
    """Another process holds the data folder."""


class LedgerError(PickupPointError):
    """The ledger cannot be read or written."""


def unexpected(error: Exception) -> PickupPointError:
    """Return an unforeseen error as one of ours: its type and where it happened.

    Its message is left out, since it may hold a listener's address.
    """
    from traceback import extract_tb  # only here: it takes longer to load than a small command to run

    frames = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[-3:]]
    return PickupPointError(f"{type(error).__name__} at {', '.join(frames)}", hint="please report it")
