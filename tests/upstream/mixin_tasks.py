"""Connectors and tasks as their users write them against flytekit; prints what came of each.

``test_mixins.py`` runs this file twice under flytekit: as it is, and with the marked import
changed to ours. It is no test itself.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import threading
import typing
from dataclasses import dataclass

import flytekit
from flyteidl.core import literals_pb2
from flyteidl.core.execution_pb2 import TaskExecution, TaskLog
from flytekit import FlyteContextManager, PythonFunctionTask, kwtypes, workflow
from flytekit.core.base_task import PythonTask
from flytekit.core.interface import Interface
from flytekit.types.file import FlyteFile

# The import that changes.
from flytekit.extend.backend.base_connector import (  # isort: skip
    AsyncConnectorBase,
    AsyncConnectorExecutorMixin,
    ConnectorRegistry,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    SyncConnectorExecutorMixin,
)


@dataclass
class Meta(ResourceMeta):
    a: int = 0
    b: int = 0
    prefix: str = ""
    deletions: str = ""


def integer(inputs, name):
    return inputs.literals[name].scalar.primitive.integer if inputs is not None else 0


class SumConnector(AsyncConnectorBase):
    name = "Sum"

    def __init__(self, task_type_name="sum"):
        super().__init__(task_type_name=task_type_name, metadata_type=Meta)

    async def create(self, task_template, inputs=None, **kwargs) -> Meta:
        return Meta(integer(inputs, "a"), integer(inputs, "b"))

    async def get(self, resource_meta: Meta, **kwargs) -> Resource:
        links = [TaskLog(name="console", uri="https://backend.example/1")]
        outputs = {"total": resource_meta.a + resource_meta.b}
        return Resource(TaskExecution.SUCCEEDED, "done", links, outputs)

    async def delete(self, resource_meta: Meta, **kwargs): ...


class PlainSumConnector(AsyncConnectorBase):
    name = "Plain Sum"

    def __init__(self):
        super().__init__(task_type_name="plain_sum", metadata_type=Meta)

    def create(self, task_template, inputs=None, output_prefix=None, **kwargs) -> Meta:
        return Meta(integer(inputs, "a"), integer(inputs, "b"))

    def get(self, resource_meta: Meta, **kwargs) -> Resource:
        return Resource(
            TaskExecution.SUCCEEDED, outputs={"total": resource_meta.a + resource_meta.b}
        )

    def delete(self, resource_meta: Meta, **kwargs): ...


class FileSumConnector(PlainSumConnector):
    """Leaves its outputs in outputs.pb."""

    name = "File Sum"

    def __init__(self):
        AsyncConnectorBase.__init__(self, task_type_name="file_sum", metadata_type=Meta)

    def create(self, task_template, inputs=None, output_prefix=None, **kwargs) -> Meta:
        total = literals_pb2.LiteralMap()
        value = integer(inputs, "a") + integer(inputs, "b")
        total.literals["total"].scalar.primitive.integer = value
        folder = pathlib.Path(output_prefix)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "outputs.pb").write_bytes(total.SerializeToString())
        return Meta()

    def get(self, resource_meta: Meta, **kwargs) -> Resource:
        return Resource(TaskExecution.SUCCEEDED)


class FunctionConnector(AsyncConnectorBase):
    """Reads what a function task's container would read."""

    name = "Function"
    seen: typing.ClassVar[dict[str, typing.Any]] = {}

    def __init__(self):
        super().__init__(task_type_name="function", metadata_type=Meta)

    def create(self, task_template, inputs=None, output_prefix=None, **kwargs) -> Meta:
        arguments = list(task_template.container.args)
        options = {
            name: arguments[arguments.index(name) + 1].replace(str(output_prefix), "PREFIX")
            for name in ("--inputs", "--output-prefix", "--raw-output-data-prefix")
        }
        written = literals_pb2.LiteralMap.FromString(
            pathlib.Path(output_prefix, "inputs.pb").read_bytes()
        )
        self.seen.update(options)
        return Meta(integer(written, "a"), 100)

    async def get(self, resource_meta: Meta, **kwargs) -> Resource:
        outputs = {"o0": resource_meta.a + resource_meta.b}
        return Resource(TaskExecution.SUCCEEDED, outputs=outputs)

    async def delete(self, resource_meta: Meta, **kwargs): ...


class EndingConnector(SumConnector):
    """Ends in the phase of its task type."""

    name = "Ending"

    def __init__(self, phase):
        super().__init__(phase.lower())
        self._phase = phase

    async def get(self, resource_meta: Meta, **kwargs) -> Resource:
        return Resource(TaskExecution.Phase.Value(self._phase), "the cluster burned down")


class EndlessConnector(AsyncConnectorBase):
    """Runs until it is deleted, which it writes down."""

    name = "Endless"

    def __init__(self):
        super().__init__(task_type_name="endless", metadata_type=Meta)

    def create(self, task_template, inputs=None, **kwargs) -> Meta:
        return Meta(deletions="deletions")

    def get(self, resource_meta: Meta, **kwargs) -> Resource:
        pathlib.Path("polled").touch()
        return Resource(TaskExecution.RUNNING, "busy")

    def delete(self, resource_meta: Meta, **kwargs):
        with pathlib.Path(resource_meta.deletions).open("a") as file:
            file.write("once ")


