"""flytekitplugins-snowflake against fakesnow, through a proxy that stands for Snowflake's hosts.

fakesnow runs a statement as it comes; where a test needs a query that still runs, or that failed
after it was taken, the proxy gives that status.
"""

from __future__ import annotations

import json
from typing import Any

from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    Client,
    absorbed,
    ended,
    inputs,
    outputs,
    refused,
)

TYPE = "snowflake"


def query_of(meta: bytes) -> str:
    return str(json.loads(meta)["query_id"])


async def test_a_query_runs_and_names_its_result(flyte: Client, template: Any) -> None:
    """A query succeeds and has an output, here as at upstream's.

    The plugin makes a literal of the result's address itself; flytekit's type engine, handed a
    literal, then writes a pickle of it. Both servers give what the engine gives.
    """
    meta = await flyte.create(template("snowflake"))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED
    assert outputs(resource)["results"][0] == "PythonPickle"
    assert [link.name for link in resource.log_links] == ["Snowflake Query Details"]


async def test_inputs_become_parameters(flyte: Client, template: Any, backends: Backends) -> None:
    """A statement with placeholders runs with the task's inputs in their places."""
    meta = await flyte.create(template("snowflake_inputs"), inputs(word="a'b", number=2))
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED
    assert "SELECT 'a\\'b' AS word, 2 AS number" in backends.snowflake.statements()


async def test_a_query_that_fails_later(flyte: Client, template: Any, backends: Backends) -> None:
    """A query that runs and then fails is RUNNING, then FAILED."""
    meta = await flyte.create(template("snowflake"))
    backends.snowflake.say(query_of(meta), "RUNNING")
    assert (await flyte.get(meta, TYPE)).phase == RUNNING
    backends.snowflake.say(query_of(meta), "FAILED_WITH_ERROR", "Division by zero")
    assert (await flyte.get(meta, TYPE)).phase == FAILED


async def test_a_query_that_is_refused(flyte: Client, template: Any) -> None:
    """A statement that Snowflake refuses at once fails the create."""
    await refused(flyte, flyte.create(template("snowflake_failing")))


async def test_a_running_query_is_cancelled(
    flyte: Client, template: Any, backends: Backends
) -> None:
    """Delete asks Snowflake to cancel exactly the query of the job."""
    meta = await flyte.create(template("snowflake"))
    backends.snowflake.say(query_of(meta), "RUNNING")
    await flyte.delete(meta, TYPE)
    assert backends.snowflake.statements()[-1] == (
        f"SELECT SYSTEM$CANCEL_QUERY('{query_of(meta)}')"
    )
    assert (await flyte.get(meta, TYPE)).phase == FAILED


async def test_a_state_that_nobody_knows(flyte: Client, template: Any, backends: Backends) -> None:
    """A query in a state that the plugin has no phase for is RUNNING here."""
    meta = await flyte.create(template("snowflake"))
    backends.snowflake.say(query_of(meta), "QUEUED_REPARING_WAREHOUSE")
    await absorbed(flyte, meta, TYPE)
    backends.snowflake.say(query_of(meta), "")
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED
