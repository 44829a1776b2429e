"""The only place where connector code runs: awaited or offloaded, within its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from connector_service.errors import ConnectorFault, DeadlineError
from connector_service.sdk.method import Method, Style

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

__all__ = ["Invoker", "contain"]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_THREADS_PER_CONNECTOR = 32
_CLOSING = 5.0  # seconds that an async generator gets for its `finally`
_END = object()
_CLOSE_FAILED = "A connector's generator failed while it was closed."


class Invoker:
    """Runs methods of connectors; every connector's plain ``def`` code has its own threads."""

    def __init__(self, threads_per_connector: int = _THREADS_PER_CONNECTOR) -> None:
        """Take how many plain ``def`` calls of one connector run at a time."""
        self._threads = threads_per_connector
        self._pools: dict[int, ThreadPoolExecutor] = {}

    async def invoke(
        self, method: Method, arguments: Mapping[str, Any], deadline: float | None = None
    ) -> Any:
        """Run one method to its value.

        Raises:
            DeadlineError: ``deadline`` passed first. An ``async def`` is cancelled; a plain
                ``def`` cannot be, and its thread goes on to its end.
            ConnectorFault: The code raised what would end a process (SystemExit) or cancelled
                itself. Other exceptions come out as they are.
        """
        async with _guarded(deadline):
            if method.style is Style.COROUTINE:
                return await method.function(**arguments)
            value = await self._offload(method, functools.partial(method.function, **arguments))
            return await value if inspect.isawaitable(value) else value

    async def iterate(
        self, method: Method, arguments: Mapping[str, Any], deadline: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """Run one method and yield its items: what it yields, or the one value it returns.

        Close it when you stop reading: that runs the ``finally`` of the connector's generator.

        Raises:
            DeadlineError, ConnectorFault: As ``invoke``.
        """
        if method.style is Style.ASYNC_GENERATOR:
            source: Any = method.function(**arguments)
        elif method.style is Style.GENERATOR:
            source = method.function(**arguments)
        else:
            source = await self.invoke(method, arguments, deadline)
        if isinstance(source, AsyncIterator):
            step = functools.partial(_step_async, source)
            close = functools.partial(_close_async, source)
        elif isinstance(source, Iterator):
            steps = _Steps(source)
            step = functools.partial(self._offload, method, steps.next)
            close = functools.partial(self._offload, method, steps.close)
        else:
            yield source
            return
        try:
            while True:
                async with _guarded(deadline):
                    item = await step()
                if item is _END:
                    return
                yield item
        finally:
            await close()

    def shutdown(self) -> None:
        """Stop taking calls; threads still running are left to end by themselves."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    async def _offload(self, method: Method, function: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        value, error = await asyncio.get_running_loop().run_in_executor(
            self._pool(method), context.run, _capture, function
        )
        if error is not None:
            raise error
        return value

    def _pool(self, method: Method) -> ThreadPoolExecutor:
        connector = getattr(method.function, "__self__", method.function)
        pool = self._pools.get(id(connector))
        if pool is None:
            name = type(connector).__name__
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix=f"connector-{name}")
            self._pools[id(connector)] = pool
        return pool


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
            self._running = True
        try:
            return next(self._source, _END)
        finally:
            with self._changing:
                self._running = False
                left = self._left
            if left:
                self._finish()

    def close(self) -> None:
        with self._changing:
            self._left = True
            running = self._running
        if not running:
            self._finish()

    def _finish(self) -> None:
        close = getattr(self._source, "close", None)
        try:
            if close is not None:
                close()
        except BaseException:  # noqa: BLE001 - its reader has gone; only the log is left to tell
            _log.warning(_CLOSE_FAILED, exc_info=True)


@contextlib.asynccontextmanager
async def _guarded(deadline: float | None) -> AsyncIterator[None]:
    """Hold connector code to its deadline, and hold what would end the process in it."""
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("The deadline passed before the call began.")
    try:
        async with asyncio.timeout(remaining) as scope:
            yield
    except Exception as error:
        # Some libraries turn the cancellation that a deadline is into an error of their own.
        if scope.expired():
            raise DeadlineError(
                "The connector did not answer within the call's deadline."
            ) from error
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the caller has gone
        raise ConnectorFault("The connector cancelled itself.") from error
    except BaseException as error:
        # Escaping, SystemExit and KeyboardInterrupt would stop the event loop, and with it every
        # other connector; of any other that is no Exception the caller would never hear.
        raise ConnectorFault(f"The connector raised {type(error).__name__}.") from error


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


def _capture(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Carry any exception out of a thread as a value.

    An asyncio future refuses StopIteration, and its waiter would then wait for ever.
    """
    try:
        return function(), None
    except StopIteration as error:
        fault = ConnectorFault("The connector raised StopIteration.")
        fault.__cause__ = error
        return None, fault
    except BaseException as error:  # noqa: BLE001 - re-raised by the waiter
        return None, error


async def _step_async(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)


async def _close_async(source: AsyncIterator[Any]) -> None:
    close = getattr(source, "aclose", None)
    try:
        async with _guarded(time.monotonic() + _CLOSING):
            if close is not None:
                await close()
    except Exception:  # noqa: BLE001 - its reader has what it came for, or has gone
        _log.warning(_CLOSE_FAILED, exc_info=True)
