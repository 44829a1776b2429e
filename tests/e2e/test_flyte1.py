"""Flyte 1's propeller drives the installed service: its calls, in its order, with its stubs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest
from daemon import PATIENCE, Daemon, Serve, eventually
from flyteidl.admin import agent_pb2
from flyteidl.core import identifier_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.interface_pb2 import TypedInterface, Variable, VariableMap
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.security_pb2 import Identity
from flyteidl.core.tasks_pb2 import Sql, TaskTemplate
from flyteidl.core.types_pb2 import LiteralType, SimpleType, StructuredDatasetType
from flyteidl.service import agent_pb2_grpc

from connector_service import StructuredDataset, is_terminal_phase, to_literal_map

INTEGER = LiteralType(simple=SimpleType.INTEGER)
TABLE = LiteralType(structured_dataset_type=StructuredDatasetType(format="parquet"))

SHOUT = """
from connector_service import ConnectorRegistry, Phase, Resource, SyncConnectorBase

class Shout(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="shout")

    def do(self, task_template, output_prefix, inputs):
        text = inputs.literals["text"].scalar.primitive.string_value
        return Resource(Phase.SUCCEEDED, outputs={"text": text.upper()})

ConnectorRegistry.register(Shout())
"""
# Counts pairs of a cross join: slow enough to kill the service in its middle, on any machine.
SLOW = "select count(*) as n from range({n}) a, range({n}) b where (a.range * b.range) % 7 = 3"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "shout.py").write_text(SHOUT)
    return tmp_path / "modules"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Path]:
    """Settings whose duckdb jobs live in the test's own folder."""
    file = tmp_path / "connector-service.toml"
    file.write_text(f'[connectors.duckdb.options]\nstate_dir = "{tmp_path / "jobs"}"\n')
    return file


