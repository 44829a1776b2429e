"""A load generator for gRPC: HTTP/2 by hand over one connection, so that the server is measured.

Frames are encoded once; for each call only the stream's number and a counter inside the body
change, so no two calls ask for the same job. Nothing is decoded but frame headers: we ask for a
header table of size 0, hence a server of grpc-core writes its trailers as plain bytes, and the
status of every single call is checked by looking for them. `python -m bench capacity` shows how
much faster this is than any server it measures.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import time
from collections import deque
from typing import NamedTuple

__all__ = ["Body", "Connection", "Load", "LoadError", "Sample", "ask", "frame_message"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_NO_TABLE, _NO_PUSH, _STREAM_WINDOW, _MOST_FRAME = 1, 2, 4, 5  # names of settings
_MOST_WINDOW = 2**31 - 1
_HEADER = struct.Struct(">HBBBI")  # length (2 of its 3 bytes, then 1), type, flags, stream
_STATUS_OK = b"\x0bgrpc-status\x010"
_TIMEOUT = 60.0  # seconds without a byte from the server


class LoadError(Exception):
    """A call was not answered with OK, or the connection broke."""


class Body(NamedTuple):
    """A request body with a counter of fixed width at ``at``; ``width`` 0 has none."""

    data: bytes
    at: int = 0
    width: int = 0

    def numbered(self, number: int) -> bytes:
        """Return the body of one call."""
        if not self.width:
            return self.data
        digits = b"%0*d" % (self.width, number)
        return self.data[: self.at] + digits + self.data[self.at + self.width :]


class Load(NamedTuple):
    """What one connection is loaded with."""

    path: str
    body: Body
    in_flight: int = 16
    check: bool = True  # every call's gRPC status is OK; False for servers that speak none


class Sample(NamedTuple):
    """What a stretch of load came to; ``latencies`` are in seconds, of each call that ended."""

    calls: int
    seconds: float
    latencies: list[float]
    bytes_received: int
    own_cpu: float  # seconds of our own processor time

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds

    def percentile(self, share: float) -> float:
        """Return the latency that ``share`` of the calls did not exceed, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def frame_message(message: bytes) -> bytes:
    """Frame a message as gRPC does: not compressed, and behind its length."""
    return struct.pack(">BI", 0, len(message)) + message


def ask(port: int, path: str, message: bytes) -> bytes:
    """Make one call on a connection of its own and return the message that answers it.

    Raises:
        LoadError: The call failed, or was answered with no message.
        OSError: Nobody listens there.
    """
    load = Load(path, Body(frame_message(message)), in_flight=1)
    with contextlib.closing(Connection("127.0.0.1", port, load)) as connection:
        return connection.ask()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def _settings(**values: int) -> bytes:
    names = {"table": _NO_TABLE, "push": _NO_PUSH, "window": _STREAM_WINDOW}
    return b"".join(struct.pack(">HI", names[name], value) for name, value in values.items())


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) >= 127:
        raise ValueError(f"{text!r} is too long for the one byte of length that is written here.")
    return bytes([len(data)]) + data


def _header_blocks(path: str, authority: str) -> tuple[bytes, bytes]:
    """Return the first request's headers and every later one's, as real clients write them.

    The first puts them into the server's table, where the later ones refer to them: they take the
    numbers from 62 on, the last one first.
    """
    static = b"\x83\x86"  # :method POST, :scheme http
    named = [
        (b"\x44", path),  # :path
        (b"\x41", authority),  # :authority
        (b"\x5f", "application/grpc"),  # content-type
        (b"\x7a", "grpc-python/1.0 bench"),  # user-agent
    ]
    new = [("te", "trailers"), ("grpc-timeout", "30S")]
    first = static + b"".join(prefix + _text(value) for prefix, value in named)
    first += b"".join(b"\x40" + _text(name) + _text(value) for name, value in new)
    count = len(named) + len(new)
    later = static + bytes(0x80 | (62 + count - 1 - place) for place in range(count))
    return first, later


