"""Two hosts whose dependencies conflict serve side by side, from one service that has neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upstream.backends.program import interpreter
from upstream.driving import calling, listed, poll
from upstream.migration.plugins import NUMPY, install
from upstream.servers import Ours

# The environments are those of published plugins: flytekit's BigQuery plugin needs numpy<2, and
# the others were resolved with numpy>=2; no one environment can hold both.
HOSTS = {
    "numpy_old": ("flytekit", "flytekit-plugins", "1."),
    "numpy_new": ("flytekit", "flytekit-slurm", "2."),
    "numpy_flyte": ("flyte", "flyte-plugins", "2."),
}
PUBLISHED = {"bigquery_query_job_task", "slurm", "slurm_fn"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    folder = tmp_path_factory.mktemp("service")
    hosts: dict[str, dict[str, Any]] = {}
    for task_type, (sdk, environment, _) in HOSTS.items():
        site = install(folder / task_type, NUMPY, task_type, sdk)
        hosts[task_type.replace("_", "-")] = {
            "python": str(interpreter(environment)),
            "sources": [sdk],
            "env": {"PYTHONPATH": str(site.folder)},
        }
    # Flyte 2's plugins have the same task types as flytekit's: this host offers the test's alone.
    hosts["numpy-flyte"]["enable"] = ["numpy_flyte"]
    service = Ours(folder / "run", hosts)
    yield service
    service.stop()


async def numpy_of(service: Ours, protocol: str, task_type: str) -> str:
    async with calling(protocol, service.endpoint) as client:
        template = client.messages.CreateTaskRequest().template
        template.type = task_type
        meta = await client.create(template)
        seen = await poll(client, meta, task_type)
        assert (seen.phase, seen.errors) == ("SUCCEEDED", [])
        await client.delete(meta, task_type)
        text: str = seen.resource.message
        return text


async def test_all_are_listed(service: Ours) -> None:
    """One list has the test's plugins of every host, and the published ones beside them."""
    async with calling("flyteidl", service.endpoint) as client:
        assert {*HOSTS, *PUBLISHED} <= await listed(client)


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
@pytest.mark.parametrize("task_type", HOSTS)
async def test_each_runs_with_its_own_numpy(service: Ours, protocol: str, task_type: str) -> None:
    """The release that its environment was locked with made the job, and answers its poll."""
    release = HOSTS[task_type][2]
    created, polled, scalar = (await numpy_of(service, protocol, task_type)).split()
    assert created == polled
    assert polled.startswith(release)
    assert scalar == ("1.0" if release == "1." else "np.float64(1.0)")


def test_the_service_has_none_of_it(service: Ours) -> None:
    """The front's process has mapped no file of any host's environment, numpy or else."""
    mapped = Path(f"/proc/{service.daemon.process.pid}/maps").read_text()
    for _, environment, _ in HOSTS.values():
        assert str(interpreter(environment).parent.parent) + os.sep not in mapped
    assert "numpy" not in mapped
