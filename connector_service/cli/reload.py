"""``connector-service reload``: fresh processes for hosts, while the service goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import grpc
import grpc.aio

from connector_service.cli.settings import load_config, settings_options
from connector_service.client import Client
from connector_service.errors import HostError
from connector_service.server.run_dir import RunDir, run_dir

__all__ = ["reload_"]


@click.command("reload")
@settings_options("listen", "hosting")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of the whole reload.",
)
@click.argument("host_name", metavar="[HOST]", default="")
def reload_(config_file: str | None, timeout: float, host_name: str, **flags: Any) -> None:
    """Replace the processes of hosts without failing a call.

    Names HOST, or means every host, of the service on this machine; with --workers, those of each
    worker. A fresh process is started and checked before an old one drains, so no call fails, and a
    changed virtual environment is taken up. Where the fresh one is worse, the old one stays. The
    service is found by its port, or by --run-dir, as it was started.
    """
    folder = RunDir(run_dir(load_config(config_file, flags)))
    doors = [door for door in (folder, *folder.of_workers()) if door.admin_socket.exists()]
    if not doors:
        raise HostError(
            f"No service with hosts answers at {folder.admin_socket}; give the --port, --run-dir or"
            f" --config that it was started with, and run this on its machine as its user."
        )
    refused = []
    for door in doors:  # one after the other: each has fresh processes beside the old ones
        where = "" if door is folder else f"worker {door.path.name[1:]}: "
        for one in asyncio.run(_reload(f"unix:{door.admin_socket}", host_name, timeout)):
            click.echo(f"{where}{one.host}: {one.error or 'reloaded'}", err=bool(one.error))
            if one.error:
                refused.append(f"{where}{one.host}")
    if refused:
        raise HostError(f"Not reloaded: {', '.join(refused)}.")


async def _reload(endpoint: str, host: str, timeout_seconds: float) -> list[Any]:
    async with Client(endpoint, timeout=timeout_seconds) as client:
        try:
            return await client.reload(host)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise HostError(
                f"The service behind {endpoint} is gone; start it again, or give the --run-dir of"
                f" the one that runs."
            ) from None
