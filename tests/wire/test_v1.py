"""Flyte 1's protocol over a real port: what is read from a request, what is sent, and when."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from flyteidl.admin.agent_pb2 import (
    Agent,
    CreateRequestHeader,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteTaskRequest,
    DeleteTaskResponse,
    ExecuteTaskSyncRequest,
    ExecuteTaskSyncResponse,
    ExecuteTaskSyncResponseHeader,
    GetTaskLogsRequest,
    GetTaskLogsResponse,
    GetTaskLogsResponseBody,
    GetTaskMetricsRequest,
    GetTaskMetricsResponse,
    GetTaskRequest,
    GetTaskResponse,
    TaskCategory,
    TaskExecutionMetadata,
)
from flyteidl.admin.agent_pb2 import Resource as ResourceMessage
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import Literal, LiteralMap, Primitive, Scalar
from flyteidl.core.metrics_pb2 import ExecutionMetricResult
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service.agent_pb2_grpc import AsyncAgentServiceStub, SyncAgentServiceStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from connector_service import Resource
from connector_service.config import ConnectorSection
from connector_service.runtime.once import idempotency_key
from connector_service.sdk.resource import TaskCategory as Category
from connector_service.testing import serve, serve_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

META = b'{"job": "1"}'
TEMPLATE = TaskTemplate(type="fake", custom={"key": "value"})
INPUTS = LiteralMap(
    literals={"n": Literal(scalar=Scalar(primitive=Primitive(integer=7)))},
)
EXECUTION = TaskExecutionMetadata(namespace="flyte", labels={"a": "b"})
SERVICES = (
    "flyteidl.service.AsyncAgentService",
    "flyteidl.service.SyncAgentService",
    "flyteidl.service.AgentMetadataService",
    "flyteidl2.connector.AsyncConnectorService",
    "flyteidl2.connector.ConnectorMetadataService",
    "connector_service.v1.Introspection",
    "grpc.health.v1.Health",
)


def body(line: str) -> GetTaskLogsResponse:
    return GetTaskLogsResponse(body=GetTaskLogsResponseBody(results=[line]))


@pytest.fixture
async def channel() -> AsyncIterator[Callable[[str], grpc.aio.Channel]]:
    """Open channels that are closed with the test."""
    opened = []

    def connect(endpoint: str, **options: Any) -> grpc.aio.Channel:
        opened.append(grpc.aio.insecure_channel(endpoint, options=[*options.items()]))
        return opened[-1]

    yield connect
    for one in opened:
        await one.close()


def on_job(stub: Any, operation: str) -> tuple[Any, type]:
    """Return an RPC about a job and the type of its request."""
    return {
        "get": (stub.GetTask, GetTaskRequest),
        "delete": (stub.DeleteTask, DeleteTaskRequest),
        "get_metrics": (stub.GetTaskMetrics, GetTaskMetricsRequest),
        "get_logs": (stub.GetTaskLogs, GetTaskLogsRequest),
    }[operation]


async def finished(call: Any) -> tuple[StatusCode, str]:
    """Read a call to its end and return how it ended."""
    if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall):
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError:
            pass
    return await call.code(), await call.details()


# --- which connector answers ------------------------------------------------------------------


CATEGORIES = {
    "category": ({"task_category": TaskCategory(name="new", version=1)}, "new v1"),
    "task type": ({"task_type": "old"}, "old v0"),
    "category before task type": (
        {"task_type": "old", "task_category": TaskCategory(name="new", version=1)},
        "new v1",
    ),
    "nameless category": ({"task_type": "old", "task_category": TaskCategory(version=1)}, "old v0"),
}


@pytest.mark.parametrize("operation", ["get", "delete", "get_metrics", "get_logs"])
@pytest.mark.parametrize("case", CATEGORIES)
async def test_the_task_category_is_read_first_and_the_task_type_without_one(
    fake: Any, channel: Any, operation: str, case: str
) -> None:
    """A job's connector is found by category; by the deprecated task type only without one."""
    fields, expected = CATEGORIES[case]
    called: list[str] = []
    answers = {"get": Resource(TaskExecution.RUNNING), "get_logs": body("")}

    def notes(name: str) -> Any:
        def method(self: object) -> Any:
            called.append(name)
            return answers.get(operation)

        return {operation: method}

    old = fake(task_type="old", **notes("old v0"))
    new = fake(task_type="new", version=1, **notes("new v1"))
    async with serve(old, new) as served:
        rpc, request = on_job(AsyncAgentServiceStub(channel(served.endpoint)), operation)
        code, details = await finished(rpc(request(resource_meta=META, **fields)))
    assert (code, details, called) == (StatusCode.OK, "", [expected])


