"""What Prometheus scrapes, read over HTTP from a real service after real calls."""

from __future__ import annotations

import asyncio
import http.client
import threading
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from flyteidl.admin.agent_pb2 import GetTaskLogsResponse, GetTaskMetricsResponse
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import Literal, LiteralMap, Primitive, Scalar
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl2.connector import connector_pb2
from flyteidl2.connector.service_pb2_grpc import (
    AsyncConnectorServiceStub,
    ConnectorMetadataServiceStub,
)
from prometheus_client.parser import text_string_to_metric_families

from connector_service import (
    AsyncConnectorBase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    TaskCategory,
)
from connector_service.errors import TransientError
from connector_service.telemetry.calls import HTTP_STATUS
from connector_service.testing import serve
from connector_service.version import __version__

if TYPE_CHECKING:
    from connector_service.client import Client
    from connector_service.testing import Served

META = b'{"job": "1"}'
INPUTS = LiteralMap(literals={"n": Literal(scalar=Scalar(primitive=Primitive(integer=7)))})
OPERATIONS = ("create", "get", "delete", "get_metrics", "get_logs", "do", "list", "describe")


@dataclass
class Meta(ResourceMeta):
    job: str


class Remote(AsyncConnectorBase):
    """Answers everything; ``get`` waits for ``release`` when that is given."""

    def __init__(self, release: threading.Event | None = None) -> None:
        super().__init__(task_type_name="remote", metadata_type=Meta)
        self.entered = threading.Semaphore(0)
        self._release = release

    def create(self, task_template: TaskTemplate) -> Meta:
        if task_template.custom.fields:
            raise TransientError("busy")
        return Meta("1")

    def get(self, resource_meta: Meta) -> Resource:
        self.entered.release()
        if self._release:
            assert self._release.wait(10)
        return Resource(TaskExecution.RUNNING)

    def delete(self, resource_meta: Meta) -> None:
        pass

    def get_metrics(self, resource_meta: Meta) -> GetTaskMetricsResponse:
        return GetTaskMetricsResponse()

    def get_logs(self, resource_meta: Meta) -> GetTaskLogsResponse:
        return GetTaskLogsResponse()


class Local(SyncConnectorBase):
    def __init__(self) -> None:
        super().__init__(task_type_name="local")

    def do(self, task_template: TaskTemplate) -> Resource:
        if task_template.custom.fields:
            raise ValueError("a bug")
        return Resource(TaskExecution.SUCCEEDED)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(served: Served) -> Samples:
    """Read every sample, by name and labels."""

    def fetch() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", served.service.prometheus_port)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        text = response.read().decode()
        connection.close()
        return text

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(await asyncio.to_thread(fetch))
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def call(client: Client, operation: str, task_type: str = "", meta: bytes = META) -> None:
    """Make one call; a refusal is an answer too."""
    category = TaskCategory(task_type or "remote")
    try:
        match operation:
            case "create":
                await client.create(TaskTemplate(type=category.name), INPUTS)
            case "do":
                await client.do(TaskTemplate(type=task_type or "local"), INPUTS)
            case "get_logs":
                async for _ in client.get_logs(category, meta):
                    pass
            case "list":
                await client.list_agents()
            case "describe":
                await client.get_agent(task_type or "Remote")
            case _:
                await getattr(client, operation)(category, meta)
    except grpc.aio.AioRpcError:
        assert task_type


def task_type_of(operation: str) -> str:
    return {"do": "local", "list": "", "describe": ""}.get(operation, "remote")


async def test_every_rpc_counts_under_upstreams_names() -> None:
    """Success, latency and input size have flytekit's names and labels, for every RPC."""
    async with serve(Remote(), Local()) as served, served.client() as client:
        for operation in OPERATIONS:
            await call(client, operation)
        samples = await scrape(served)
    for operation in OPERATIONS:
        labels = {"task_type": task_type_of(operation), "operation": operation}
        assert samples[key("flyte_connector_requests_success_total", **labels)] == 1
        assert samples[key("flyte_connector_request_latency_seconds_count", **labels)] == 1
        assert samples[key("flyte_connector_request_latency_seconds_sum", **labels)] > 0
    for task_type in ("remote", "local"):
        count = key("flyte_connector_input_literal_bytes_count", task_type=task_type)
        size = key("flyte_connector_input_literal_bytes_sum", task_type=task_type)
        assert (samples[count], samples[size]) == (1, INPUTS.ByteSize())
    failures = [name for name, _labels in samples if "requests_failure" in name]
    assert not failures


