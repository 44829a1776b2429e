"""What a supervisor stands on: a port that is held for its workers, and words that arrive whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector_service import config
from connector_service.errors import StartupError
from connector_service.server.link import Beat, Link, Scrape, Scraped, Serving, Setup, frame, frames
from connector_service.server.merge import Family
from connector_service.server.reservation import Reservation


@contextlib.contextmanager
def reserved(**options: object) -> Iterator[Reservation]:
    reservation = Reservation(config.Listen(**{"port": 0, **options}))  # type: ignore[arg-type]
    try:
        yield reservation
    finally:
        reservation.close()


def worker(port: int) -> socket.socket:
    """Listen as a worker's gRPC server does."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def plain(port: int) -> socket.socket:
    """Bind as a server does that shares with nobody."""
    return socket.create_server(("127.0.0.1", port))


def test_workers_share_a_reserved_port_and_nobody_else_gets_it() -> None:
    """The kernel lets workers in, and neither a plain server nor a second supervisor."""
    with reserved() as first:
        with pytest.raises(OSError, match="in use"):
            plain(first.port)
        with pytest.raises(StartupError, match="the port is taken"), reserved(port=first.port):
            pass
        with worker(first.port), worker(first.port):
            with pytest.raises(OSError, match="in use"):
                plain(first.port)
            with pytest.raises(StartupError, match="the port is taken"), reserved(port=first.port):
                pass


def test_connections_go_to_workers_alone() -> None:
    """A socket that is bound and does not listen gets none: without a worker all are refused."""
    with reserved() as first:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first.port), timeout=5)
        with worker(first.port) as one:
            for _ in range(32):
                with socket.create_connection(("127.0.0.1", first.port), timeout=5):
                    one.settimeout(5)
                    one.accept()[0].close()


def test_a_closed_reservation_frees_the_port_at_once() -> None:
    """A restart takes the same port over, though connections of the former time still end."""
    with reserved() as first:
        port = first.port
        with worker(port) as one, socket.create_connection(("127.0.0.1", port)) as peer:
            accepted, _ = one.accept()
            accepted.close()  # this side closes first, and lingers in TIME_WAIT
            assert peer.recv(1) == b""
    with reserved(port=port), worker(port):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::", "0.0.0.0"])
def test_every_spelling_of_the_host_can_be_held(host: str) -> None:
    """Names with several addresses get one port on all of them."""
    with reserved(host=host) as first:
        assert first.port > 0
        with pytest.raises(OSError, match="in use"):
            plain(first.port)


def test_an_address_of_another_machine_is_refused() -> None:
    """As the service itself refuses it, in the same words."""
    with pytest.raises(StartupError, match=r"Cannot listen on 192\.0\.2\.1:0: the port is taken"):
        Reservation(config.Listen(host="192.0.2.1", port=0))


def test_settings_reach_a_worker_as_they_are(tmp_path: Path) -> None:
    """Whatever a TOML file can hold arrives unchanged, dates included."""
    file = tmp_path / "settings.toml"
    file.write_text("workers = 2\n[connectors.x.options]\nday = 1979-05-27\nat = 07:32:00\n")
    loaded = config.load(file=file)
    (sent,) = told(Setup(3, pickle.dumps(loaded), "folder", durable=False))
    assert isinstance(sent, Setup)
    assert (sent.index, sent.ledger, sent.durable) == (3, "folder", False)
    assert pickle.loads(sent.config) == loaded
    assert loaded.connectors["x"].options["day"].year == 1979


def told(*messages: object) -> list[object]:
    """Return what a worker receives of messages that come in the smallest pieces."""
    ours, theirs = socket.socketpair()
    link = Link(os.dup(theirs.fileno()))
    theirs.close()
    data = b"".join(frame(message) for message in messages)  # type: ignore[arg-type]

    def send() -> None:
        for number in range(len(data)):
            ours.send(data[number : number + 1])
        ours.close()

    thread = threading.Thread(target=send)
    thread.start()
    found: list[object] = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(link.receive(5))
    thread.join()
    link.close()
    return found


def test_messages_arrive_whole_and_in_order_at_a_worker() -> None:
    """Frames are put together again however the socket cut them, and the end is told."""
    sent = [Scrape(1), Scrape(2), Beat(ready=True, troubles="x")]
    assert told(*sent) == sent


async def test_messages_arrive_whole_and_in_order_at_the_supervisor() -> None:
    """A report larger than every buffer arrives, then what follows, then the end."""
    ours, theirs = socket.socketpair()
    link = Link(os.dup(theirs.fileno()))
    theirs.close()
    family = Family("x", "y" * 3_000_000, "counter", [("x_total", (("a", "b"),), 1.5)])
    sent = [Serving(1, 2, "h up"), Scraped(0, [family]), Beat(ready=False)]
    reader, writer = await asyncio.open_connection(sock=ours)

    def send() -> None:
        for message in sent:
            link.send(message)
        link.close()

    sending = asyncio.create_task(asyncio.to_thread(send))
    assert [message async for message in frames(reader)] == sent
    await sending
    writer.close()
    await writer.wait_closed()


def test_a_worker_does_not_wait_for_a_supervisor_that_says_nothing() -> None:
    """Receiving ends after its time with nothing, so that signs of life go on."""
    ours, theirs = socket.socketpair()
    link = Link(os.dup(theirs.fileno()))
    theirs.close()
    started = time.monotonic()
    assert link.receive(0.05) is None
    assert time.monotonic() - started < 5
    ours.close()
    with pytest.raises(EOFError):
        link.receive(5)
    link.send(Beat(ready=True))  # to nobody: no error
    link.close()


def test_the_supervisor_s_modules_load_no_grpc() -> None:
    """One process more costs little: neither gRPC nor an SDK is in it."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, connector_service.cli.serve, connector_service.server.supervisor\n"
            "print({'grpc', 'flytekit', 'flyte', 'uvloop'} & set(sys.modules) or 'none')",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "none\n"
