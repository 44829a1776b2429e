"""What tests of forwarding share: calls with something in every field."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from flyteidl.admin import agent_pb2
from flyteidl.core import interface_pb2, tasks_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2

from connector_service import to_literal_map
from connector_service.codec import to_literal_type
from connector_service.config import ConnectorSection
from connector_service.hosts.forward import Forwarder
from connector_service.hosts.statuses import CHILD, REMOTE
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory

FLYTES = ("flyteidl", "flyteidl2")
MESSAGES: dict[str, Any] = {"flyteidl": agent_pb2, "flyteidl2": connector_pb2}
CATEGORY = TaskCategory("crossed")
BARE = ConnectorSection(guarantees=False)
DECLARED = interface_pb2.VariableMap(
    variables={"n": interface_pb2.Variable(type=to_literal_type(int))}
)
INPUTS = to_literal_map({"n": 3}, DECLARED.variables)
KINDS = (Operation.GET, Operation.DO, Operation.GET_LOGS)
READINGS = {"child": CHILD, "remote": REMOTE}

Makes = Callable[..., Forwarder]


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


async def ask(forwarder: Forwarder, asked: Call) -> Any:
    async def send(message: Any) -> None:
        raise AssertionError(message)

    if asked.operation is Operation.GET_LOGS:
        return await forwarder.stream(asked, send)
    return await forwarder.run(asked)


def resource_of(protocol: str, extra: bytes = b"") -> bytes:
    """Write a GetTaskResponse whose resource has fields that we do not know."""
    inner = MESSAGES[protocol].Resource(phase=2, message="m").SerializeToString() + extra
    response: bytes = b"\x0a" + bytes((len(inner),)) + inner
    return response
