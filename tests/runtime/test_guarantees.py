"""What the policies do together that none of them does alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core.execution_pb2 import ExecutionError, TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import Resource, TaskCategory
from connector_service.config import Ledger
from connector_service.hosts.inline import InlineHost
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.guarantees import Guarantees
from connector_service.runtime.hooks import Happening, Hook, Hooks
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.ledger import Job
from connector_service.runtime.ledger_memory import MemoryLedger
from connector_service.sdk.registry import Registry
from connector_service.testing import serve
from connector_service.wire.status import classify

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listener(Hook):
    """Keeps what happened."""

    def __init__(self) -> None:
        self.heard: list[Happening] = []

    def happened(self, happening: Happening) -> None:
        self.heard.append(happening)


@pytest.fixture
def invoker() -> Iterator[Invoker]:
    one = Invoker()
    yield one
    one.shutdown()


@pytest.mark.parametrize("task_type", ["fake", "elsewhere"])
async def test_an_orphan_waits_for_a_replica_that_has_its_connector(
    fake: Any, invoker: Invoker, task_type: str
) -> None:
    """A shared ledger holds jobs of connectors that this replica lacks: they stay owed."""
    deleted: list[str] = []
    registry = Registry()
    registry.register(fake(delete=lambda self, resource_meta: deleted.append(resource_meta.job)))
    ledger, listener = MemoryLedger(), Listener()
    hooks = Hooks([listener])
    guarantees = Guarantees(ledger, Ledger(), hooks)
    dispatcher = Dispatcher([InlineHost(registry, invoker)], classify, hooks, guarantees=guarantees)
    await dispatcher.start()
    job = Job(TaskCategory(task_type), b'{"job": "1"}', 60.0, 0.0)
    await ledger.reserve("key", "gone", 60.0)
    await ledger.record("key", "gone", job, delivered=False)
    await guarantees.sweep()
    await dispatcher.close(0.0)
    outcome = "deleted" if task_type == "fake" else "retried"
    assert listener.heard == [Happening("orphan", task_type, outcome)]
    assert deleted == (["1"] if task_type == "fake" else [])


async def test_a_sync_reply_that_the_client_would_drop_is_a_failure(fake: Any) -> None:
    """Over 4 MiB a sync task is FAILED for good, with what to do instead."""
    large = fake(do=lambda self: Resource(TaskExecution.SUCCEEDED, outputs={"o": "x" * (5 << 20)}))
    async with serve(large) as served, served.client() as client:
        template = TaskTemplate(type="fake")
        resource = await client.do(template)
        assert resource.phase == TaskExecution.FAILED
        assert "outputs.pb" in resource.message
        error = resource.agent_error
        assert (error.code, error.origin) == ("ReplyTooLarge", ExecutionError.USER)
        meta = await client.create(template, output_prefix="mem://out")
        resource = await client.get(TaskCategory("fake"), meta)
        assert resource.phase == TaskExecution.FAILED
        assert "outputs.pb" in resource.message
