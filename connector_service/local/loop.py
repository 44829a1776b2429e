"""One event loop of our own for local jobs, and a blocking wait for what runs on it.

A thread of its own, so that a job runs alike inside a running event loop (a notebook's) and
outside. One loop for the process's life, since connectors keep clients that belong to a loop.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Running"]

T = TypeVar("T")

_THREAD = "connector-service-local"
_ENDING = 2.0  # seconds that the loop's thread gets when the interpreter ends


class Running(Generic[T]):
    """A coroutine on the shared loop; any thread may wait for it or stop it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Start it, with the caller's context variables.

        Raises:
            RuntimeError: The caller is a coroutine of the shared loop and would wait for itself.
        """
        self._coroutine = coroutine
        self._loop = _shared_loop()
        if threading.current_thread().name == _THREAD:
            coroutine.close()
            raise RuntimeError("A connector's coroutine cannot wait for a local job: use a thread.")
        self._task: asyncio.Task[T] | None = None
        self._ended: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._start)

    def result(self) -> T:
        """Wait for the end and return the value; Python's signal handlers run meanwhile.

        Raises:
            asyncio.CancelledError: It was stopped. What it raises itself comes out as it is.
        """
        return self._ended.result()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, however it ends; tell whether it came within ``timeout`` seconds."""
        return bool(concurrent.futures.wait([self._ended], timeout).done)

    def stop(self) -> None:
        """Cancel it, once, and return; it may have things to do before it ends."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._ended.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(task.result())


_starting = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has the loop, not its thread


def _shared_loop() -> asyncio.AbstractEventLoop:
    with _starting:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop,), name=_THREAD, daemon=True)
            thread.start()
            atexit.register(_finish, loop, thread)
            _loops[os.getpid()] = loop
        return loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _finish(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_ENDING)
    if not loop.is_running():
        loop.close()
