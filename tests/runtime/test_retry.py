"""What is retried, how long is waited, and when nobody waits any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from connector_service.errors import (
    DeadlineError,
    GoneError,
    PermanentError,
    TransientError,
    UnavailableError,
)
from connector_service.runtime.retry import Retry, retried


class Scene:
    """A clock that only moves when somebody sleeps, and a script of what each try raises."""

    def __init__(self, *script: BaseException | str, draw: float = 1.0, cost: float = 0.0) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.tries = 0
        self._script = script
        self._cost = cost
        self.policy = Retry(
            clock=lambda: self.now, sleep=self._sleep, draw=lambda most: most * draw
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def attempt(self) -> str:
        step = self._script[min(self.tries, len(self._script) - 1)]
        self.tries += 1
        self.now += self._cost
        if isinstance(step, BaseException):
            raise step
        return step

    async def run(self, seconds: float | None = 9.0, **options: Any) -> str:
        deadline = None if seconds is None else self.now + seconds
        return await retried(self.attempt, deadline, policy=self.policy, **options)


async def test_a_blip_is_retried() -> None:
    """A connector that fails twice and then answers has answered; waits double."""
    scene = Scene(ConnectionRefusedError(), TimeoutError(), "done")
    heard: list[tuple[BaseException, float]] = []
    assert await scene.run(on_retry=lambda error, wait: heard.append((error, wait))) == "done"
    assert scene.waits == [0.2, 0.4] == [wait for _, wait in heard]


async def test_a_first_try_made_elsewhere_counts_as_the_first() -> None:
    """It is judged and waited for as any other; its time is in what is told at the end."""
    failed = (TimeoutError("one"), 98.0)
    assert await (scene := Scene("done")).run(failed=failed) == "done"
    assert scene.waits == [0.2]
    with pytest.raises(PermanentError):
        await Scene("done").run(failed=(PermanentError("no"), 98.0))
    with pytest.raises(UnavailableError, match=r"\(2 tries in 3\.0 s\)"):
        await Scene(TimeoutError(), cost=0.8).run(1.2, failed=failed)


async def test_the_jitter_is_full() -> None:
    """The wait is drawn from all of the span: two thousand callers do not return together."""
    assert await (scene := Scene(TimeoutError(), "done", draw=0.0)).run() == "done"
    assert scene.waits == [0.0]


async def test_the_wait_is_capped() -> None:
    """However many tries there were, nobody waits longer than the policy says."""
    scene = Scene(*[TimeoutError()] * 10, "done")
    assert await scene.run(60.0) == "done"
    assert max(scene.waits) == 3.0


async def test_it_gives_up_before_the_deadline_not_after() -> None:
    """No try begins that could not end in time; the refusal is UNAVAILABLE with the cause."""
    scene = Scene(TransientError("The warehouse restarts.", retry_after=None))
    with pytest.raises(UnavailableError) as caught:
        await scene.run(9.0)
    assert scene.now <= 109.0
    assert isinstance(caught.value.__cause__, TransientError)
    assert str(caught.value) == f"The warehouse restarts ({scene.tries} tries in 8.8 s)."


async def test_retry_after_is_honoured() -> None:
    """The backend's wish is waited for, with jitter on top of it."""
    scene = Scene(TransientError("busy", retry_after=4.0), "done")
    assert await scene.run() == "done"
    assert scene.waits == [4.2]


async def test_a_wish_beyond_the_deadline_is_passed_on_at_once() -> None:
    """Where the wait would outlast the call, the caller hears at once and gets the hint."""
    scene = Scene(TransientError("Quota is spent.", retry_after=60.0))
    with pytest.raises(UnavailableError, match=r"^Quota is spent\.$") as caught:
        await scene.run(9.0)
    assert (scene.waits, caught.value.retry_after) == ([], 60.0)


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("x"),
        GoneError("x"),
        ValueError("x"),
        UnavailableError("The queue is full."),
        DeadlineError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_rest_is_not_retried(error: Exception) -> None:
    """What no second try mends comes out as it is, and so do our own refusals."""
    scene = Scene(error)
    with pytest.raises(type(error)) as caught:
        await scene.run()
    assert caught.value is error
    assert scene.tries == 1


async def test_a_strangers_text_stays_here() -> None:
    """Of an error that was not written for the caller only the type is told."""
    with pytest.raises(UnavailableError) as caught:
        await Scene(ConnectionRefusedError("postgres://admin:hunter2@db")).run(0.1)
    assert str(caught.value) == "The backend failed with ConnectionRefusedError."


async def test_without_a_deadline_tries_are_few() -> None:
    """A caller without a deadline does not retry for ever."""
    scene = Scene(TimeoutError())
    with pytest.raises(UnavailableError):
        await scene.run(None)
    assert scene.tries == 4


async def test_a_caller_who_leaves_stops_the_retries() -> None:
    """Cancellation goes through, in a try as in a wait."""
    scene = Scene(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await scene.run()
    assert scene.tries == 1
