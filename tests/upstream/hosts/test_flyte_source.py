"""The flyte source of a child: unmodified plugins of Flyte 2's SDK, in an environment of its own.

``make test-upstream`` builds the environment and names its interpreter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from child_program import PATIENCE, Child, Wire, running
from flyteidl2.connector import connector_pb2

PYTHON = os.environ.get("CONNECTOR_SERVICE_FLYTE_PYTHON", "")
if not PYTHON:
    pytest.skip(
        "NO FLYTE 2 PLUGIN IS RUN IN A CHILD: run `make test-upstream`, which sets"
        " CONNECTOR_SERVICE_FLYTE_PYTHON",
        allow_module_level=True,
    )

GOOD = """
import asyncio, json, time
from dataclasses import dataclass
from flyte.connectors import AsyncConnector, ConnectorRegistry, Resource, ResourceMeta
from flyteidl2.connector import connector_pb2
from flyteidl2.core import tasks_pb2
from flyteidl2.core.execution_pb2 import TaskExecution

@dataclass
class Meta(ResourceMeta):
    text: str

class Good(AsyncConnector):
    name = "Good"
    task_type_name = "good"
    metadata_type = Meta
    async def create(self, task_template, output_prefix, inputs=None,
                     task_execution_metadata=None, user="", **kwargs):
        assert isinstance(task_template, tasks_pb2.TaskTemplate)
        return Meta(json.dumps([inputs, output_prefix, user, kwargs]))
    async def get(self, resource_meta, **kwargs):
        return Resource(phase=TaskExecution.SUCCEEDED, message=resource_meta.text,
                        outputs={"n": 7, "s": "x"}, custom_info={"a": 1})
    async def delete(self, resource_meta, password):  # no **kwargs, and a demand
        assert password == "sesame"
    async def get_logs(self, resource_meta, token):
        for number in range(2):
            yield connector_pb2.GetTaskLogsResponse(header={"token": f"{token}{number}"})

class Blocking(Good):
    name = "Blocking"
    task_type_name = "blocking"
    async def get(self, resource_meta, **kwargs):
        time.sleep(3)
        return Resource(phase=TaskExecution.RUNNING)
    async def get_logs(self, resource_meta, **kwargs):
        return connector_pb2.GetTaskLogsResponse(header={"token": "one"})

class Plain(AsyncConnector):
    name = "Plain"
    task_type_name = "plain"
    task_type_version = 2
    metadata_type = Meta
    async def create(self, **kwargs): return Meta("")
    async def get(self, **kwargs): return Resource(phase=TaskExecution.RUNNING)
    async def delete(self, **kwargs): raise SystemExit(2)

for connector in (Good, Blocking, Plain):
    ConnectorRegistry.register(connector())
"""
PLUGINS = {"good": GOOD, "raises": "1 / 0\n", "exits": "import sys\nsys.exit(4)\n"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Wire, Any]]:
    folder = tmp_path_factory.mktemp("child")
    site = folder / "site"
    site.mkdir()
    for name, source in PLUGINS.items():
        (site / f"plugin_{name}.py").write_text(source)
        info = site / f"flyteplugins_{name}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: flyteplugins-{name}\nVersion: 1.2.3\n"
        )
        (info / "entry_points.txt").write_text(f"[flyte.connectors]\n{name} = plugin_{name}\n")
    with running(folder, ["flyte"], python=PYTHON, path=[site]) as served:
        yield served


def test_each_plugin_has_a_record(served: tuple[Child, Wire, Any]) -> None:
    """One that raises and one that exits break themselves alone."""
    shaken = served[2]
    states = {plugin["name"]: plugin["state"] for plugin in shaken["plugins"]}
    assert states == {"good": "loaded", "raises": "failed", "exits": "failed"}
    assert [(agent["name"], agent["protocols"]) for agent in shaken["agents"]] == [
        ("Blocking", ["flyteidl2"]),
        ("Good", ["flyteidl2"]),
        ("Plain", ["flyteidl2"]),
    ]
    assert shaken["agents"][2]["categories"] == [["plain", 2]]
    assert shaken["versions"] == {"flyte": "2.12.1"}


def test_a_job_gets_native_inputs_and_the_connection(served: tuple[Child, Wire, Any]) -> None:
    """Inputs are the SDK's Python values, secrets win over configs, outputs are its literals."""
    wire = served[1]
    request = connector_pb2.CreateTaskRequest(output_prefix="s3://b/p")
    entry = request.template.interface.inputs.variables.add(key="n")
    entry.value.type.simple = 1
    request.inputs.literals.add(name="n").value.scalar.primitive.integer = 5
    request.connection.secrets["user"] = "secret-joe"
    request.connection.configs["user"] = "config-joe"
    request.connection.configs["more"] = "m"
    meta = wire.create(
        "good",
        "flyteidl2",
        template=request.template,
        inputs=request.inputs,
        output_prefix=request.output_prefix,
        connection=request.connection,
    ).resource_meta
    told = json.loads(json.loads(meta)["text"])
    assert told == [{"n": 5}, "s3://b/p", "secret-joe", {"more": "m"}]
    resource = wire.get("good", meta, "flyteidl2").resource
    outputs = {entry.name: entry.value for entry in resource.outputs.literals}
    assert outputs["n"].scalar.primitive.integer == 7
    assert outputs["s"].scalar.primitive.string_value == "x"
    with pytest.raises(grpc.RpcError) as caught:
        wire.delete("good", meta, "flyteidl2")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "needs password" in caught.value.details()
    delete = wire.about("flyteidl2", "DeleteTask", "good", meta)
    delete.connection.secrets["password"] = "sesame"
    wire.method("flyteidl2", "DeleteTask")(delete, metadata=wire.metadata(), timeout=PATIENCE)


def test_logs_are_a_generators_or_one_message(served: tuple[Child, Wire, Any]) -> None:
    """An async generator and a coroutine both answer, with the page's token; others have none."""
    wire = served[1]
    request = wire.about("flyteidl2", "GetTaskLogs", "good", b'{"text": ""}')
    request.token = "t"
    logs = wire.method("flyteidl2", "GetTaskLogs")(
        request, metadata=wire.metadata(), timeout=PATIENCE
    )
    assert [log.header.token for log in logs] == ["t0", "t1"]
    [log] = wire.logs("blocking", b'{"text": ""}', "flyteidl2")
    assert log.header.token == "one"
    with pytest.raises(grpc.RpcError) as caught:
        wire.metrics("good", b'{"text": ""}', "flyteidl2")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_blocking_body_declared_async_stalls_nobody(served: tuple[Child, Wire, Any]) -> None:
    """Its own loop blocks; the heartbeat and another connector of the same child answer."""
    wire = served[1]
    blocked = wire.method("flyteidl2", "GetTask").future(
        wire.about("flyteidl2", "GetTask", "blocking", b'{"text": ""}'), metadata=wire.metadata()
    )
    for _ in range(20):
        wire.ping()
        wire.get("good", b'{"text": ""}', "flyteidl2")
    assert not blocked.done()
    assert blocked.result(timeout=PATIENCE).resource.phase == 2
