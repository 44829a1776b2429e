"""The only place where connector code runs: awaited or offloaded, within its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConnectorFault, DeadlineError
from connector_service.sdk.method import Method, Style

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Invoker"]

_THREADS_PER_CONNECTOR = 32
_END = object()


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
    ) -> AsyncIterator[Any]:
        """Run one method and yield its items: what it yields, or the one value it returns.

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
        elif isinstance(source, Iterator):
            step = functools.partial(self._offload, method, functools.partial(next, source, _END))
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
            await self._close(method, source)

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

    async def _close(self, method: Method, source: Any) -> None:
        """Let a generator run its ``finally``, whoever stopped reading."""
        with contextlib.suppress(Exception):
            if inspect.isasyncgen(source):
                await source.aclose()
            elif inspect.isgenerator(source):
                await self._offload(method, source.close)


@contextlib.asynccontextmanager
async def _guarded(deadline: float | None) -> AsyncIterator[None]:
    """Hold connector code to its deadline, and hold what would end the process in it."""
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("The deadline passed before the call began.")
    try:
        async with asyncio.timeout(remaining) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise DeadlineError(
                "The connector did not answer within the call's deadline."
            ) from None
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the caller has gone
        raise ConnectorFault("The connector cancelled itself.") from error
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        # Escaping, these would stop the event loop, and with it every other connector.
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