class Propeller:
    """One long-lived channel for jobs, and a fresh one for every ListAgents."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._channel = daemon.channel()
        self.jobs: Any = agent_pb2_grpc.AsyncAgentServiceStub(self._channel)
        self.sync: Any = agent_pb2_grpc.SyncAgentServiceStub(self._channel)

    def __enter__(self) -> Propeller:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._channel.close()

    def types(self) -> dict[str, bool]:
        with self._daemon.channel() as channel:
            response = agent_pb2_grpc.AgentMetadataServiceStub(channel).ListAgents(
                agent_pb2.ListAgentsRequest(), timeout=3
            )
        return {
            category.name: agent.is_sync
            for agent in response.agents
            for category in agent.supported_task_categories
        }

    def create(self, template: TaskTemplate, inputs: LiteralMap, prefix: str) -> bytes:
        request = agent_pb2.CreateTaskRequest(
            inputs=inputs,
            template=template,
            output_prefix=prefix,
            task_execution_metadata=metadata(),
        )
        return self.jobs.CreateTask(request, timeout=10).resource_meta

    def get(self, meta: bytes, prefix: str, task_type: str = "duckdb") -> agent_pb2.Resource:
        request = agent_pb2.GetTaskRequest(
            task_type=task_type,
            task_category=agent_pb2.TaskCategory(name=task_type),
            resource_meta=meta,
            output_prefix=prefix,
        )
        return self.jobs.GetTask(request, timeout=10).resource

    def delete(self, meta: bytes, task_type: str = "duckdb") -> None:
        request = agent_pb2.DeleteTaskRequest(
            task_type=task_type,
            task_category=agent_pb2.TaskCategory(name=task_type),
            resource_meta=meta,
        )
        self.jobs.DeleteTask(request, timeout=10)

    def until_terminal(self, meta: bytes, prefix: str) -> agent_pb2.Resource:
        end = time.monotonic() + PATIENCE
        while True:
            assert self.types()["duckdb"] is False
            resource = self.get(meta, prefix)
            if is_terminal_phase(resource.phase):
                return resource
            assert resource.phase in {TaskExecution.QUEUED, TaskExecution.RUNNING}
            assert time.monotonic() < end, resource
            time.sleep(0.05)


def metadata() -> agent_pb2.TaskExecutionMetadata:
    """Set the seven fields that propeller sets."""
    return agent_pb2.TaskExecutionMetadata(
        task_execution_id=identifier_pb2.TaskExecutionIdentifier(
            task_id=identifier_pb2.Identifier(project="p", domain="d", name="t", version="v"),
            node_execution_id=identifier_pb2.NodeExecutionIdentifier(
                node_id="n0",
                execution_id=identifier_pb2.WorkflowExecutionIdentifier(
                    project="p", domain="d", name="e"
                ),
            ),
        ),
        namespace="p-d",
        labels={"execution-id": "e"},
        annotations={"a": "b"},
        k8s_service_account="default",
        environment_variables={"FLYTE_INTERNAL_EXECUTION_ID": "e"},
        identity=Identity(k8s_service_account="default"),
    )


def query(sql: str, *, inputs: dict[str, LiteralType], outputs: dict[str, LiteralType]) -> Any:
    return TaskTemplate(
        type="duckdb",
        sql=Sql(statement=sql),
        interface=TypedInterface(
            inputs=VariableMap(variables={k: Variable(type=v) for k, v in inputs.items()}),
            outputs=VariableMap(variables={k: Variable(type=v) for k, v in outputs.items()}),
        ),
    )


def test_a_query_over_a_table_runs_from_create_to_delete(
    serve: Serve, settings: Path, tmp_path: Path
) -> None:
    """A job with a table and a number as inputs gives a table and a number as outputs."""
    assert settings.exists()
    source = tmp_path / "source.parquet"
    duckdb.sql("select range as n, 'row ' || range as name from range(1000)").write_parquet(
        str(source)
    )
    template = query(
        "select sum(n)::bigint as total, count(*) as lines from source where n < $below",
        inputs={"source": TABLE, "below": INTEGER},
        outputs={"result": TABLE, "total": INTEGER},
    )
    inputs = to_literal_map(
        {"source": StructuredDataset(uri=str(source)), "below": 100},
        template.interface.inputs.variables,
    )
    prefix = str(tmp_path / "outputs")
    daemon = serve()
    with Propeller(daemon) as propeller:
        assert propeller.types() == {"duckdb": False, "sleep": False}
        meta = propeller.create(template, inputs, prefix)
        assert len(meta) < 1024
        assert b"select" not in meta
        resource = propeller.until_terminal(meta, prefix)
        assert resource.phase == TaskExecution.SUCCEEDED, resource.message
        propeller.delete(meta)
        propeller.delete(meta)
        assert propeller.get(meta, prefix).phase == TaskExecution.SUCCEEDED

    outputs = resource.outputs.literals
    assert outputs["total"].scalar.primitive.integer == sum(range(100))
    table = outputs["result"].scalar.structured_dataset
    assert table.metadata.structured_dataset_type.format == "parquet"
    columns = table.metadata.structured_dataset_type.columns
    assert [(c.name, c.literal_type.simple) for c in columns] == [
        ("total", SimpleType.INTEGER),
        ("lines", SimpleType.INTEGER),
    ]
    uri = table.uri.removeprefix("file://")
    assert Path(uri).is_relative_to(prefix)
    assert duckdb.sql(f"from '{uri}'").fetchall() == [(4950, 100)]
    assert daemon.kill(signal.SIGTERM) == 0


def test_a_job_survives_kill_9_of_the_service(serve: Serve, settings: Path, tmp_path: Path) -> None:
    """The service dies in mid-query, another starts, and the same resource meta finds the job."""
    assert settings.exists()
    template = query(SLOW.format(n=40_000), inputs={}, outputs={"n": INTEGER})
    prefix = str(tmp_path / "outputs")
    first = serve()
    with Propeller(first) as propeller:
        meta = propeller.create(template, LiteralMap(), prefix)
        eventually(
            lambda: propeller.get(meta, prefix).phase == TaskExecution.RUNNING, "phase RUNNING"
        )
        first.kill(signal.SIGKILL)
    with Propeller(serve()) as propeller:
        assert propeller.get(meta, prefix).phase == TaskExecution.RUNNING
        assert propeller.create(template, LiteralMap(), prefix) == meta
        resource = propeller.until_terminal(meta, prefix)
    assert resource.phase == TaskExecution.SUCCEEDED, resource.message
    assert resource.outputs.literals["n"].scalar.primitive.integer > 0


def test_delete_stops_a_query_that_another_service_started(
    serve: Serve, settings: Path, tmp_path: Path
) -> None:
    """After a restart the new service can still kill the old one's query; twice is fine."""
    assert settings.exists()
    template = query(SLOW.format(n=4_000_000), inputs={}, outputs={"n": INTEGER})
    prefix = str(tmp_path / "outputs")
    first = serve()
    with Propeller(first) as propeller:
        meta = propeller.create(template, LiteralMap(), prefix)
        eventually(
            lambda: propeller.get(meta, prefix).phase == TaskExecution.RUNNING, "phase RUNNING"
        )
        first.kill(signal.SIGKILL)
    with Propeller(serve()) as propeller:
        propeller.delete(meta)
        propeller.delete(meta)
        assert propeller.get(meta, prefix).phase == TaskExecution.ABORTED


