"""flytekit's own webhook and sensor, and the plugin that brings a task type but no connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from upstream.driving import listed
from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import FAILED, RUNNING, SUCCEEDED, TYPES, Client, ended, inputs, outputs


async def test_every_plugin_is_listed(flyte: Client) -> None:
    """Each task type of each plugin of the environment is in the list that Flyte asks for."""
    assert await listed(flyte) >= TYPES


async def test_a_webhook_is_called(flyte: Client, template: Any, backends: Backends) -> None:
    """A webhook, a sync task, sends its inputs and headers, and succeeds with the answer."""
    url = f"{backends.webhook.url}/hook"
    resource = await flyte.do(template("webhook"), inputs(url=url, text="hello"))
    assert resource.phase == SUCCEEDED
    kind, packed = outputs(resource)["info"]
    assert kind == "msgpack"
    assert b"heard" in packed
    _, path, headers, body = backends.webhook.requests[-1]
    assert (path, headers["x-from"], body) == ("/hook", "flyte", b'{"text":"hello"}')


async def test_a_webhook_that_is_refused(flyte: Client, template: Any, backends: Backends) -> None:
    """A webhook whose answer is not 200 is a failed task that names the status."""
    url = f"{backends.webhook.url}/status/503"
    resource = await flyte.do(template("webhook"), inputs(url=url, text="hello"))
    assert resource.phase == FAILED
    assert "503" in resource.message


async def test_a_file_is_waited_for(flyte: Client, template: Any, tmp_path: Path) -> None:
    """A file sensor is RUNNING until the file is there, then succeeds."""
    path = tmp_path / "ready"
    meta = await flyte.create(template("sensor"), inputs(path=str(path)))
    assert (await flyte.get(meta, "sensor")).phase == RUNNING
    assert (await flyte.get(meta, "sensor")).phase == RUNNING
    path.touch()
    _, resource = await ended(flyte, meta, "sensor")
    assert resource.phase == SUCCEEDED
    await flyte.delete(meta, "sensor")


async def test_a_sleep_is_for_flyte_itself(flyte: Client, template: Any) -> None:
    """The sleep plugin loads beside the others; its type has none: NOT_FOUND."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await flyte.create(template("sleep"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
