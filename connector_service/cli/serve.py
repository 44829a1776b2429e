"""``connector-service serve``: the daemon."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from connector_service.cli.main import lasting
from connector_service.cli.settings import load_config, settings_options
from connector_service.server.process import leave, live
from connector_service.telemetry import logging as log
from connector_service.version import __version__

if TYPE_CHECKING:
    from connector_service.server.server import Service
    from connector_service.server.supervisor import Supervisor

__all__ = ["serve"]


@click.command()
@settings_options("listen", "metrics", "plugins", "hosting", "drain", "ledger", "log")
def serve(config_file: str | None, **flags: Any) -> None:
    """Serve connectors until SIGTERM or SIGINT.

    A signal turns health to NOT_SERVING, keeps serving for --drain-delay, then lets calls in
    flight finish within --grace. A second signal ends it at once. SIGHUP reloads the hosts.
    """
    config = load_config(config_file, flags)
    many = config.listen.workers > 1
    log.configure(config.log, worker="supervisor" if many else "")
    # While plugins load there is no event loop yet, and process 1 ignores SIGTERM by default.
    signal.signal(signal.SIGTERM, _leave)
    if many:
        from connector_service.server.supervisor import Supervisor  # noqa: PLC0415

        asyncio.run(Supervisor(config).run(announce=_announce_workers))
    else:
        with lasting():
            # Only where calls are answered: a supervisor does without gRPC.
            from connector_service.server.server import build  # noqa: PLC0415

        live(build(config), _announce)
    leave()


def _announce(service: Service) -> None:
    plugins = [record for _, record in service.plugins()]
    _say(
        service,
        "",
        loaded=sum(record.loaded for record in plugins),
        failed=sum(record.failed for record in plugins),
        hosts=", ".join(f"{host.name} {host.status}" for host in service.hosts()),
    )


def _announce_workers(supervisor: Supervisor) -> None:
    workers = supervisor.config.listen.workers
    plugins = supervisor.plugins
    _say(
        supervisor,
        f" with {workers} workers",
        loaded=plugins.loaded,
        failed=plugins.failed,
        hosts=plugins.hosts,
    )


def _say(
    service: Service | Supervisor, workers: str, *, loaded: int, failed: int, hosts: str
) -> None:
    """Print where the service is, on standard output, for people and for scripts."""
    host = service.config.listen.host
    shown = f"[{host}]" if ":" in host else host
    click.echo(
        f"connector-service {__version__} serving on {shown}:{service.port}{workers},"
        f" metrics on http://{shown}:{service.prometheus_port}/metrics"
        f" (plugins: {loaded} loaded, {failed} failed{f'; hosts: {hosts}' if hosts else ''})"
    )
    sys.stdout.flush()


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)
