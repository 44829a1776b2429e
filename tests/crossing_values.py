"""Values, declared types and templates that the tests of the crossings send and expect."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from flyteidl.core import interface_pb2, tasks_pb2
from flyteidl2.core.security_pb2 import Connection
from flyteidl2.task import common_pb2
from grpc import StatusCode

from connector_service import (
    Blob,
    Phase,
    Resource,
    StructuredDataset,
    SyncConnectorBase,
    from_literal_map,
    to_literal_map,
)
from connector_service.codec import to_literal_type
from connector_service.config import ConnectorSection
from connector_service.errors import InvalidInputError

META = b'{"job": "1"}'
# Each create reaches the connector, though all have one output prefix; errors are statuses.
BARE = ConnectorSection(guarantees=False)


@dataclass
class Row:
    name: str
    scores: list[float] = field(default_factory=list)


# name -> its declared type, the value that is sent, the value that a Python connector sees.
INPUTS: dict[str, tuple[Any, Any, Any]] = {
    "count": (int, 2**53 + 1, 2**53 + 1),
    "ratio": (float, 0.1, 0.1),
    "whole": (float, 2, 2.0),
    "text": (str, "größe\n", "größe\n"),
    "empty": (str, "", ""),
    "flag": (bool, False, False),
    "nothing": (type(None), None, None),
    "when": (dt.datetime, dt.datetime(2026, 1, 2, tzinfo=dt.UTC), ...),
    "long": (dt.timedelta, dt.timedelta(days=3, microseconds=5), ...),
    "raw": (bytes, b"\x00\xff", b"\x00\xff"),
    "numbers": (list[int], [3, 1, 2], [3, 1, 2]),
    "no_numbers": (list[int], [], []),
    "table": (dict[str, int], {"b": 1, "a": 2}, {"b": 1, "a": 2}),
    "loose": (dict, {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    "row": (Row, Row("x", [1.5]), {"name": "x", "scores": [1.5]}),
    "rows": (list[Row], [Row("x")], [{"name": "x", "scores": []}]),
    "file": (Blob, Blob("s3://bucket/file", "csv"), ...),
    "folder": (Blob, Blob("s3://bucket/folder", multipart=True), ...),
    "frame": (StructuredDataset, StructuredDataset("s3://bucket/frame", "parquet"), ...),
    "columns": (StructuredDataset, StructuredDataset("s3://b/c", "csv", {"n": int}), ...),
    "maybe": (int | None, None, None),
    "either": (int | str, "7", "7"),
    "nested": (dict[str, list[int | str]], {"a": [1, "b"]}, {"a": [1, "b"]}),
}
DECLARED = interface_pb2.VariableMap(
    variables={
        name: interface_pb2.Variable(type=to_literal_type(kind))
        for name, (kind, _, _) in INPUTS.items()
        if name not in ("folder", "frame", "columns")  # a value says more than its type here
    }
)
SEEN = {name: sent if seen is ... else seen for name, (_, sent, seen) in INPUTS.items()}
SEEN["columns"] = StructuredDataset("s3://b/c", "csv", {"n": to_literal_type(int)})
LITERALS = to_literal_map({name: sent for name, (_, sent, _) in INPUTS.items()}, DECLARED.variables)


def template(task_type: str = "crossed", **fields: Any) -> tasks_pb2.TaskTemplate:
    return tasks_pb2.TaskTemplate(type=task_type, **fields)


def typed(task_type: str = "crossed") -> tasks_pb2.TaskTemplate:
    """Make a template that declares the inputs, and some of everything else."""
    return template(
        task_type,
        interface=interface_pb2.TypedInterface(inputs=DECLARED),
        custom={"key": ["value", {"deep": 1}]},
        container=tasks_pb2.Container(image="i", args=["a", "b"]),
        config={"c": "d"},
    )


async def refusal(awaitable: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code(), caught.value.details() or ""


OUTPUTS = {"n": 1, "row": Row("x"), "file": Blob("s3://b/f")}
LITERAL_OUTPUTS = to_literal_map(OUTPUTS)
ANY_OUTPUTS = {
    "dict": OUTPUTS,
    "LiteralMap": LITERAL_OUTPUTS,
    "Outputs": common_pb2.Outputs.FromString(LITERAL_OUTPUTS.SerializeToString()),
}
CONNECTION = Connection(
    task_type="crossed",
    secrets={"token": "s3cr3t-value", "both": "the-secret"},
    configs={"region": "eu", "both": "the-config"},
)


class Answer(SyncConnectorBase):
    """Answers at once what its template's config asks for."""

    def __init__(self, name: str = "Answer") -> None:
        super().__init__(task_type_name="answer")
        self.name = name
        self.calls: list[Any] = []

    def do(self, task_template: Any, output_prefix: str, inputs: Any, **kwargs: Any) -> Resource:
        self.calls.append((task_template, output_prefix, inputs, kwargs))
        asked = dict(task_template.config)
        if "error" in asked:
            raise InvalidInputError(asked["error"])
        outputs = {"text": "x" * int(asked["size"])} if "size" in asked else OUTPUTS
        if "echo" in asked:
            outputs = from_literal_map(inputs, task_template.interface.inputs.variables)
        return Resource(int(asked.get("phase", Phase.SUCCEEDED)), "done", outputs=outputs)
