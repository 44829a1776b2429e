"""How often the loop that serves is woken, and whom gRPC's own threads interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from connector_service.hosts.child.connector_host.loop import drain_wake_ups, patient_threads

linux = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH"), reason="only Linux has a policy for threads that may wait"
)


class PollerCompletionQueue:
    """Takes its events as grpc's own does: one byte is read, then all that are there are taken."""

    def __init__(self, woken: socket.socket, events: list[int]) -> None:
        self.woken, self.events = woken, events
        self.wakes = 0
        self.taken: list[int] = []
        self.woken_once = asyncio.Event()
        self.all = asyncio.Event()

    def handle_events(self) -> None:
        self.wakes += 1
        self.woken_once.set()
        assert self.woken.recv(1)
        while self.events:
            self.taken.append(self.events.pop(0))
        if len(self.taken) == 1000:
            self.all.set()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Run a coroutine on a loop of either kind: the service has uvloop's, a host asyncio's."""
    module = pytest.importorskip(request.param, reason="uvloop is not for this platform")
    return functools.partial(_run, module.new_event_loop)


def _run(make: Callable[[], asyncio.AbstractEventLoop], main: object) -> None:
    loop = make()
    drain_wake_ups(loop)
    try:
        loop.run_until_complete(main)  # type: ignore[arg-type]
    finally:
        loop.close()


@contextlib.contextmanager
def waking(events: list[int]) -> Iterator[tuple[PollerCompletionQueue, socket.socket]]:
    """Have the running loop take events, for each byte that the other end of the pair sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        queue = PollerCompletionQueue(ours, events)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, queue.handle_events)
        yield queue, theirs
        loop.remove_reader(ours)


def test_events_that_wait_together_wake_the_loop_once(run: Callable[[object], None]) -> None:
    """A thousand events that came while the loop was busy cost one wake-up, and none is lost."""

    async def main() -> None:
        with waking(list(range(999))) as (queue, theirs):
            theirs.sendall(b"1" * 999)
            await asyncio.wait_for(queue.woken_once.wait(), 10)
            queue.events.append(999)
            theirs.sendall(b"1")
            await asyncio.wait_for(queue.all.wait(), 10)
            assert queue.taken == list(range(1000))
            assert queue.wakes == 2  # one for each time that we wrote

    run(main())


def test_an_event_that_comes_while_others_are_taken_is_not_forgotten(
    run: Callable[[object], None],
) -> None:
    """Events that a thread brings one at a time, as fast as it can, are all taken."""

    async def main() -> None:
        with waking([]) as (queue, theirs):

            def bring() -> None:
                for number in range(1000):
                    queue.events.append(number)
                    theirs.sendall(b"1")

            thread = threading.Thread(target=bring)
            thread.start()
            await asyncio.wait_for(queue.all.wait(), 10)
            thread.join()
            assert queue.taken == list(range(1000))

    run(main())


def test_any_other_reader_finds_every_byte(run: Callable[[object], None]) -> None:
    """What a connector reads from a socket of its own is left as it came."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(b"all of this")
        loop = asyncio.get_running_loop()
        came = loop.create_future()
        loop.add_reader(ours, lambda: came.done() or came.set_result(ours.recv(100)))
        assert await asyncio.wait_for(came, 10) == b"all of this"
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    run(main())


@linux
def test_the_policy_of_an_operator_is_left_alone() -> None:
    """Threads of a process that was given another policy begin with that one."""
    seen: list[int] = []

    def measured() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with patient_threads():
            thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
            thread.start()
            thread.join()
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=measured)  # the policy is a thread's own
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]
