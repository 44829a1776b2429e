"""What is left of the call's time, for the connector's code to see."""

from __future__ import annotations

import time
from contextvars import ContextVar

__all__ = ["DEADLINE", "time_remaining"]

# On ``time.monotonic``'s clock; the invoker sets it around everything that a connector runs.
DEADLINE: ContextVar[float | None] = ContextVar("connector_service_deadline", default=None)


def time_remaining() -> float | None:
    """Return the seconds until the running call's deadline; None when it has none.

    0.0 once it has passed: an ``async def`` is cancelled then, a plain ``def`` is left to end by
    itself, and nobody hears its answer. Pass it on as the timeout of what you call.

    >>> response = session.get(url, timeout=time_remaining())
    """
    deadline = DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
