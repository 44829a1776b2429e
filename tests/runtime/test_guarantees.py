"""What the policies do together that none of them does alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core.execution_pb2 import ExecutionError, TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import GoneError, PermanentError, Resource, TaskCategory
from connector_service.config import ConnectorSection, Ledger
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


class HttpError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status_code = status


ORPHANS: dict[str, tuple[str, Exception | None, str]] = {
    "deleted": ("fake", None, "deleted"),
    "gone": ("fake", GoneError("Purged."), "deleted"),
    "no connector here": ("elsewhere", None, "retried"),
    "backend busy": ("fake", HttpError(503), "retried"),
    "credentials that expired": ("fake", HttpError(401), "retried"),
    "a bug": ("fake", KeyError("x"), "failed"),
    "refused for good": ("fake", PermanentError("Locked."), "failed"),
}


@pytest.mark.parametrize("retries", [True, False])
@pytest.mark.parametrize("case", ORPHANS)
async def test_an_orphan_stays_owed_while_its_deletion_may_succeed_later(
    fake: Any, invoker: Invoker, case: str, retries: bool
) -> None:
    """Trouble of the backend, or a connector that only other replicas have, is tried again."""
    task_type, error, outcome = ORPHANS[case]
    asked: list[str] = []

    def delete(self: object, resource_meta: Any) -> None:
        asked.append(resource_meta.job)
        if error is not None:
            raise error

    registry, ledger, listener = Registry(), MemoryLedger(), Listener()
    registry.register(fake(delete=delete))
    hooks = Hooks([listener])
    guarantees = Guarantees(ledger, Ledger(), hooks)
    policy = ConnectorSection(retry_transient=retries, delete_timeout=0.3)
    dispatcher = Dispatcher(
        [InlineHost(registry, invoker)],
        classify,
        hooks,
        guarantees=guarantees,
        policies={"fake": policy},
    )
    await dispatcher.start()
    job = Job(TaskCategory(task_type), b'{"job": "1"}', 60.0, 0.0)
    await ledger.reserve("key", "gone", 60.0)
    await ledger.record("key", "gone", job, delivered=False)
    assert await guarantees.sweep() == 1
    await dispatcher.close(0.0)
    told = [happening for happening in listener.heard if happening.kind == "orphan"]
    assert told == [Happening("orphan", task_type, outcome)]
    assert set(asked) == ({"1"} if task_type == "fake" else set())


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
