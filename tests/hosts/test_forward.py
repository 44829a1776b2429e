"""Forwarding over real ports: every crossing, and what a peer may answer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flyte_clients import SHAPES, Meta, make_connector
from flyteidl.admin import agent_pb2
from flyteidl.core import literals_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.task import common_pb2
from grpc import StatusCode
from hosts.forwards import (
    BARE,
    CATEGORY,
    FLYTES,
    INPUTS,
    MESSAGES,
    Makes,
    ask,
    call,
    fails,
    resource_of,
)
from peers import JOBS, SYNC, answering, peer, refusing

from connector_service import Phase, Resource, SyncConnectorBase
from connector_service.errors import ConnectorServiceError
from connector_service.hosts.forward import IDEMPOTENCY_KEY
from connector_service.hosts.statuses import ERROR_KEY, REMOTE, PeerError
from connector_service.runtime.call import Call
from connector_service.runtime.faults import Fault, judge
from connector_service.sdk.method import Operation
from connector_service.sdk.secrets import redact
from connector_service.testing import serve

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
