"""The front stays what it is without a host: its imports, its size, what it lists."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upstream.driving import calling, listed
from upstream.plugins.conftest import Backends
from upstream.plugins.jobs import SUCCEEDED, TYPES, Client, ended
from upstream.servers import Ours

HERE = Path(__file__).parent
CORE = {"webhook", "sensor"}
MOST = 1.4


def host(python: Path, backends: Backends, *enable: str) -> dict[str, Mapping[str, Any]]:
    """Make the settings of one host of the plugins."""
    plugins = {"python": str(python), "sources": ["flytekit"], "env": backends.settings()}
    return {"plugins": {**plugins, "enable": list(enable)}}


async def work(server: Ours, template: Any) -> set[str]:
    """Run a query by either protocol; return the task types that the service lists."""
    for protocol in ("flyteidl", "flyteidl2"):
        client = Client(protocol, server.endpoint, is_ours=True)
        meta = await client.create(template("bigquery"))
        _, resource = await ended(client, meta, "bigquery_query_job_task")
        assert resource.phase == SUCCEEDED
        await client.channel.close()
    return await _listed(server)


async def _listed(server: Ours) -> set[str]:
    async with calling("flyteidl", server.endpoint) as client:
        return await listed(client)


def rss(server: Ours) -> int:
    """Return the front's resident memory, in KiB; its hosts are processes of their own."""
    status = Path(f"/proc/{server.daemon.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


async def modules(
    folder: Path, hosts: Mapping[str, Mapping[str, Any]], template: Any = None
) -> tuple[set[str], set[str]]:
    """Serve, work where there is a host, end; return the packages imported and types listed."""
    path = folder / "modules.txt"
    server = Ours(folder, hosts, command=(sys.executable, HERE / "front_program.py", path))
    try:
        types = await (work(server, template) if template else _listed(server))
    finally:
        server.stop()
    return {name.partition(".")[0] for name in path.read_text().split()}, types


async def test_the_front_imports_no_more_than_without_a_host(
    python: Path, backends: Backends, template: Any, tmp_path: Path
) -> None:
    """A host of flytekit's plugins brings no package into the front but Python's own.

    It serves what its ``enable`` names, flytekit's own sensor among them.
    """
    without, own = await modules(tmp_path / "without", {})
    hosts = host(python, backends, "bigquery*", "sensor")
    having, types = await modules(tmp_path / "having", hosts, template)
    assert "connector_service" in having
    assert not {"flytekit", "flytekitplugins", "numpy"} & having
    assert having - without - set(sys.stdlib_module_names) == set()
    assert types - own == {"bigquery_query_job_task", "sensor"}


async def test_the_front_is_as_small_as_without_a_host(
    python: Path, backends: Backends, template: Any, tmp_path: Path
) -> None:
    """The front's memory with a host at work is at most 1.4 times that without.

    The host, not told what to enable, serves everything but flytekit's own webhook and sensor.
    """
    server = Ours(tmp_path / "without", {})
    try:
        own = await _listed(server)
        without = rss(server)
    finally:
        server.stop()
    server = Ours(tmp_path / "having", host(python, backends))
    try:
        types = await work(server, template)
        having = rss(server)
    finally:
        server.stop()
    assert types - own == TYPES - CORE
    assert having <= MOST * without, (having, without)
