"""Forwarding over real ports: every crossing, what a peer may answer, and what it means."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from flyte_clients import SHAPES, Meta, make_connector
from flyteidl.admin import agent_pb2
from flyteidl.core import interface_pb2, literals_pb2, tasks_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2
from flyteidl2.task import common_pb2
from grpc import StatusCode
from peers import JOBS, SYNC, answering, peer, refusing

from connector_service import Phase, Resource, SyncConnectorBase, to_literal_map
from connector_service.codec import to_literal_type
from connector_service.config import ConnectorSection
from connector_service.errors import (
    ConnectorServiceError,
    DeadlineError,
    GoneError,
    InvalidMetaError,
    InvalidRequestError,
    TransientError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.hosts.channels import CHILD_OPTIONS
from connector_service.hosts.forward import IDEMPOTENCY_KEY, Forwarder
from connector_service.hosts.statuses import CHILD, ERROR_KEY, REMOTE, PeerError
from connector_service.runtime.call import Call
from connector_service.runtime.faults import Fault, judge
from connector_service.runtime.retry import retried
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.sdk.secrets import redact
from connector_service.testing import serve
from connector_service.wire.status import classify

FLYTES = ("flyteidl", "flyteidl2")
MESSAGES: dict[str, Any] = {"flyteidl": agent_pb2, "flyteidl2": connector_pb2}
CATEGORY = TaskCategory("crossed")
BARE = ConnectorSection(guarantees=False)
DECLARED = interface_pb2.VariableMap(
    variables={"n": interface_pb2.Variable(type=to_literal_type(int))}
)
INPUTS = to_literal_map({"n": 3}, DECLARED.variables)
READINGS = {"child": CHILD, "remote": REMOTE}

Makes = Callable[..., Forwarder]


@pytest.fixture
async def forward() -> AsyncIterator[Makes]:
    """Make a forwarder to an endpoint, for a peer that takes the protocols given."""
    async with contextlib.AsyncExitStack() as stack:

        def make(endpoint: str, *protocols: str, **more: Any) -> Forwarder:
            channel = grpc.aio.insecure_channel(endpoint, options=CHILD_OPTIONS)
            stack.push_async_callback(channel.close)
            taken = protocols or FLYTES
            forwarder = Forwarder(channel, name="h", protocols_of=lambda _: taken, **more)
            forwarder.channel = channel  # type: ignore[attr-defined]
            return forwarder

        yield make


def call(
    operation: Operation, protocol: str = "flyteidl", seconds: float = 20, **more: Any
) -> Call:
    """Make a call as the wire makes it, of a request with something in every field."""
    messages = MESSAGES[protocol]
    deadline = time.monotonic() + seconds
    if operation in (Operation.CREATE, Operation.DO):
        request = messages.CreateTaskRequest(output_prefix="mem://out")
        kind = tasks_pb2.TaskTemplate if protocol == "flyteidl" else tasks2_pb2.TaskTemplate
        template = tasks_pb2.TaskTemplate(
            type="crossed", interface=interface_pb2.TypedInterface(inputs=DECLARED)
        )
        request.template.CopyFrom(kind.FromString(template.SerializeToString()))
        request.task_execution_metadata.namespace = "flyte"
        more.setdefault("inputs_data", INPUTS.SerializeToString())
        return Call(protocol, operation, CATEGORY, request, deadline=deadline, **more)
    name = {
        Operation.GET: "GetTaskRequest",
        Operation.DELETE: "DeleteTaskRequest",
        Operation.GET_METRICS: "GetTaskMetricsRequest",
        Operation.GET_LOGS: "GetTaskLogsRequest",
    }[operation]
    request = getattr(messages, name)(
        resource_meta=b'{"job": "7"}', task_category=messages.TaskCategory(name="crossed")
    )
    return Call(protocol, operation, CATEGORY, request, deadline=deadline, **more)


async def fails(awaitable: Any, kind: type[BaseException] = Exception) -> Any:
    with pytest.raises(kind) as caught:
        await awaitable
    return caught.value


# --- crossings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spoken", FLYTES)
@pytest.mark.parametrize("protocol", FLYTES)
@pytest.mark.parametrize("shape", SHAPES)
async def test_every_operation_crosses_whole(
    forward: Makes, shape: str, protocol: str, spoken: str
) -> None:
    """A call of either protocol, sent in either, reaches a connector whole, as does its answer."""
    seen: dict[str, Any] = {}

    async def create(self: Any, task_template: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, type=task_template.type)
        return Meta("7")

    async def get(self: Any, resource_meta: Any, **kwargs: Any) -> Any:
        return Resource(Phase.RUNNING, message=f"job {resource_meta.job}")

    async def delete(self: Any, resource_meta: Any, **kwargs: Any) -> None:
        seen["deleted"] = resource_meta.job

    async def get_metrics(self: Any, resource_meta: Any, **kwargs: Any) -> Any:
        answer = MESSAGES["flyteidl"].GetTaskMetricsResponse()
        answer.results.add(metric="m")
        return answer

    async def get_logs(self: Any, resource_meta: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for line in ("a", "b"):
            yield agent_pb2.GetTaskLogsResponse(
                body=agent_pb2.GetTaskLogsResponseBody(results=[line])
            )

    connector = make_connector(
        shape, create=create, get=get, delete=delete, get_metrics=get_metrics, get_logs=get_logs
    )
    messages, sent = MESSAGES[protocol], []
    async with serve(connector, policy=BARE) as served:
        forwarder = forward(served.endpoint, spoken, readings=REMOTE)
        assert await forwarder.run(call(Operation.CREATE, protocol)) == b'{"job": "7"}'
        resource = await forwarder.run(call(Operation.GET, protocol))
        assert await forwarder.run(call(Operation.DELETE, protocol)) is None
        metrics = await forwarder.run(call(Operation.GET_METRICS, protocol))

        async def send(message: Any) -> None:
            sent.append(message)

        await forwarder.stream(call(Operation.GET_LOGS, protocol), send)
    assert isinstance(resource, messages.Resource)
    assert (resource.phase, resource.message) == (Phase.RUNNING, "job 7")
    assert isinstance(metrics, messages.GetTaskMetricsResponse)
    assert [result.metric for result in metrics.results] == ["m"]
    assert [type(message) for message in sent] == [messages.GetTaskLogsResponse] * 2
    assert [list(message.body.results) for message in sent] == [["a"], ["b"]]
    assert (seen["type"], seen["deleted"], seen["output_prefix"]) == ("crossed", "7", "mem://out")
    assert seen["task_execution_metadata"].namespace == "flyte"
    given = seen["inputs"]
    assert given == INPUTS if shape == "base" else given == {"n": 3}


@pytest.mark.parametrize(
    ("form", "protocol"),
    [("header", "flyteidl"), *itertools.product(("create", "create whole"), FLYTES)],
)
async def test_a_sync_task_is_done_from_any_request(
    forward: Makes, protocol: str, form: str
) -> None:
    """ExecuteTaskSync's own header, and a create of either protocol, are done as one call."""
    seen: dict[str, Any] = {}

    class Doubling(SyncConnectorBase):
        def do(self, task_template: Any, inputs: Any, output_prefix: str, **kwargs: Any) -> Any:
            seen.update(kwargs, inputs=inputs, prefix=output_prefix)
            return Resource(Phase.SUCCEEDED, message="done")

    asked = call(Operation.DO, protocol)
    if form == "header":
        header = agent_pb2.CreateRequestHeader(
            template=asked.message.template, output_prefix="mem://out"
        )
        header.task_execution_metadata.namespace = "flyte"
        asked = Call(protocol, Operation.DO, CATEGORY, header, INPUTS)
    elif form == "create whole":
        asked.message.inputs.MergeFromString(INPUTS.SerializeToString())
        asked = Call(protocol, Operation.DO, CATEGORY, asked.message)
    async with serve(Doubling(task_type_name="crossed"), policy=BARE) as served:
        resource = await forward(served.endpoint, readings=REMOTE).run(asked)
    assert isinstance(resource, MESSAGES[protocol].Resource)
    assert (resource.phase, resource.message) == (Phase.SUCCEEDED, "done")
    assert (seen["inputs"], seen["prefix"]) == (INPUTS, "mem://out")
    assert seen["task_execution_metadata"].namespace == "flyte"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 12_000_000])
