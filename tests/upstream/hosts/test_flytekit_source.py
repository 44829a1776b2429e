"""The flytekit source of a child: unmodified plugins, in an environment of flytekit alone.

``make test-upstream`` builds the environment and names its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from child_program import Child, Wire, facts, running

PYTHON = os.environ.get("CONNECTOR_SERVICE_FLYTEKIT_PYTHON", "")
if not PYTHON:
    pytest.skip(
        "NO FLYTEKIT PLUGIN IS RUN IN A CHILD: run `make test-upstream`, which sets"
        " CONNECTOR_SERVICE_FLYTEKIT_PYTHON",
        allow_module_level=True,
    )

GOOD = """
import asyncio, json, threading
from dataclasses import dataclass
import flytekit
from flyteidl.admin import agent_pb2
from flytekit.extend.backend.base_connector import (
    AsyncConnectorBase, ConnectorRegistry, Resource, ResourceMeta, SyncConnectorBase,
)
from flytekit.extend.backend.utils import get_connector_secret
from flytekit.models.literals import LiteralMap
from flytekit.models.task import TaskExecutionMetadata, TaskTemplate
from flyteidl.core.execution_pb2 import TaskExecution

SEEN = []

@dataclass
class Meta(ResourceMeta):
    name: str
    text: str

class Good(AsyncConnectorBase):
    name = "Good Connector"
    def __init__(self):
        super().__init__(task_type_name="good", metadata_type=Meta)
        self.loops = set()
    async def create(self, task_template, output_prefix, inputs=None,
                     task_execution_metadata=None, **kwargs):
        assert isinstance(task_template, TaskTemplate) and isinstance(inputs, LiteralMap)
        assert isinstance(task_execution_metadata, TaskExecutionMetadata) and not kwargs
        assert all(task_template is not seen for seen in SEEN)
        SEEN.append(task_template)
        task_template.custom["seen"] = True  # the next call's is another
        value = inputs.literals["n"].scalar.primitive.integer
        return Meta(task_template.type, f"{value} {output_prefix} {get_connector_secret('word')}")
    def get(self, resource_meta, **kwargs):
        stack = flytekit.FlyteContextManager.size()
        with flytekit.new_context() as ctx:
            word = flytekit.current_context().secrets.get(key="word")
        text = f"{resource_meta.text} {word} {stack}"
        return Resource(phase=TaskExecution.SUCCEEDED, message=text,
                        outputs={"n": 7, "s": "x", "d": {"k": 1.5}},
                        custom_info={"a": {"b": 1}})
    async def delete(self, resource_meta, **kwargs):
        self.loops.add(id(asyncio.get_running_loop()))
        assert len(self.loops) == 1
    async def get_metrics(self, resource_meta, **kwargs):
        return agent_pb2.GetTaskMetricsResponse()
    def get_logs(self, resource_meta, **kwargs):
        return agent_pb2.GetTaskLogsResponse(
            body=agent_pb2.GetTaskLogsResponseBody(results=["one"]))

class Sync(SyncConnectorBase):
    name = "Sync Connector"
    def __init__(self):
        super().__init__(task_type_name="sync")
    def do(self, task_template, output_prefix, inputs=None, **kwargs):
        assert not kwargs
        return Resource(phase=TaskExecution.SUCCEEDED, outputs={"t": task_template.type})

ConnectorRegistry.register(Good())
ConnectorRegistry.register(Sync())
"""
OLD = """
from dataclasses import dataclass
import cloudpickle
from flytekit.extend.backend.base_agent import (
    AgentRegistry, AsyncAgentBase, Resource, ResourceMeta,
)
from flytekit.extend.backend.utils import convert_to_flyte_phase, get_agent_secret

@dataclass
class Meta(ResourceMeta):
    what: object
    def encode(self):
        return cloudpickle.dumps(self)
    @classmethod
    def decode(cls, data):
        return cloudpickle.loads(data)

class Old(AsyncAgentBase):
    name = "Old Agent"
    def __init__(self):
        super().__init__(task_type_name="old", metadata_type=Meta)
    def create(self, task_template, inputs):  # no **kwargs, and not all that is passed
        return Meta({task_template.type, get_agent_secret("word")})
    async def get(self, resource_meta):
        text = str(sorted(resource_meta.what))
        return Resource(phase=convert_to_flyte_phase("running"), message=text)
    def delete(self, meta):
        raise SystemExit(3)

