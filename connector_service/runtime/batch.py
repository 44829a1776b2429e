"""Answers polls that come together from one call of the connector's ``get_many``.

A poll that finds no call out starts one, at the end of the loop's turn: what was read from the
network in the same turn goes with it. Polls that come while a call is out wait for its end and
then go together. One alone is left to ``get``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from connector_service.errors import AuthorError, ConnectorFault, UnavailableError
from connector_service.runtime.invoker import contain
from connector_service.sdk.resource import Resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    from connector_service.runtime.invoker import Invoker
    from connector_service.sdk.method import Method

    Outcome: TypeAlias = tuple[Any, BaseException | None]

__all__ = ["Batches"]

# Who was answered often asks again at once, as the client's pollers do. So that they go together,
# and not the first of them ahead of all others, the next call waits until as many are there as
# may come, and not longer than this.
_PAUSE_SHARE = 0.1  # of what the call took
_SHORTEST, _LONGEST = 0.01, 0.025  # seconds; never longer than half of what the call took
# A call that hangs must not hold up the polls of all other jobs: so long do they wait for its end.
_OVERDUE = 0.25  # seconds
_MOST_OUT = 4


class Batches:
    """The polls of one connector; it belongs to one event loop at a time."""

    def __init__(
        self,
        name: str,
        method: Method,
        size: int,
        invoker: Invoker,
        count: Callable[[int], None] = lambda _polls: None,
    ) -> None:
        """Take the connector's name, its ``get_many``, how many metas that takes, who runs it.

        ``count`` hears for each call of the connector how many polls it answers.
        """
        self.name = name
        self.method = method
        self.size = size
        self.invoker = invoker
        self.count = count
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: dict[frozenset[tuple[str, Any]], _Line] = {}

    async def ask(
        self,
        meta: Any,
        more: Mapping[str, Any],
        deadline: float | None,
        alone: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Return what the connector answers for one job, and raise what it has for that job.

        ``more`` is what ``get_many`` takes beside the metas: only polls of which it is equal go
        together. ``alone`` asks for this job when no other is there.

        Raises:
            DeadlineError, UnavailableError, ConnectorFault: As ``Invoker.invoke``.
            AuthorError: ``get_many`` returned what it must not.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what waits on another loop, a test's or a tool's, is its own
            self._loop, self._lines = loop, {}
        key = frozenset(more.items())
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self, more, loop, self._lines)
        poll = _Poll(meta, deadline, loop)
        try:
            if line.add(poll):
                await asyncio.sleep(0)  # the rest of this turn of the loop
                line.go()
            if poll.answer.done():
                outcome = poll.answer.result()
            else:
                outcome = await self.invoker.hold(lambda: poll.answer, deadline)
        except BaseException:
            line.leave(poll)
            raise
        if isinstance(outcome, _Batch):
            try:
                return await alone()
            finally:
                line.ended(outcome)
        value, error = outcome
        if error is not None:
            try:
                raise BaseException.with_traceback(error, poll.traceback)
            finally:
                # The traceback holds this frame: a cycle that would hold the request.
                del error, outcome, poll
        return value


class _Poll:
    """One poll: what it asks for, and what it is answered: an outcome, or that it goes alone."""

    __slots__ = ("answer", "batch", "deadline", "meta", "traceback")

    def __init__(self, meta: Any, deadline: float | None, loop: asyncio.AbstractEventLoop) -> None:
        self.meta = meta
        self.deadline = deadline
        self.answer: asyncio.Future[Outcome | _Batch] = loop.create_future()
        self.batch: _Batch | None = None
        # Many may raise one exception, and each adds to its traceback: it is put back for each.
        self.traceback: Any = None


class _Batch:
    """One call that is out; ``task`` None is that of a poll alone, in its caller's own task."""

    __slots__ = ("since", "task", "waiting")

    def __init__(self, since: float, waiting: int) -> None:
        self.since = since
        self.waiting = waiting
        self.task: asyncio.Task[None] | None = None


