"""``connector-service serve``: the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import click

from connector_service.cli.options import load_config, settings_options
from connector_service.server.server import Service, build
from connector_service.telemetry import logging as log
from connector_service.version import __version__

__all__ = ["serve"]

_log = logging.getLogger(__name__)


@click.command()
@settings_options("listen", "metrics", "plugins", "hosting", "drain", "ledger", "log")
def serve(config_file: str | None, **flags: Any) -> None:
    """Serve connectors until SIGTERM or SIGINT.

    A signal turns health to NOT_SERVING, keeps serving for --drain-delay, then lets calls in
    flight finish within --grace. A second signal ends it at once. SIGHUP reloads the hosts.
    """
    config = load_config(config_file, flags)
    log.configure(config.log)
    # While plugins load there is no event loop yet, and process 1 ignores SIGTERM by default.
    signal.signal(signal.SIGTERM, _leave)
    _serve(build(config))
    # A plain `def` that never returns would keep the interpreter waiting for its thread.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _serve(service: Service) -> None:
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    serving = loop.create_task(service.run(announce=_announce), name="serve")
    try:
        while not serving.done():
            try:
                loop.run_until_complete(serving)
            except (SystemExit, KeyboardInterrupt) as error:
                if serving.done():
                    raise
                # A task that a connector spawned and nobody awaits: asyncio stops the whole loop
                # for these two. Nothing else was touched, so the loop goes on where it was.
                _log.exception(
                    "a connector's own task would have ended the service",
                    extra={"raised": type(error).__name__},
                )
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:  # no wheel for this platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _announce(service: Service) -> None:
    """Print where the service is, on standard output, for people and for scripts."""
    host = service.config.listen.host
    shown = f"[{host}]" if ":" in host else host
    plugins = [record for _, record in service.plugins()]
    failed = sum(record.failed for record in plugins)
    loaded = sum(record.loaded for record in plugins)
    hosts = ", ".join(f"{host.name} {host.status}" for host in service.hosts())
    click.echo(
        f"connector-service {__version__} serving on {shown}:{service.port},"
        f" metrics on http://{shown}:{service.prometheus_port}/metrics"
        f" (plugins: {loaded} loaded, {failed} failed{f'; hosts: {hosts}' if hosts else ''})"
    )
    sys.stdout.flush()


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)
