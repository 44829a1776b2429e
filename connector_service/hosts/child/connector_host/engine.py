"""Where connector code runs: one event loop and one pool of threads for each connector."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .facts import describe
from .threads import Threads, attempt

__all__ = ["Engine", "Failure", "Lane", "Method", "Refusal", "Seat", "invoke", "iterate"]

_log = logging.getLogger(__name__)

_END = object()


class Failure(Exception):  # noqa: N818 - what a connector did, not an error of this program
    """Connector code raised; ``facts`` describes what."""

    def __init__(self, name: str, facts: bytes) -> None:
        super().__init__(name)
        self.name = name
        self.facts = facts


class Refusal(Exception):  # noqa: N818 - an answer
    """A call that cannot be answered as asked: a gRPC code by name, and a sentence."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Method:
    """A connector's bound method, and how its code runs; found out once."""

    __slots__ = ("coroutine", "function", "generator", "stream")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.coroutine = inspect.iscoroutinefunction(function)
        self.stream = inspect.isasyncgenfunction(function)
        self.generator = inspect.isgeneratorfunction(function)


class Engine:
    """Makes the lanes, one for each connector object."""

    def __init__(self, threads: int) -> None:
        """Take how many plain calls of one connector run at a time."""
        self.threads = threads
        self._lanes: dict[int, Lane] = {}
        self._seats: dict[int, Seat] = {}

    def seat(self, name: str) -> Seat:
        """Return a place for one connector, where nothing runs yet."""
        return Seat(name, self.threads)

    def keep(self, connector: object, seat: Seat) -> None:
        """Have ``connector`` run where its plugin was imported."""
        self._seats[id(connector)] = seat

    def lane(
        self,
        connector: object,
        name: str,
        *,
        permanent: tuple[type, ...] = (),
        prepare: Callable[[], None] | None = None,
    ) -> Lane:
        """Return the lane of ``connector``; ``prepare`` readies the context of each call."""
        lane = self._lanes.get(id(connector))
        if lane is None:
            seat = self._seats.pop(id(connector), None) or self.seat(name)
            lane = Lane(connector, name, seat, permanent, prepare)
            self._lanes[id(connector)] = lane
        return lane


class Seat:
    """An event loop, for life, on a thread of its own, where one connector runs.

    Clients, pools and caches bind themselves to the loop that they are first used on, and what an
    import leaves in thread-locals (Airflow's operators do) is there for its own thread alone. So a
    plugin is imported where its connector runs. Whatever blocks here blocks this connector alone.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, begun when it is first asked for."""
        if self._loop is None:
            self.begin(lambda: None)
        assert self._loop is not None  # noqa: S101 - for the type checker
        return self._loop

    def begin(self, first: Callable[[], Any]) -> None:
        """Start the thread with ``first``, before its loop runs, and wait until that returned.

        ``first`` runs in the caller's context, and what it sets there the caller has afterwards.

        Raises:
            BaseException: What ``first`` raised; the thread has then ended.
        """
        context = contextvars.copy_context()
        began: Future[asyncio.AbstractEventLoop] = Future()
        threading.Thread(
            target=self._live,
            args=(functools.partial(context.run, first), began),
            name=f"connector-{self.name}-loop",
            daemon=True,
        ).start()
        self._loop = began.result()
        for variable, value in context.items():
            if variable.get(_END) is not value:
                variable.set(value)

    def _live(self, first: Callable[[], Any], began: Future[asyncio.AbstractEventLoop]) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        # asyncio.to_thread's threads: the loop's own default is as many as there are processors.
        loop.set_default_executor(
            ThreadPoolExecutor(self.threads, thread_name_prefix=f"connector-{self.name}-more")
        )
        try:
            first()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            loop.close()
            began.set_exception(error)
            return
        began.set_result(loop)
        while True:
            try:
                loop.run_forever()
                _log.warning("%s stopped its event loop; it goes on", self.name)
            except BaseException:  # noqa: BLE001 - as said below
                # SystemExit and KeyboardInterrupt of a task that the connector itself started.
                _log.warning("a task of %s tried to end the process", self.name, exc_info=True)


