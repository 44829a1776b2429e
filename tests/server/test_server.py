"""How the service begins, with a ledger and without its compiled reader, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import AsyncConnectorBase, Registry, Resource, ResourceMeta, config
from connector_service.codec import plans
from connector_service.errors import ConfigError, StartupError
from connector_service.server.server import build
from connector_service.testing import serve

if TYPE_CHECKING:
    from pathlib import Path

FREE = {"port": 0, "prometheus_port": 0}


@dataclass
class Meta(ResourceMeta):
    job: str


class Slow(AsyncConnectorBase):
    """Creates that never end."""

    def __init__(self) -> None:
        super().__init__(task_type_name="slow", metadata_type=Meta)
        self.entered = asyncio.Event()

    async def create(self) -> Meta:
        self.entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def get(self, resource_meta: Meta) -> Resource:
        return Resource(TaskExecution.RUNNING)

    async def delete(self, resource_meta: Meta) -> None:
        pass


def test_two_ledgers_are_a_contradiction(tmp_path: Path) -> None:
    """``state_dir`` with ``ledger_url`` is refused in one sentence: jobs stand in one place."""
    both = {**FREE, "state_dir": str(tmp_path), "ledger_url": "redis://127.0.0.1:1"}
    with pytest.raises(ConfigError, match=r"state_dir and ledger_url exclude each other"):
        build(config.load(both, file="/dev/null"), Registry())


async def test_a_start_that_fails_lets_go_of_its_ledger(tmp_path: Path) -> None:
    """After a port that is taken, the same folder serves a service that can start."""
    folder = str(tmp_path)
    async with serve() as served:
        taken = {**FREE, "state_dir": folder, "port": served.service.port}
        with pytest.raises(StartupError, match="port is taken"):
            await build(config.load(taken, file="/dev/null"), Registry()).startup()
    async with serve(state_dir=folder) as served, served.client() as client:
        assert await client.health() == "SERVING"


@pytest.mark.parametrize("compiled", [True, False])
async def test_a_start_says_when_the_compiled_reader_is_missing(
    compiled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Creates are slower then, and nothing else would tell why; where it is there, all is quiet."""
    monkeypatch.setattr(plans, "COMPILED", compiled)
    with caplog.at_level(logging.INFO, "connector_service.server.server"):
        async with serve():
            said = [line for line in caplog.messages if "without compiled code" in line]
    assert len(said) == (not compiled)


async def test_a_create_without_a_caller_gets_what_is_left_of_the_grace() -> None:
    """Shutting down takes one ``grace``, not one for calls and another for creates."""
    connector = Slow()
    async with serve(connector, grace=2.0) as served, served.client(timeout=30) as client:
        template = TaskTemplate(type="slow")
        creating = asyncio.create_task(client.create(template, output_prefix="mem://out"))
        await connector.entered.wait()
        started = time.monotonic()
        await served.service.shutdown()
        assert 1.9 < time.monotonic() - started < 3.5
        with pytest.raises(grpc.aio.AioRpcError):
            await creating
