"""Hosts that end with their test and leave nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from hosts.forwards import FLYTES, Makes
from hosts.remotes import Remotes
from process_hosts import Hosts, own_children

from connector_service.config import HostSection
from connector_service.hosts.channels import CHILD_OPTIONS
from connector_service.hosts.forward import Forwarder
from connector_service.hosts.remote import RemoteHost


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Hosts]:
    before = own_children()
    hosts = Hosts(tmp_path)
    yield hosts
    await hosts.close()
    assert own_children() == before
    assert not hosts.run_dir.exists() or not list(hosts.run_dir.iterdir())


@pytest.fixture
async def host() -> AsyncIterator[Remotes]:
    """Make a remote host of an endpoint, started unless ``start=False``."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            endpoint: str,
            *,
            every: float = 0.05,
            start: bool = True,
            on_event: Any = lambda *_: None,
            **section: Any,
        ) -> RemoteHost:
            settings = HostSection(endpoint=endpoint, **{"start_timeout": 10.0, **section})
            remote = RemoteHost("far", settings, every=every, on_event=on_event)
            stack.push_async_callback(remote.close, 0)
            if start:
                await remote.start()
            return remote

        yield make


@pytest.fixture
async def forward() -> AsyncIterator[Makes]:
    """Make a forwarder to an endpoint, for a peer that takes the protocols given."""
    async with contextlib.AsyncExitStack() as stack:

        def make(endpoint: str, *protocols: str, **more: Any) -> Forwarder:
            channel = grpc.aio.insecure_channel(endpoint, options=CHILD_OPTIONS)
            stack.push_async_callback(channel.close)
            taken = protocols or FLYTES
            forwarder = Forwarder(channel, name="h", protocols_of=lambda _: taken, **more)
            forwarder.channel = channel  # type: ignore[attr-defined]
            return forwarder

        yield make
