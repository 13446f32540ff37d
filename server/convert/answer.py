"""The answer of the conversion process, checked field by field: the process has read what anybody may have written.

Pure. The promise: every value has the type and the range of a correct answer, the books balance, and no text except
podcasts' ids comes from the process. Whether the files are as it says is checked when they are published.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConversionDied, DataFolderError, PickupPointError
from .messages import WrittenLog
from .process import refused
from .tally import LONGEST_NAME, MOST_PODCASTS, FilterReason, PodcastBooks, RejectReason, Tally
from .torn import TORN, damaged, torn, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST = 2**63 - 1
_MOST_LOGS = 1_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_PLACE = re.compile(r"[A-Za-z0-9_.<>-]{1,64}:[0-9]{1,6}", re.ASCII)
_OF_ROWS = ("reporting",)  # these count rows; the other numbers of a tally count lines


class Answer:
    """The result of a conversion, as far as it has been reported (see `messages`).

    ``rejects``: there is a rejects file; ``one_line``, ``changed`` and ``removed``: see `day.Converted`.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.logs: list[WrittenLog] = []
        self.rejects = self.one_line = False
        self.changed = self.removed = 0
        self.podcasts = PodcastBooks()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it is filled message by message


class AnswerReader:
    """Reads an answer message by message; raises `ConversionDied` for anything that cannot be right.

    ``size`` is the export's, in bytes; ``name`` and ``sent`` are the names of the export and of the published logs in
    error sentences; ``folder`` is a folder on the disk that hints are about.
    """

    def __init__(
        self, *, size: int, name: str, sent: Sequence[str], folder: str, most_rows: int, digests: bool, by_podcast: bool
    ) -> None:
        self._size, self._name, self._sent, self._folder = size, name, sent, folder
        self._most_rows, self._digests, self._by_podcast = most_rows, digests, by_podcast
        self.answer = Answer()

    def take(self, message: Mapping[str, Any]) -> int | None:
        """Take a message; if it reports progress, return how many bytes of the export were read.

        Raises:
            ConversionDied: the message cannot be right, or the conversion failed for a reason of its own.
            ExportTorn, SourceError, DataFolderError: the conversion failed because of the export, or the disk.
        """
        ((kind, value),) = message.items()
        if kind == "read":
            return _number(value, "bytes read", self._size)
        if kind == "logs":
            self._take_logs(value)
        elif kind == "podcasts":
            self._take_podcasts(value)
        elif kind == "done":
            self._take_end(value)
        elif kind == "failed":
            raise self._failure(_fields(value, "failure", None))
        else:
            _refuse("a message of an unknown kind")
        return None

    def _take_logs(self, value: Any) -> None:
        if type(value) is not list or len(self.answer.logs) + len(value) > _MOST_LOGS:
            _refuse("its logs")
        for entry in value:
            if type(entry) is not list or len(entry) != 3:
                _refuse("a log")
            lines = _number(entry[0], "lines of a log", self._most_rows or _MOST)
            size = _number(entry[1], "size of a log")
            if type(entry[2]) is not str or (self._digests and not _DIGEST.fullmatch(entry[2])):
                _refuse("digest of a log")
            self.answer.logs.append(WrittenLog(lines, size, entry[2] if self._digests else ""))

    def _take_podcasts(self, value: Any) -> None:
        tallies = self.answer.podcasts.tallies
        if type(value) is not dict or not self._by_podcast or len(tallies) + len(value) > MOST_PODCASTS + 2:
            _refuse("its podcasts")
        for name, entry in value.items():
            if not 0 < len(name) <= LONGEST_NAME or name in tallies or type(entry) is not list or len(entry) != 5:
                _refuse("a podcast")
            if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
                _refuse("the name of a podcast")  # a lone surrogate cannot be encoded
            tally = Tally(
                rows=_number(entry[0], "rows of a podcast"),
                reporting=_number(entry[1], "reporting rows of a podcast"),
                lines=_number(entry[2], "lines of a podcast"),
            )
            tally.filtered.update(_counts(entry[3], FilterReason, "filtered rows of a podcast"))
            tally.rejected.update(_counts(entry[4], RejectReason, "rejected rows of a podcast"))
            if not tally.balanced:
                _refuse("the books of a podcast")
            tallies[name] = tally

    def _take_end(self, value: Any) -> None:
        fields = _fields(value, "end", ("tally", "changed", "removed", "rejects", "one_line"))
        answer = self.answer
        answer.tally = tally = _tally(fields["tally"])
        answer.changed = _number(fields["changed"], "changed rows", _MOST if self._sent else 0)
        answer.removed = _number(fields["removed"], "removed rows", _MOST if self._sent else 0)
        if type(fields["rejects"]) is not bool or fields["rejects"] != (tally.rejected.total() > 0):
            _refuse("whether there are rejected rows")
        answer.rejects = fields["rejects"]
        is_one_row = tally.rows == tally.rejected.total() == 1
        if type(fields["one_line"]) is not bool or (fields["one_line"] and not is_one_row):
            _refuse("whether its rows are on one line")
        answer.one_line = fields["one_line"]
        lines = [log.lines for log in answer.logs]
        if sum(lines) != tally.lines:
            _refuse("lines of the logs")
        if lines and min(lines) == 0 and (len(lines) > 1 or self._sent):
            _refuse("a log without lines")
        if any(count != self._most_rows for count in lines[:-1]) or not (lines or self._sent):
            _refuse("the number of logs")
        for name in ("rows", "lines", "reporting") if self._by_podcast else ():
            if sum(getattr(podcast, name) for podcast in answer.podcasts.tallies.values()) != getattr(tally, name):
                _refuse(f"{name} of the podcasts")

    def _failure(self, fields: Mapping[str, Any]) -> PickupPointError:
        """Return the error that a reported failure becomes, in our own words."""
        kind = fields.get("kind")
        if kind == "torn":
            return torn(self._name, _one_of(fields.get("word"), TORN, "what is wrong with the export"))
        if kind == "unreadable":
            return unreadable(self._name, _number(fields.get("errno"), "number of an error", 4095))
        if kind == "sent" and self._sent:
            log = self._sent[_number(fields.get("log"), "index of a log", len(self._sent) - 1)]
            if "errno" in fields:
                cannot = unreadable(log, _number(fields["errno"], "number of an error", 4095))
                return DataFolderError(f"the published log {cannot}", hint=cannot.hint)
            return damaged(log, _one_of(fields.get("word"), TORN, "what is wrong with a log"))
        if kind == "disk":
            why = os.strerror(_number(fields.get("errno"), "number of an error", 4095))
            hint = f"df -h {shlex.quote(str(self._folder))}"
            return DataFolderError(f"the conversion of {self._name} could not be written: {why}", hint=hint)
        if kind == "memory":
            hint = "please report it, with the size of the export and of its longest line"
            return ConversionDied(f"the conversion of {self._name} needs more memory than it is allowed", hint=hint)
        if kind == "error":
            what, places = fields.get("type"), fields.get("at")
            if type(what) is str and _WORD.fullmatch(what) and type(places) is list and len(places) <= 9:
                # Anything that does not look like file:line may be a listener's data, so it is left out.
                shown = [place for place in places if type(place) is str and _PLACE.fullmatch(place)]
                return ConversionDied(
                    f"the conversion of {self._name} failed: {what} at {', '.join(shown) or 'an unknown place'}",
                    hint="please report it",
                )
        return refused("a failure of an unknown kind")