AgentRegistry.register(Old())
"""
FRAMES = """
from dataclasses import dataclass
import pandas as pd
from flytekit.extend.backend.base_connector import *
from flytekit.extend.backend.base_connector import AsyncConnectorBase, ConnectorRegistry, Resource
from flyteidl.core.execution_pb2 import TaskExecution

@dataclass
class Meta(ResourceMeta):
    pass

class Frames(AsyncConnectorBase):
    name = "Frames"
    def __init__(self):
        super().__init__(task_type_name="frames", metadata_type=Meta)
    async def create(self, task_template, **kwargs):
        return Meta()
    async def get(self, resource_meta, **kwargs):
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        return Resource(phase=TaskExecution.SUCCEEDED, outputs={"frame": frame})
    async def delete(self, resource_meta, **kwargs):
        pass

ConnectorRegistry.register(Frames())
"""
DOUBLE = GOOD.replace("Good Connector", "Double").replace("ConnectorRegistry.register(Sync())", "")
PLUGINS = {
    "good": GOOD,
    "old": OLD,
    "raises": "import json\n\ndef load():\n    return 1 / 0\n\nload()\n",
    "exits": "import sys\nsys.exit('never')\n",
    "lacks": "import a_module_that_is_not_there\n",
    "tangled": "def (:\n",
    "zdouble": DOUBLE,
}


def install(folder: Path, plugins: dict[str, str]) -> Path:
    """Leave distributions of plugins in ``folder`` as pip does."""
    folder.mkdir()
    for name, source in plugins.items():
        (folder / f"plugin_{name}.py").write_text(source)
        info = folder / f"flytekitplugins_{name}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: flytekitplugins-{name}\nVersion: 1.2.3\n"
        )
        (info / "entry_points.txt").write_text(f"[flytekit.plugins]\n{name} = plugin_{name}\n")
    return folder


def has(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


Served = tuple[Child, Wire, dict[str, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("child")
    site = install(folder / "site", PLUGINS)
    with running(
        folder, ["flytekit"], python=PYTHON, path=[site], environ={"_FSEC_WORD": "sesame"}
    ) as served:
        yield served


def meta_of(wire: Wire, task_type: str) -> bytes:
    from flyteidl.core.literals_pb2 import LiteralMap  # noqa: PLC0415 - only here

    inputs = LiteralMap()
    inputs.literals["n"].scalar.primitive.integer = 5
    meta: bytes = wire.create(task_type, inputs=inputs, output_prefix="s3://b/p").resource_meta
    return meta


def test_each_plugin_has_a_record_and_breaks_itself_alone(served: Served) -> None:
    """Of plugins that raise, exit, lack a module or do not parse, each says so; others serve."""
    _, _, shaken = served
    plugins = {plugin["name"]: plugin for plugin in shaken["plugins"]}
    assert list(plugins) == sorted(PLUGINS)
    assert plugins["good"] == {
        "name": "good",
        "target": "plugin_good",
        "state": "loaded",
        "distribution": "flytekitplugins-good 1.2.3",
        "categories": [["good", 0], ["sync", 0]],
        "error": "",
        "where": "",
    }
    for name, state, error, line in (
        ("raises", "failed", "ZeroDivisionError", "plugin_raises.py:4"),
        ("exits", "failed", "SystemExit: never", "plugin_exits.py:2"),
        ("lacks", "missing dependency", "a_module_that_is_not_there", "plugin_lacks.py:1"),
        ("tangled", "failed", "SyntaxError", "plugin_tangled.py:1"),
        ("zdouble", "failed", "Duplicate", "plugin_zdouble.py:"),
    ):
        record = plugins[name]
        assert record["state"] == state
        assert error in record["error"]
        assert line in record["where"]
        assert record["categories"] == []


def test_flytekits_own_connectors_are_not_served_unasked(served: Served) -> None:
    """``import flytekit`` registers its sensor; it is served only when a pattern names it."""
    _, wire, shaken = served
    assert {agent["name"]: agent["is_sync"] for agent in shaken["agents"]} == {
        "Good Connector": False,
        "Old Agent": False,
        "Sync Connector": True,
    }
    assert shaken["versions"] == {"flytekit": "1.16.31"}
    for task_type in ("sensor", "webhook"):
        with pytest.raises(grpc.RpcError) as caught:
            wire.get(task_type)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_job_of_a_modern_plugin(served: Served) -> None:
    """It gets flytekit's own models, fresh each call, and its outputs are flytekit's literals."""
    _, wire, _ = served
    for _ in range(3):
        meta = meta_of(wire, "good")
        assert json.loads(meta) == {"name": "good", "text": "5 s3://b/p sesame"}
        resource = wire.get("good", meta).resource
        assert resource.message == "5 s3://b/p sesame sesame 1"
        assert resource.phase == 3
        literals = resource.outputs.literals
        assert literals["n"].scalar.primitive.integer == 7
        assert literals["s"].scalar.primitive.string_value == "x"
        assert literals["d"].scalar.WhichOneof("value")  # as flytekit writes dictionaries
        assert resource.custom_info["a"]["b"] == 1
        wire.delete("good", meta)
    wire.metrics("good", meta)
    [log] = wire.logs("good", meta)
    assert list(log.body.results) == ["one"]
    answer = wire.do("sync")
    assert answer.outputs.literals["t"].scalar.primitive.string_value == "sync"


def test_a_job_of_a_plugin_with_the_old_names(served: Served) -> None:
    """Old names, methods without ``**kwargs``, a pickled meta, and ``sys.exit`` in a call."""
    _, wire, _ = served
    meta = meta_of(wire, "old")
    assert meta.startswith(b"\x80")
    assert wire.get("old", meta).resource.message == "['old', 'sesame']"
    with pytest.raises(grpc.RpcError) as caught:
        wire.delete("old", meta)
    assert facts(caught.value)["mro"][0] == "builtins.SystemExit"
    for ask in (wire.metrics, wire.logs):
        with pytest.raises(grpc.RpcError) as caught:
            list(ask("old", meta))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        wire.get("old", b"no pickle")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Old Agent" in caught.value.details()


def test_a_data_frame_becomes_a_structured_dataset(tmp_path: Path) -> None:
    """Flytekit's own type engine writes it where its raw output goes."""
    if not (has("pandas") and has("pyarrow")):
        pytest.skip("the environment has no pandas and pyarrow")
    site = install(tmp_path / "site", {"frames": FRAMES})
    with running(tmp_path, ["flytekit"], python=PYTHON, path=[site]) as (_, wire, _):
        resource = wire.get("frames").resource
    dataset = resource.outputs.literals["frame"].scalar.structured_dataset
    assert dataset.uri
    assert dataset.metadata.structured_dataset_type.format == "parquet"


