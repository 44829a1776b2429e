"""Connectors of every kind and shape for local runs, and tasks that run them here."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyteidl.core.execution_pb2 import TaskLog

from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    Phase,
    Registry,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    TransientError,
    from_literal_map,
    to_literal_map,
)
from connector_service.local import ConnectorTask, InProcess

LINK = TaskLog(name="console", uri="https://backend.example/jobs/1")


@dataclass
class JobMeta(ResourceMeta):
    values: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""


class Recorder(AsyncConnectorBase):
    """A job that ends at its second poll; what was asked of it is kept."""

    task_type = "recorder"

    def __init__(self) -> None:
        super().__init__(task_type_name=self.task_type, metadata_type=JobMeta)
        self.calls: list[str] = []
        self.template: Any = None
        self.metadata: Any = None
        self.running = threading.Event()

    async def create(
        self, task_template: Any, output_prefix: str, inputs: Any, task_execution_metadata: Any
    ) -> JobMeta:
        self.calls.append("create")
        self.template, self.metadata = task_template, task_execution_metadata
        return JobMeta(from_literal_map(inputs), output_prefix)

    async def get(self, resource_meta: JobMeta) -> Resource:
        self.calls.append("get")
        self.running.set()
        if self.calls.count("get") < 2:
            return Resource(Phase.RUNNING, "half way", [LINK])
        return self.ended(resource_meta)

    async def delete(self, resource_meta: JobMeta) -> None:
        self.calls.append("delete")

    def ended(self, meta: JobMeta) -> Resource:
        total = sum(meta.values.values())
        return Resource(Phase.SUCCEEDED, "done", [LINK], outputs={"total": total})


class PlainRecorder(Recorder):
    """The same with plain ``def``."""

    task_type = "plain"

    def create(self, output_prefix: str, inputs: Any) -> JobMeta:  # type: ignore[override]
        return JobMeta(from_literal_map(inputs), output_prefix)

    def get(self, resource_meta: JobMeta) -> Resource:  # type: ignore[override]
        return self.ended(resource_meta)

    def delete(self, resource_meta: JobMeta) -> None:  # type: ignore[override]
        self.calls.append("delete")


class Flyte2Adder(AsyncConnector[JobMeta]):
    """Flyte 2's shape, with a secret and a config of the task's connection."""

    task_type_name = "flyte2"
    metadata_type = JobMeta

    async def create(  # type: ignore[override]
        self,
        task_template: Any,
        output_prefix: str,
        inputs: dict[str, Any] | None = None,
        task_execution_metadata: Any = None,
        *,
        token: str = "",
        region: str = "",
    ) -> JobMeta:
        values = {**(inputs or {}), "seen": f"{token}@{region}"}
        return JobMeta(values, type(task_template).DESCRIPTOR.full_name)

    async def get(self, resource_meta: JobMeta, token: str = "") -> Resource:  # type: ignore[override]
        values = resource_meta.values
        outputs = {"total": values["a"] + values["b"], "seen": f"{values['seen']} {token}"}
        return Resource(Phase.SUCCEEDED, resource_meta.prefix, outputs=outputs)

    async def delete(self, resource_meta: JobMeta) -> None:  # type: ignore[override]
        pass


class Doubler(SyncConnectorBase):
    """Answers at once."""

    def __init__(self) -> None:
        super().__init__(task_type_name="doubler")

    def do(self, task_template: Any, output_prefix: str, inputs: Any = None) -> Resource:  # type: ignore[override]
        return Resource(Phase.SUCCEEDED, outputs={"twice": 2 * from_literal_map(inputs)["a"]})


class AsyncDoubler(Doubler):
    """Answers at once, with ``async def``."""

    def __init__(self) -> None:
        SyncConnectorBase.__init__(self, task_type_name="async_doubler")

    async def do(self, task_template: Any, output_prefix: str, inputs: Any = None) -> Resource:  # type: ignore[override]
        return Resource(Phase.SUCCEEDED, outputs={"twice": 2 * from_literal_map(inputs)["a"]})


class Ends(Recorder):
    """Ends at its first poll, in the phase and with the outputs that the template's custom says."""

    task_type = "ends"

    async def create(self, task_template: Any, output_prefix: str) -> JobMeta:  # type: ignore[override]
        custom = task_template.custom
        return JobMeta({"phase": custom["phase"]}, output_prefix)

    async def get(self, resource_meta: JobMeta) -> Resource:
        self.calls.append("get")
        phase = Phase.Value(resource_meta.values["phase"])
        return Resource(phase, "as it was told", [LINK])


class Writer(Recorder):
    """Leaves its outputs in a file under the output prefix."""

    task_type = "writer"

    def ended(self, meta: JobMeta) -> Resource:
        folder = Path(meta.prefix.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        outputs = to_literal_map({"total": sum(meta.values.values())})
        (folder / "outputs.pb").write_bytes(outputs.SerializeToString())
        return Resource(Phase.SUCCEEDED)


class Endless(Recorder):
    """Runs until it is deleted."""

    task_type = "endless"

    def ended(self, meta: JobMeta) -> Resource:
        return Resource(Phase.RUNNING, f"poll {self.calls.count('get')}", [LINK])


class Clumsy(Recorder):
    """Fails at a poll: with an error of its own, or one that may pass."""

    task_type = "clumsy"
    failures: list[Exception]

    async def get(self, resource_meta: JobMeta) -> Resource:
        self.calls.append("get")
        if self.failures:
            raise self.failures.pop(0)
        return Resource(Phase.SUCCEEDED, outputs={})


class SlowToStart(Recorder):
    """Takes a while to be created, in a thread, where nothing can interrupt it."""

    task_type = "slow"

    def create(self, inputs: Any) -> JobMeta:  # type: ignore[override]
        self.running.set()
        time.sleep(0.5)
        self.calls.append("create")
        return JobMeta({})


def registry_of(*connectors: Any) -> Registry:
    registry = Registry()
    for connector in connectors:
        registry.register(connector)
    return registry


def task_class(*bases: type, connectors: Any) -> Any:
    """Make a task class that is run by ``connectors`` and no others."""
    registry = registry_of(*connectors)

    class Task(*bases, ConnectorTask):  # type: ignore[misc]
        poll_interval = 0.01

        def connector_backend(self) -> InProcess:
            return InProcess(registry)

    return Task


def blip() -> TransientError:
    return TransientError("The backend restarts.")
