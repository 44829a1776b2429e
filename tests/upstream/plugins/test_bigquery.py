"""flytekitplugins-bigquery against bqemulator: queries that run, fail, and are cancelled."""

from __future__ import annotations

from typing import Any

from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import (
    FAILED,
    SUCCEEDED,
    Client,
    absorbed,
    ended,
    inputs,
    outputs,
    refused,
)

TYPE = "bigquery_query_job_task"


async def test_a_query_runs_and_names_its_result(flyte: Client, template: Any) -> None:
    """A query succeeds, its output is a data set's address, and a link leads to the console."""
    meta = await flyte.create(template("bigquery"))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED
    assert outputs(resource)["results"].startswith("bq://acme:")
    assert [link.name for link in resource.log_links] == ["BigQuery Console"]
    await flyte.delete(meta, TYPE)


async def test_inputs_become_query_parameters(flyte: Client, template: Any) -> None:
    """A query with parameters succeeds with values of the task's inputs."""
    meta = await flyte.create(template("bigquery_inputs"), inputs(word="a", number=2))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED, resource


async def test_a_query_that_fails_is_a_failed_task(flyte: Client, template: Any) -> None:
    """A query over a table that is not there ends FAILED with BigQuery's words."""
    meta = await flyte.create(template("bigquery_failing"))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == FAILED
    assert "nothing" in resource.message


async def test_credentials_that_were_revoked(
    flyte: Client, template: Any, backends: Backends
) -> None:
    """A poll with a revoked account is RUNNING here, an error at upstream's; a create fails."""
    meta = await flyte.create(template("bigquery"))
    with backends.bigquery.tokens.denying():
        await absorbed(flyte, meta, TYPE)
        await refused(flyte, flyte.create(template("bigquery")))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED
