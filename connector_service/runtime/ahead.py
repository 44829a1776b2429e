"""Runs the first step of a coroutine at once, and in a task of its own only if it has to wait.

A coroutine that never waits needs no turn of the event loop. But the code in it may ask in which
task it runs: ``asyncio.timeout`` and much else cancels that one later. So the step runs in the
name of a task that is really there, and sleeps. When the coroutine waits, that task goes on with
it; when it does not, the task sleeps on until the next one, unless something got hold of it. In
either case the coroutine has its own context, as in any task, and lives on without its caller.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from collections.abc import Coroutine, Generator
from typing import Any, NoReturn

__all__ = ["Ahead"]

# Documented for whoever makes tasks ("Extending" in asyncio's reference), under these names.
_enter_task, _leave_task = asyncio._enter_task, asyncio._leave_task  # noqa: SLF001

_MOST_IDLE = 4  # tasks; more than one only where a step itself begins another


class Ahead:
    """Begins coroutines for their callers; ``close`` it."""

    def __init__(self) -> None:
        """Begin with no task."""
        self._idle: list[tuple[asyncio.Task[None], _Sleeper]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run ``work`` until it waits, and return the task that goes on with it; None if it ended.

        Raises:
            BaseException: What ``work`` raised before it waited.
        """
        loop = self._loop
        caller = None if loop is None else asyncio.current_task(loop)
        if loop is None or caller is None:  # another loop is a test's or a tool's
            loop = self._loop = asyncio.get_running_loop()
            caller = asyncio.current_task(loop)
            self._idle = []
        idle = self._idle
        task, sleeper = idle.pop() if idle else self._make(loop)
        if task.done() or task.cancelling():  # by its work, or by who cancels all tasks
            task, sleeper = self._make(loop)
        held, watched = sys.getrefcount(task), weakref.getweakrefcount(task)
        context = contextvars.copy_context()
        if caller is not None:
            _leave_task(loop, caller)
        _enter_task(loop, task)
        try:
            sleeper.go_on(work, context.run(work.send, None), context)
        except StopIteration:
            return None
        finally:
            _leave_task(loop, task)
            if caller is not None:
                _enter_task(loop, caller)
            if not sleeper.awake:
                if (
                    sys.getrefcount(task) == held
                    and weakref.getweakrefcount(task) == watched
                    and len(idle) < _MOST_IDLE
                ):
                    idle.append((task, sleeper))
                else:
                    sleeper.end()
        return task

    async def close(self) -> None:
        """End the tasks that sleep."""
        ending, self._idle = self._idle, []
        for _, sleeper in ending:
            sleeper.end()
        await asyncio.gather(*(task for task, _ in ending), return_exceptions=True)

    def _make(self, loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Task[None], _Sleeper]:
        sleeper = _Sleeper(loop)
        return asyncio.Task(sleeper, loop=loop, context=contextvars.Context()), sleeper


class _Sleeper(Coroutine[Any, Any, None]):
    """What a task runs: nothing, until it is given a coroutine to go on with.

    It is no coroutine function: what is thrown into one before its first step never gets to the
    coroutine that it would have gone on with.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.awake = False
        self._loop = loop
        self._bell: asyncio.Future[None] | None = None
        self._work: Coroutine[Any, Any, None] | None = None
        self._waited: Any = None
        self._waits = False
        self._context: contextvars.Context | None = None

    def go_on(
        self, work: Coroutine[Any, Any, None], waited: Any, context: contextvars.Context
    ) -> None:
        """Go on with ``work`` in its context; it waits for ``waited``."""
        self._work, self._waited, self._waits, self._context = work, waited, True, context
        self.end()

    def end(self) -> None:
        """Sleep no more."""
        self.awake = True
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def send(self, value: None) -> Any:
        """Sleep, or take the next step."""
        if not self.awake:
            self._bell = self._loop.create_future()
            return next(self._bell.__await__())
        if self._work is None or self._context is None:
            raise StopIteration
        if self._waits:  # the task waits for it in our place
            self._waits = False
            return self._waited
        return self._context.run(self._work.send, value)

    def throw(self, error: Any, *_rest: Any) -> Any:
        """Hand on what a cancellation is."""
        if self._work is None or self._context is None:
            raise error
        if self._waits:
            self._waits = False
            if asyncio.isfuture(self._waited):
                self._waited.cancel()  # as the task would have, which does not know it yet
        return self._context.run(self._work.throw, error)

    def close(self) -> None:
        """Close what has not ended."""
        if self._work is not None:
            self._work.close()

    def __await__(self) -> Generator[Any, None, NoReturn]:
        """Be awaited by nobody: a task runs it."""
        raise TypeError("Give it to a task.")