def _refuse(what: str) -> NoReturn:
    raise refused(what)


def _number(value: Any, what: str, most: int = _MOST) -> int:
    if type(value) is not int or not 0 <= value <= most:  # a bool is an int to isinstance
        _refuse(what)
    return value


def _fields(value: Any, what: str, names: Sequence[str] | None) -> Mapping[str, Any]:
    if type(value) is not dict or (names is not None and value.keys() != set(names)):
        _refuse(f"the fields of its {what}")
    return value


def _one_of(value: Any, words: Mapping[str, str], what: str) -> str:
    if type(value) is not str or value not in words:
        _refuse(what)
    return value


def _counts(value: Any, reasons: type[FilterReason | RejectReason], what: str) -> dict[str, int]:
    known = set(map(str, reasons))
    if type(value) is not dict or not value.keys() <= known:
        _refuse(what)
    return {reason: _number(count, what) for reason, count in value.items()}


def _tally(value: Any) -> Tally:
    fields = _fields(value, "tally", tuple(Tally().as_json()))
    numbers = {name: _number(count, name) for name, count in fields.items() if name not in ("filtered", "rejected")}
    filtered = _counts(fields["filtered"], FilterReason, "filtered")
    rejected = _counts(fields["rejected"], RejectReason, "rejected")
    tally = Tally.from_json(numbers | {"filtered": filtered, "rejected": rejected})
    if not tally.balanced:
        _refuse("the books do not balance")
    for name, count in numbers.items():
        if count > (tally.rows if name in ("rows", "lines", *_OF_ROWS) else tally.lines):
            _refuse(name)
    return tally