async def test_inputs_of_any_size_stand_where_they_stood(forward: Makes, size: int) -> None:
    """The peer reads the very inputs that were taken out of the request, at any length."""
    inputs = common_pb2.Inputs()
    if size:
        inputs.literals.add(name="x").value.scalar.primitive.string_value = "y" * size
    seen = []

    async def create(request: bytes, _context: Any) -> bytes:
        seen.append(connector_pb2.CreateTaskRequest.FromString(request))
        return b""

    asked = call(Operation.CREATE, "flyteidl2", inputs_data=inputs.SerializeToString())
    async with peer({f"{JOBS['flyteidl2']}/CreateTask": create}) as other:
        assert await forward(other.endpoint).run(asked) == b""
    (request,) = seen
    assert request.HasField("inputs")
    assert request.inputs == inputs
    request.ClearField("inputs")
    assert request == asked.message


async def test_a_create_alone_carries_its_idempotency_key(forward: Makes) -> None:
    """The host's metadata goes with every call, the key with a create that has one."""
    seen: list[dict[str, Any]] = []

    async def note(_request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return agent_pb2.GetTaskResponse(resource=agent_pb2.Resource(phase=1)).SerializeToString()

    service = JOBS["flyteidl"]
    async with peer({f"{service}/CreateTask": note, f"{service}/GetTask": note}) as other:
        forwarder = forward(other.endpoint, metadata=(("connector-host-token", "t"),))
        await forwarder.run(call(Operation.CREATE, idempotency_key="k"))
        await forwarder.run(call(Operation.CREATE))
        await forwarder.run(call(Operation.GET, idempotency_key="k"))
    assert [each.get(IDEMPOTENCY_KEY) for each in seen] == ["k", None, None]
    assert {each["connector-host-token"] for each in seen} == {"t"}


@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.GET, Operation.DO])
async def test_secrets_of_a_connection_are_masked_before_they_leave(
    forward: Makes, operation: Operation
) -> None:
    """From the first call on, no log line shows a secret that the task's connection brought."""
    secret = f"correct-horse-{operation}"
    asked = call(operation, "flyteidl2")
    asked.message.connection.secrets["password_of_it"] = secret
    async with peer({}) as other:
        await fails(forward(other.endpoint).run(asked), ConnectorServiceError)
    assert secret not in redact(f"it says {secret}")


