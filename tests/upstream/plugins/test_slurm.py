"""flytekit's Slurm plugin, as published, runs jobs on a real Slurm cluster over a real sshd.

The same plugin is served by us and by upstream's own server. What Debian's Slurm cannot print for
it is described in backends/slurm.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from upstream.backends.program import interpreter
from upstream.backends.slurm import Slurm, need_slurm
from upstream.driving import calling, listed, poll, template_of, until
from upstream.servers import Server, serving, templates

need_slurm()

HERE = Path(__file__).parent
SIDES = ["ours", "theirs"]


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("flytekit-slurm")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tasks(
    python: Path, cluster: Slurm, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Make the users' templates, for the host that answers and the one that refuses."""
    arguments = (str(cluster.work), str(cluster.key_file), cluster.user, "login", "refused")
    folder = tmp_path_factory.mktemp("tasks")
    return templates(python, HERE / "slurm_program.py", folder, *arguments)


@pytest.fixture(scope="module", params=SIDES)
def server(
    request: pytest.FixtureRequest,
    python: Path,
    cluster: Slurm,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    env = {"HOME": str(cluster.home)}
    with serving(request.param, "flytekit", python, folder, env) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> Any:
    async with calling("flyteidl", server.endpoint) as client:
        yield client


def job_of(meta: bytes) -> str:
    """Return Slurm's own number of the job, from the bytes that the plugin returned."""
    job: str = json.loads(meta)["job_id"]
    return job


async def test_it_is_listed(client: Any) -> None:
    """Both of the plugin's task types are offered."""
    assert {"slurm", "slurm_fn"} <= await listed(client)


async def test_a_job_succeeds(client: Any, cluster: Slurm, tasks: dict[str, bytes]) -> None:
    """A batch script runs on the cluster; the poll tells its end and what it printed."""
    meta = await client.create(template_of(client, tasks["login/echo"]))
    seen = await poll(client, meta, "slurm")
    assert seen.phase == "SUCCEEDED"
    assert seen.resource.message == "hello from slurm\n"
    assert cluster.state(job_of(meta)) == "COMPLETED"


async def test_a_job_fails(client: Any, cluster: Slurm, tasks: dict[str, bytes]) -> None:
    """An exit code other than zero is a failed job, with what it had printed."""
    meta = await client.create(template_of(client, tasks["login/fail"]))
    seen = await poll(client, meta, "slurm")
    assert (seen.phase, seen.resource.message) == ("FAILED", "about to fail\n")
    assert cluster.state(job_of(meta)) == "FAILED"


async def test_a_script_of_the_cluster_runs(
    client: Any, cluster: Slurm, tasks: dict[str, bytes]
) -> None:
    """A script that is already there gets its arguments."""
    (cluster.work / "there.sh").write_text('#!/bin/bash\necho "got $1 and $2"\n')
    meta = await client.create(template_of(client, tasks["login/remote"]))
    seen = await poll(client, meta, "slurm")
    assert (seen.phase, seen.resource.message) == ("SUCCEEDED", "got one and two\n")


async def test_delete_cancels(client: Any, cluster: Slurm, tasks: dict[str, bytes]) -> None:
    """A running job that is deleted is cancelled on the cluster."""
    meta = await client.create(template_of(client, tasks["login/wait"]))
    await poll(client, meta, "slurm", until={"RUNNING"})
    await running(cluster, job_of(meta))
    await client.delete(meta, "slurm")
    assert cluster.state(job_of(meta)) in {"CANCELLED", "COMPLETING"}


async def test_a_function_is_submitted(
    client: Any, server: Server, cluster: Slurm, tasks: dict[str, bytes]
) -> None:
    """A Python function's command reaches the cluster, and its job is cancelled by delete.

    Its poll cannot work: the published connector uses a name (``logger``) that it never imported.
    Upstream's server answers each with INTERNAL; ours absorbs it while the job may yet be well.
    """
    meta = await client.create(template_of(client, tasks["function"]))
    job = job_of(meta)
    await running(cluster, job)
    command = cluster.work / f"{job}.out"
    await until(lambda: command.exists() and bool(command.read_text()), "the job writes")
    assert command.read_text().startswith("pyflyte-execute --inputs ")
    call = client.get(meta, "slurm_fn")
    if type(server).__name__ == "Theirs":
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert "NameError" in refused.value.details()
    else:
        resource = await call
        assert resource.phase == 2, resource
        assert "NameError" in server.log_text()
    await client.delete(meta, "slurm_fn")
    assert cluster.state(job) in {"CANCELLED", "COMPLETING"}


async def test_flyte_2_drives_it(server: Server, cluster: Slurm, tasks: dict[str, bytes]) -> None:
    """Flyte 2's client runs and cancels the same tasks at our service; upstream's speaks one."""
    if type(server).__name__ == "Theirs":
        return
    async with calling("flyteidl2", server.endpoint) as client:
        meta = await client.create(template_of(client, tasks["login/echo"]))
        seen = await poll(client, meta, "slurm")
        assert (seen.phase, seen.resource.message) == ("SUCCEEDED", "hello from slurm\n")
        meta = await client.create(template_of(client, tasks["login/wait"]))
        await running(cluster, job_of(meta))
        await client.delete(meta, "slurm")
        assert cluster.state(job_of(meta)) in {"CANCELLED", "COMPLETING"}


@pytest.mark.parametrize("side", SIDES)
async def test_a_refused_login(
    side: str, python: Path, cluster: Slurm, tasks: dict[str, bytes], tmp_path: Path
) -> None:
    """The plugin calls sys.exit when SSH is refused: upstream's server ends, ours says so.

    The host's process lives on, its other jobs with it; a poll whose session was cut and that is
    refused again is absorbed, and the job is followed to its end once the door is open.
    """
    env = {"HOME": str(cluster.home)}
    with serving(side, "flytekit", python, tmp_path, env) as server:
        async with calling("flyteidl", server.endpoint) as client:
            meta = await client.create(template_of(client, tasks["login/wait"]))
            await poll(client, meta, "slurm", until={"RUNNING"})
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.create(template_of(client, tasks["refused/echo"]))
            if side == "theirs":
                await until(lambda: not server.is_up(), "upstream's server ends")
                return
            assert refused.value.code() in {
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.UNAVAILABLE,
            }
            assert "Traceback" not in refused.value.details()
            cluster.hang_up()
            try:
                for _ in range(3):
                    assert (await client.get(meta, "slurm")).phase == 2
            finally:
                cluster.answer()
            assert (await poll(client, meta, "slurm", until={"RUNNING"})).errors == []
            other = await client.create(template_of(client, tasks["login/echo"]))
            assert (await poll(client, other, "slurm")).phase == "SUCCEEDED"
            await client.delete(meta, "slurm")
            assert cluster.state(job_of(meta)) in {"CANCELLED", "COMPLETING"}
            assert server.is_up()


async def running(cluster: Slurm, job: str) -> None:
    """Wait until Slurm itself says that the job runs."""
    await until(lambda: cluster.state(job) == "RUNNING", f"job {job} runs")