async def test_a_request_without_a_task_type_is_refused(
    fake: Any, channel: Any, ask: Any, call_log: Any
) -> None:
    """An empty task type is INVALID_ARGUMENT and names the field that lacks, in every RPC."""
    async with serve(fake()) as served:
        stub = AsyncAgentServiceStub(channel(served.endpoint))
        refusals = {"create": "create has no template.type."}
        for operation in ("get", "delete", "get_metrics", "get_logs"):
            refusals[operation] = f"{operation} has no task_category.name."
            rpc, request = on_job(stub, operation)
            ended = await finished(rpc(request(resource_meta=META)))
            assert ended == (StatusCode.INVALID_ARGUMENT, refusals[operation])
        async with served.client() as client:
            for operation in ("create", "do"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await getattr(client, operation)(TaskTemplate())
                assert refused.value.code() is StatusCode.INVALID_ARGUMENT
                assert refused.value.details() == f"{operation} has no template.type."
    while not call_log.empty:
        record = await call_log.next()
        assert (record.task_type, record.code) == ("unknown", "INVALID_ARGUMENT")


RPCS = {
    "CreateTask": "create has no template.type.",
    "GetTask": "get has no task_category.name.",
    "DeleteTask": "delete has no task_category.name.",
    "GetTaskMetrics": "get_metrics has no task_category.name.",
    "GetTaskLogs": "get_logs has no task_category.name.",
}


@pytest.mark.parametrize("rpc", RPCS)
async def test_bytes_that_are_no_request_are_refused(
    fake: Any, channel: Any, call_log: Any, rpc: str
) -> None:
    """Undecodable bytes are INVALID_ARGUMENT with a record, as any other malformed request."""
    async with serve(fake()) as served:
        connection = channel(served.endpoint)
        call = connection.unary_stream(f"/flyteidl.service.AsyncAgentService/{rpc}")(b"\xff\xff")
        assert await finished(call) == (StatusCode.INVALID_ARGUMENT, RPCS[rpc])
        assert (await call_log.next()).code == "INVALID_ARGUMENT"


# --- what a method is given -------------------------------------------------------------------


START = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
GIVEN: dict[str, dict[str, Any]] = {
    "create": {
        "task_template": TEMPLATE,
        "output_prefix": "mem://out",
        "inputs": INPUTS,
        "task_execution_metadata": EXECUTION,
        "idempotency_key": idempotency_key(Category("fake"), "mem://out"),
    },
    "get": {"resource_meta": "1", "output_prefix": "mem://out"},
    "delete": {"resource_meta": "1"},
    "get_metrics": {
        "resource_meta": "1",
        "queries": ["cpu", "memory"],
        "start_time": START,
        "end_time": None,
        "step": timedelta(seconds=1.5),
    },
    "get_logs": {"resource_meta": "1", "lines": 10, "token": "next"},
    "do": {
        "task_template": TEMPLATE,
        "output_prefix": "mem://out",
        "inputs": INPUTS,
        "task_execution_metadata": EXECUTION,
    },
}
PLAIN: dict[str, Any] = {
    "create": b"{}",
    "get": Resource(TaskExecution.RUNNING),
    "get_logs": body(""),
    "do": Resource(TaskExecution.SUCCEEDED),
}


async def send(connection: grpc.aio.Channel, operation: str) -> tuple[StatusCode, str]:
    """Send a request with every field set, apart from ``end_time``."""
    stub: Any = AsyncAgentServiceStub(connection)
    start = Timestamp()
    start.FromDatetime(START)
    job = {"resource_meta": META, "task_category": TaskCategory(name="fake")}
    created = {
        "template": TEMPLATE,
        "output_prefix": "mem://out",
        "task_execution_metadata": EXECUTION,
    }
    match operation:
        case "create":
            call = stub.CreateTask(CreateTaskRequest(inputs=INPUTS, **created))
        case "get":
            call = stub.GetTask(GetTaskRequest(output_prefix="mem://out", **job))
        case "delete":
            call = stub.DeleteTask(DeleteTaskRequest(**job))
        case "get_metrics":
            call = stub.GetTaskMetrics(
                GetTaskMetricsRequest(
                    queries=["cpu", "memory"],
                    start_time=start,
                    step=Duration(seconds=1, nanos=500_000_000),
                    **job,
                )
            )
        case "get_logs":
            call = stub.GetTaskLogs(GetTaskLogsRequest(lines=10, token="next", **job))
        case _:
            header = CreateRequestHeader(**created)
            call = SyncAgentServiceStub(connection).ExecuteTaskSync(
                iter([ExecuteTaskSyncRequest(header=header), ExecuteTaskSyncRequest(inputs=INPUTS)])
            )
    return await finished(call)


def method_taking(operation: str, parameters: str, seen: dict[str, Any]) -> Any:
    """Write a method whose signature is ``parameters``; it notes what it was given."""
    scope: dict[str, Any] = {"seen": seen, "answer": PLAIN.get(operation)}
    exec(  # a signature for each case, spelled as an author would
        f"def {operation}(self, {parameters}):\n"
        "    got = dict(locals())\n"
        "    del got['self']\n"
        "    seen.update(got.pop('kwargs', {}), **got)\n"
        "    return answer\n",
        scope,
    )
    return scope[operation]


SIGNATURES = [
    *((operation, "**kwargs", tuple(given)) for operation, given in GIVEN.items()),
    *((operation, ", ".join(given), tuple(given)) for operation, given in GIVEN.items()),
    *((operation, f"*, {next(iter(given))}", (*given,)[:1]) for operation, given in GIVEN.items()),
    ("get", "resource_meta, output_prefix='', unknown=3", ("resource_meta", "output_prefix")),
    ("get_logs", "token, **kwargs", ("resource_meta", "lines", "token")),
    ("do", "*, inputs=None", ("inputs",)),
]


@pytest.mark.parametrize(("operation", "parameters", "passed"), SIGNATURES)
async def test_a_method_is_given_what_it_can_take(
    fake: Any, channel: Any, operation: str, parameters: str, passed: tuple[str, ...]
) -> None:
    """Every field of the request arrives where a method names it or takes ``**kwargs``, only."""
    seen: dict[str, Any] = {}
    connector = fake(task_type="fake", **{operation: method_taking(operation, parameters, seen)})
    async with serve(connector) as served:
        assert await send(channel(served.endpoint), operation) == (StatusCode.OK, "")
    seen.pop("unknown", None)
    if "resource_meta" in seen:
        seen["resource_meta"] = seen["resource_meta"].job
    assert seen == {name: GIVEN[operation][name] for name in passed}


# --- ExecuteTaskSync --------------------------------------------------------------------------


HEADER = ExecuteTaskSyncRequest(
    header=CreateRequestHeader(template=TaskTemplate(type="fake_sync"), output_prefix="mem://out")
)
GIVES = ExecuteTaskSyncRequest(inputs=INPUTS)
NOTHING = ExecuteTaskSyncRequest()
ORDERS = {
    "an empty stream": ([], "the stream ended where header was expected"),
    "only a header": ([HEADER], "the stream ended where inputs was expected"),
    "only inputs": ([GIVES], "inputs came where header was expected"),
    "inputs first": ([GIVES, HEADER], "inputs came where header was expected"),
    "two headers": ([HEADER, HEADER], "header came where inputs was expected"),
    "an empty message first": ([NOTHING], "an empty message came where header was expected"),
    "an empty message second": (
        [HEADER, NOTHING],
        "an empty message came where inputs was expected",
    ),
    "inputs twice": (
        [HEADER, GIVES, GIVES],
        "a third message came where half-close was expected",
    ),
    "a second header at the end": (
        [HEADER, GIVES, HEADER],
        "a third message came where half-close was expected",
    ),
}


@pytest.mark.parametrize("case", ORDERS)
async def test_a_sync_stream_out_of_order_is_refused(
    fake: Any, channel: Any, call_log: Any, case: str
) -> None:
    """INVALID_ARGUMENT names what came and what was expected; the connector is not called."""
    messages, problem = ORDERS[case]
    called: list[str] = []

    def do(self: object) -> None:
        called.append("do")

    async with serve(fake(do=do)) as served:
        stub: Any = SyncAgentServiceStub(channel(served.endpoint))
        ended = await finished(stub.ExecuteTaskSync(iter(messages), timeout=10))
        record = await call_log.next()
    assert ended == (
        StatusCode.INVALID_ARGUMENT,
        f"ExecuteTaskSync wants header, inputs, half-close: {problem}.",
    )
    assert not called
    assert (record.operation, record.code) == ("do", "INVALID_ARGUMENT")


@pytest.mark.parametrize("style", ["async def", "def"])
async def test_a_sync_call_gets_exactly_one_header_and_its_end(
    fake: Any, channel: Any, style: str
) -> None:
    """Header, inputs, half-close give one header message, then OK, without the client's doing."""

    def do(self: object, inputs: LiteralMap) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, message="done", outputs=inputs)

    async def do_async(self: object, inputs: LiteralMap) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, message="done", outputs=inputs)

    async with serve(fake(do=do if style == "def" else do_async)) as served:
        stub: Any = SyncAgentServiceStub(channel(served.endpoint))
        call = stub.ExecuteTaskSync()  # no time limit: the server must end the stream
        await call.write(HEADER)
        await call.write(GIVES)
        await call.done_writing()
        assert await call.read() == ExecuteTaskSyncResponse(
            header=ExecuteTaskSyncResponseHeader(
                resource=ResourceMessage(
                    phase=TaskExecution.SUCCEEDED, message="done", outputs=INPUTS
                )
            )
        )
        assert await call.read() is grpc.aio.EOF
        assert (await call.code(), await call.details()) == (StatusCode.OK, "")


