"""Flyte 2's plugins, as published, are driven by Flyte 1 through this service.

Flyte 1 sends no secrets with a call, so the plugins' process has them in its settings. The tasks
are those of Flyte 2's SDK: on the wire a template and its inputs are the same in both protocols.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from flyte_clients import Flyte
from upstream.backends.bigquery import BigQuery
from upstream.backends.slurm import Slurm, need_slurm
from upstream.backends.snowflake import Snowflake
from upstream.driving import calling, listed, poll, until
from upstream.servers import Ours, Server, serving


@pytest.fixture(scope="module")
def server(
    python: Path,
    settings: dict[str, str],
    bigquery: BigQuery,
    cluster: Slurm | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Our service, with the secrets in the host's settings."""
    env = settings | bigquery.settings
    if cluster:
        env["FLYTE_SLURM_SSH_PRIVATE_KEY"] = cluster.private_key
    with serving("ours", "flyte", python, tmp_path_factory.mktemp("ours"), env) as server:
        yield server


@pytest.fixture
async def client(server: Ours) -> AsyncIterator[Flyte]:
    async with calling("flyteidl", server.endpoint) as client:
        yield client


def outputs(resource: Any) -> dict[str, Any]:
    return {name: one.scalar for name, one in resource.outputs.literals.items()}


async def test_they_are_listed(client: Any) -> None:
    """Flyte 1's list has the task types of Flyte 2's plugins."""
    wanted = {"bigquery_query_job_task", "snowflake", "databricks", "slurm", "slurm_script"}
    assert wanted <= await listed(client)


@pytest.mark.parametrize("name", ["bigquery", "bigquery_inputs"])
async def test_bigquery(name: str, client: Any, template: Any, inputs: Any) -> None:
    """A query runs, with inputs or none, and its result's table is the output."""
    kind = "bigquery_query_job_task"
    given = inputs(word="two", number=2) if name.endswith("inputs") else None
    meta = await client.create(template(name), given)
    seen = await poll(client, meta, kind)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert outputs(seen.resource)["results"].structured_dataset.uri.startswith("bq://acme:")
    await client.delete(meta, kind)


async def test_snowflake(client: Any, template: Any, inputs: Any, snowflake: Snowflake) -> None:
    """A query runs with its inputs bound."""
    meta = await client.create(template("snowflake_inputs"), inputs(word="uno", number=1))
    seen = await poll(client, meta, "snowflake")
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert outputs(seen.resource)["results"].structured_dataset.uri.startswith("snowflake://")
    assert any("'uno'" in text for text in snowflake.statements())
    await client.delete(meta, "snowflake")


async def test_slurm(
    client: Any, template: Any, inputs: Any, cluster: Slurm | None, tmp_path: Path
) -> None:
    """A script runs with its input and its output moved; another one is cancelled."""
    if cluster is None:
        need_slurm()
        return
    given = inputs(word="moved")
    meta = await client.create(template("slurm_files"), given, prefix=str(tmp_path))
    seen = await poll(client, meta, "slurm_script")
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert outputs(seen.resource)["made"].blob.uri == f"{tmp_path}/made"
    assert (tmp_path / "made").read_text() == "moved\n"
    before = cluster.jobs()
    meta = await client.create(template("slurm_wait"))
    (job,) = cluster.jobs() - before
    await until(lambda: cluster.state(job) == "RUNNING", "the job runs")
    await client.delete(meta, "slurm_script")
    assert cluster.state(job) in {"CANCELLED", "COMPLETING"}
