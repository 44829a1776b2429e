"""What other threads have for a loop: all of it arrives, for as few wake-ups as it takes."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

from connector_service.runtime.reply import Mailbox, Reply

PATIENCE = 30.0


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that counts how often it was woken."""

    woken = 0

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, **more: Any) -> Any:
        self.woken += 1
        return super().call_soon_threadsafe(callback, *args, **more)


class Value:
    """Something that a weak reference can follow."""


async def settle_on_threads(replies: list[Reply], threads: int) -> list[Any]:
    def settle(mine: list[tuple[int, Reply]]) -> None:
        for number, reply in mine:
            reply.settle((number, None))

    numbered = list(enumerate(replies))
    running = [
        threading.Thread(target=settle, args=(numbered[first::threads],))
        for first in range(threads)
    ]
    for thread in running:
        thread.start()
    async with asyncio.timeout(PATIENCE):
        values = [await reply for reply in replies]
    for thread in running:
        thread.join()
    return values


async def test_of_racing_replies_none_is_lost() -> None:
    """Each of thousands of replies reaches its own waiter, whatever the threads' order."""
    for _ in range(5):
        replies = [Reply() for _ in range(4_000)]
        assert await settle_on_threads(replies, 8) == list(range(4_000))


async def test_one_reply_after_another_is_heard() -> None:
    """A loop that sleeps is woken for each, also in the moment in which it goes to sleep."""
    for number in range(2_000):
        reply = Reply()
        thread = threading.Thread(target=reply.settle, args=((number, None),))
        thread.start()
        async with asyncio.timeout(PATIENCE):
            assert await reply == number
        thread.join()


def test_a_busy_loop_is_woken_once_for_many() -> None:
    """What comes while a loop is busy costs it one wake-up, and not one for each."""

    async def main() -> None:
        replies = [Reply() for _ in range(1_000)]
        before = loop.woken
        thread = threading.Thread(
            target=lambda: [reply.settle((number, None)) for number, reply in enumerate(replies)]
        )
        thread.start()
        thread.join()  # the loop is busy with this
        assert loop.woken - before == 1
        assert [await reply for reply in replies] == list(range(1_000))

    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_a_loop_that_closed_hears_nothing_and_keeps_nothing() -> None:
    """A thread that outlives the loop settles into nowhere, without an error."""

    async def make() -> tuple[Mailbox, Reply]:
        return Mailbox.here(), Reply()

    with asyncio.Runner() as runner:
        box, reply = runner.run(make())
    value = Value()
    gone = weakref.ref(value)
    reply.settle((value, None))
    del value
    gc.collect()
    assert gone() is None
    assert box.loop.is_closed()


def test_the_next_loop_of_a_thread_has_its_own() -> None:
    """Replies of a second loop on the same thread go there, and not to the first."""

    async def main() -> Any:
        reply = Reply()
        thread = threading.Thread(target=reply.settle, args=((1, None),))
        thread.start()
        async with asyncio.timeout(PATIENCE):
            value = await reply
        thread.join()
        return value, Mailbox.here()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert [first.run(main())[0], second.run(main())[0], first.run(main())[0]] == [1, 1, 1]
        assert first.run(main())[1] is not second.run(main())[1]


async def test_a_waiter_that_left_spoils_nothing() -> None:
    """A reply that nobody awaits any more keeps none of those behind it from arriving."""
    left, other = Reply(), Reply()
    waiting = asyncio.ensure_future(_wait(left))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    left.settle((1, None))
    other.settle((2, None))
    async with asyncio.timeout(PATIENCE):
        assert await other == 2


async def _wait(reply: Reply) -> Any:
    return await reply