class Lane:
    """One connector's loop and its pool of threads."""

    def __init__(
        self,
        connector: object,
        name: str,
        seat: Seat,
        permanent: tuple[type, ...],
        prepare: Callable[[], None] | None,
    ) -> None:
        self.connector = connector  # held, so that its id stays its own
        self.name = name
        self.threads = Threads(name, seat.threads)
        self._seat = seat
        self._base = contextvars.copy_context()
        self._permanent = permanent
        self._prepare = prepare

    async def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``work`` on the connector's loop, as a task with a context of its own.

        Cancelling it cancels the task, and does not wait for it.

        Raises:
            Failure, Refusal: As ``work`` ended.
        """
        loop = self._seat.loop
        errand = _Errand(self, work)
        loop.call_soon_threadsafe(errand.begin)
        try:
            value, error = await errand.done
        except asyncio.CancelledError:
            loop.call_soon_threadsafe(errand.cancel)
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and with it the request
        return value

    def context(self) -> contextvars.Context:
        """Return a context for one call: the main thread's, which no other call changes."""
        context = self._base.copy()
        if self._prepare is not None:
            context.run(self._prepare)
        return context

    def judged(self, error: BaseException) -> BaseException:
        """Turn what connector code raised into what leaves its thread."""
        if isinstance(error, (Failure, Refusal)):
            return error
        return Failure(type(error).__name__[:100], describe(error, self._permanent))


class _Errand:
    """One piece of work, awaited on the main loop and done on the connector's."""

    __slots__ = ("_asking", "_lane", "_left", "_task", "_work", "done")

    def __init__(self, lane: Lane, work: Callable[[], Awaitable[Any]]) -> None:
        self._lane = lane
        self._work = work
        self._asking = asyncio.get_running_loop()
        self._left = False
        self._task: asyncio.Task[None] | None = None
        self.done: asyncio.Future[tuple[Any, BaseException | None]] = self._asking.create_future()

    def begin(self) -> None:
        if not self._left:
            loop = asyncio.get_running_loop()
            # Python 3.10 has no create_task(context=).
            self._task = self._lane.context().run(loop.create_task, self._serve())

    def cancel(self) -> None:
        self._left = True
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        try:
            outcome: tuple[Any, BaseException | None] = await self._work(), None
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the loop
            if self._left:
                return
            outcome = None, self._lane.judged(error)
        with contextlib.suppress(RuntimeError):  # the main loop has ended: nobody listens
            self._asking.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: tuple[Any, BaseException | None]) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


async def invoke(lane: Lane, method: Method, arguments: dict[str, Any]) -> Any:
    """Run a method to its value; on the connector's loop, where ``async def`` code runs."""
    if method.coroutine:
        return await method.function(**arguments)
    value = await lane.threads.run(functools.partial(method.function, **arguments))
    # A plain function around a coroutine function, as decorators make them.
    return await value if inspect.isawaitable(value) else value


async def iterate(
    lane: Lane, method: Method, arguments: dict[str, Any]
) -> AsyncGenerator[Any, None]:
    """Run a method and yield its items: what it yields, a list's, or the one value it returns.

    Close it when you stop reading: that runs the ``finally`` of the connector's generator.
    """
    source: Any
    if method.stream or method.generator:
        source = method.function(**arguments)
    else:
        source = await invoke(lane, method, arguments)
    if hasattr(source, "__aiter__"):
        items = source.__aiter__()
        try:
            async for item in items:
                yield item
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()
    elif isinstance(source, Iterator):
        async with contextlib.aclosing(_step(lane, source)) as steps:
            async for item in steps:
                yield item
    elif isinstance(source, (list, tuple)):
        for item in source:
            yield item
    elif source is not None:
        yield source


async def _step(lane: Lane, source: Iterator[Any]) -> AsyncGenerator[Any, None]:
    """Step an iterator on the connector's threads."""
    stepping = False
    try:
        while True:
            stepping = True
            item = await lane.threads.run(functools.partial(next, source, _END))
            stepping = False
            if item is _END:
                return
            yield item
    finally:
        close = getattr(source, "close", None)
        # A step that still runs cannot be closed under it; the last to let go closes it then.
        if close is not None and not stepping:
            lane.threads.spawn(functools.partial(attempt, close))
