"""Writes log records as they come, and the lines of calls that ended well many at a time.

One line for every job that is created is a fifth of what a create costs, when each is formatted,
searched for secrets and written by itself. Lines that differ in two places are formatted once;
what comes within 20 ms is searched and written together. Whatever else is logged is written at
once, after the lines that wait, so lines keep their order. What a killed process has not written
is lost: the calls of its last 20 ms, none of which failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO, TypeAlias

from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Line", "Lines", "milliseconds", "stamp"]

_LATE = 0.02  # seconds that a line waits for others
_TOO_LATE = 1.0  # seconds after which the timer that was to write it has gone with its loop
_MOST = 1024  # lines that wait
# What cannot be in a line otherwise, in place of its milliseconds.
_MILLISECONDS = 98765432123456.5

_root = logging.getLogger()


class Line:
    """The line of one kind of calls that end well: all of it but its time and its milliseconds."""

    __slots__ = ("_level", "_lines", "log", "record")

    def __init__(
        self, log: logging.Logger, level: int, record: Callable[[float], logging.LogRecord]
    ) -> None:
        """Take the logger, and what makes such a call's whole record from its milliseconds."""
        self.log = log
        self.record = record
        self._level = level
        self._lines: Lines | None = None  # where the last one was written

    def well(self, seconds: float) -> None:
        """Write that such a call has just ended well, within 20 ms; on the event loop's thread."""
        lines = self._lines
        if lines is not None and 0 < len(lines.waiting) < _MOST:
            now = time.time()
            if now < lines.until:  # whoever waits has found that it is written, and where
                lines.waiting.append((self, now, seconds))
                return
        if not self.log.isEnabledFor(self._level):
            return
        handlers = _root.handlers
        if len(handlers) == 1 and isinstance(handlers[0], Lines):
            self._lines = handlers[0]
            self._lines.begin((self, time.time(), seconds))
        else:
            self.log.handle(self.record(milliseconds(seconds)))


# A line that waits, when its call ended and how many seconds it took.
_Waiting: TypeAlias = tuple[Line, float, float]


class Lines(logging.StreamHandler[TextIO]):
    """The handler of a process that writes to one stream; ``worker`` signs every record."""

    def __init__(self, stream: TextIO, worker: str = "") -> None:
        """Take where to write; nothing waits yet."""
        super().__init__(stream)
        self._worker = worker
        self.waiting: deque[_Waiting] = deque()
        self.until = 0.0  # when no line joins those that wait any more, as ``time.time`` has it
        # What stands before the milliseconds of a line, after its time, and what stands after.
        self._parts: dict[Line, tuple[str, str, str] | None] = {}

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Take how a record becomes a line."""
        self._parts = {}
        super().setFormatter(fmt)

    def begin(self, line: _Waiting) -> None:
        """Have a line, and those that join it, written in 20 ms; on the event loop's thread."""
        if self.waiting:  # too many, or their timer has gone with its loop
            self._write_waiting()
        self.until = line[1] + _TOO_LATE
        self.waiting.append(line)
        asyncio.get_running_loop().call_later(_LATE, self._write_waiting)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after the lines that wait."""
        if self.waiting:
            self._write_waiting()
        if self._worker:
            record.worker = self._worker
        super().emit(record)

    def flush(self) -> None:
        """Write what waits."""
        if self.waiting:
            self._write_waiting()
        super().flush()

    def _write_waiting(self) -> None:
        """Write all that waits."""
        self.acquire()
        try:
            batch = [self.waiting.popleft() for _ in range(len(self.waiting))]
            if not batch:
                return
            text = self._text(batch)
            if text is None:
                for line, ended, seconds in batch:
                    record = line.record(milliseconds(seconds))
                    record.created = ended
                    line.log.handle(record)
            else:
                self.stream.write(text)
                super().flush()
        except Exception:  # noqa: BLE001 - as StreamHandler has it
            self.handleError(logging.makeLogRecord({"msg": "lines of calls"}))
        finally:
            self.release()

    def _text(self, batch: Sequence[_Waiting]) -> str | None:
        """Put the lines together; None where each must go the way of any other record."""
        if not all(self._alone(log) for log in {waiting[0].log for waiting in batch}):
            return None
        lines: list[str] = []
        known, millisecond, time_of_day = self._parts, 0, ""
        for line, ended, seconds in batch:
            if line not in known:
                known[line] = self._split(line)
            parts = known[line]
            if parts is None:
                return None
            if int(ended * 1000) != millisecond:
                millisecond, time_of_day = int(ended * 1000), stamp(ended)
            first, second, third = parts
            lines.append(f"{first}{time_of_day}{second}{seconds * 1000:.1f}{third}\n")
        text = "".join(lines)
        # A secret that was handed out meanwhile may be a part of any name.
        return text if redact(text) == text else None

    def _alone(self, log: logging.Logger) -> bool:
        """Tell whether nobody else hears, or keeps from us, what this logger logs."""
        while log is not _root:
            if log.handlers or log.filters or not log.propagate or log.parent is None:
                return False
            log = log.parent
        return _root.handlers == [self] and not self.filters and not self.level

    def _split(self, line: Line) -> tuple[str, str, str] | None:
        """Format a record once and cut it where calls of its kind differ."""
        record = line.record(_MILLISECONDS)
        if self._worker:
            record.worker = self._worker
        text = self.format(record)
        first, time_found, rest = text.partition(stamp(record.created))
        second, found, third = rest.partition(str(_MILLISECONDS))
        if not time_found or not found or str(_MILLISECONDS) in third or "\n" in text:
            return None
        return first, second, third


def stamp(seconds: float) -> str:
    """Return a time as lines have it: in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def milliseconds(seconds: float) -> float:
    """Return how long a call took as lines have it."""
    return round(seconds * 1000, 1)