# --- replies -----------------------------------------------------------------------------------


def resource_of(protocol: str, extra: bytes = b"") -> bytes:
    """Write a GetTaskResponse whose resource has fields that we do not know."""
    inner = MESSAGES[protocol].Resource(phase=2, message="m").SerializeToString() + extra
    response: bytes = b"\x0a" + bytes((len(inner),)) + inner
    return response


@pytest.mark.parametrize("spoken", FLYTES)
@pytest.mark.parametrize("protocol", FLYTES)
async def test_fields_of_a_newer_peer_pass_in_its_own_protocol_alone(
    forward: Makes, protocol: str, spoken: str
) -> None:
    """What we do not know reaches a client of the same protocol, and never one of the other."""
    unknown = b"\xfa\x01\x03new"  # field 31
    answers = {f"{JOBS[spoken]}/GetTask": answering(resource_of(spoken, unknown))}
    async with peer(answers) as other:
        resource = await forward(other.endpoint, spoken).run(call(Operation.GET, protocol))
    assert resource.message == "m"
    assert (unknown in resource.SerializeToString()) is (protocol == spoken)


@pytest.mark.parametrize("protocol", FLYTES)
@pytest.mark.parametrize(
    ("operation", "data"),
    [
        (Operation.GET, b""),
        (Operation.GET, b"\x0a\x7fcut"),
        (Operation.GET, b"<html>"),
        (Operation.CREATE, b"\x0a\x05ab"),
        (Operation.GET_METRICS, b"\xff"),
        (Operation.DELETE, b"\xff\xff"),
    ],
)
async def test_a_reply_that_is_none_is_trouble_at_the_peer(
    forward: Makes, operation: Operation, data: bytes, protocol: str
) -> None:
    """An empty, truncated or foreign reply fails the call as the host's trouble; it names it."""
    name = {"get": "GetTask", "create": "CreateTask", "delete": "DeleteTask"}.get(
        operation, "GetTaskMetrics"
    )
    answers = {f"{JOBS['flyteidl']}/{name}": answering(data)}
    async with peer(answers) as other:
        error = await fails(
            forward(other.endpoint, "flyteidl").run(call(operation, protocol)), PeerError
        )
    assert judge(error).fault is Fault.TROUBLED
    assert f"'h' answered INTERNAL: {operation} was answered with" in str(error)