def test_sensor_and_webhook_are_served_when_they_are_named(tmp_path: Path) -> None:
    """A pattern that matches them brings flytekit's own connectors, and hides the others."""
    site = install(tmp_path / "site", {"good": GOOD})
    with running(
        tmp_path, ["flytekit"], python=PYTHON, path=[site], enable=["sensor", "webhook"]
    ) as (_, _, shaken):
        served = {category[0] for agent in shaken["agents"] for category in agent["categories"]}
    assert "sensor" in served
    assert served - {"webhook"} == {"sensor"}
    assert ("webhook" in served) == has("httpx")


def test_a_module_of_the_operators_own(tmp_path: Path) -> None:
    """``module:`` beside ``flytekit`` is loaded from the working directory, as a plugin is."""
    (tmp_path / "mine.py").write_text(GOOD)
    with running(
        tmp_path, ["flytekit", "module:mine"], python=PYTHON, environ={"_FSEC_WORD": "w"}
    ) as (_, wire, shaken):
        assert shaken["plugins"][-1]["categories"] == [["good", 0], ["sync", 0]]
        assert meta_of(wire, "good")


PROBE = """
import sys
from flytekit.extend.backend.base_connector import ConnectorRegistry, SyncConnectorBase, Resource

class Probe(SyncConnectorBase):
    name = "Probe"
    def __init__(self):
        super().__init__(task_type_name="probe")
    def do(self, task_template, **kwargs):
        return Resource(phase=3, message=" ".join(sys.modules))

ConnectorRegistry.register(Probe())
"""


def test_the_child_loads_nothing_beside_flytekit(tmp_path: Path) -> None:
    """No module of ours but the program's, and neither Prometheus nor flytekit's own service."""
    site = install(tmp_path / "site", {"probe": PROBE})
    with running(tmp_path, ["flytekit"], python=PYTHON, path=[site]) as (_, wire, _):
        loaded = set(wire.do("probe").message.split())
    assert "connector_host.engine" in loaded
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"connector_service", "prometheus_client", "uvloop", "flyte"}
    assert "flytekit.extend.backend.connector_service" not in loaded
