"""What a child process prints: its handshake, and log records of ours for all the rest.

A child may print as much as it likes: lines beyond so many a second are dropped and counted,
long ones are cut, and a flood is read no faster than the event loop can bear.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

import msgspec

from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ERROR", "HANDSHAKE", "RECORD", "Output", "Reader", "Throttle"]

HANDSHAKE = b"connector-host "
RECORD = b"connector-host-log "
ERROR = b"connector-host-error "

_log = logging.getLogger(__name__)

_LONGEST = 8 * 1024  # bytes of a line that people read
_LONGEST_RECORD = 64 * 1024  # bytes of one that is a record, and holds a traceback
_LONGEST_HANDSHAKE = 16 * 1024 * 1024  # bytes; hundreds of plugins, each with an error
_LAST = 3  # lines that are kept to explain an end
# So many bytes are read in so many seconds; then the child waits, for less than a heartbeat.
_GULP, _BREATH = 1024 * 1024, 0.05


class Throttle:
    """Lets so many lines of a host pass each second and says how many it kept back."""

    def __init__(self, host: str, most: int, window: float = 1.0) -> None:
        """Take the host's name, the lines of a window, and the window in seconds."""
        self._host = host
        self._most = most
        self._window = window
        self._since = float("-inf")
        self._passed = 0
        self._dropped = 0
        self._note: asyncio.TimerHandle | None = None

    def passes(self) -> bool:
        """Count a line, and tell whether it is to be logged."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= self._window:
            self._since, self._passed = now, 0
        if self._passed >= self._most:
            self.drop(1)
            return False
        self._passed += 1
        return True

    @property
    def exhausted(self) -> bool:
        """Tell whether nothing more passes in this window."""
        now = asyncio.get_running_loop().time()
        return self._passed >= self._most and now - self._since < self._window

    def drop(self, lines: int) -> None:
        """Count lines that nobody will read."""
        self._dropped += lines
        if lines and self._note is None:
            loop = asyncio.get_running_loop()
            self._note = loop.call_later(self._window, self.close)

    def close(self) -> None:
        """Say now what was kept back."""
        if self._note is not None:
            self._note.cancel()
            self._note = None
        if self._dropped:
            _log.warning(
                "output dropped",
                extra={
                    "host": self._host,
                    "lines": self._dropped,
                    "hint": f"a host's output beyond {self._most} lines a second is not logged",
                },
            )
            self._dropped = 0


class _Record(msgspec.Struct):
    """A log record of the child."""

    message: str = ""
    level: str = "INFO"
    logger: str = ""
    exc: str = ""


class Output:
    """Turns the lines of one child into log records, and remembers its last words."""

    def __init__(self, host: str, worker: int, throttle: Throttle) -> None:
        """Take whose output it is; the pid is known once the process runs."""
        self.pid = 0
        self._facts = {"host": host, "worker": worker}
        self._throttle = throttle
        self._said = ""
        self._last: deque[bytes] = deque(maxlen=_LAST)

    @property
    def last_words(self) -> str:
        """What the child gave as the reason of its end, or else the last that it printed."""
        if self._said:
            return self._said
        lines = [_text(line).strip() for line in self._last]
        return redact(" | ".join(line for line in lines if line))[-500:]

    @property
    def exhausted(self) -> bool:
        """Tell whether more lines would not be logged."""
        return self._throttle.exhausted

    def dropped(self, tail: list[bytes], lines: int) -> None:
        """Count lines that were not looked at; the last of them may still explain an end."""
        for line in tail:
            self._remember(line)
        self._throttle.drop(lines)

    def line(self, line: bytes) -> None:
        """Log one line of standard error."""
        if self._remember(line) or not line.strip() or not self._throttle.passes():
            return
        if line.startswith(RECORD):
            try:
                record = msgspec.json.decode(line.removeprefix(RECORD), type=_Record)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass  # cut, or printed by somebody else: text like any other
            else:
                self._write(record)
                return
        self._write(_Record(_text(line[:_LONGEST]) + (" ..." if len(line) > _LONGEST else "")))

    def _remember(self, line: bytes) -> bool:
        """Keep a line; tell whether it is the child's own word on why it ends."""
        if line.startswith(ERROR):
            try:
                said = msgspec.json.decode(line.removeprefix(ERROR), type=dict[str, str])
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass
            else:
                self._said = redact(" ".join(said.get("error", "").split()))[:500]
                return True
        if not line.startswith(RECORD) and line.strip():
            self._last.append(line[:_LONGEST])
        return False

    def _write(self, said: _Record) -> None:
        level = logging.getLevelNamesMapping().get(said.level.upper(), logging.INFO)
        if not _log.isEnabledFor(level):
            return
        # No logger is made for the child's: it chooses the names, and loggers are never freed.
        record = _log.makeRecord(
            said.logger or _log.name,
            level,
            "",
            0,
            redact(said.message),
            (),
            None,
            extra={**self._facts, "pid": self.pid},
        )
        record.exc_text = redact(said.exc) or None
        _log.handle(record)


class Reader(asyncio.Protocol):
    """Splits one pipe into lines of bounded length; ``closed`` is set when it ended."""

    def __init__(
        self, output: Output, on_line: Callable[[bytes], None], *, skips: bool = True
    ) -> None:
        """Take who speaks, who hears each line, and whether a flood may pass unheard."""
        self.closed = asyncio.Event()
        self._output = output
        self._on_line = on_line
        self._skips = skips
        self._buffer = bytearray()
        self._transport: asyncio.ReadTransport | None = None
        self._since = 0.0
        self._read = 0

    def close(self) -> None:
        """Read no more, whoever still holds the other end."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the pipe."""
        # A pipe's is nothing else; uvloop's are no subclass of asyncio's.
        self._transport = cast("asyncio.ReadTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on what had no line break, and say that it is over."""
        self._transport = None
        if self._buffer:
            self._on_line(bytes(self._buffer))
            self._buffer.clear()
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        """Hand on every line that is complete."""
        self._breathe(len(data))
        if self._skips and self._output.exhausted:
            self._skip(data)
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._on_line(self._whole(line))
        self._keep(rest)

    def _whole(self, end: bytes) -> bytes:
        if not self._buffer:
            return end[:_LONGEST_RECORD] if not end.startswith(HANDSHAKE) else end
        self._keep(end)
        line = bytes(self._buffer)
        self._buffer.clear()
        return line

    def _keep(self, part: bytes) -> None:
        start = self._buffer[: len(HANDSHAKE)] or part[: len(HANDSHAKE)]
        most = _LONGEST_HANDSHAKE if HANDSHAKE.startswith(bytes(start)) else _LONGEST_RECORD
        self._buffer += part[: max(0, most - len(self._buffer))]

    def _skip(self, data: bytes) -> None:
        """Count the lines of a flood without making objects of them."""
        lines = data.count(b"\n")
        if not lines:
            self._keep(data)
            return
        *tail, rest = data.rsplit(b"\n", _LAST)
        self._output.dropped(tail[1 if lines >= _LAST else 0 :], lines)
        self._buffer.clear()
        self._keep(rest)

    def _breathe(self, size: int) -> None:
        """Stop reading for a moment when much was read in this one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._since >= _BREATH:
            self._since, self._read = now, 0
        self._read += size
        if self._read > _GULP and self._transport is not None:
            self._transport.pause_reading()
            loop.call_later(_BREATH, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").rstrip("\r")
