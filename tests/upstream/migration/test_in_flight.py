"""Jobs move while they run: created on upstream's own server, finished on ours, and back.

The bytes that a server gave for a job are all that the other one is told. Each job is created on
one server, which is then stopped; the other serves the same plugin and takes over.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from upstream.driving import calling, poll, template_of
from upstream.migration import jobs
from upstream.migration.jobs import Job
from upstream.servers import serving

DIRECTIONS = [("theirs", "ours"), ("ours", "theirs")]
TO_THE_END = {
    "flytekit-json": lambda get, _: jobs.warehouse("flytekit", get("made"), get("bigquery")),
    "flytekit-pickle": lambda _, folder: jobs.files("flytekit", folder),
    "flytekit-pickle-of-airflow": lambda get, _: jobs.airflow(get("made"), get("outside")),
    "flyte-json": lambda get, _: jobs.warehouse("flyte", get("made"), get("bigquery")),
    "flyte-pickle": lambda _, folder: jobs.files("flyte", folder),
}
TO_A_CANCELLATION = {
    "flytekit-json": lambda get, _: jobs.slurm("flytekit", get("made"), get("cluster")),
    "flytekit-pickle": lambda _, folder: jobs.files("flytekit", folder),
    "flyte-json": lambda get, _: jobs.slurm("flyte", get("made"), get("cluster")),
    "flyte-pickle": lambda _, folder: jobs.files("flyte", folder),
}
Case = Callable[[Callable[[str], object], Path], Job]


async def create(job: Job, side: str, folder: Path) -> bytes:
    """Create the job on one side, see it there, and stop that server."""
    with serving(side, job.sdk, job.python, folder, job.env) as server:
        async with calling(job.protocol, server.endpoint) as client:
            meta: bytes = await client.create(template_of(client, job.template), **job.more)
            assert meta.startswith(pickle.PROTO if job.pickled else b"{")
            await poll(client, meta, job.task_type, until={"RUNNING", "SUCCEEDED"}, **job.more)
            return meta


@pytest.mark.parametrize("direction", DIRECTIONS, ids="-to-".join)
@pytest.mark.parametrize("case", TO_THE_END.values(), ids=TO_THE_END)
async def test_a_job_ends_on_the_other_server(
    case: Case, direction: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The second server follows the job to its end and tells the same outputs, without an error."""
    job = case(request.getfixturevalue, tmp_path)
    first, second = direction
    meta = await create(job, first, tmp_path / "first")
    with serving(second, job.sdk, job.python, tmp_path / "second", job.env) as server:
        async with calling(job.protocol, server.endpoint) as client:
            job.end()
            seen = await poll(client, meta, job.task_type, **job.more)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    if job.task_type != "airflow":
        assert len(seen.resource.outputs.literals) == 1


@pytest.mark.parametrize("direction", DIRECTIONS, ids="-to-".join)
@pytest.mark.parametrize("case", TO_A_CANCELLATION.values(), ids=TO_A_CANCELLATION)
async def test_a_job_is_cancelled_on_the_other_server(
    case: Case, direction: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The second server finds the job running, and its delete ends it in the backend."""
    job = case(request.getfixturevalue, tmp_path)
    first, second = direction
    meta = await create(job, first, tmp_path / "first")
    with serving(second, job.sdk, job.python, tmp_path / "second", job.env) as server:
        async with calling(job.protocol, server.endpoint) as client:
            seen = await poll(client, meta, job.task_type, until={"RUNNING"}, **job.more)
            assert seen.errors == []
            await client.delete(meta, job.task_type, **job.more)
            assert job.cancelled is not None
            assert job.cancelled(meta)