async def test_a_stream_without_a_message_is_an_empty_log(forward: Makes) -> None:
    """Upstream's GetTaskLogs returns instead of sending: OK and nothing; so the log is empty."""

    async def returning(_request: bytes, _context: Any) -> Any:
        return agent_pb2.GetTaskLogsResponse()

    async with peer({f"{JOBS['flyteidl']}/GetTaskLogs": returning}) as other:
        await ask(forward(other.endpoint), call(Operation.GET_LOGS))


SYNC_ANSWERS: dict[str, list[bytes]] = {
    "no message": [],
    "bytes that are no message": [b"\xff\xff"],
    "a message without a resource": [
        agent_pb2.ExecuteTaskSyncResponse(outputs=literals_pb2.LiteralMap()).SerializeToString()
    ],
}


@pytest.mark.parametrize("what", SYNC_ANSWERS)
async def test_a_sync_answer_that_is_none_is_trouble_at_the_peer(forward: Makes, what: str) -> None:
    """ExecuteTaskSync that ends without a resource fails, and says what came instead."""

    async def execute(_requests: Any, _context: Any) -> AsyncIterator[bytes]:
        for message in SYNC_ANSWERS[what]:
            yield message

    async with peer({SYNC: execute}) as other:
        error = await fails(forward(other.endpoint).run(call(Operation.DO)), PeerError)
    assert str(error).endswith(f"do was answered with {what}.")


async def test_a_sync_peer_that_refuses_before_it_has_read_is_heard(forward: Makes) -> None:
    """However early the peer ends the call, while we write or before, its own status counts."""
    facts = json.dumps({"mro": ["a.Early", "builtins.Exception"], "text": "t"}).encode()
    refuse = refusing(StatusCode.UNKNOWN, "Early", (ERROR_KEY, facts))

    async def execute(requests: Any, context: Any) -> AsyncIterator[bytes]:
        yield await refuse(requests, context)

    async with peer({SYNC: execute}) as other:
        forwarder = forward(other.endpoint)
        for number in range(60):
            asked = call(Operation.DO, inputs_data=b"\x0a\x00" * 1_000 * (number % 8) ** 3)
            error = await fails(forwarder.run(asked))
            assert type(error).__name__ == "Early", repr(error)


@pytest.mark.parametrize("messages", [1, 2])
async def test_a_sync_peer_that_never_ends_its_stream_is_left(
    forward: Makes, messages: int
) -> None:
    """One answer is all that is waited for: a peer that keeps the stream open is cancelled."""
    left = asyncio.Event()
    done = agent_pb2.ExecuteTaskSyncResponse(
        header=agent_pb2.ExecuteTaskSyncResponseHeader(resource=agent_pb2.Resource(phase=4))
    )

    async def execute(_requests: Any, _context: Any) -> AsyncIterator[bytes]:
        try:
            for _ in range(messages):
                yield done.SerializeToString()
            await asyncio.Event().wait()
        finally:
            left.set()

    async with peer({SYNC: execute}) as other:
        resource = await forward(other.endpoint).run(call(Operation.DO))
        assert resource.phase == 4
        await asyncio.wait_for(left.wait(), 10)


