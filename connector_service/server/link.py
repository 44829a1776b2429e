"""What a supervisor and a worker tell each other, over the socket that they share."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING

import msgspec

from connector_service.server.merge import Family

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

__all__ = [
    "Beat",
    "Failed",
    "Link",
    "Message",
    "Reload",
    "Scrape",
    "Scraped",
    "Serving",
    "Setup",
    "Stop",
    "frame",
    "frames",
]


class Message(msgspec.Struct, frozen=True, tag=True):
    """One thing told; each kind of it is a class below."""


class Setup(Message, frozen=True):
    """To a worker, first: which it is, and its settings, pickled since they hold anything.

    ``ledger`` is the folder of the SQLite ledger that workers share, empty for none; ``durable``
    says whether it must outlive the power.
    """

    index: int
    config: bytes
    ledger: str = ""
    durable: bool = True


class Stop(Message, frozen=True):
    """To a worker: drain and end."""


class Reload(Message, frozen=True):
    """To a worker: reload every host."""


class Scrape(Message, frozen=True):
    """To a worker: send your metrics, with this number."""

    number: int


class Serving(Message, frozen=True):
    """From a worker: it answers calls; how many plugins it has, and how its hosts are."""

    loaded: int
    failed: int
    hosts: str


class Beat(Message, frozen=True):
    """From a worker, each second while its event loop answers."""

    ready: bool
    troubles: str = ""


class Scraped(Message, frozen=True):
    """From a worker: its metrics; number 0 is what nobody asked for."""

    number: int
    families: list[Family]


class Failed(Message, frozen=True):
    """From a worker: the one sentence and the exit code with which it ends."""

    sentence: str
    exit_code: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(
    Setup | Stop | Reload | Scrape | Serving | Beat | Scraped | Failed
)
_SIZE = 4  # bytes of a frame's length


def frame(message: Message) -> bytes:
    """Return the bytes of one message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_SIZE, "big") + body


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """Yield what comes in until the other side has ended."""
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(_SIZE), "big")
            yield _decoder.decode(await reader.readexactly(size))
    except (EOFError, ConnectionError):
        return


class Link:
    """A worker's end: one thread receives, any thread sends."""

    def __init__(self, descriptor: int) -> None:
        """Take the socket that was inherited, and see that no child of ours inherits it too."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._socket.setblocking(True)
        self.lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message; to a supervisor that has ended nothing is sent."""
        with self.lock:
            self.send_locked(message)

    def send_locked(self, message: Message) -> None:
        """Send one message, while the caller holds ``lock``."""
        try:
            self._socket.sendall(frame(message))
        except OSError:  # the receiving thread sees it, too, and ends the process
            return

    def receive(self, timeout_seconds: float | None = None) -> Message | None:
        """Return the next message, or None when there is none within the time.

        Raises:
            EOFError: The supervisor has ended.
        """
        ready, _, _ = select.select([self._socket], [], [], timeout_seconds)
        if not ready:
            return None
        size = int.from_bytes(self._exactly(_SIZE), "big")
        message: Message = _decoder.decode(self._exactly(size))
        return message

    def close(self) -> None:
        """Let go of the socket; fine twice."""
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except OSError:
                more = b""
            if not more:
                raise EOFError
            data += more
        return data