# --- GetTaskLogs ------------------------------------------------------------------------------


def plain_list(self: object) -> GetTaskLogsResponse:
    return body("1")


async def coroutine(self: object) -> GetTaskLogsResponse:
    return body("1")


def generator(self: object) -> Any:
    for line in "123":
        yield body(line)


async def async_generator(self: object) -> Any:
    for line in "123":
        yield body(line)


def returns_generator(self: object) -> Any:
    return generator(self)


async def returns_async_generator(self: object) -> Any:
    return async_generator(self)


def empty_generator(self: object) -> Any:
    yield from ()


@pytest.mark.parametrize(
    ("get_logs", "lines"),
    [
        (plain_list, "1"),
        (coroutine, "1"),
        (generator, "123"),
        (async_generator, "123"),
        (returns_generator, "123"),
        (returns_async_generator, "123"),
        (empty_generator, ""),
    ],
)
async def test_logs_are_streamed_message_by_message(
    fake: Any, ask: Any, get_logs: Any, lines: str
) -> None:
    """GetTaskLogs delivers all that a generator yields, or the one message that is returned."""
    async with serve(fake(get_logs=get_logs)) as served, served.client() as client:
        assert await ask(client, "get_logs") == [body(line) for line in lines]


@pytest.mark.parametrize("style", ["generator", "async generator"])
async def test_a_message_is_delivered_before_the_next_is_made(
    fake: Any, channel: Any, style: str
) -> None:
    """A follower sees each line when it is written, not when the log ends."""
    proceed = threading.Event()

    def stepwise(self: object) -> Any:
        yield body("1")
        assert proceed.wait(10)
        yield body("2")

    async def stepwise_async(self: object) -> Any:
        yield body("1")
        assert await asyncio.to_thread(proceed.wait, 10)
        yield body("2")

    get_logs = stepwise if style == "generator" else stepwise_async
    async with serve(fake(get_logs=get_logs)) as served:
        stub: Any = AsyncAgentServiceStub(channel(served.endpoint))
        call = stub.GetTaskLogs(GetTaskLogsRequest(task_type="fake", resource_meta=META))
        assert await call.read() == body("1")
        proceed.set()
        assert await call.read() == body("2")
        assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize("style", ["generator", "async generator"])
