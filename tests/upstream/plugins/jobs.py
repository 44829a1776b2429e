"""What every test of a plugin does with Flyte's client: inputs, polls, phases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from typing import Any

import grpc
import pytest
from flyte_clients import Flyte
from flyteidl.core import literals_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from google.protobuf import json_format, struct_pb2

RUNNING = TaskExecution.RUNNING
SUCCEEDED = TaskExecution.SUCCEEDED
FAILED = TaskExecution.FAILED
INITIALIZING = TaskExecution.INITIALIZING
ENDED = {SUCCEEDED, FAILED, TaskExecution.ABORTED, TaskExecution.RETRYABLE_FAILED}
PATIENCE = 60.0
# Every task type of the environment's plugins, and flytekit's own two.
TYPES = {
    "bigquery_query_job_task",
    "boto",
    "chatgpt",
    "databricks",
    "openai-batch",
    "sagemaker-endpoint",
    "sagemaker-hyperparameter-tuning-job",
    "sagemaker-inference-recommender-job",
    "sagemaker-processing-job",
    "sagemaker-processing-task",
    "sagemaker-training-job",
    "sagemaker-training-task",
    "sagemaker-transform-job",
    "sensor",
    "snowflake",
    "spark",
    "webhook",
}
# What a refusal by a backend is here: nobody's to hide, and never "no such connector".
OUR_CODES = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}


class Client(Flyte):
    """Flyte's own client, every job with a prefix of its own, as Flyte gives it."""

    def __init__(self, protocol: str, endpoint: str, *, is_ours: bool) -> None:
        super().__init__(protocol, endpoint)
        self.is_ours = is_ours

    async def create(self, template: Any, inputs: Any = None, **more: Any) -> bytes:
        return await super().create(template, inputs, **{"prefix": _prefix(), **more})

    async def do(self, template: Any, inputs: Any = None, **more: Any) -> Any:
        return await super().do(template, inputs, **{"prefix": _prefix(), **more})


def inputs(**values: str | int) -> literals_pb2.LiteralMap:
    """Make the literal map that Flyte sends for these values."""
    made = literals_pb2.LiteralMap()
    for name, value in values.items():
        primitive = made.literals[name].scalar.primitive
        if isinstance(value, int):
            primitive.integer = value
        else:
            primitive.string_value = value
    return made


async def ended(flyte: Client, meta: bytes, task_type: str) -> tuple[list[int], Any]:
    """Poll until the job has ended; return the phases seen, and the last resource."""
    phases: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            resource = await flyte.get(meta, task_type)
            if not phases or phases[-1] != resource.phase:
                phases.append(resource.phase)
            if resource.phase in ENDED:
                return phases, resource
            await asyncio.sleep(0.05)


async def refused(flyte: Client, call: Coroutine[Any, Any, Any]) -> grpc.aio.AioRpcError:
    """Await a call whose backend says no: at both servers an error, and the server is there."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    codes = OUR_CODES if flyte.is_ours else {grpc.StatusCode.INTERNAL}
    assert caught.value.code() in codes, caught.value
    return caught.value


async def absorbed(flyte: Client, meta: bytes, task_type: str) -> None:
    """Poll a job whose backend is in trouble: RUNNING here, an error at upstream's server."""
    if flyte.is_ours:
        assert (await flyte.get(meta, task_type)).phase == RUNNING
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await flyte.get(meta, task_type)
    assert caught.value.code() == grpc.StatusCode.INTERNAL


def outputs(resource: Any) -> dict[str, Any]:
    """Return a resource's outputs as plain values, whichever protocol it came in."""
    made = literals_pb2.LiteralMap.FromString(resource.outputs.SerializeToString())
    return {name: plain(literal) for name, literal in made.literals.items()}


def plain(literal: Any) -> Any:
    """Return a literal as a plain value: a dict, a data set's address, or (format, rest)."""
    scalar = literal.scalar
    match scalar.WhichOneof("value"):
        case "primitive":
            return getattr(scalar.primitive, scalar.primitive.WhichOneof("value"))
        case "generic":
            return json_format.MessageToDict(scalar.generic)
        case "structured_dataset":
            return scalar.structured_dataset.uri
        case "binary":
            return ("msgpack", scalar.binary.value)
        case "blob":
            return (scalar.blob.metadata.type.format, scalar.blob.uri)
    raise AssertionError(f"not expected: {literal}")


def set_custom(template: Any, **values: Any) -> Any:
    """Set fields of a template's custom part, as its task's author would have."""
    struct = struct_pb2.Struct()
    struct.update(values)
    template.custom.MergeFrom(struct)
    return template


def _prefix() -> str:
    # A scheme that fsspec knows: some connectors open the store of their outputs.
    return f"memory://out/{uuid.uuid4().hex}"
