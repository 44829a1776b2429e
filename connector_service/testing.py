"""Serve connectors on a real port inside a test, for authors and for us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service import config as settings
from connector_service.client import Client
from connector_service.sdk.registry import Registry
from connector_service.server.server import Service, build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from connector_service.config import ConnectorSection
    from connector_service.sdk.connector import ConnectorBase

__all__ = ["Served", "serve", "serve_in_thread"]


class Served:
    """A service that is answering: where it is, and the service itself."""

    def __init__(self, service: Service) -> None:
        """Take a service that has started."""
        self.service = service
        self.endpoint = f"127.0.0.1:{service.port}"
        self.metrics_url = f"http://127.0.0.1:{service.prometheus_port}/metrics"

    def client(self, **options: Any) -> Client:
        """Return a client of it; use it as an asynchronous context manager."""
        return Client(self.endpoint, **options)


@contextlib.asynccontextmanager
async def serve(
    *connectors: ConnectorBase, policy: ConnectorSection | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve ``connectors`` on free ports of 127.0.0.1 for as long as the block runs.

    ``options`` are settings by name (``grace=1.0``), ``policy`` those of every connector
    (``ConnectorSection(guarantees=False)`` shows each of its errors as it is). There is no drain
    delay unless one is given.

    >>> async def test_my_connector():
    ...     async with serve(MyConnector()) as served, served.client() as client:
    ...         meta = await client.create(template, inputs)
    """
    registry = Registry()
    for connector in connectors:
        registry.register(connector)
    chosen = {"port": 0, "prometheus_port": 0, "drain_delay": 0.0, "grace": 5.0, **options}
    # An empty settings file: a test never reads the one in its working directory.
    config = settings.load(chosen, environ={}, file=os.devnull)
    if policy is not None:
        types = {registration.category.name for registration in registry}
        config = msgspec.structs.replace(config, connectors=dict.fromkeys(types, policy))
    service = build(config, registry)
    await service.startup()
    try:
        yield Served(service)
    finally:
        await service.shutdown()


@contextlib.contextmanager
def serve_in_thread(*connectors: ConnectorBase, **options: Any) -> Iterator[Served]:
    """Serve as ``serve`` does, from a thread with its own loop, for synchronous tests."""
    started: list[Served] = []
    failed: list[BaseException] = []
    up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serve(*connectors, **options) as served:
            started.append(served)
            up.set()
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(main())
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="connector-service-under-test", daemon=True)
    thread.start()
    up.wait()
    if failed:
        raise failed[0]
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failed:
        raise failed[0]