@pytest.mark.parametrize("while_", ["making a message", "sending a message"])
async def test_a_log_stops_when_its_reader_leaves(
    fake: Any, channel: Any, call_log: Any, style: str, while_: str
) -> None:
    """The generator's ``finally`` runs as soon as the reader leaves, whatever was going on."""
    making = while_ == "making a message"
    big = body("x" * 100_000)
    stopped, entered, release = threading.Event(), threading.Event(), threading.Event()

    def follow(self: object) -> Any:
        try:
            yield body("1")
            if making:
                entered.set()
                release.wait(10)
            while True:  # the reader does not read these: the window fills, and sending waits
                yield big
        finally:
            stopped.set()

    async def follow_async(self: object) -> Any:
        try:
            yield body("1")
            if making:
                entered.set()
                await asyncio.Event().wait()
            while True:
                yield big
        finally:
            stopped.set()

    get_logs = follow if style == "generator" else follow_async
    async with serve(fake(get_logs=get_logs)) as served:
        connection = channel(served.endpoint)
        stub: Any = AsyncAgentServiceStub(connection)
        call = stub.GetTaskLogs(GetTaskLogsRequest(task_type="fake", resource_meta=META))
        assert await call.read() == body("1")
        if making:
            assert await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        record = await call_log.next()
        release.set()
        assert await asyncio.to_thread(stopped.wait, 10)
    assert (record.operation, record.code) == ("get_logs", "CANCELLED")


