"""Which polls go together, and what becomes of each of them; told by events, not by clocks."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service import GoneError, Resource, time_remaining
from connector_service.errors import AuthorError, ConnectorFault, DeadlineError, UnavailableError
from connector_service.runtime import batch
from connector_service.runtime.batch import Batches
from connector_service.runtime.invoker import Invoker
from connector_service.sdk.method import Method, Operation
from connector_service.sdk.registry import Registry

PATIENCE = 20.0


class Backend:
    """What a connector asks: every call is noted, and waits at the gate."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.more: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.stopped: list[list[Any]] = []

    async def answer(self, metas: list[Any], more: dict[str, Any]) -> list[Any]:
        self.calls.append(list(metas))
        self.more.append(more)
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.append(list(metas))
            raise
        return [self.one(meta) for meta in metas]

    @staticmethod
    def one(meta: Any) -> Any:
        if isinstance(meta, BaseException):
            return meta
        return Resource(TaskExecution.RUNNING, message=str(meta))

    async def next(self) -> list[Any]:
        """Wait for a call and return its metas."""
        async with asyncio.timeout(PATIENCE):
            await self.begun.wait()
        self.begun.clear()
        return self.calls[-1]


class Scene:
    """Polls of one connector, whose ``get_many`` and ``get`` ask the backend."""

    def __init__(self, fake: Any, invoker: Invoker, size: int = 100, get_many: Any = None) -> None:
        self.backend = Backend()
        self.sizes: list[int] = []

        async def ask(_self: Any, resource_metas: Any, **more: Any) -> Any:
            return await self.backend.answer(resource_metas, more)

        connector = fake(get_many=get_many or ask)
        registry = Registry()
        registry.register(connector)
        method = registry.resolve(connector.task_category).methods[Operation.GET_MANY]
        self.method: Method = method
        self.batches = Batches("Fake", method, size, invoker, self.sizes.append)

    def poll(
        self, meta: Any, *, seconds: float | None = None, **more: Any
    ) -> asyncio.Task[Resource]:
        deadline = None if seconds is None else time.monotonic() + seconds

        async def alone() -> Any:
            (answer,) = await self.backend.answer([meta], {"alone": True})
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return asyncio.create_task(self.batches.ask(meta, more, deadline, alone))

    async def one_out(self) -> asyncio.Task[Resource]:
        """Have one poll out that stays until the gate opens."""
        self.backend.gate.clear()
        first = self.poll("first")
        assert await self.backend.next() == ["first"]
        return first

    async def emptied(self) -> None:
        """Wait until nothing is left of any poll: pauses last for milliseconds."""
        async with asyncio.timeout(PATIENCE):
            while self.batches._lines:  # noqa: ASYNC110 - a timer of its own ends it
                await asyncio.sleep(0.002)


@pytest.fixture
async def invoker() -> AsyncIterator[Invoker]:
    one = Invoker()
    yield one
    one.shutdown()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have polls wait for a call that is out however long a busy machine takes to send them."""
    monkeypatch.setattr(batch, "_OVERDUE", PATIENCE)


@pytest.fixture
def scene(fake: Any, invoker: Invoker) -> Scene:
    return Scene(fake, invoker)


async def texts(polls: list[asyncio.Task[Resource]]) -> list[str | None]:
    async with asyncio.timeout(PATIENCE):
        return [resource.message for resource in await asyncio.gather(*polls)]


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_lone_poll_starts_in_the_next_turn_of_the_loop(scene: Scene) -> None:
    """With nothing out nobody waits for a window: the connector is asked within a few turns."""
    scene.backend.gate.clear()
    poll = scene.poll("a")
    await turns(4)
    assert scene.backend.calls == [["a"]]
    assert scene.backend.more == [{"alone": True}]
    scene.backend.gate.set()
    assert await texts([poll]) == ["a"]
    await scene.emptied()


async def test_polls_of_one_turn_go_together_in_their_order(scene: Scene) -> None:
    """What comes in the same turn of the loop is one call, and each gets its own answer."""
    polls = [scene.poll(name) for name in "abc"]
    assert await texts(polls) == ["a", "b", "c"]
    assert scene.backend.calls == [["a", "b", "c"]]
    assert scene.sizes == [3]


async def test_polls_that_come_while_a_call_is_out_form_the_next(scene: Scene) -> None:
    """They wait for its end, and then go as one."""
    first = await scene.one_out()
    later = [scene.poll(name) for name in "ab"]
    await turns()
    later += [scene.poll("c")]
    await turns()
    assert scene.backend.calls == [["first"]]
    scene.backend.gate.set()
    assert await texts([first, *later]) == ["first", "a", "b", "c"]
    assert scene.backend.calls == [["first"], ["a", "b", "c"]]
    await scene.emptied()


async def test_those_who_were_answered_go_with_those_who_waited(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a call the next waits until all who may ask again have, and no longer."""
    monkeypatch.setattr(batch, "_pause", lambda _took: PATIENCE)
    first = await scene.one_out()
    polls = [scene.poll(number) for number in range(2)]
    await turns()
    scene.backend.gate.set()
    await texts([first])
    await turns()
    assert scene.backend.calls == [["first"]]
    polls.append(scene.poll("again"))
    assert await texts(polls) == ["0", "1", "again"]
    again = [scene.poll(number) for number in range(2)]
    await turns()
    assert scene.backend.calls == [["first"], [0, 1, "again"]]
    again.append(scene.poll(2))
    await texts(again)
    assert scene.backend.calls[2:] == [[0, 1, 2]]


