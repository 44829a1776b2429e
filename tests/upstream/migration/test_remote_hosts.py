"""Upstream's own servers stand behind this service as remote hosts, and are driven through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from upstream.driving import calling, listed, phase_name, poll, template_of
from upstream.migration import jobs
from upstream.migration.jobs import FILES
from upstream.servers import Ours, Theirs

SDKS = ["flytekit", "flyte"]
PROTOCOLS = ["flyteidl", "flyteidl2"]


@dataclass
class Behind:
    """Upstream's server, the service in front of it, and the plugin's environment."""

    old: Theirs
    front: Ours
    sdk: str


@pytest.fixture(scope="module", params=SDKS)
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp(request.param)
    plugin = jobs.files(request.param, folder)
    with Theirs(plugin.sdk, plugin.python, folder / "old", plugin.env) as old:
        front = Ours(folder / "front", {"old": {"endpoint": old.address}})
        yield Behind(old, front, plugin.sdk)
        front.stop()


class Backend:
    """The file that the job is: it says how the job ended."""

    def __init__(self, path: Path) -> None:
        self.template = jobs.files_template(path)
        self._path = path

    def say(self, text: str) -> None:
        self._path.write_text(text)

    def said(self) -> str:
        return self._path.read_text()

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


@pytest.fixture
def job(tmp_path: Path) -> Backend:
    return Backend(tmp_path / "job")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_it_is_discovered(behind: Behind, protocol: str) -> None:
    """The task types of upstream's server are listed as the service's, in either protocol."""
    async with calling(protocol, behind.front.endpoint) as client:
        assert FILES in await listed(client)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_job_is_driven_through(behind: Behind, protocol: str, job: Backend) -> None:
    """A job is created, polled to its end with its outputs, and another deleted, behind us.

    Either protocol's client is served, whichever of the two upstream's server speaks.
    """
    async with calling(protocol, behind.front.endpoint) as client:
        template = template_of(client, job.template)
        meta = await client.create(template)
        assert phase_name(await client.get(meta, FILES)) == "RUNNING"
        job.say("done")
        seen = await poll(client, meta, FILES)
        assert (seen.phase, seen.resource.message, seen.errors) == ("SUCCEEDED", "done", [])
        assert len(seen.resource.outputs.literals) == 1
        job.forget()
        other = await client.create(template)
        await client.delete(other, FILES)
        assert job.said() == "deleted"


async def test_it_is_the_same_job(behind: Behind, job: Backend) -> None:
    """A job created at upstream's server is followed through the service, and the other way."""
    protocol = {"flytekit": "flyteidl", "flyte": "flyteidl2"}[behind.sdk]
    async with (
        calling(protocol, behind.old.endpoint) as old,
        calling(protocol, behind.front.endpoint) as front,
    ):
        for first, second in ((old, front), (front, old)):
            job.forget()
            meta = await first.create(template_of(first, job.template))
            assert phase_name(await second.get(meta, FILES)) == "RUNNING"
            job.say("done")
            assert (await poll(second, meta, FILES)).phase == "SUCCEEDED"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_its_traceback_stays_here(behind: Behind, protocol: str, job: Backend) -> None:
    """A poll that fails over there is absorbed; a caller never sees upstream's own text of it."""
    own = {"flytekit": "flyteidl", "flyte": "flyteidl2"}[behind.sdk]
    async with calling(protocol, behind.front.endpoint) as client:
        meta = await client.create(template_of(client, job.template))
        job.say("break")
        async with calling(own, behind.old.endpoint) as old:
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                await old.get(meta, FILES)
        assert "the backend's own words" in broken.value.details()
        resource = await client.get(meta, FILES)
        assert phase_name(resource) == "RUNNING"
        assert "own words" not in str(resource)
        assert "Traceback" not in str(resource)
        assert "the backend's own words" in behind.front.log_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_it_goes_away_and_returns(behind: Behind, protocol: str, job: Backend) -> None:
    """While upstream's server is gone its types stay listed, polls are absorbed and creates wait.

    A create that cannot be served ends UNAVAILABLE; the job is followed on when it is back.
    """
    async with calling(protocol, behind.front.endpoint) as client:
        meta = await client.create(template_of(client, job.template))
        with behind.old.away():
            assert FILES in await listed(client)
            assert phase_name(await client.get(meta, FILES)) == "RUNNING"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.create(template_of(client, job.template))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        job.say("done")
        seen = await poll(client, meta, FILES)
        assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
