"""Flyte 2's plugins for BigQuery, Snowflake and Databricks, as published, run jobs.

BigQuery is bqemulator, Snowflake is fakesnow, Databricks is semblance behind TLS. Credentials come
as Flyte 2 sends them: with each call, in its connection.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from flyteidl2.core import security_pb2
from upstream.backends.bigquery import BigQuery
from upstream.backends.databricks import TOKEN, Databricks
from upstream.backends.snowflake import Snowflake
from upstream.driving import listed, poll
from upstream.servers import Server

BIGQUERY = "bigquery_query_job_task"


@pytest.fixture
def account(bigquery: BigQuery) -> dict[str, Any]:
    """The connection with the service account's file."""
    text = Path(bigquery.settings["GOOGLE_APPLICATION_CREDENTIALS"]).read_text()
    secrets = {"google_application_credentials": text}
    return {"connection": security_pb2.Connection(secrets=secrets)}


@pytest.fixture
def token() -> dict[str, Any]:
    """The connection with the workspace's token."""
    return {"connection": security_pb2.Connection(secrets={"databricks_token": TOKEN})}


def outputs(resource: Any) -> dict[str, str]:
    """Return the addresses of a resource's data sets."""
    literals = resource.outputs.literals
    return {one.name: one.value.scalar.structured_dataset.uri for one in literals}


async def test_they_are_listed(client: Any) -> None:
    """Each plugin's task types are offered."""
    wanted = {BIGQUERY, "snowflake", "databricks", "slurm", "slurm_script"}
    assert wanted <= await listed(client)


async def test_bigquery_succeeds(client: Any, template: Any, account: dict[str, Any]) -> None:
    """A query runs, and its result's table is the output."""
    meta = await client.create(template("bigquery"), **account)
    assert b"PRIVATE KEY" not in meta
    seen = await poll(client, meta, BIGQUERY, **account)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert outputs(seen.resource)["results"].startswith("bq://acme:")
    assert json.loads(meta)["job_id"] in seen.resource.log_links[0].uri


async def test_bigquery_takes_inputs(
    client: Any, template: Any, inputs: Any, account: dict[str, Any]
) -> None:
    """Inputs become the query's parameters."""
    given = inputs(word="two", number=2)
    meta = await client.create(template("bigquery_inputs"), given, **account)
    assert (await poll(client, meta, BIGQUERY, **account)).phase == "SUCCEEDED"


async def test_bigquery_fails(client: Any, template: Any, account: dict[str, Any]) -> None:
    """A query of a table that is not there is a failed job that names it."""
    meta = await client.create(template("bigquery_failing"), **account)
    seen = await poll(client, meta, BIGQUERY, **account)
    assert seen.phase == "FAILED"
    assert "nowhere" in seen.resource.message


async def test_bigquery_is_deleted(client: Any, template: Any, account: dict[str, Any]) -> None:
    """A delete cancels the job; a job that has ended stays as it ended."""
    meta = await client.create(template("bigquery"), **account)
    await client.delete(meta, BIGQUERY, **account)


async def test_snowflake_succeeds(client: Any, template: Any) -> None:
    """A query runs, on the server that the task's own connection names."""
    meta = await client.create(template("snowflake"))
    seen = await poll(client, meta, "snowflake")
    assert (seen.phase, seen.errors, seen.resource.message) == ("SUCCEEDED", [], "SUCCESS")
    query = json.loads(meta)["query_id"]
    assert outputs(seen.resource) == {
        "results": f"snowflake://flyte/acme-eu/small/shop/public/{query}"
    }


async def test_snowflake_takes_inputs(client: Any, template: Any, inputs: Any) -> None:
    """Inputs are bound in the statement."""
    meta = await client.create(template("snowflake_inputs"), inputs(word="two", number=2))
    assert (await poll(client, meta, "snowflake")).phase == "SUCCEEDED"


async def test_snowflake_refuses(client: Any, template: Any, server: Server) -> None:
    """A statement that the server refuses fails the create; ours keeps its text from the caller."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.create(template("snowflake_failing"))
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    if type(server).__name__ == "Ours":
        assert "nothing_of_the_kind" not in refused.value.details()
        assert "nothing_of_the_kind" in server.log_text().lower()


async def test_snowflake_is_cancelled(client: Any, template: Any, snowflake: Snowflake) -> None:
    """A delete asks the server to cancel exactly the query of the job."""
    meta = await client.create(template("snowflake"))
    query = json.loads(meta)["query_id"]
    snowflake.say(query, "RUNNING")
    await poll(client, meta, "snowflake", until={"RUNNING"})
    await client.delete(meta, "snowflake")
    assert snowflake.statements()[-1] == f"SELECT SYSTEM$CANCEL_QUERY('{query}')"


async def test_databricks_succeeds(
    client: Any, template: Any, databricks: Databricks, token: dict[str, Any]
) -> None:
    """A run is submitted with the call's token and followed to its end."""
    meta = await client.create(template("databricks"), **token)
    assert TOKEN.encode() not in meta
    run = json.loads(meta)["run_id"]
    databricks.end(run, result_state="SUCCESS")
    seen = await poll(client, meta, "databricks", **token)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert run in seen.resource.log_links[0].uri


async def test_databricks_fails(
    client: Any, template: Any, databricks: Databricks, token: dict[str, Any]
) -> None:
    """A run that failed is a failed job."""
    meta = await client.create(template("databricks"), **token)
    databricks.end(json.loads(meta)["run_id"], result_state="FAILED")
    assert (await poll(client, meta, "databricks", **token)).phase == "FAILED"


async def test_databricks_is_cancelled(
    client: Any, template: Any, databricks: Databricks, token: dict[str, Any]
) -> None:
    """A delete cancels the run in the workspace."""
    meta = await client.create(template("databricks"), **token)
    run = json.loads(meta)["run_id"]
    await client.delete(meta, "databricks", **token)
    state = databricks.call(f"/api/2.1/jobs/runs/get?run_id={run}")["state"]
    assert state["life_cycle_state"] in {"TERMINATING", "TERMINATED"}, state


async def test_databricks_refuses_a_wrong_token(client: Any, template: Any) -> None:
    """The token is the call's: with another one nothing is submitted."""
    wrong = security_pb2.Connection(secrets={"databricks_token": "another"})
    with pytest.raises(grpc.aio.AioRpcError):
        await client.create(template("databricks"), connection=wrong)
