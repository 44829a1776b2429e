"""The requests that are measured, made of Flyte's real messages, as bytes ready to be sent."""

from __future__ import annotations

import datetime
from typing import Any

from flyteidl.admin import agent_pb2
from flyteidl.core import literals_pb2, tasks_pb2, types_pb2
from flyteidl2.connector import connector_pb2

from bench.behaviour import OUTPUTS
from bench.load import Body, frame_message

__all__ = ["FLYTE1", "FLYTE2", "create", "execute", "get", "inputs_1k", "inputs_1m", "outputs"]

FLYTE1, FLYTE2 = "flyteidl", "flyteidl2"

# Replaced by a number in each call: it stands for the job, or for the output prefix.
_COUNTER = b"#" * 10
_MESSAGES: dict[str, Any] = {FLYTE1: agent_pb2, FLYTE2: connector_pb2}
_SIMPLE = types_pb2.LiteralType


def get(protocol: str, task_type: str) -> Body:
    """Return GetTask requests, each for another job."""
    messages = _MESSAGES[protocol]
    known: dict[str, Any] = {"task_type": task_type} if protocol == FLYTE1 else {}
    request = messages.GetTaskRequest(
        resource_meta=b'{"job": "%b"}' % _COUNTER,
        task_category=messages.TaskCategory(name=task_type),
        output_prefix="s3://flyte/metadata/propeller/project-development-f5a3c0/n0/data/0",
        **known,
    )
    return _body(request)


def create(protocol: str, task_type: str, inputs: literals_pb2.LiteralMap) -> Body:
    """Return CreateTask requests, each with another output prefix: each creates a job."""
    request = _MESSAGES[protocol].CreateTaskRequest(output_prefix=_prefix())
    request.template.MergeFromString(_template(task_type, inputs).SerializeToString())
    request.inputs.MergeFromString(inputs.SerializeToString())
    metadata = request.task_execution_metadata
    metadata.namespace = "project-development"
    metadata.k8s_service_account = "default"
    metadata.labels["execution-id"] = "f5a3c0"
    metadata.annotations["team"] = "bench"
    execution = metadata.task_execution_id
    execution.task_id.project, execution.task_id.domain = "project", "development"
    execution.task_id.name = "workflow.task"
    return _body(request)


def execute(task_type: str, inputs: literals_pb2.LiteralMap) -> Body:
    """Return ExecuteTaskSync streams: a header and the inputs; only Flyte 1 has them."""
    header = agent_pb2.CreateRequestHeader(
        template=_template(task_type, inputs), output_prefix=_prefix()
    )
    return _body(
        agent_pb2.ExecuteTaskSyncRequest(header=header),
        agent_pb2.ExecuteTaskSyncRequest(inputs=inputs),
    )


def inputs_1k() -> literals_pb2.LiteralMap:
    """Return about 1 KB of what tasks are given: every simple type, a list, a map, a file."""
    inputs = literals_pb2.LiteralMap()

    def primitive(name: str) -> literals_pb2.Primitive:
        return inputs.literals[name].scalar.primitive

    for index in range(4):
        primitive(f"count_{index}").integer = 1_000_003 * (index + 1)
        primitive(f"ratio_{index}").float_value = 0.125 * (index + 1)
        primitive(
            f"name_{index}"
        ).string_value = (
            f"an ordinary string, such as a query has; this one is number {index}: {'x' * 30}"
        )
    primitive("flag").boolean = True
    primitive("at").datetime.FromDatetime(datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    primitive("span").duration.FromTimedelta(datetime.timedelta(minutes=5))
    for index in range(8):
        item = inputs.literals["items"].collection.literals.add()
        item.scalar.primitive.string_value = f"item number {index}"
        inputs.literals["table"].map.literals[f"key {index}"].scalar.primitive.integer = index
    return inputs


def inputs_1m() -> literals_pb2.LiteralMap:
    """Return 1 MB in 1,024 strings."""
    inputs = literals_pb2.LiteralMap()
    for index in range(1024):
        value = f"{index:04d}-" + "x" * 1019
        inputs.literals[f"text_{index:04d}"].scalar.primitive.string_value = value
    return inputs


def outputs() -> literals_pb2.LiteralMap:
    """Return what the measured connectors answer with, as literals."""
    literals = literals_pb2.LiteralMap()
    for name, value in OUTPUTS.items():
        primitive = literals.literals[name].scalar.primitive
        if isinstance(value, str):
            primitive.string_value = value
        elif isinstance(value, int):
            primitive.integer = value
        else:
            primitive.float_value = value
    return literals


def _prefix() -> str:
    return f"s3://flyte/metadata/propeller/project-development-{_COUNTER.decode()}/n0/data/0"


def _template(task_type: str, inputs: literals_pb2.LiteralMap) -> tasks_pb2.TaskTemplate:
    template = tasks_pb2.TaskTemplate(type=task_type)
    template.id.project, template.id.domain = "project", "development"
    template.id.name, template.id.version = "workflow.task", "v1"
    template.metadata.discovery_version = "1"
    template.metadata.retries.retries = 3
    template.custom.update({"warehouse": "small", "region": "eu-west-1", "timeout": 600})
    for name in inputs.literals:
        variable = template.interface.inputs.variables[name]
        variable.type.CopyFrom(_type_of(inputs.literals[name]))
    output = template.interface.outputs.variables["result"]
    output.type.simple = types_pb2.STRING
    return template


def _type_of(literal: literals_pb2.Literal) -> types_pb2.LiteralType:
    kind = literal.WhichOneof("value")
    if kind == "collection":
        return _SIMPLE(collection_type=_type_of(literal.collection.literals[0]))
    if kind == "map":
        return _SIMPLE(map_value_type=_type_of(next(iter(literal.map.literals.values()))))
    names = {
        "integer": types_pb2.INTEGER,
        "float_value": types_pb2.FLOAT,
        "string_value": types_pb2.STRING,
        "boolean": types_pb2.BOOLEAN,
        "datetime": types_pb2.DATETIME,
        "duration": types_pb2.DURATION,
    }
    return _SIMPLE(simple=names[literal.scalar.primitive.WhichOneof("value")])


def _body(*messages: Any) -> Body:
    data = b"".join(frame_message(message.SerializeToString()) for message in messages)
    at = data.find(_COUNTER)
    if at < 0 or data.count(_COUNTER) > 1:
        raise ValueError("A request has exactly one counter.")
    return Body(data, at, len(_COUNTER))