class _Line:
    """The polls that may go together: those that wait, and those that are out."""

    def __init__(
        self,
        batches: Batches,
        more: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        lines: dict[frozenset[tuple[str, Any]], _Line],
    ) -> None:
        self._batches = batches
        self._more = more
        self._loop = loop
        self._key, self._lines = frozenset(more.items()), lines
        # Ordered, so that one who gives up leaves from the middle at no cost.
        self._waiting: OrderedDict[_Poll, None] = OrderedDict()
        self._out: set[_Batch] = set()
        self._due: asyncio.Handle | None = None
        self._due_at = 0.0
        self._pause_until = 0.0
        self._expected = 0

    def add(self, poll: _Poll) -> bool:
        """Have a poll go with others; True has its caller ``go`` at the end of this turn.

        That costs a poll alone less than a timer or a future that another resolves.
        """
        if not (self._out or self._waiting or self._due):
            self._waiting[poll] = None
            return True
        self._waiting[poll] = None
        if self._is_full():
            self._send()
            self._tidy()
        else:
            self._plan()
        return False

    def leave(self, poll: _Poll) -> None:
        """Do without a poll whose caller has gone; a call that nobody waits for is stopped."""
        self._waiting.pop(poll, None)
        batch = poll.batch
        if batch is not None:
            batch.waiting -= 1
            if not batch.waiting:
                if batch.task is None:
                    self.ended(batch)
                else:
                    batch.task.cancel()
        self._tidy()

    def ended(self, batch: _Batch) -> None:
        """Note that a call is over, and have those who wait go soon."""
        self._out.discard(batch)
        now = self._loop.time()
        self._pause_until = now + _pause(now - batch.since)
        self._expected = len(self._waiting) + batch.waiting
        if self._is_full():
            self._send()
        if self._waiting or self._expected > 1:
            self._plan()
        self._tidy()

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._batches.size and len(self._out) < _MOST_OUT

    def _plan(self) -> None:
        """Have those who wait go now, or after the pause, or when they have waited long enough."""
        now = self._loop.time()
        pausing = now < self._pause_until
        if pausing and len(self._waiting) < self._expected:
            at = self._pause_until
        elif pausing or not self._out:
            at = 0.0
        else:
            at = now + _OVERDUE
        if self._due is not None:
            if self._due_at <= at:
                return
            self._due.cancel()
        self._due = self._loop.call_at(at, self.go) if at else self._loop.call_soon(self.go)
        self._due_at = at

    def go(self) -> None:
        """Have those who wait go now; it is fine when they have gone."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._pause_until = 0.0
        if len(self._out) < _MOST_OUT:
            self._send()
        if self._waiting:
            self._plan()
        self._tidy()

    def _send(self) -> None:
        polls: list[_Poll] = []
        while self._waiting and len(polls) < self._batches.size:
            poll, _ = self._waiting.popitem(last=False)
            if not poll.answer.done():  # else its caller has gone, and is yet to say so
                polls.append(poll)
        if not polls:
            return
        self._pause_until = 0.0
        batch = _Batch(self._loop.time(), len(polls))
        self._out.add(batch)
        for poll in polls:
            poll.batch = batch
        if len(polls) == 1:
            polls[0].answer.set_result(batch)
        else:
            batch.task = self._loop.create_task(self._ask(polls))
            # Not at the task's own end: one that is stopped before it began has none.
            batch.task.add_done_callback(lambda _task: self.ended(batch))
        self._batches.count(len(polls))

    async def _ask(self, polls: Sequence[_Poll]) -> None:
        """Ask for many jobs, and give each poll its own answer."""
        batches = self._batches
        outcomes: Sequence[Outcome] = ()
        try:
            deadlines = [poll.deadline for poll in polls]
            known = [deadline for deadline in deadlines if deadline is not None]
            answers = await batches.invoker.invoke(
                batches.method,
                {"resource_metas": [poll.meta for poll in polls], **self._more},
                max(known) if len(known) == len(deadlines) else None,
            )
            outcomes = contain(_read, batches.name, answers, len(polls))
            del answers
        except Exception as error:  # noqa: BLE001 - it is every caller's
            outcomes = [(None, error)] * len(polls)
        except asyncio.CancelledError:
            gone = UnavailableError("The call ended without an answer; try again.")
            outcomes = [(None, gone)] * len(polls)
            raise
        finally:
            _settle(polls, outcomes)
            # A traceback holds this frame, and would hold the requests with it.
            del polls, outcomes

    def _tidy(self) -> None:
        """Forget what is over; who waited on a line of its own must leave nothing behind."""
        if self._waiting:
            return
        if self._due is not None and self._due_at != self._pause_until:
            self._due.cancel()
            self._due = None
        if self._due is None and not self._out and self._lines.get(self._key) is self:
            del self._lines[self._key]


def _pause(took: float) -> float:
    return min(max(_SHORTEST, took * _PAUSE_SHARE), _LONGEST, took / 2)


def _settle(polls: Sequence[_Poll], outcomes: Sequence[Outcome]) -> None:
    for poll, outcome in zip(polls, outcomes, strict=True):
        if not poll.answer.done():
            if outcome[1] is not None:
                poll.traceback = outcome[1].__traceback__
            poll.answer.set_result(outcome)


def _read(name: str, answers: Any, asked: int) -> list[Outcome]:
    """Read what ``get_many`` returned: for each job a value, or what is raised for it."""
    if not isinstance(answers, (list, tuple)):
        raise AuthorError(
            f"{name}.get_many returned {type(answers).__qualname__}, not a list with a Resource or"
            f" an exception for each job."
        )
    answers = list(answers)
    if len(answers) != asked:
        raise AuthorError(
            f"{name}.get_many returned {len(answers)} answers for {asked} jobs; it must return one"
            f" for each meta, in their order."
        )
    return [_outcome(name, answer) for answer in answers]


def _outcome(name: str, answer: Any) -> Outcome:
    if isinstance(answer, (Resource, Message)):
        return answer, None
    if isinstance(answer, Exception):
        return None, answer
    if isinstance(answer, BaseException):
        fault = ConnectorFault(f"The connector raised {type(answer).__name__}.")
        fault.__cause__ = answer
        return None, fault
    return None, AuthorError(
        f"{name}.get_many returned {type(answer).__qualname__} for a job, not a Resource or an"
        f" exception."
    )
