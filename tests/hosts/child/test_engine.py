"""The engine: where a connector's code runs, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from connector_service.hosts.child.connector_host.engine import (
    Engine,
    Failure,
    Lane,
    Method,
    Refusal,
    invoke,
    iterate,
)
from connector_service.hosts.child.connector_host.facts import describe
from connector_service.hosts.child.connector_host.plan import Fit
from connector_service.hosts.child.connector_host.table import Found, Plugin, Served, Table

STACK: contextvars.ContextVar[list[str]] = contextvars.ContextVar("stack")
PATIENCE = 30.0


@pytest.fixture
def lane() -> Iterator[Lane]:
    token = STACK.set(["main"])
    yield Engine(2).lane(object(), "Test", prepare=lambda: STACK.set(list(STACK.get())) and None)
    STACK.reset(token)


async def run(lane: Lane, function: Any, **arguments: Any) -> Any:
    """Run one method as a source does."""
    method = Method(function)
    return await asyncio.wait_for(lane.run(lambda: invoke(lane, method, arguments)), PATIENCE)


async def test_every_call_sees_the_main_context_and_keeps_its_own(lane: Lane) -> None:
    """Context variables of the main thread are there, on the loop and on threads, fresh each."""

    def plain() -> list[str]:
        STACK.get().append("plain")
        return STACK.get()

    async def coroutine() -> list[str]:
        STACK.get().append("coroutine")
        return STACK.get()

    for _ in range(2):
        assert await run(lane, plain) == ["main", "plain"]
        assert await run(lane, coroutine) == ["main", "coroutine"]


async def test_a_plain_function_that_returns_an_awaitable_is_awaited(lane: Lane) -> None:
    """Decorators make such of a coroutine function; it runs on the connector's loop."""

    async def inner() -> str:
        return threading.current_thread().name

    def outer() -> Any:
        return inner()

    assert await run(lane, outer) == await run(lane, inner) == "connector-Test-loop"


async def test_blocked_threads_whose_callers_left_make_room(lane: Lane) -> None:
    """Calls that nobody waits for any more do not use up the connector's threads."""
    release = threading.Event()
    begun = threading.Semaphore(0)

    def block() -> None:
        begun.release()
        release.wait(PATIENCE)

    calls = [asyncio.ensure_future(run(lane, block)) for _ in range(2)]
    for _ in calls:
        assert await asyncio.to_thread(begun.acquire, True, PATIENCE)
    waiting = asyncio.ensure_future(run(lane, lambda: "done"))
    await asyncio.sleep(0.05)
    assert not waiting.done()  # at most two run
    for call in calls:
        call.cancel()
    assert await asyncio.wait_for(waiting, PATIENCE) == "done"
    release.set()
    assert [await run(lane, lambda: 1) for _ in range(10)] == [1] * 10


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
async def test_no_exception_ends_the_loop(lane: Lane, kind: type[BaseException]) -> None:
    """What would end a thread or a loop comes out as a failure; the next call is served."""

    async def coroutine() -> None:
        raise kind

    def plain() -> None:
        raise kind

    async def spawning() -> None:
        async def task() -> None:
            raise kind

        spawned = asyncio.get_running_loop().create_task(task())
        with contextlib.suppress(BaseException):
            await spawned

    for function in (coroutine, plain):
        with pytest.raises(Failure):
            await run(lane, function)
    with contextlib.suppress(Failure):
        await run(lane, spawning)
    assert await run(lane, lambda: "alive") == "alive"


async def test_a_coroutine_that_cancels_itself_is_a_failure(lane: Lane) -> None:
    """The caller has not left, so it hears of it."""

    async def cancelling() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Failure) as caught:
        await run(lane, cancelling)
    assert json.loads(caught.value.facts)["mro"][0] == "asyncio.exceptions.CancelledError"


