"""flytekit's Airflow plugin, as published, runs Airflow's own operators and sensors.

Served by us and by upstream's own server, from an environment with all of Airflow in it. The
plugin keeps a job's state in a pickle, patches Airflow's base classes, and needs flytekit's
context on whatever thread or loop it runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from flyte_clients import Flyte
from upstream.backends.airflow import Outside
from upstream.backends.program import interpreter
from upstream.driving import calling, listed, phase_name, poll, template_of
from upstream.servers import Server, serving, templates

HERE = Path(__file__).parent
TYPE = "airflow"


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("flytekit-airflow")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with Outside(tmp_path_factory.mktemp("outside")) as outside:
        yield outside


@pytest.fixture(scope="module")
def tasks(
    python: Path, outside: Outside, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tasks")
    return templates(python, HERE / "airflow_program.py", folder, str(outside.folder))


@pytest.fixture(scope="module", params=["ours", "theirs"])
def server(
    request: pytest.FixtureRequest,
    python: Path,
    outside: Outside,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    env = {"HOME": str(folder), **outside.settings}
    if request.param == "theirs":
        # Without, grpc's handlers of a fork end one in many of the operators' programs there.
        env["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    with serving(request.param, "flytekit", python, folder, env) as server:
        yield server


@pytest.fixture
async def client(server: Server, outside: Outside) -> AsyncIterator[Flyte]:
    """Flyte 1's client, with nothing left outside by another test."""
    outside.ended.clear()
    outside.requests.clear()
    outside.status = 200
    for name in ("awaited", "ran"):
        (outside.folder / name).unlink(missing_ok=True)
    async with calling("flyteidl", server.endpoint) as client:
        yield client


async def test_it_is_listed(client: Flyte) -> None:
    """The plugin's one task type is offered."""
    assert TYPE in await listed(client)


@pytest.mark.parametrize("sensor", ["file", "bash_sensor"])
async def test_a_sensor_waits(
    sensor: str, client: Flyte, tasks: dict[str, bytes], outside: Outside
) -> None:
    """A sensor is running until what it waits for is there; its state is a pickle."""
    meta = await client.create(template_of(client, tasks[sensor]))
    assert meta.startswith(b"\x80")
    for _ in range(2):
        assert phase_name(await client.get(meta, TYPE)) == "RUNNING"
    (outside.folder / "awaited").touch()
    seen = await poll(client, meta, TYPE)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])


async def test_the_same_sensor_twice(
    client: Flyte, tasks: dict[str, bytes], outside: Outside
) -> None:
    """Two jobs of one task have the same state, byte by byte; the end of one is not the other's."""
    first = await client.create(template_of(client, tasks["file"]))
    (outside.folder / "awaited").touch()
    assert (await poll(client, first, TYPE)).phase == "SUCCEEDED"
    (outside.folder / "awaited").unlink()
    second = await client.create(template_of(client, tasks["file"]))
    assert first == second
    assert phase_name(await client.get(second, TYPE)) == "RUNNING"


async def test_an_operator_runs_once(
    client: Flyte, tasks: dict[str, bytes], outside: Outside
) -> None:
    """An operator that cannot defer does its work in the create, and only there."""
    meta = await client.create(template_of(client, tasks["bash"]))
    seen = await poll(client, meta, TYPE)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert (outside.folder / "ran").read_text() == "once\n"


async def test_an_operator_fails(client: Flyte, server: Server, tasks: dict[str, bytes]) -> None:
    """An operator that fails in the create fails the create; ours tells no traceback."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await client.create(template_of(client, tasks["bash_failing"]))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    if type(server).__name__ == "Ours":
        assert "Traceback" not in failed.value.details()
        assert "exit code 3" in server.log_text()


async def test_a_deferred_operator_ends(
    client: Flyte, tasks: dict[str, bytes], outside: Outside
) -> None:
    """An operator that defers is polled through its trigger, and ended by its own callback."""
    meta = await client.create(template_of(client, tasks["http"]))
    assert outside.requests == []
    assert phase_name(await client.get(meta, TYPE)) == "RUNNING"
    outside.ended.set()
    seen = await poll(client, meta, TYPE)
    assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
    assert {path for _, path, _, _ in outside.requests} == {"/job"}


async def test_a_deferred_operator_fails(
    client: Flyte, tasks: dict[str, bytes], outside: Outside
) -> None:
    """The trigger's bad news is a failed job, with the operator's message."""
    outside.status = 404
    meta = await client.create(template_of(client, tasks["http"]))
    outside.ended.set()
    seen = await poll(client, meta, TYPE)
    assert seen.phase == "FAILED"
    assert "404" in seen.resource.message


async def test_a_delete_is_answered(client: Flyte, tasks: dict[str, bytes]) -> None:
    """The plugin's delete does nothing, and says so to nobody."""
    meta = await client.create(template_of(client, tasks["file"]))
    await client.delete(meta, TYPE)
