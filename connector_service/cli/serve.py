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


@click.command()
@settings_options("listen", "metrics", "plugins", "drain", "ledger", "log")
def serve(config_file: str | None, **flags: Any) -> None:
    """Serve connectors until SIGTERM or SIGINT.

    A signal turns health to NOT_SERVING, keeps serving for --drain-delay, then lets calls in
    flight finish within --grace. A second signal ends it at once.
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
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(service.run(announce=_announce))


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
    failed = sum(record.failed for record in service.plugins)
    loaded = sum(record.loaded for record in service.plugins)
    click.echo(
        f"connector-service {__version__} serving on {shown}:{service.port},"
        f" metrics on http://{shown}:{service.prometheus_port}/metrics"
        f" (plugins: {loaded} loaded, {failed} failed)"
    )
    sys.stdout.flush()


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)