async def test_a_log_that_fails_half_way_delivers_its_half(
    fake: Any, channel: Any, call_log: Any
) -> None:
    """What was sent before a generator failed arrives; then comes the error's status."""

    def breaks(self: object) -> Any:
        yield body("1")
        raise ValueError("secret=hunter2")

    async with serve(fake(get_logs=breaks)) as served:
        stub: Any = AsyncAgentServiceStub(channel(served.endpoint))
        call = stub.GetTaskLogs(GetTaskLogsRequest(task_type="fake", resource_meta=META))
        assert await call.read() == body("1")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is StatusCode.INTERNAL
        assert "hunter2" not in refused.value.details()
        assert (await call_log.next()).code == "INTERNAL"


# --- whole messages and their size ------------------------------------------------------------


async def test_the_answers_of_a_jobs_life_are_whole_messages(fake: Any, channel: Any) -> None:
    """Create gives the meta's bytes, get and metrics the connector's message, delete nothing."""
    metrics = GetTaskMetricsResponse(results=[ExecutionMetricResult(metric="cpu")])
    connector = fake(
        get=lambda self, resource_meta: Resource(TaskExecution.RUNNING, message=resource_meta.job),
        get_metrics=lambda self, resource_meta: metrics,
    )
    job = {"resource_meta": META, "task_category": TaskCategory(name="fake")}
    async with serve(connector) as served:
        stub: Any = AsyncAgentServiceStub(channel(served.endpoint))
        created = await stub.CreateTask(CreateTaskRequest(template=TEMPLATE))
        assert created == CreateTaskResponse(resource_meta=META)
        got = await stub.GetTask(GetTaskRequest(**job))
        assert got == GetTaskResponse(
            resource=ResourceMessage(phase=TaskExecution.RUNNING, message="1")
        )
        assert not got.resource.HasField("outputs")
        assert await stub.GetTaskMetrics(GetTaskMetricsRequest(**job)) == metrics
        assert await stub.DeleteTask(DeleteTaskRequest(**job)) == DeleteTaskResponse()


async def test_inputs_over_four_mebibytes_are_accepted(fake: Any) -> None:
    """The 4 MiB that gRPC allows by default are no limit here, neither in nor out."""
    text = Literal(scalar=Scalar(primitive=Primitive(string_value="x" * (6 << 20))))
    inputs = LiteralMap(literals={"text": text})
    connectors = [
        fake(),
        fake(do=lambda self, inputs: Resource(TaskExecution.SUCCEEDED, outputs=inputs)),
    ]
    # Out, the guarantees refuse what Flyte's own client would drop; others may take it.
    bare = ConnectorSection(guarantees=False)
    async with serve(*connectors, policy=bare) as served, served.client() as client:
        assert await client.create(TEMPLATE, inputs) == META
        resource = await client.do(TaskTemplate(type="fake_sync"), inputs)
        assert resource.outputs == inputs