async def test_the_pause_ends_by_itself(scene: Scene) -> None:
    """Who was answered and does not come back holds up the others for milliseconds only."""
    first = await scene.one_out()
    later = scene.poll("later")
    await turns()
    scene.backend.gate.set()
    assert await texts([first, later]) == ["first", "later"]
    await scene.emptied()


async def test_a_lone_poller_never_pauses(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks again as soon as it is answered is asked for at once, each time."""
    monkeypatch.setattr(batch, "_pause", lambda _took: PATIENCE)
    for number in range(3):
        poll = scene.poll(number)
        await turns(6)
        assert poll.done()
    assert scene.backend.calls == [[0], [1], [2]]


async def test_a_full_batch_goes_at_once_though_another_is_out(scene: Scene) -> None:
    """``batch_size`` bounds a call; so many that wait go beside the one that is out."""
    scene.batches.size = 3
    first = await scene.one_out()
    polls = [scene.poll(number) for number in range(8)]
    await turns()
    assert scene.backend.calls == [["first"], [0, 1, 2], [3, 4, 5]]
    scene.backend.gate.set()
    assert len(await texts([first, *polls])) == 9
    assert scene.backend.calls[3:] == [[6, 7]]


async def test_no_more_than_four_calls_are_out(scene: Scene) -> None:
    """However many polls wait, the backend has four calls at a time."""
    scene.batches.size = 2
    scene.backend.gate.clear()
    polls = [scene.poll(number) for number in range(20)]
    await turns()
    assert len(scene.backend.calls) == 4
    scene.backend.gate.set()
    assert await texts(polls) == [str(number) for number in range(20)]
    assert [len(call) for call in scene.backend.calls] == [2] * 10


async def test_a_call_that_hangs_does_not_hold_up_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls wait for a call that is out a quarter of a second at most, and then go beside it."""
    monkeypatch.setattr(batch, "_OVERDUE", 0.01)
    first = await scene.one_out()
    later = [scene.poll(name) for name in "ab"]
    assert await scene.backend.next() == ["a", "b"]
    assert not first.done()
    scene.backend.gate.set()
    await texts([first, *later])
    await scene.emptied()


async def test_polls_with_other_keywords_are_not_mixed(scene: Scene) -> None:
    """One call has one set of keywords; a call of others is out at the same time."""
    scene.backend.gate.clear()
    polls = [scene.poll(f"{token}{n}", token=token) for n in range(2) for token in ("x", "y")]
    await turns()
    assert scene.backend.calls == [["x0", "x1"], ["y0", "y1"]]
    assert scene.backend.more == [{"token": "x"}, {"token": "y"}]
    scene.backend.gate.set()
    assert await texts(polls) == ["x0", "y0", "x1", "y1"]
    await scene.emptied()


async def test_failures_are_their_own_job_s(scene: Scene) -> None:
    """An exception in the list is raised for its job alone, one that would end a process too."""
    gone, odd = GoneError("Purged."), SystemExit(3)
    polls = [scene.poll(meta) for meta in ("a", gone, odd, "b")]
    await asyncio.wait(polls)
    assert polls[0].result().message == "a"
    assert polls[1].exception() is gone
    fault = polls[2].exception()
    assert isinstance(fault, ConnectorFault)
    assert fault.__cause__ is odd
    assert polls[3].result().message == "b"


async def raising(self: Any, resource_metas: Any) -> Any:
    raise KeyError("a bug")


async def exiting(self: Any, resource_metas: Any) -> Any:
    raise SystemExit(1)


async def short(self: Any, resource_metas: Any) -> Any:
    return [Resource(TaskExecution.RUNNING)]


async def mapped(self: Any, resource_metas: Any) -> Any:
    return {meta: Resource(TaskExecution.RUNNING) for meta in resource_metas}


def nothing(self: Any, resource_metas: Any) -> Any:
    return None


class Hostile(list[Any]):
    def __iter__(self) -> Any:
        raise SystemExit("in a list")


async def hostile(self: Any, resource_metas: Any) -> Any:
    return Hostile()


@pytest.mark.parametrize(
    ("get_many", "error", "text"),
    [
        (raising, KeyError, "a bug"),
        (exiting, ConnectorFault, "The connector raised SystemExit."),
        (hostile, ConnectorFault, "The connector raised SystemExit."),
        (short, AuthorError, "Fake.get_many returned 1 answers for 2 jobs; it must return one"),
        (mapped, AuthorError, "Fake.get_many returned dict, not a list with a Resource or"),
        (nothing, AuthorError, "Fake.get_many returned NoneType, not a list"),
    ],
)
async def test_what_is_wrong_with_the_whole_is_every_caller_s(
    fake: Any, invoker: Invoker, get_many: Any, error: type[Exception], text: str
) -> None:
    """An exception of get_many, a wrong length and a wrong type reach all who asked."""
    scene = Scene(fake, invoker, get_many=get_many)
    polls = [scene.poll(name) for name in "ab"]
    await asyncio.wait(polls)
    for poll in polls:
        assert type(poll.exception()) is error
        assert text in str(poll.exception())
    await scene.emptied()


async def test_an_answer_that_is_none_is_its_own_job_s(fake: Any, invoker: Invoker) -> None:
    """An entry that is neither a Resource nor an exception fails that job, and says so."""

    async def partly(self: Any, resource_metas: Any) -> Any:
        return (Resource(TaskExecution.RUNNING), None)

    scene = Scene(fake, invoker, get_many=partly)
    good, bad = scene.poll("a"), scene.poll("b")
    assert (await good).phase == TaskExecution.RUNNING
    with pytest.raises(AuthorError, match=r"Fake.get_many returned NoneType for a job"):
        await bad


async def test_one_exception_for_all_keeps_a_short_traceback(fake: Any, invoker: Invoker) -> None:
    """Raised for a hundred callers, it does not grow by the frames of each of them."""
    scene = Scene(fake, invoker, get_many=raising)
    polls = [scene.poll(number) for number in range(100)]
    await asyncio.wait(polls)
    error = polls[0].exception()
    assert all(poll.exception() is error for poll in polls)
    assert error is not None
    frames, trace = 0, error.__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames < 12


async def test_a_caller_that_leaves_takes_only_itself_out(scene: Scene) -> None:
    """Whether it waits for its turn or is out, the others are answered."""
    first = await scene.one_out()
    waiting = [scene.poll(name) for name in "abc"]
    await turns()
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    scene.backend.gate.set()
    assert await texts([first]) == ["first"]
    scene.backend.gate.clear()
    scene.backend.begun.clear()
    assert await scene.backend.next() == ["a", "c"]
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    assert not scene.backend.stopped
    scene.backend.gate.set()
    assert await texts([waiting[2]]) == ["c"]
    await scene.emptied()


async def test_a_call_that_nobody_waits_for_is_stopped(scene: Scene) -> None:
    """When the last caller leaves, the connector's coroutine is cancelled, and others go on."""
    scene.backend.gate.clear()
    polls = [scene.poll(name) for name in "ab"]
    await scene.backend.next()
    later = scene.poll("later")
    await turns()
    for poll in polls:
        poll.cancel()
    await asyncio.wait(polls)
    await scene.backend.next()
    assert scene.backend.stopped == [["a", "b"]]
    scene.backend.gate.set()
    assert await texts([later]) == ["later"]
    await scene.emptied()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("after", range(5))
async def test_leaving_at_any_moment_leaves_nothing(scene: Scene, count: int, after: int) -> None:
    """However far a call has come when all leave, the next poll finds the way free."""
    scene.backend.gate.clear()
    polls = [scene.poll(number) for number in range(count)]
    await turns(after)
    for poll in polls:
        poll.cancel()
    await asyncio.wait(polls)
    assert all(poll.cancelled() for poll in polls)
    await turns()
    await scene.emptied()
    scene.backend.gate.set()
    assert await texts([scene.poll("next")]) == ["next"]


async def test_each_caller_has_its_own_deadline(scene: Scene) -> None:
    """One whose time is up hears so; the call goes on for the other, until the longest."""
    scene.backend.gate.clear()
    hasty, patient = scene.poll("a", seconds=0.05), scene.poll("b", seconds=PATIENCE)
    with pytest.raises(DeadlineError):
        await hasty
    assert not scene.backend.stopped
    scene.backend.gate.set()
    assert await texts([patient]) == ["b"]


async def test_the_call_sees_the_longest_deadline(fake: Any, invoker: Invoker) -> None:
    """``time_remaining()`` counts to the last caller's; None when one of them has none."""

    async def remaining(self: Any, resource_metas: Any) -> Any:
        text = str(time_remaining())
        return [Resource(TaskExecution.RUNNING, message=text) for _ in resource_metas]

    scene = Scene(fake, invoker, get_many=remaining)
    left = await texts([scene.poll("a", seconds=5.0), scene.poll("b", seconds=50.0)])
    assert left[0] == left[1]
    assert 40.0 < float(left[0] or 0) <= 50.0
    assert await texts([scene.poll("a", seconds=5.0), scene.poll("b")]) == ["None", "None"]


async def test_a_deadline_passes_while_a_poll_waits_for_its_turn(scene: Scene) -> None:
    """It is told in time, and is not asked for any more."""
    first = await scene.one_out()
    with pytest.raises(DeadlineError):
        await scene.poll("late", seconds=0.05)
    scene.backend.gate.set()
    await texts([first])
    await turns()
    assert scene.backend.calls == [["first"]]


async def test_a_plain_def_runs_on_a_thread(fake: Any, invoker: Invoker) -> None:
    """get_many may block: it runs on a thread of its connector, once for all."""
    threads: list[str] = []

    def plain(self: Any, resource_metas: Any) -> Any:
        threads.append(threading.current_thread().name)
        return [Backend.one(meta) for meta in resource_metas]

    scene = Scene(fake, invoker, get_many=plain)
    assert await texts([scene.poll(name) for name in "ab"]) == ["a", "b"]
    assert threads == ["connector-Fake-get_many"]


async def test_when_the_call_alone_is_stopped_its_callers_hear_of_it(scene: Scene) -> None:
    """A loop that cancels every task of its own leaves no caller without an answer."""
    scene.backend.gate.clear()
    before = asyncio.all_tasks()
    polls = [scene.poll(name) for name in "ab"]
    await scene.backend.next()
    for task in asyncio.all_tasks() - before - set(polls):
        task.cancel()
    await asyncio.wait(polls)
    assert [type(poll.exception()) for poll in polls] == [UnavailableError] * 2


def test_a_loop_that_ended_in_a_pause_holds_up_no_other(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls of one loop know nothing of the timers that were left on another."""
    monkeypatch.setattr(batch, "_pause", lambda _took: 2 * PATIENCE)
    invoker = Invoker()

    async def first() -> Scene:
        scene = Scene(fake, invoker)
        await texts([scene.poll(name) for name in "ab"])
        await turns()
        return scene

    scene = asyncio.run(first())

    async def second() -> list[str | None]:
        scene.backend = Backend()
        return await texts([scene.poll("c")])

    assert asyncio.run(second()) == ["c"]
    invoker.shutdown()


async def test_what_a_failed_call_held_is_freed_without_the_collector(
    fake: Any, invoker: Invoker
) -> None:
    """A shared exception makes no circle that would hold what was asked for."""

    class Asked:
        pass

    scene = Scene(fake, invoker, get_many=raising)
    asked = [Asked(), Asked()]
    seen = [weakref.ref(one) for one in asked]
    gc.disable()
    try:
        polls = [scene.poll(one) for one in asked]
        await asyncio.wait(polls)
        assert all(poll.exception() for poll in polls)
        del polls, asked
        await turns()
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()
