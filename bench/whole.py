"""What the whole process costs: its start, its memory, its size on disk, and its isolation."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

from bench import messages
from bench.cases import CASES
from bench.load import Connection, Load
from bench.process import CLIENT_CORE, on_core, resident

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers import Peer

__all__ = ["Blocked", "Start", "blocked", "starts"]

_SETTLE = 1.5  # seconds until a started server has done what it does by itself
_CALLS = 200


class Start(NamedTuple):
    """One start: seconds to SERVING, and bytes of memory when nothing happens.

    ``cpu`` is the processor time until then: neighbours on the machine hardly change it.
    """

    peer: str
    seconds: float
    cpu: float
    resident: int
    proportional: int


class Blocked(NamedTuple):
    """p99 of one connector's polls in seconds: alone, and beside another's blocking ones."""

    peer: str
    idle: float
    busy: float
    polls: int


def starts(peers: Sequence[Peer], number: int) -> list[Start]:
    """Start each server once, in an order that ``number`` rotates."""
    shift = number % len(peers)
    found = []
    for peer in (*peers[shift:], *peers[:shift]):
        with peer.serve(settle=_SETTLE) as server:
            found.append(Start(peer.name, server.seconds, server.cpu, *resident(server.pid)))
    return found


def blocked(peer: Peer, seconds: float) -> Blocked:
    """Poll a plain ``def`` connector, alone and while another one's calls hold their threads.

    Raises:
        bench.load.LoadError: A poll of the connector that does not block failed.
    """
    case = CASES["plain-1"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(peer.serve())
        stack.enter_context(on_core(CLIENT_CORE))
        polls = stack.enter_context(
            contextlib.closing(
                Connection("127.0.0.1", server.port, Load(case.path, case.make(), 1))
            )
        )
        polls.run(seconds=0.5)
        idle = polls.run(seconds=seconds)
        stop = threading.Event()
        body = messages.get(case.protocol, "v1_blocking")
        blocking = threading.Thread(
            target=_keep_blocking, args=(server.port, Load(case.path, body, _CALLS, False), stop)
        )
        blocking.start()
        try:
            polls.run(seconds=1.0)  # until the threads are taken
            busy = polls.run(seconds=seconds * 2)
        finally:
            stop.set()
            blocking.join()
    return Blocked(peer.name, idle.percentile(0.99), busy.percentile(0.99), busy.calls)


def _keep_blocking(port: int, load: Load, stop: threading.Event) -> None:
    with contextlib.closing(Connection("127.0.0.1", port, load)) as connection:
        while not stop.is_set():
            connection.run(seconds=0.5)
