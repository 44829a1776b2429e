"""Retries what is transient, inside the call's deadline and not a moment longer.

A loop of our own: stamina and tenacity bound the tries by a count or by seconds since the first
one. Here the deadline is a point in time that somebody else chose, a wait is only worth it when a
try still fits behind it, and the backend's Retry-After overrules the backoff; taught all that, a
library would be left with the ``while``.

A fault after which the backend may have acted (a timeout, a reset) is retried too, also in
``create``: giving up would leave the same unknown job behind and burn the task's attempt as well.
Only a backend that honours the ``idempotency_key`` makes such a second try find the first job.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from connector_service.errors import CallError, UnavailableError
from connector_service.runtime.faults import Fault, judge, said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Retry", "retried"]

T = TypeVar("T")

_NO_DEADLINE_TRIES = 4
_NOTHING = 0.001  # seconds of room that are none


class Retry(NamedTuple):
    """How retries are spaced; seconds throughout.

    The wait before try n is anything up to ``first * 2**n``, never over ``longest`` (full
    jitter, so that callers who failed together do not come back together). ``least`` is what a
    try needs at least: with less than that left behind the wait, nobody waits.
    """

    first: float = 0.2
    longest: float = 3.0
    least: float = 0.25
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    # Draws from [0, its argument].
    draw: Callable[[float], float] = lambda most: random.uniform(0.0, most)  # noqa: S311


async def retried(
    attempt: Callable[[], Awaitable[T]],
    deadline: float | None,
    *,
    permanent: Sequence[type[Exception]] = (),
    policy: Retry = Retry(),  # noqa: B008 - a frozen value
    on_retry: Callable[[BaseException, float], None] = lambda _error, _wait: None,
    failed: tuple[Exception, float] | None = None,
) -> T:
    """Return what ``attempt`` returns, trying again after transient faults until ``deadline``.

    ``deadline`` is on ``policy.clock``; None allows a few tries. ``on_retry`` hears of each
    fault that is retried and of the wait. ``failed`` is how a first try ended that was made before
    this was called, and when it began: most calls have no other. Our own refusals (overload, a
    deadline that passed) come out as they are: the caller shall see them at once.

    Raises:
        UnavailableError: The fault outlasted the deadline; it is the cause.
        Exception: Whatever is not transient, as it was raised.
    """
    tries = 0
    started = policy.clock() if failed is None else failed[1]
    while True:
        tries += 1
        try:
            if failed is not None:
                raise failed[0]  # noqa: TRY301 - judged as any other
            return await attempt()
        except CallError:
            raise
        except Exception as error:
            failed = None
            verdict = judge(error, permanent)
            if verdict.fault is not Fault.TRANSIENT:
                raise
            wait = policy.draw(min(policy.longest, policy.first * 2 ** min(tries - 1, 32)))
            now = policy.clock()
            # The time in which a last try may still begin.
            room = math.inf if deadline is None else deadline - policy.least - now
            if verdict.retry_after is None:
                wait = min(wait, max(room, 0.0))
            else:
                # Jitter on top: all who were told the same second would come in that second.
                wait += verdict.retry_after
            over = tries >= _NO_DEADLINE_TRIES if deadline is None else room < max(wait, _NOTHING)
            if over:
                raise _exhausted(error, tries, now - started, verdict.retry_after) from error
            on_retry(error, wait)
        await policy.sleep(wait)


def _exhausted(
    error: Exception, tries: int, seconds: float, retry_after: float | None
) -> UnavailableError:
    # Only text that was written to be read goes to the caller.
    text = said(error) or f"The backend failed with {type(error).__name__}."
    if tries > 1:
        text = f"{text.rstrip('.')} ({tries} tries in {seconds:.1f} s)."
    return UnavailableError(text, retry_after=retry_after)
