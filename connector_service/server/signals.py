"""The signals that end and reload a service, and waiting that they can cut short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["signals", "until"]

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def signals(
    stopping: asyncio.Event,
    reload: Callable[[], None],
    *,
    at_once: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for the end, the second of them bring it at once, SIGHUP reload.

    ``at_once`` is called before the second one ends the process. As process 1 a program without
    handlers never hears SIGTERM, so these are always set.
    """
    loop = asyncio.get_running_loop()
    asked = (signal.SIGTERM, signal.SIGINT)
    heard = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal heard
        if heard:
            _log.warning("second signal: ending at once")
            at_once()
            os._exit(128 + number)  # the default action does not end process 1
        heard = True
        stopping.set()

    for number in asked:
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (*asked, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def until(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Await ``work`` and return True, or cancel it and return False once ``stopping`` is set."""
    doing = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not doing.done():
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing
        return False
    await doing
    return True
