"""flytekitplugins-spark's Databricks connector against semblance-databricks over TLS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import (
    FAILED,
    INITIALIZING,
    RUNNING,
    SUCCEEDED,
    Client,
    absorbed,
    ended,
    refused,
    set_custom,
)

TYPES = ["databricks", "spark"]


@pytest.fixture(params=TYPES)
def task_type(request: pytest.FixtureRequest) -> str:
    """Either of the two types that the connector serves."""
    return str(request.param)


def run_of(meta: bytes) -> str:
    return str(json.loads(meta)["run_id"])


async def test_a_run_goes_its_way(flyte: Client, template: Any, task_type: str) -> None:
    """A run is pending, runs and succeeds, with a link to its console."""
    wanted = template("databricks")
    wanted.type = task_type
    meta = await flyte.create(wanted)
    phases, resource = await ended(flyte, meta, task_type)
    assert phases[-2:] == [RUNNING, SUCCEEDED]
    assert set(phases[:-2]) <= {INITIALIZING}
    assert resource.log_links[0].name == "Databricks Console"
    assert run_of(meta) in resource.log_links[0].uri


async def test_a_run_that_fails(flyte: Client, template: Any, backends: Backends) -> None:
    """A run that Databricks ends as FAILED is a failed task."""
    meta = await flyte.create(template("databricks"))
    backends.databricks.end(run_of(meta), result_state="FAILED")
    phases, resource = await ended(flyte, meta, "databricks")
    assert resource.phase == FAILED
    assert RUNNING in phases


async def test_a_running_run_is_cancelled(flyte: Client, template: Any, backends: Backends) -> None:
    """Delete cancels the run in the workspace."""
    meta = await flyte.create(template("databricks"))
    await flyte.get(meta, "databricks")
    await flyte.delete(meta, "databricks")
    seen = backends.databricks.call(f"/api/2.1/jobs/runs/get?run_id={run_of(meta)}")
    assert seen["state"]["result_state"] == "CANCELED"


async def test_a_workspace_that_is_away(flyte: Client, template: Any, backends: Backends) -> None:
    """A poll while the workspace is away is RUNNING here, an error at upstream's server."""
    meta = await flyte.create(template("databricks"))
    with backends.databricks.away():
        await absorbed(flyte, meta, "databricks")


async def test_a_token_that_is_wrong(flyte: Client, template: Any) -> None:
    """A poll with a wrong token is RUNNING here, an error at upstream's server."""
    meta = await flyte.create(template("databricks"))
    stale = json.dumps({**json.loads(meta), "auth_token": "stale"}).encode()
    await absorbed(flyte, stale, "databricks")


async def test_a_task_without_a_cluster(flyte: Client, template: Any) -> None:
    """A task that names no compute fails its create; nothing is submitted."""
    wanted = template("databricks")
    wanted.custom.ClearField("fields")
    set_custom(wanted, databricksConf={"run_name": "flyte"})
    await refused(flyte, flyte.create(wanted))
