"""One service as the whole of a process: its event loop, and an end that nothing holds up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from typing import TYPE_CHECKING

from connector_service.hosts.child.connector_host.loop import drain_wake_ups
from connector_service.wire import memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from connector_service.server.server import Service

__all__ = ["leave", "live"]

_log = logging.getLogger(__name__)


def live(
    service: Service,
    announce: Callable[[Service], None],
    *,
    on_loop: Callable[[asyncio.AbstractEventLoop], None] = lambda _: None,
) -> None:
    """Run ``service`` on a loop of its own until it is told to stop.

    ``on_loop`` is told the loop before anything runs on it.

    Raises:
        OperatorError: As ``Service.startup``.
    """

    def started(service: Service) -> None:
        gc.collect()  # what plugins left behind; connectors and their modules stay, with the rest
        gc.freeze()
        announce(service)

    memory.prepare()
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    on_loop(loop)
    serving = loop.create_task(service.run(announce=started), name="serve")
    try:
        while not serving.done():
            try:
                loop.run_until_complete(serving)
            except (SystemExit, KeyboardInterrupt) as error:
                if serving.done():
                    raise
                # A task that a connector spawned and nobody awaits: asyncio stops the whole loop
                # for these two. Nothing else was touched, so the loop goes on where it was.
                _log.exception(
                    "a connector's own task would have ended the service",
                    extra={"raised": type(error).__name__},
                )
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    """Make the fastest event loop there is for this platform; it is not yet the thread's own."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform

        loop: asyncio.AbstractEventLoop = uvloop.Loop()
    except ImportError:  # no wheel for this platform
        loop = asyncio.SelectorEventLoop()
    drain_wake_ups(loop)
    return loop


def leave(code: int = 0) -> None:
    """End this process now, with what it wrote written.

    A plain ``def`` that never returns would keep the interpreter waiting for its thread.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