async def test_a_request_over_the_limit_is_refused_and_the_next_is_served(fake: Any) -> None:
    """Over ``max_request_mib`` a request is RESOURCE_EXHAUSTED, and only that request."""
    text = Literal(scalar=Scalar(primitive=Primitive(string_value="x" * (4 << 20))))
    inputs = LiteralMap(literals={"text": text})
    async with serve(fake(), max_request_mib=4) as served, served.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.create(TEMPLATE, inputs)
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert await client.create(TEMPLATE) == META


# --- discovery, reflection, health ------------------------------------------------------------


def agent(name: str, *categories: tuple[str, int], is_sync: bool = False) -> Agent:
    return Agent(
        name=name,
        is_sync=is_sync,
        supported_task_types=list(dict.fromkeys(category for category, _ in categories)),
        supported_task_categories=[
            TaskCategory(name=category, version=version) for category, version in categories
        ],
    )


async def test_discovery_describes_every_connector(fake: Any) -> None:
    """ListAgents and GetAgent fill types, categories and kind; kinds that share a name differ."""
    connectors = [
        fake(name="Spark", task_type="spark"),
        fake(name="Spark", task_type="spark", version=1),
        fake(name="Shared", task_type="slow"),
        fake(name="Shared", task_type="fast", do=lambda self: None),
    ]
    expected = {
        "Spark": agent("Spark", ("spark", 0), ("spark", 1)),
        "Shared": agent("Shared", ("slow", 0)),
        "Shared (sync)": agent("Shared (sync)", ("fast", 0), is_sync=True),
    }
    async with serve(*connectors) as served, served.client() as client:
        agents = await client.list_agents()
        assert {one.name: one for one in agents} == expected
        assert len(agents) == len(expected)
        for name, one in expected.items():
            assert await client.get_agent(name) == one


async def test_a_service_without_connectors_lists_none() -> None:
    """ListAgents answers OK with an empty list, not UNIMPLEMENTED or an error."""
    async with serve() as served, served.client() as client:
        assert await client.list_agents() == []


async def test_discovery_and_health_answer_while_connectors_are_stuck(fake: Any, ask: Any) -> None:
    """ListAgents and health come from memory: 40 blocked calls do not delay them."""
    entered, release = threading.Semaphore(0), threading.Event()

    def blocks(self: object) -> Resource:
        entered.release()
        release.wait(10)
        return Resource(TaskExecution.RUNNING)

    async with serve(fake(get=blocks)) as served, served.client() as client:
        stuck = [asyncio.create_task(ask(client, "get")) for _ in range(40)]
        assert await asyncio.to_thread(entered.acquire, timeout=10)
        assert [one.name for one in await client.list_agents()] == ["Fake"]
        assert await client.health() == "SERVING"
        assert not any(task.done() for task in stuck)
        release.set()
        assert len(await asyncio.gather(*stuck)) == 40


async def test_health_knows_every_service_by_name(fake: Any) -> None:
    """Health is SERVING for "" and for each service, and NOT_FOUND for any other name."""
    async with serve(fake()) as served, served.client() as client:
        for name in ("", *SERVICES):
            assert await client.health(name) == "SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.health("nobody")
        assert refused.value.code() is StatusCode.NOT_FOUND
        await served.service.drain()
        for name in ("", *SERVICES):
            assert await client.health(name) == "NOT_SERVING"
        assert [one.name for one in await client.list_agents()] == ["Fake"]


def test_reflection_lists_and_describes_every_service(fake: Any) -> None:
    """A generic client finds the services, their methods and the messages without our protos."""
    with serve_in_thread(fake()) as served, grpc.insecure_channel(served.endpoint) as connection:
        database = ProtoReflectionDescriptorDatabase(connection)
        assert set(database.get_services()) == {
            *SERVICES,
            "grpc.reflection.v1alpha.ServerReflection",
        }
        for name in SERVICES:
            file = database.FindFileContainingSymbol(name)
            assert name.removeprefix(f"{file.package}.") in [one.name for one in file.service]
        methods = {
            method.name
            for service in database.FindFileContainingSymbol(SERVICES[0]).service
            for method in service.method
        }
        assert {"CreateTask", "GetTask", "DeleteTask", "GetTaskLogs", "ExecuteTaskSync"} <= methods
