"""The only place where connector code runs: awaited or offloaded, within its deadline."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
import types
from collections.abc import AsyncIterator, Iterator, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from connector_service.errors import ConnectorFault, DeadlineError
from connector_service.runtime.alarms import Alarms, Slot
from connector_service.runtime.private_loop import PrivateLoop
from connector_service.runtime.threads import AbandonedCall, Threads
from connector_service.sdk.deadline import DEADLINE
from connector_service.sdk.method import Method, Style

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator

__all__ = ["Invoker", "contain"]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_THREADS_PER_CONNECTOR = 32
_CLOSING = 5.0  # seconds that an async generator gets for its `finally`
_END = object()
_NONE: Mapping[str, Any] = {}
_LATE = "The connector did not answer within the call's deadline."
_CANCELLED = "The connector cancelled itself."
_CLOSE_FAILED = "A connector's generator failed while it was closed."


class Invoker:
    """Runs methods of connectors; every connector's plain ``def`` code has its own threads."""

    def __init__(self, threads: Callable[[str], int] | int = _THREADS_PER_CONNECTOR) -> None:
        """Take how many plain ``def`` calls of one connector run at a time, by its task type."""
        self._threads = threads
        self._lanes: dict[int, _Lane] = {}
        self._alarms = Alarms()

    def invoke(
        self, method: Method, arguments: Mapping[str, Any], deadline: float | None = None
    ) -> Awaitable[Any]:
        """Run one method to its value.

        Raises:
            DeadlineError: ``deadline`` passed first. An ``async def`` is cancelled; a plain
                ``def`` cannot be: it is abandoned, and its thread goes on to its end.
            UnavailableError: So many of the connector's threads are abandoned that it has none.
            ConnectorFault: The code raised what would end a process (SystemExit) or cancelled
                itself. Other exceptions come out as they are.
        """
        return self._held(deadline, self._lane(method).way(method), arguments)

    def operate(
        self,
        method: Method,
        read: Callable[[Any], Mapping[str, Any]],
        write: Callable[[Any, Any], Any],
        call: Any,
        deadline: float | None,
    ) -> Awaitable[Any]:
        """Run one method on what ``read`` makes of a call, and ``write`` what it returns.

        Both may run connector code, of its resource meta. Raises as ``invoke``.
        """
        return self.prepare(method, read, write)(call, deadline)

    def prepare(
        self,
        method: Method,
        read: Callable[[Any], Mapping[str, Any]],
        write: Callable[[Any, Any], Any],
    ) -> Callable[[Any, float | None], Awaitable[Any]]:
        """Return what runs one method as ``operate`` does, given a call and its deadline."""
        lane, held = self._lane(method), self._held
        moved, way = lane.loop, lane.way(method)

        def begin(call: Any, deadline: float | None) -> Awaitable[Any]:
            nonlocal moved, way
            if lane.loop is not moved:
                moved, way = lane.loop, lane.way(method)
            return held(deadline, way, _NONE, read, write, call)

        return begin

    def hold(self, wait: Callable[[], Awaitable[Any]], deadline: float | None) -> Awaitable[Any]:
        """Wait, in this task, for what another one brings; raises as ``invoke``."""
        return self._held(deadline, wait)

    async def iterate(
        self, method: Method, arguments: Mapping[str, Any], deadline: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """Run one method and yield its items: what it yields, or the one value it returns.

        Close it when you stop reading: that runs the ``finally`` of the connector's generator.

        Raises:
            DeadlineError, UnavailableError, ConnectorFault: As ``invoke``.
        """
        if method.style is Style.ASYNC_GENERATOR:
            source: Any = method.function(**arguments)
        elif method.style is Style.GENERATOR:
            source = method.function(**arguments)
        else:
            source = await self.invoke(method, arguments, deadline)
        lane = self._lane(method)
        step: Callable[[], Awaitable[Any]]
        close: Callable[[], Awaitable[None]]
        if isinstance(source, AsyncIterator) and lane.loop is not None:
            stream = lane.loop.stream(source, _END)
            step, close = stream.next, stream.close
        elif isinstance(source, AsyncIterator):
            step = functools.partial(_step_async, source)
            close = functools.partial(self._close_async, source)
        elif isinstance(source, Iterator):
            threads, steps = lane.threads, _Steps(source)
            step = functools.partial(threads.run, method.operation, steps.next)
            close = functools.partial(self._close_threaded, threads, method.operation, steps)
        else:
            yield source
            return
        try:
            while True:
                item = await self._held(deadline, step)
                if item is _END:
                    return
                yield item
        finally:
            await close()

    def abandoned(self) -> list[AbandonedCall]:
        """List the plain ``def`` calls that run on though their callers have gone."""
        return [call for lane in list(self._lanes.values()) for call in lane.threads.abandoned()]

    def isolate(self, connector: object) -> None:
        """Run the connector's coroutines on a loop of their own from now on; from any thread.

        Coroutines that run already end where they began. What the connector bound to the common
        loop (a client session, a lock) may refuse to work on the new one.
        """
        lane = self._lane_of(connector)
        if lane.loop is None:
            lane.loop = PrivateLoop(type(connector).__name__)

    def isolated(self) -> list[str]:
        """Name the connectors whose coroutines run on loops of their own."""
        return [lane.name for lane in list(self._lanes.values()) if lane.loop is not None]

    def shutdown(self) -> None:
        """Stop taking calls; threads still running are left to end by themselves."""
        for lane in list(self._lanes.values()):
            lane.threads.close()
            if lane.loop is not None:
                lane.loop.close()

    async def _held(
        self,
        deadline: float | None,
        make: Callable[..., Awaitable[Any]],
        arguments: Mapping[str, Any] = _NONE,
        read: Callable[[Any], Mapping[str, Any]] | None = None,
        write: Callable[[Any, Any], Any] | None = None,
        call: Any = None,
    ) -> Any:
        """Await connector code; hold it to its deadline, and what would end the process in it.

        Code that never waits can be held to no deadline, so it is watched from its first wait on.
        """
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineError("The deadline passed before the call began.")
        waits = False
        token = DEADLINE.set(deadline)
        try:
            coming = make(**(arguments if read is None else read(call)))
            steps = coming if type(coming) is CoroutineType else _await(coming)
            try:
                waits_for = steps.send(None)
            except StopIteration as end:
                value = end.value
            else:
                waits = True
                value = await self._watched(steps, waits_for, deadline)
                waits = False
            return value if write is None else write(value, call)
        except Exception:
            raise
        except asyncio.CancelledError as error:
            if waits:
                raise  # the caller has gone
            raise ConnectorFault(_CANCELLED) from error
        except BaseException as error:
            # Escaping, SystemExit and KeyboardInterrupt would stop the event loop, and with it
            # every other connector; of any other that is no Exception the caller would never hear.
            raise ConnectorFault(f"The connector raised {type(error).__name__}.") from error
        finally:
            DEADLINE.reset(token)

    async def _watched(
        self, steps: Coroutine[Any, Any, Any], waits_for: Any, deadline: float | None
    ) -> Any:
        """Go on with a coroutine that waits, in this task, which is cancelled at its deadline."""
        task = self._alarms.task()
        before = task.cancelling()
        slot: Slot = {}
        mark = None
        if deadline is not None:
            slot, mark = self._alarms.slot(deadline, time.monotonic()), object()
            slot[mark] = task
        try:
            return await _rest(steps, waits_for)
        except Exception as error:
            # Some libraries turn the cancellation that a deadline is into an error of their own.
            if mark is not None and mark not in slot:
                raise DeadlineError(_LATE) from error
            raise
        except asyncio.CancelledError as error:
            late = mark is not None and mark not in slot
            if task.cancelling() - late > before:
                raise
            if late:
                raise DeadlineError(_LATE) from error
            raise ConnectorFault(_CANCELLED) from error
        finally:
            if mark is not None and slot.pop(mark, None) is None:
                task.uncancel()

    async def _close_threaded(self, threads: Threads, operation: str, steps: _Steps) -> None:
        if not steps.leave():
            return
        deadline = time.monotonic() + _CLOSING
        try:
            await self._held(deadline, functools.partial(threads.run, operation, steps.finish))
        except Exception:  # noqa: BLE001 - as below
            _log.warning(_CLOSE_FAILED, exc_info=True)

    async def _close_async(self, source: AsyncIterator[Any]) -> None:
        close = getattr(source, "aclose", None)
        if close is None:
            return
        try:
            await self._held(time.monotonic() + _CLOSING, close)
        except Exception:  # noqa: BLE001 - its reader has what it came for, or has gone
            _log.warning(_CLOSE_FAILED, exc_info=True)

    def _lane(self, method: Method) -> _Lane:
        connector = getattr(method.function, "__self__", method.function)
        return self._lanes.get(id(connector)) or self._lane_of(connector)

    def _lane_of(self, connector: object) -> _Lane:
        # One step for the interpreter, so that two threads get one lane.
        return self._lanes.setdefault(id(connector), _Lane(connector, self._threads))


class _Lane:
    """What one connector's code runs on."""

    def __init__(self, connector: Any, threads: Callable[[str], int] | int) -> None:
        self.connector = connector  # held, so that its id stays its own
        self.name = type(connector).__name__
        self.loop: PrivateLoop | None = None
        category = getattr(connector, "task_category", None)
        task_type = "" if category is None else category.name
        self.threads = Threads(self.name, threads(task_type) if callable(threads) else threads)

    def way(self, method: Method) -> Callable[..., Awaitable[Any]]:
        """Return what is called in place of a method, with its arguments, and awaited."""
        if method.style is not Style.COROUTINE:
            return functools.partial(
                self.threads.run, method.operation, method.function, self._follow
            )
        if self.loop is None:
            return method.function
        return functools.partial(self.loop.run, method.function)

    def _follow(self, value: Awaitable[Any]) -> Awaitable[Any]:
        """Say how what a plain ``def`` returned is awaited, when that is to be."""
        return value if self.loop is None else self.loop.run(lambda: value)


class _Steps:
    """Steps an iterator on threads, and closes it when no step of it is running.

    A running step cannot be interrupted. When its reader leaves, the step itself closes the
    iterator at its own end, on its own thread, so that a generator's ``finally`` always runs.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._changing = threading.Lock()
        self._running = False
        self._left = False

    def next(self) -> Any:
        with self._changing:
            if self._left:
                return _END
            self._running = True
        try:
            return next(self._source, _END)
        finally:
            with self._changing:
                self._running = False
                left = self._left
            if left:
                self.finish()

    def leave(self) -> bool:
        """Read no more; tell whether the caller is to ``finish``, since no step is running."""
        with self._changing:
            self._left = True
            return not self._running

    def finish(self) -> None:
        close = getattr(self._source, "close", None)
        try:
            if close is not None:
                close()
        except BaseException:  # noqa: BLE001 - its reader has gone; only the log is left to tell
            _log.warning(_CLOSE_FAILED, exc_info=True)


def contain(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call connector code that is no operation: its meta's ``encode``, its ``decode``.

    Raises:
        ConnectorFault: As ``Invoker.invoke``.
    """
    try:
        return function(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        raise ConnectorFault(f"The connector raised {type(error).__name__}.") from error


@types.coroutine
def _rest(steps: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that has begun and waits, for what its first step brought."""
    try:
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                waits_for = steps.throw(error)
            else:
                waits_for = steps.send(sent)
    except StopIteration as end:
        return end.value


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _step_async(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)
