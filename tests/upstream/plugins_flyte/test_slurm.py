"""Flyte 2's Slurm plugin, as published, runs jobs on a real Slurm cluster over a real sshd."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from flyteidl2.core import security_pb2
from upstream.backends.slurm import Slurm, need_slurm
from upstream.driving import calling, poll, until
from upstream.servers import Server, serving

need_slurm()

SCRIPT = "slurm_script"


@pytest.fixture
def key(cluster: Slurm) -> dict[str, Any]:
    """The connection that Flyte sends with each call: the SSH key, from its secrets."""
    return {"connection": security_pb2.Connection(secrets={"ssh_private_key": cluster.private_key})}


def job_of(meta: bytes) -> str:
    """Return Slurm's own number of the job, from the bytes that the plugin returned."""
    job: str = json.loads(meta)["job_id"]
    return job


async def running(cluster: Slurm, job: str) -> None:
    await until(lambda: cluster.state(job) == "RUNNING", f"job {job} runs")


async def test_a_script_succeeds(
    client: Any, template: Any, cluster: Slurm, key: dict[str, Any]
) -> None:
    """A batch script runs on the cluster with the key that came with the call."""
    meta = await client.create(template("slurm_echo"), **key)
    assert cluster.private_key.encode() not in meta
    seen = await poll(client, meta, SCRIPT, **key)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert "RUNNING" in seen.phases
    assert cluster.state(job_of(meta)) == "COMPLETED"
    assert "hello from slurm" in Path(json.loads(meta)["stdout_path"]).read_text()  # noqa: ASYNC240


async def test_a_script_fails(client: Any, template: Any, key: dict[str, Any]) -> None:
    """An exit code other than zero is a failed job; the message ends with its stderr."""
    meta = await client.create(template("slurm_fail"), **key)
    seen = await poll(client, meta, SCRIPT, **key)
    assert seen.phase == "FAILED"
    assert seen.resource.message.endswith("about to fail")


async def test_files_are_moved(
    client: Any, template: Any, inputs: Any, key: dict[str, Any], tmp_path: Path
) -> None:
    """A declared output is moved by the connector in the background, between two polls of its own.

    The plugin starts that on its event loop and asks for it at a later poll, so it works only on
    a server that gives the connector one loop for life.
    """
    prefix = str(tmp_path)
    given = inputs(word="moved")
    meta = await client.create(template("slurm_files"), given, prefix=prefix, **key)
    seen = await poll(client, meta, SCRIPT, **key)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    (output,) = seen.resource.outputs.literals
    assert output.name == "made"
    assert output.value.scalar.blob.uri == f"{prefix}/made"
    assert Path(f"{prefix}/made").read_text() == "moved\n"  # noqa: ASYNC240


async def test_delete_cancels(
    client: Any, template: Any, cluster: Slurm, key: dict[str, Any]
) -> None:
    """A running job that is deleted is cancelled on the cluster."""
    meta = await client.create(template("slurm_wait"), **key)
    await running(cluster, job_of(meta))
    await client.delete(meta, SCRIPT, **key)
    assert cluster.state(job_of(meta)) in {"CANCELLED", "COMPLETING"}


async def test_a_function_s_job_is_submitted(
    client: Any, template: Any, cluster: Slurm, key: dict[str, Any]
) -> None:
    """A task's own container is submitted through srun; its plugin for containers is not here.

    So the job ends as failed, with srun's own complaint.
    """
    meta = await client.create(template("slurm_native"), **key)
    seen = await poll(client, meta, "slurm", **key)
    assert seen.phase == "FAILED"
    assert "srun: unrecognized option" in seen.resource.message
    assert cluster.state(job_of(meta)) == "FAILED"


async def test_without_a_key_it_is_refused(client: Any, template: Any, cluster: Slurm) -> None:
    """The key is nowhere but in the call, so a call without one submits nothing."""
    before = cluster.jobs()
    with pytest.raises(grpc.aio.AioRpcError):
        await client.create(template("slurm_echo"))
    assert cluster.jobs() == before


@pytest.fixture
def own(
    server: Server, python: Path, settings: dict[str, str], cluster: Slurm, tmp_path: Path
) -> Iterator[Server]:
    """A server of the test's own, of the same side, that has the key in its settings."""
    side = type(server).__name__.lower()
    env = settings | {"FLYTE_SLURM_SSH_PRIVATE_KEY": cluster.private_key}
    with serving(side, "flyte", python, tmp_path, env) as own:
        yield own


async def test_logs_are_read(own: Server, template: Any) -> None:
    """The lines that a job printed are told by GetTaskLogs; such a call carries no secret."""
    async with calling("flyteidl2", own.endpoint) as client:
        meta = await client.create(template("slurm_echo"))
        assert (await poll(client, meta, SCRIPT)).phase == "SUCCEEDED"
        bodies = [message.body for message in await client.logs(meta, SCRIPT)]
        lines = [line.message for body in bodies for line in body.lines]
        assert lines[1] == "hello from slurm"


async def test_a_refused_login(own: Server, template: Any, cluster: Slurm) -> None:
    """Polls that meet a refused login are absorbed here, and errors at upstream's server.

    The job is followed to its end once the door is open again, over a new session.
    """
    async with calling("flyteidl2", own.endpoint) as client:
        meta = await client.create(template("slurm_wait"))
        await running(cluster, job_of(meta))
        await poll(client, meta, SCRIPT, until={"RUNNING"})
        with away(cluster):
            for _ in range(3):
                if type(own).__name__ == "Ours":
                    assert (await client.get(meta, SCRIPT)).phase == 2
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await client.get(meta, SCRIPT)
        await poll(client, meta, SCRIPT, until={"RUNNING"})
        await client.delete(meta, SCRIPT)
        assert cluster.state(job_of(meta)) in {"CANCELLED", "COMPLETING"}


@contextlib.contextmanager
def away(cluster: Slurm) -> Iterator[None]:
    """Have the login host gone inside the block."""
    cluster.hang_up()
    try:
        yield
    finally:
        cluster.answer()