def test_bad_sql_fails_the_task_with_the_engine_s_words(
    serve: Serve, settings: Path, tmp_path: Path
) -> None:
    """A user's mistake is phase FAILED, not an RPC error that would burn a retry."""
    assert settings.exists()
    template = query("select nonsense from nowhere", inputs={}, outputs={"n": INTEGER})
    prefix = str(tmp_path / "outputs")
    with Propeller(serve()) as propeller:
        meta = propeller.create(template, LiteralMap(), prefix)
        resource = propeller.until_terminal(meta, prefix)
    assert resource.phase == TaskExecution.FAILED
    assert "nowhere" in resource.message


def test_a_sync_task_is_answered_with_one_message(serve: Serve, modules: Path) -> None:
    """Header, inputs, half-close; one receive, terminal phase; then the server ends the stream."""
    header = agent_pb2.CreateRequestHeader(
        template=TaskTemplate(type="shout"),
        output_prefix="s3://bucket/prefix",
        task_execution_metadata=metadata(),
    )
    requests = [
        agent_pb2.ExecuteTaskSyncRequest(header=header),
        agent_pb2.ExecuteTaskSyncRequest(inputs=to_literal_map({"text": "hello"})),
    ]
    with Propeller(serve("--module=shout", modules=modules)) as propeller:
        assert propeller.types()["shout"] is True
        stream = propeller.sync.ExecuteTaskSync(iter(requests), timeout=10)
        resource = next(stream).header.resource
        assert list(stream) == []
        assert stream.code() is grpc.StatusCode.OK
    assert resource.phase == TaskExecution.SUCCEEDED
    assert resource.outputs.literals["text"].scalar.primitive.string_value == "HELLO"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda p: p.get(b"{}", "", "nobody"), grpc.StatusCode.NOT_FOUND),
        (lambda p: p.get(b"not json", "", "duckdb"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda p: p.get(b"{}", "", ""), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["unknown type", "malformed meta", "no type"],
)
def test_bad_calls_have_their_code(
    serve: Serve, settings: Path, call: Callable[[Propeller], object], code: grpc.StatusCode
) -> None:
    """A malformed call gets its code and the service goes on."""
    assert settings.exists()
    with Propeller(serve()) as propeller:
        with pytest.raises(grpc.RpcError) as refused:
            call(propeller)
        assert refused.value.code() is code
        assert propeller.types()["duckdb"] is False