class Connection:
    """One connection to a server; ``run`` as often as you like, then ``close``."""

    def __init__(self, host: str, port: int, load: Load) -> None:
        """Connect and shake hands."""
        self._load = load
        self._first, self._later = _header_blocks(load.path, f"{host}:{port}")
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = 1
        self._window = 65_535  # bytes that the server takes on the connection
        self._stream_window = 65_535  # ... and on each new stream
        self._most_frame = 16_384
        self._credit = 0  # bytes received and not yet given back
        self._received = 0
        self._rest = b""
        self._windows: dict[int, int] = {}
        self._sending: deque[tuple[int, memoryview]] = deque()
        self._started: dict[int, float] = {}
        self._number = 0
        self._kept: bytes | None = None
        hello = _settings(table=0, push=0, window=_MOST_WINDOW)
        raise_window = struct.pack(">I", _MOST_WINDOW - 65_535)
        self._socket.sendall(
            _PREFACE + _frame(_SETTINGS, 0, 0, hello) + _frame(_WINDOW, 0, 0, raise_window)
        )
        self._greeted = False
        while not self._greeted:
            self._read([])

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def run(self, *, seconds: float = 0.0, calls: int = 0, first: int | None = None) -> Sample:
        """Keep calls in flight for ``seconds``, or until ``calls`` are made, and wait for them.

        ``first`` is the first call's number; by default numbering goes on from the last run.

        Raises:
            LoadError: A call failed, or the connection broke.
        """
        if first is not None:
            self._number = first
        latencies: list[float] = []
        finished: list[int] = []
        received = self._received
        left = calls or 2**62
        collecting = gc.isenabled()
        gc.disable()
        own = time.process_time()
        clock = time.perf_counter
        began = clock()
        until = began + seconds if seconds else float("inf")
        try:
            ready = min(self._load.in_flight, left)
            while True:
                left -= ready
                out = [self._open() for _ in range(ready)]
                self._send(out)
                if not self._started:
                    break
                finished.clear()
                self._read(finished)
                now = clock()
                latencies += [now - self._started.pop(stream) for stream in finished]
                ready = 0 if now >= until else min(len(finished), left)
            ended = clock()
            own = time.process_time() - own
        finally:
            if collecting:
                gc.enable()
        return Sample(len(latencies), ended - began, latencies, self._received - received, own)

    def ask(self, number: int = 0) -> bytes:
        """Make one call and return the message that answers it, or the first of them.

        Raises:
            LoadError: The call failed, or was answered with no message.
        """
        self._kept = b""
        self.run(calls=1, first=number)
        kept, self._kept = self._kept, None
        if len(kept) < 5:
            raise LoadError("The call was answered with no message.")
        return kept[5 : 5 + int.from_bytes(kept[1:5], "big")]

    # --- frames --------------------------------------------------------------------------------

    def _open(self) -> bytes:
        """Begin a call; return what is to be sent now, the rest waits for the server's windows."""
        stream = self._stream
        self._stream += 2
        block = self._first if stream == 1 else self._later
        body = self._load.body.numbered(self._number)
        self._number += 1
        self._started[stream] = time.perf_counter()
        head = _frame(_HEADERS, _END_HEADERS, stream, block)
        small = len(body) <= min(self._most_frame, self._stream_window, self._window)
        if small and not self._sending:
            self._window -= len(body)
            return head + _frame(_DATA, _END_STREAM, stream, body)
        self._windows[stream] = self._stream_window
        self._sending.append((stream, memoryview(body)))
        return head

    def _send(self, out: list[bytes]) -> None:
        """Send ``out`` and as much of waiting bodies as the server takes."""
        waiting: deque[tuple[int, memoryview]] = deque()
        while self._sending and self._window > 0:
            stream, body = self._sending.popleft()
            room = min(self._windows[stream], self._window)
            sent = 0
            while sent < len(body) and sent < room:
                part = body[sent : sent + min(self._most_frame, room - sent)]
                sent += len(part)
                last = _END_STREAM if sent == len(body) else 0
                size = len(part)
                out.append(_HEADER.pack(size >> 8, size & 255, _DATA, last, stream))
                out.append(part)  # type: ignore[arg-type] # join takes any bytes
            self._window -= sent
            self._windows[stream] -= sent
            if sent < len(body):
                waiting.append((stream, body[sent:]))
            else:
                del self._windows[stream]
        waiting.extend(self._sending)
        self._sending = waiting
        if out:
            self._socket.sendall(b"".join(out))

    def _read(self, finished: list[int]) -> None:
        """Take what the server has sent; append the streams that ended to ``finished``."""
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise LoadError(f"The server sent nothing for {_TIMEOUT:g} s.") from None
        if not data:
            raise LoadError("The server closed the connection.")
        self._received += len(data)
        if self._rest:
            data = self._rest + data
        at, size, unpack = 0, len(data), _HEADER.unpack_from
        check = self._load.check
        while size - at >= 9:
            high, low, kind, flags, stream = unpack(data, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            if kind == _DATA:
                self._credit += end - at - 9
                if self._kept is not None:
                    self._kept += data[at + 9 : end]
            elif kind != _HEADERS:
                self._control(kind, flags, stream, data[at + 9 : end])
            if flags & _END_STREAM and kind <= _HEADERS:  # of kinds 0 and 1: DATA, HEADERS
                if check and data.find(_STATUS_OK, at, end) < 0:
                    raise LoadError(
                        f"Call {stream // 2} did not end with OK: {data[at + 9 : end]!r}"
                    )
                finished.append(stream)
            at = end
        self._rest = data[at:]
        if self._credit > _MOST_WINDOW // 2:
            self._socket.sendall(_frame(_WINDOW, 0, 0, struct.pack(">I", self._credit)))
            self._credit = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                self._set(*struct.unpack_from(">HI", payload, at))
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            self._greeted = True
        elif kind == _GOAWAY:
            raise LoadError(f"The server sent GOAWAY: {payload!r}")
        elif kind == _RESET:
            raise LoadError(f"The server reset call {stream // 2}: {payload!r}")

    def _set(self, name: int, value: int) -> None:
        if name == _STREAM_WINDOW:
            for stream in self._windows:
                self._windows[stream] += value - self._stream_window
            self._stream_window = value
        elif name == _MOST_FRAME:
            self._most_frame = value