async def test_every_rpc_has_a_histogram_by_protocol_and_code() -> None:
    """The histogram's labels are protocol, operation, task type and the gRPC code."""
    async with serve(Remote(), Local()) as served, served.client() as client:
        for operation in OPERATIONS:
            await call(client, operation)
        async with grpc.aio.insecure_channel(served.endpoint) as channel:
            jobs: Any = AsyncConnectorServiceStub(channel)
            metadata: Any = ConnectorMetadataServiceStub(channel)
            category = connector_pb2.TaskCategory(name="remote")
            await jobs.GetTask(
                connector_pb2.GetTaskRequest(task_category=category, resource_meta=META)
            )
            await metadata.ListConnectors(connector_pb2.ListConnectorsRequest())
        samples = await scrape(served)
    expected = [("flyteidl", operation) for operation in OPERATIONS]
    for protocol, operation in (*expected, ("flyteidl2", "get"), ("flyteidl2", "list")):
        labels = {
            "protocol": protocol,
            "operation": operation,
            "task_type": task_type_of(operation),
            "code": "OK",
        }
        name = "connector_service_request_duration_seconds"
        assert samples[key(f"{name}_count", **labels)] == 1
        assert samples[key(f"{name}_bucket", le="+Inf", **labels)] == 1
        assert samples[key(f"{name}_bucket", le="60.0", **labels)] == 1
        assert 0 < samples[key(f"{name}_sum", **labels)] < 10


async def test_a_failure_counts_under_the_nearest_http_status() -> None:
    """The failure counter has upstream's ``error_code``; the histogram has the gRPC code."""
    refuse = TaskTemplate()
    refuse.custom["refuse"] = True
    async with serve(Remote(), Local()) as served, served.client() as client:
        for rpc, task_type in ((client.create, "remote"), (client.do, "local")):
            refuse.type = task_type
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc(refuse, INPUTS)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.get(TaskCategory("remote"), b"no meta")
        samples = await scrape(served)
    for operation, task_type, code, error_code in (
        ("create", "remote", "UNAVAILABLE", "503"),
        ("do", "local", "INTERNAL", "500"),
        ("get", "remote", "INVALID_ARGUMENT", "400"),
    ):
        labels = {"task_type": task_type, "operation": operation}
        failed = key("flyte_connector_requests_failure_total", error_code=error_code, **labels)
        assert samples[failed] == 1
        assert key("flyte_connector_requests_success_total", **labels) not in samples
        counted = key(
            "connector_service_request_duration_seconds_count",
            protocol="flyteidl",
            code=code,
            **labels,
        )
        assert samples[counted] == 1


async def test_calls_in_flight_go_up_and_back() -> None:
    """The gauge counts calls while they are answered, refused ones and left ones too."""
    release = threading.Event()
    connector = Remote(release)
    gauge = key("connector_service_requests_in_flight", protocol="flyteidl", operation="get")
    async with serve(connector) as served, served.client() as client:
        # Of three jobs: polls of one job share a call.
        metas = [f'{{"job": "{number}"}}'.encode() for number in range(3)]
        calls = [asyncio.create_task(call(client, "get", meta=meta)) for meta in metas]
        for _ in calls:
            assert await asyncio.to_thread(connector.entered.acquire, timeout=10)
        assert (await scrape(served))[gauge] == 3
        release.set()
        await asyncio.gather(*calls)
        await call(client, "get", "made-up")
        assert (await scrape(served))[gauge] == 0


async def test_made_up_names_add_no_series() -> None:
    """500 task types that nobody registered add as many series as one does."""
    operations = [operation for operation in OPERATIONS if operation != "list"]
    async with serve(Remote(), Local()) as served, served.client() as client:
        for operation in operations:
            await call(client, operation, "made-up")
        before = await scrape(served)
        for number in range(500):
            await call(client, operations[number % len(operations)], f"made-up-{number}")
        after = await scrape(served)
    assert after.keys() == before.keys()
    assert not [labels for _name, labels in after if "made-up" in str(labels)]
    unknown = key(
        "flyte_connector_requests_failure_total",
        task_type="unknown",
        operation="get",
        error_code="404",
    )
    assert after[unknown] > before[unknown] == 1


async def test_the_build_and_the_process_are_described() -> None:
    """Build info names the release and what it stands on; the process tells its memory."""
    async with serve() as served:
        samples = await scrape(served)
    ((_name, labels),) = [found for found in samples if found[0] == "connector_service_build_info"]
    facts = dict(labels)
    assert facts.pop("version") == __version__
    assert facts.pop("python").startswith("3.")
    assert facts == {
        distribution: version(distribution) for distribution in ("grpcio", "protobuf", "flyteidl")
    }
    assert samples[key("process_resident_memory_bytes")] > 0
    assert samples[key("connector_service_plugins_loaded")] == 0
    assert samples[key("connector_service_plugins_failed")] == 0


async def test_two_services_in_one_process_count_apart() -> None:
    """Every service has its own collectors, so neither tests nor workers clash."""
    async with serve(Remote()) as first, serve(Remote()) as second:
        async with first.client() as client:
            await call(client, "get")
        name = key("flyte_connector_requests_success_total", task_type="remote", operation="get")
        assert (await scrape(first))[name] == 1
        assert name not in await scrape(second)


def test_every_grpc_code_has_an_http_status() -> None:
    """No code falls back to 500 because it was forgotten."""
    assert set(HTTP_STATUS) == {code.name for code in grpc.StatusCode} - {"OK"}
