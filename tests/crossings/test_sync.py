"""Sync connectors for either client: Flyte 1 asks in one stream, Flyte 2 creates and polls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from crossing_values import (
    BARE,
    CONNECTION,
    DECLARED,
    LITERAL_OUTPUTS,
    LITERALS,
    Answer,
    refusal,
    template,
)
from flyteidl.core import interface_pb2, literals_pb2, tasks_pb2
from grpc import StatusCode

from connector_service import (
    Phase,
    from_literal_map,
)
from connector_service.runtime import envelope
from connector_service.testing import serve


async def test_a_sync_connector_answers_either_client(flyte: Any) -> None:
    """Flyte 1 calls it in one stream; in Flyte 2 it runs once, at create, and the poll answers."""
    connector = Answer()
    async with serve(connector) as served:
        client = flyte(served)
        got = await client.do(template("answer"), LITERALS)
    assert (got.phase, got.message) == (Phase.SUCCEEDED, "done")
    outputs = literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString())
    assert outputs == LITERAL_OUTPUTS
    ((task_template, output_prefix, inputs, _),) = connector.calls
    assert type(task_template) is tasks_pb2.TaskTemplate
    assert (output_prefix, inputs) == ("mem://out", LITERALS)


async def test_a_sync_connector_s_outputs_are_encoded_as_they_are_declared(flyte: Any) -> None:
    """The template's interface steers them, whichever protocol brought the template."""
    declared = interface_pb2.TypedInterface(inputs=DECLARED, outputs=DECLARED)
    sent = template("answer", interface=declared, config={"echo": ""})
    async with serve(Answer()) as served:
        got = await flyte(served).do(sent, LITERALS)
    assert literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString()) == LITERALS


async def test_a_sync_result_rides_in_the_meta_to_every_poll(reach: Any) -> None:
    """Create on a sync type, from either client, runs it; polls and deletes do not run it again."""
    connector = Answer()
    async with serve(connector) as served:
        metas = [
            await reach(protocol, served.endpoint).create(
                template("answer"), prefix=f"mem://{protocol}"
            )
            for protocol in ("flyteidl", "flyteidl2")
        ]
        for meta, protocol in itertools.product(metas, ("flyteidl", "flyteidl2")):
            assert meta.startswith(envelope.MAGIC)
            client = reach(protocol, served.endpoint)
            for _ in range(2):
                got = await client.get(meta, "answer")
                assert (got.phase, got.message) == (Phase.SUCCEEDED, "done")
            await client.delete(meta, "answer")
            assert (await client.get(meta, "answer")).phase == Phase.SUCCEEDED
            for call in (client.logs(meta, "answer"), client.metrics(meta, "answer")):
                code, details = await refusal(call)
                assert code is StatusCode.UNIMPLEMENTED
                assert details.startswith("The job ended when it was created and has no ")
    assert len(connector.calls) == 2


async def test_a_sync_result_that_is_too_large_fails_and_says_so(flyte: Any) -> None:
    """The meta lives in etcd: a result it cannot hold is a failure with the way out."""
    async with serve(Answer(), policy=BARE) as served:
        client = flyte(served)
        most = template("answer", config={"size": str(envelope.LARGEST - 100)})
        assert (await client.get(await client.create(most), "answer")).phase == Phase.SUCCEEDED
        asked = template("answer", config={"size": str(envelope.LARGEST)})
        meta = await client.create(asked)
        got = await client.get(meta, "answer")
    assert len(meta) < 1024
    assert got.phase == Phase.FAILED
    assert not got.HasField("outputs")
    assert "write large outputs under the output prefix" in got.message


@pytest.mark.parametrize("damage", [b"\xff", b"\x0a\x7f", b"\x12\x03\x0a\x7f\x00"])
async def test_a_damaged_envelope_is_refused(flyte: Any, damage: bytes) -> None:
    """Bytes that only begin as ours do are the caller's mistake, and no crash."""
    async with serve(Answer()) as served:
        code, details = await refusal(flyte(served).get(envelope.MAGIC + damage, "answer"))
    assert (code, details) == (
        StatusCode.INVALID_ARGUMENT,
        "The resource meta is a damaged envelope.",
    )


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.QUEUED, Phase.UNDEFINED])
async def test_a_sync_reply_that_is_no_end_becomes_retryable(flyte: Any, phase: int) -> None:
    """Flyte 1's client panics at one and Flyte 2's would poll it for ever."""
    async with serve(Answer()) as served:
        asked = template("answer", config={"phase": str(phase)})
        got = await flyte(served).do(asked)
    assert got.phase == Phase.RETRYABLE_FAILED
    assert got.message.startswith(f"The sync connector answered {Phase.Name(phase)}")


async def test_a_sync_connector_s_refusal_is_a_job_that_failed(flyte: Any) -> None:
    """What ``do`` calls the user's fault is phase FAILED with its text, for either client."""
    async with serve(Answer()) as served:
        got = await flyte(served).do(template("answer", config={"error": "no such model"}))
    assert (got.phase, got.message) == (Phase.FAILED, "no such model")


async def test_a_sync_connector_s_refusal_is_a_status_without_the_guarantees(flyte: Any) -> None:
    """Passed straight through, an error of ``do`` is told where it runs."""
    async with serve(Answer(), policy=BARE) as served:
        code, details = await refusal(
            flyte(served).do(template("answer", config={"error": "no such model"}))
        )
    assert (code, details) == (StatusCode.INVALID_ARGUMENT, "no such model")


async def test_a_sync_connector_takes_a_connection_too(reach: Any) -> None:
    """Its keywords arrive in ``do``, where there are any to take them."""
    connector = Answer()
    async with serve(connector) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template("answer"), connection=CONNECTION)
    kwargs = connector.calls[0][3]
    assert (kwargs["token"], kwargs["both"], kwargs["region"]) == (
        "s3cr3t-value",
        "the-secret",
        "eu",
    )


SYNC = """
import os
from connector_service import ConnectorRegistry, Phase, Resource, SyncConnectorBase

class Pid(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="pid")

    def do(self, task_template, output_prefix, inputs):
        return Resource(Phase.SUCCEEDED, outputs={"pid": os.getpid()})

ConnectorRegistry.register(Pid())
"""


async def test_a_sync_result_is_read_by_another_process(daemon: Any, reach: Any) -> None:
    """Replicas share nothing: the one that is polled need not be the one that ran the task."""
    ran, polled = daemon(SYNC), daemon(SYNC)
    meta = await reach("flyteidl2", ran.endpoint).create(template("pid"))
    for protocol in ("flyteidl", "flyteidl2"):
        got = await reach(protocol, polled.endpoint).get(meta, "pid")
        outputs = literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString())
        assert from_literal_map(outputs) == {"pid": ran.process.pid}