@pytest.mark.parametrize("shape", ["async generator", "generator", "list", "value", "none"])
async def test_logs_come_in_any_shape(lane: Lane, shape: str) -> None:
    """What a method yields, a list's items, and one value are all read alike."""

    async def asynchronous() -> AsyncIterator[int]:
        yield 1
        yield 2

    def generator() -> Iterator[int]:
        assert threading.current_thread().name == "connector-Test"
        yield 1
        yield 2

    functions = {
        "async generator": asynchronous,
        "generator": generator,
        "list": lambda: [1, 2],
        "value": lambda: 1,
        "none": lambda: None,
    }
    method = Method(functions[shape])

    async def read() -> list[Any]:
        return [item async for item in iterate(lane, method, {})]

    expected = {"value": [1], "none": []}.get(shape, [1, 2])
    assert await asyncio.wait_for(lane.run(read), PATIENCE) == expected


def test_a_method_gets_what_it_takes() -> None:
    """Without ``**kwargs`` only what it names; a meta by another name; a connection's keys."""

    def named(task_template: Any, inputs: Any) -> None: ...
    def own(meta: Any) -> None: ...
    def everything(resource_meta: Any, **kwargs: Any) -> None: ...
    def demanding(resource_meta: Any, password: str, user: str = "") -> None: ...

    given = {"task_template": 1, "inputs": 2, "output_prefix": 3}
    fit = Fit("C", Method(named), tuple(given))
    assert fit.arguments(given) == {"task_template": 1, "inputs": 2}
    meta = {"resource_meta": 1}
    assert Fit("C", Method(own), ("resource_meta",)).arguments(meta) == {"meta": 1}
    fit = Fit("C", Method(everything), ("resource_meta",))
    assert fit.arguments(meta, {"a": "b"}) == {"resource_meta": 1, "a": "b"}
    with pytest.raises(Refusal, match="rename it"):
        fit.arguments(meta, {"resource_meta": "b"})
    fit = Fit("C", Method(demanding), ("resource_meta",))
    assert fit.arguments(meta, {"password": "p", "else": "e"}) == {
        "resource_meta": 1,
        "password": "p",
    }
    with pytest.raises(Refusal, match="needs password"):
        fit.arguments(meta)


def test_a_description_never_exceeds_what_metadata_takes() -> None:
    """A group of groups of long texts under long class names is cut, and says what it is."""
    kinds = [type(f"Long{'x' * 300}{number}", (Exception,), {}) for number in range(20)]
    leaf = type("Leaf", tuple(kinds), {})("é" * 9_000)
    group = ExceptionGroup("top", [ExceptionGroup("g" * 2_000, [leaf] * 20)] * 20)
    for error in (leaf, group):
        data = describe(error)
        assert len(data) <= 6_000
        assert json.loads(data)["mro"][0].endswith(type(error).__name__)


def test_botocores_response_is_told() -> None:
    """Its dictionary crosses as the two things that are judged."""
    error = Exception("throttled")
    error.response = {  # type: ignore[attr-defined]
        "Error": {"Code": "Throttling"},
        "ResponseMetadata": {"HTTPStatusCode": 429, "HTTPHeaders": {"retry-after": "4", "x": "y"}},
    }
    assert json.loads(describe(error))["response"] == {
        "ResponseMetadata": {"HTTPStatusCode": 429, "HTTPHeaders": {"retry-after": "4"}}
    }


def test_of_two_offers_of_a_category_the_first_wins() -> None:
    """The second source's plugin says what it lost to whom; the rest of it is served."""

    def offer(name: str, *types: str) -> Found:
        connector = object()
        lane = Engine(1).lane(connector, name)
        served = [
            Served((kind, 0), name, False, ("flyteidl",), connector, lane, {}) for kind in types
        ]
        plugin = Plugin(name, name, "loaded", categories=[(kind, 0) for kind in types])
        return Found(served, [plugin], {"flyteidl": None})

    table = Table([offer("one", "a"), offer("two", "a", "b"), offer("three", "b")])
    assert {key: one.name for key, one in table.by_protocol["flyteidl"].items()} == {
        ("a", 0): "one",
        ("b", 0): "two",
    }
    one, two, three = table.plugins
    assert (one.state, one.error) == ("loaded", "")
    assert (two.state, two.categories) == ("loaded", [("b", 0)])
    assert "one of another source of this host has a (v0) already" in two.error
    assert (three.state, three.categories) == ("failed", [])
    assert [agent["categories"] for agent in table.agents()] == [[["a", 0]], [["b", 0]]]