# --- time, leaving, back-pressure --------------------------------------------------------------


class Hanging:
    """A peer's method that never answers and tells what becomes of it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.left = asyncio.Event()
        self.seconds: float | None = None

    async def answer(self, _request: bytes, context: Any) -> bytes:
        self.seconds = context.time_remaining()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError

    async def stream(self, _request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await self.answer(b"", context)


def hanging(operation: Operation) -> tuple[Hanging, dict[str, Any]]:
    method = Hanging()
    path = {
        Operation.GET: f"{JOBS['flyteidl']}/GetTask",
        Operation.GET_LOGS: f"{JOBS['flyteidl']}/GetTaskLogs",
        Operation.DO: SYNC,
    }[operation]
    return method, {path: method.answer if operation is Operation.GET else method.stream}


async def ask(forwarder: Forwarder, asked: Call) -> Any:
    async def send(message: Any) -> None:
        raise AssertionError(message)

    if asked.operation is Operation.GET_LOGS:
        return await forwarder.stream(asked, send)
    return await forwarder.run(asked)


KINDS = (Operation.GET, Operation.DO, Operation.GET_LOGS)


@pytest.mark.parametrize("operation", KINDS)
async def test_the_deadline_goes_with_the_call_and_ends_it(
    forward: Makes, operation: Operation
) -> None:
    """The peer knows the caller's deadline, and a call that outlives it is a DeadlineError."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        asked = call(operation, seconds=0.6)
        await fails(ask(forward(other.endpoint), asked), DeadlineError)
        assert method.seconds is not None
        assert 0 < method.seconds <= 0.61  # on the wire gRPC rounds it up
        late = await fails(ask(forward(other.endpoint), call(operation, seconds=-1)), DeadlineError)
    assert "before the call began" in str(late)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_caller_who_leaves_takes_the_call_with_it(
    forward: Makes, operation: Operation
) -> None:
    """Cancelling our task cancels the RPC: the peer's handler is cancelled too."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        task = asyncio.create_task(ask(forward(other.endpoint), call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        task.cancel()
        await fails(task, asyncio.CancelledError)
        await asyncio.wait_for(method.left.wait(), 10)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_channel_closed_under_a_call_is_no_cancellation(
    forward: Makes, operation: Operation
) -> None:
    """A closed channel is reported as CancelledError, and must not read as a caller who left."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        forwarder: Any = forward(other.endpoint)
        task = asyncio.create_task(ask(forwarder, call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        await forwarder.channel.close()
        error = await fails(task, TransientError)
        assert "'h' was closed during the call" in str(error)
        await fails(ask(forwarder, call(operation)), TransientError)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_peer_that_dies_under_a_call_is_transient(
    forward: Makes, operation: Operation
) -> None:
    """A connection that ends in the middle is worth another try, and names the host."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        task = asyncio.create_task(ask(forward(other.endpoint), call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        await other.server.stop(None)
        error = await fails(task, TransientError)
    assert "'h'" in str(error)


async def test_a_call_to_a_peer_that_is_down_fails_at_once_and_is_tried_again(
    forward: Makes,
) -> None:
    """Nothing waits for a channel: the policies' own tries find the peer when it is back."""
    answers = {f"{JOBS['flyteidl']}/GetTask": answering(resource_of("flyteidl"))}
    async with peer(answers) as other:
        port = other.port
    forwarder = forward(f"127.0.0.1:{port}")
    asked = call(Operation.GET)
    async with asyncio.timeout(5):
        assert judge(await fails(forwarder.run(asked))).fault is Fault.TRANSIENT
    failed = asyncio.Event()
    task = asyncio.create_task(
        retried(lambda: forwarder.run(asked), asked.deadline, on_retry=lambda *_: failed.set())
    )
    await asyncio.wait_for(failed.wait(), 10)
    async with peer(answers, port=port):
        assert (await task).message == "m"


async def test_a_slow_reader_holds_the_peer_back(forward: Makes) -> None:
    """A message is read when the one before it was taken: a log never piles up in this process."""
    written = 0
    stalled = asyncio.Event()

    async def endless(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        nonlocal written
        while True:
            written += 1
            if written > 2_000:
                return
            stalled.clear()
            asyncio.get_running_loop().call_later(0.5, stalled.set)
            yield agent_pb2.GetTaskLogsResponse(
                body=agent_pb2.GetTaskLogsResponseBody(results=["x" * 100_000])
            ).SerializeToString()

    taken, first = [], asyncio.Event()

    async def send(message: Any) -> None:
        taken.append(len(message.body.results[0]))
        first.set()
        await asyncio.Event().wait()

    async with peer({f"{JOBS['flyteidl']}/GetTaskLogs": endless}) as other:
        task = asyncio.create_task(forward(other.endpoint).stream(call(Operation.GET_LOGS), send))
        await asyncio.wait_for(first.wait(), 10)
        await asyncio.wait_for(stalled.wait(), 20)
        assert taken == [100_000]
        assert written < 200  # what the connection's own windows hold
        task.cancel()
        await fails(task, asyncio.CancelledError)


async def test_a_reader_that_fails_ends_the_stream(forward: Makes) -> None:
    """Whatever ``send`` raises comes out as it is, and the peer is told to stop."""
    left = asyncio.Event()

    async def logs(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            yield b""
            await asyncio.Event().wait()
        finally:
            left.set()

    async def send(_message: Any) -> None:
        raise GoneError("The reader has gone.")

    async with peer({f"{JOBS['flyteidl']}/GetTaskLogs": logs}) as other:
        await fails(forward(other.endpoint).stream(call(Operation.GET_LOGS), send), GoneError)
        await asyncio.wait_for(left.wait(), 10)


# --- statuses ----------------------------------------------------------------------------------

SECRET = "Traceback (most recent call last): password=hunter2secret"
GET, LOGS, CREATE = Operation.GET, Operation.GET_METRICS, Operation.CREATE
# flavour, operation, the peer's status -> what it is here, and how it is judged.
STATUSES: list[tuple[str, Operation, StatusCode, type[Exception], Fault]] = [
    *(
        (flavour, operation, code, kind, fault)
        for flavour in READINGS
        for operation in (GET, CREATE)
        for code, kind, fault in (
            (StatusCode.UNAVAILABLE, TransientError, Fault.TRANSIENT),
            (StatusCode.NOT_FOUND, TransientError, Fault.TRANSIENT),
            (StatusCode.CANCELLED, TransientError, Fault.TRANSIENT),
            (StatusCode.DEADLINE_EXCEEDED, PeerError, Fault.TRANSIENT),
            (StatusCode.RESOURCE_EXHAUSTED, PeerError, Fault.TRANSIENT),
            (StatusCode.INTERNAL, PeerError, Fault.TROUBLED),
            (StatusCode.UNKNOWN, PeerError, Fault.TROUBLED),
            (StatusCode.PERMISSION_DENIED, PeerError, Fault.TROUBLED),
        )
    ),
    ("child", GET, StatusCode.INVALID_ARGUMENT, InvalidMetaError, Fault.REFUSED),
    ("child", CREATE, StatusCode.INVALID_ARGUMENT, InvalidRequestError, Fault.REFUSED),
    ("child", GET, StatusCode.FAILED_PRECONDITION, WrongKindError, Fault.REFUSED),
    ("child", LOGS, StatusCode.UNIMPLEMENTED, UnsupportedOperationError, Fault.REFUSED),
    ("child", GET, StatusCode.UNAUTHENTICATED, TransientError, Fault.TRANSIENT),
    ("remote", GET, StatusCode.INVALID_ARGUMENT, PeerError, Fault.BUG),
    ("remote", GET, StatusCode.UNAUTHENTICATED, PeerError, Fault.TROUBLED),
    ("remote", LOGS, StatusCode.UNIMPLEMENTED, UnsupportedOperationError, Fault.REFUSED),
    ("remote", GET, StatusCode.UNIMPLEMENTED, TransientError, Fault.TRANSIENT),
]
METHODS = {GET: "GetTask", LOGS: "GetTaskMetrics", CREATE: "CreateTask"}


@pytest.mark.parametrize(("flavour", "operation", "code", "kind", "fault"), STATUSES)
async def test_a_status_means_what_its_table_says(
    forward: Makes,
    flavour: str,
    operation: Operation,
    code: StatusCode,
    kind: type[Exception],
    fault: Fault,
) -> None:
    """Each status becomes one exception, judged so; what a stranger wrote goes to the log alone."""
    answers = {f"{JOBS['flyteidl']}/{METHODS[operation]}": refusing(code, SECRET)}
    async with peer(answers) as other:
        forwarder = forward(other.endpoint, readings=READINGS[flavour])
        asked = call(operation)
        error = await fails(forwarder.run(asked))
    assert type(error) is kind
    assert judge(error).fault is fault
    told = classify(error, asked).details
    assert "hunter2secret" not in told
    assert flavour == "child" or "Traceback" not in told
    logged = f"{error} {getattr(error, '__notes__', '')}"
    assert "Traceback" in redact(logged)


async def test_what_a_child_s_connector_raised_is_raised_here(forward: Makes) -> None:
    """A child's description becomes the exception, on every kind of call; a remote's does not."""
    facts = json.dumps(
        {
            "mro": ["connector_service.errors.TransientError", "builtins.Exception"],
            "text": "busy",
            "attrs": {"retry_after": 4, "code": "Busy", "origin": "system"},
        }
    ).encode()
    refuse = refusing(StatusCode.UNKNOWN, "TransientError", (ERROR_KEY, facts))

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await refuse(request, context)

    service = JOBS["flyteidl"]
    answers = {f"{service}/GetTask": refuse, f"{service}/GetTaskLogs": stream, SYNC: stream}
    async with peer(answers) as other:
        for operation in KINDS:
            error = await fails(ask(forward(other.endpoint), call(operation)), TransientError)
            assert (str(error), error.retry_after, error.code) == ("busy", 4, "Busy")
            forwarder = forward(other.endpoint, readings=REMOTE)
            await fails(ask(forwarder, call(operation)), PeerError)


async def test_the_largest_description_passes(forward: Makes) -> None:
    """6,000 bytes of a description arrive whole, and a long traceback in details as well."""
    facts = json.dumps({"mro": ["a.B", "builtins.Exception"], "text": "x" * 5_900}).encode()
    refuse = refusing(StatusCode.UNKNOWN, "y" * 40_000, (ERROR_KEY, facts))
    async with peer({f"{JOBS['flyteidl']}/GetTask": refuse}) as other:
        error = await fails(forward(other.endpoint).run(call(GET)))
        assert (type(error).__name__, len(str(error))) == ("B", 5_900)
        error = await fails(forward(other.endpoint, readings=REMOTE).run(call(GET)), PeerError)
        assert error.code() is StatusCode.UNKNOWN


async def test_a_peer_s_wish_to_be_left_alone_is_kept(forward: Makes) -> None:
    """What a busy service of ours says in its metadata is when the call is tried again."""
    refuse = refusing(StatusCode.UNAVAILABLE, "busy", ("grpc-retry-pushback-ms", "2500"))
    async with peer({f"{JOBS['flyteidl']}/GetTask": refuse}) as other:
        error = await fails(forward(other.endpoint, readings=REMOTE).run(call(GET)))
    assert judge(error).retry_after == 2.5


async def test_a_request_too_large_for_the_peer_is_not_tried_again(forward: Makes) -> None:
    """A service with gRPC's 4 MiB refuses a larger create for good: the caller is told so."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")

    class Handlers(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answering(b""))

    server.add_generic_rpc_handlers((Handlers(),))
    await server.start()
    asked = call(CREATE, inputs_data=b"\x0a" * 5_000_000)
    try:
        error = await fails(forward(f"127.0.0.1:{port}", readings=REMOTE).run(asked))
    finally:
        await server.stop(None)
    assert isinstance(error, InvalidRequestError)
    assert "raise its limit" in str(error)
