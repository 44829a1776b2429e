"""A first step that is run at once, and the task that goes on where it waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from connector_service.runtime.ahead import Ahead

NOTE: ContextVar[str] = ContextVar("note", default="nothing")


@pytest.fixture
async def ahead() -> AsyncIterator[Ahead]:
    made = Ahead()
    yield made
    await made.close()


async def test_what_never_waits_has_ended_at_once(ahead: Ahead) -> None:
    """Neither a task nor a turn of the event loop is needed for it."""
    done = []

    async def work() -> None:
        done.append(True)

    assert ahead.begin(work()) is None
    assert done == [True]


async def test_a_step_is_in_a_task_of_its_own_and_stays_in_it(ahead: Ahead) -> None:
    """The current task is never the caller's, and is the same before and after a wait."""
    seen = []

    async def work() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    caller = asyncio.current_task()
    task = ahead.begin(work())
    assert asyncio.current_task() is caller
    assert task is not None
    await task
    assert seen == [task, task]
    assert task is not caller


async def test_a_timeout_set_before_the_first_wait_ends_the_work_alone(ahead: Ahead) -> None:
    """``asyncio.timeout`` cancels the task in which it was entered: never the caller's."""
    ended = asyncio.Event()

    async def work() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        ended.set()

    task = ahead.begin(work())
    await ended.wait()
    caller = asyncio.current_task()
    assert caller is not None
    assert not caller.cancelling()
    assert task is not None
    await task


async def test_a_context_is_the_works_own_on_both_sides_of_a_wait(ahead: Ahead) -> None:
    """What it sets its caller does not see, and a token from before the wait is good after it."""
    NOTE.set("the caller's")
    seen = []

    async def work() -> None:
        token = NOTE.set("the work's")
        await asyncio.sleep(0)
        seen.append(NOTE.get())
        NOTE.reset(token)
        seen.append(NOTE.get())

    task = ahead.begin(work())
    assert NOTE.get() == "the caller's"
    assert task is not None
    await task
    assert seen == ["the work's", "the caller's"]


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_cancellation_reaches_the_work_whenever_it_comes(ahead: Ahead, turns: int) -> None:
    """Also before the task has had a turn of its own, and it takes what is waited for along."""
    heard = []
    waited_for = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await waited_for
        except asyncio.CancelledError:
            heard.append(True)
            raise

    task = ahead.begin(work())
    assert task is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == [True]
    assert waited_for.cancelled()


async def test_what_was_cancelled_may_go_on(ahead: Ahead) -> None:
    """As in any task, the work may catch its cancellation and wait again."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        begun.set()
        await go.wait()

    task = ahead.begin(work())
    assert task is not None
    task.cancel()
    await begun.wait()
    go.set()
    await task


async def test_an_error_before_the_first_wait_is_the_callers_to_hear(ahead: Ahead) -> None:
    """It is raised where the work was begun, and the next work begins as any other."""

    async def fails() -> None:
        raise ValueError("at once")

    async def works() -> None:
        pass

    with pytest.raises(ValueError, match="at once"):
        ahead.begin(fails())
    assert ahead.begin(works()) is None


async def test_a_task_serves_again_unless_something_kept_hold_of_it(ahead: Ahead) -> None:
    """A stranger's later cancel must not hit the next work; what nobody knows is as good as new."""
    names = []

    async def unseen() -> None:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())

    for _ in range(3):
        ahead.begin(unseen())
    assert len(set(names)) == 1

    kept: list[asyncio.Task[object] | None] = []

    async def seen() -> None:
        kept.append(asyncio.current_task())

    for _ in range(3):
        ahead.begin(seen())
    assert len({id(task) for task in kept}) == 3

    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())
        task.cancel()

    for _ in range(2):
        ahead.begin(cancels())
    assert names[-1] != names[-2]


async def test_work_may_begin_work(ahead: Ahead) -> None:
    """Steps nest: each is in a task of its own, and each finds itself in it again."""
    seen = []

    async def inner() -> None:
        seen.append(asyncio.current_task())

    async def outer() -> None:
        before = asyncio.current_task()
        ahead.begin(inner())
        seen.append(asyncio.current_task())
        assert before is seen[-1]

    assert ahead.begin(outer()) is None
    assert len({id(task) for task in seen}) == 2


async def test_closing_leaves_no_task_behind(ahead: Ahead) -> None:
    """What sleeps ends with its owner, so a loop that closes finds nothing that is pending."""

    async def work() -> None:
        pass

    ahead.begin(work())
    assert len(asyncio.all_tasks()) == 2
    await ahead.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_one_owner_serves_loop_after_loop() -> None:
    """A tool runs one loop after another; no task of an old one is used in a new one."""
    ahead = Ahead()

    async def work() -> None:
        pass

    async def main() -> None:
        assert ahead.begin(work()) is None
        await ahead.close()

    async def leaves() -> None:
        assert ahead.begin(work()) is None

    asyncio.run(main())
    asyncio.run(leaves())  # its runner cancels what sleeps
    asyncio.run(main())
