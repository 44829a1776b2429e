"""flytekitplugins-openai: chat against fakellm, batches against a small batch API."""

from __future__ import annotations

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
    set_custom,
)

TYPE = "openai-batch"
LINES = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


async def test_a_chat_is_answered(flyte: Client, template: Any) -> None:
    """A chat, a sync task, succeeds with the model's words."""
    resource = await flyte.do(template("chatgpt"), inputs(message="hello"))
    assert resource.phase == SUCCEEDED
    assert outputs(resource) == {"o0": "forty-two"}


async def test_a_batch_goes_its_way(flyte: Client, template: Any, backends: Backends) -> None:
    """A batch runs through its states and succeeds with its description as output."""
    file = backends.openai.upload(LINES)
    meta = await flyte.create(template("openai_batch"), inputs(input_file_id=file))
    phases, resource = await ended(flyte, meta, TYPE)
    assert phases == [RUNNING, SUCCEEDED]
    kind, packed = outputs(resource)["result"]
    assert kind == "msgpack"
    assert b"-output" in packed


async def test_a_batch_that_fails(flyte: Client, template: Any, backends: Backends) -> None:
    """A batch over a broken file is RUNNING, then FAILED with OpenAI's words."""
    file = backends.openai.upload("not a line of JSON")
    meta = await flyte.create(template("openai_batch"), inputs(input_file_id=file))
    phases, resource = await ended(flyte, meta, TYPE)
    assert phases[-1] == FAILED
    assert resource.message == "Line 1 is not valid JSON."


async def test_a_running_batch_is_cancelled(
    flyte: Client, template: Any, backends: Backends
) -> None:
    """Delete cancels the batch."""
    file = backends.openai.upload(LINES)
    meta = await flyte.create(template("openai_batch"), inputs(input_file_id=file))
    assert (await flyte.get(meta, TYPE)).phase == RUNNING
    await flyte.delete(meta, TYPE)
    (batch,) = (b for b in backends.openai.batches.values() if b["input_file_id"] == file)
    assert batch["status"] == "cancelling"


async def test_a_file_that_is_not_there(flyte: Client, template: Any, backends: Backends) -> None:
    """A batch over a file that OpenAI does not have fails its create."""
    before = len(backends.openai.batches)
    await refused(flyte, flyte.create(template("openai_batch"), inputs(input_file_id="file-0")))
    assert len(backends.openai.batches) == before


async def test_a_key_that_was_revoked(flyte: Client, template: Any, backends: Backends) -> None:
    """A poll with a revoked key is RUNNING here, an error at upstream's; it then goes on."""
    file = backends.openai.upload(LINES)
    meta = await flyte.create(template("openai_batch"), inputs(input_file_id=file))
    with backends.openai.denying():
        await absorbed(flyte, meta, TYPE)
    _, resource = await ended(flyte, meta, TYPE)
    assert resource.phase == SUCCEEDED


async def test_a_chat_that_is_refused(flyte: Client, template: Any, backends: Backends) -> None:
    """A chat with a revoked key is an error for the caller, on either server."""
    wanted = set_custom(template("chatgpt"), openai_organization="other")
    with backends.openai.denying():
        await refused(flyte, flyte.do(wanted, inputs(message="hello")))