class ModelConnector(SyncConnectorBase):
    name = "Model"

    def __init__(self):
        super().__init__(task_type_name="model")

    def do(self, task_template, inputs=None, **kwargs) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, outputs={"total": integer(inputs, "a") + 1})


class AsyncModelConnector(SyncConnectorBase):
    name = "Async Model"

    def __init__(self):
        super().__init__(task_type_name="async_model")

    async def do(self, task_template, inputs=None, **kwargs) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, outputs={"total": integer(inputs, "a") + 2})


class EchoConnector(SyncConnectorBase):
    name = "Echo"

    def __init__(self):
        super().__init__(task_type_name="echo")

    def do(self, task_template, inputs=None, **kwargs) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, outputs=inputs)


for connector in (
    SumConnector(),
    PlainSumConnector(),
    FileSumConnector(),
    FunctionConnector(),
    EndlessConnector(),
    ModelConnector(),
    AsyncModelConnector(),
    EchoConnector(),
    EndingConnector("FAILED"),
    EndingConnector("ABORTED"),
    EndingConnector("RETRYABLE_FAILED"),
):
    ConnectorRegistry.register(connector)


class AsyncTask(AsyncConnectorExecutorMixin, PythonTask):
    def __init__(self, task_type, inputs=None, outputs=None):
        interface = Interface(
            inputs=inputs or kwtypes(a=int, b=int), outputs=outputs or kwtypes(total=int)
        )
        super().__init__(
            task_type=task_type, name=f"my {task_type}", task_config={}, interface=interface
        )


class SyncTask(SyncConnectorExecutorMixin, PythonTask):
    def __init__(self, task_type, inputs=None, outputs=None):
        interface = Interface(
            inputs=inputs or kwtypes(a=int), outputs=outputs or kwtypes(total=int)
        )
        super().__init__(
            task_type=task_type, name=f"my {task_type}", task_config={}, interface=interface
        )


class FunctionTask(AsyncConnectorExecutorMixin, PythonFunctionTask):
    def __init__(self, task_function, **kwargs):
        super().__init__(
            task_type="function",
            task_config={},
            task_function=task_function,
            container_image="image:1",
            **kwargs,
        )


def add_a_hundred(a: int) -> int:
    return -1  # never called: the connector runs it, elsewhere


@dataclass
class Row:
    name: str
    numbers: list[int]


summed = AsyncTask("sum")
function = FunctionTask(add_a_hundred)


@workflow
def both(a: int) -> int:
    return summed(a=summed(a=a, b=1), b=function(a=a))


def echoed():
    file = pathlib.Path("input.txt")
    file.write_text("hello")
    types = kwtypes(row=Row, file=FlyteFile, many=list[float], when=int | None)
    row, read, many, when = SyncTask("echo", types, types)(
        row=Row("x", [1, 2]), file=FlyteFile(str(file)), many=[1.0, 2.5], when=None
    )
    return [row.name, row.numbers, pathlib.Path(read).read_text(), many, when]


def literals():
    task = AsyncTask("sum")
    with FlyteContextManager.with_context(FlyteContextManager.current_context().new_builder()):
        done = task.execute(a=1, b=2)
    meta = task.resource_meta
    return [type(done).__module__, integer(done, "total"), type(meta).__name__, meta.a, meta.b]


CASES = {
    "async": lambda: AsyncTask("sum")(a=1, b=2),
    "plain": lambda: AsyncTask("plain_sum")(a=3, b=4),
    "outputs.pb": lambda: AsyncTask("file_sum")(a=5, b=6),
    "sync": lambda: SyncTask("model")(a=1),
    "sync async": lambda: SyncTask("async_model")(a=1),
    "execute": literals,
    "function": lambda: [function(a=5), FunctionConnector.seen],
    "workflow": lambda: both(a=1),
    "values": echoed,
    "unknown async": lambda: AsyncTask("nobody")(a=1, b=2),
    "unknown sync": lambda: SyncTask("nobody")(a=1),
    "FAILED": lambda: AsyncTask("failed")(a=1, b=2),
    "ABORTED": lambda: AsyncTask("aborted")(a=1, b=2),
    "RETRYABLE_FAILED": lambda: AsyncTask("retryable_failed")(a=1, b=2),
}


async def inside():
    return AsyncTask("sum")(a=1, b=2)


ONLY_OURS = {"inside a loop": lambda: asyncio.run(inside())}


def outcome(case):
    try:
        return {"value": case()}
    except Exception as error:  # noqa: BLE001 - what it is, is the outcome
        return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    if sys.argv[1] == "endless":
        AsyncTask("endless")(a=1, b=2)
    if sys.argv[1] == "endless on a thread":
        thread = threading.Thread(target=lambda: AsyncTask("endless")(a=1, b=2))
        thread.start()
        thread.join()
    cases = CASES if sys.argv[1] == "theirs" else {**CASES, **ONLY_OURS}
    told = {
        "version": flytekit.__version__,
        "mixin": AsyncConnectorExecutorMixin.__module__,
        "outcomes": {name: outcome(case) for name, case in cases.items()},
    }
    sys.stdout.write(json.dumps(told) + "\n")
