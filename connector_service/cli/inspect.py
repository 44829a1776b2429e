"""``connector-service list`` and ``describe``: what is registered, what failed, and why."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import grpc
import grpc.aio
import msgspec

from connector_service.cli.options import connect, endpoint_option, protocol_option, timeout_option
from connector_service.cli.output import print_table
from connector_service.cli.settings import load_config, refuse_with_endpoint, settings_options
from connector_service.codec.convert import FlyteProtocol
from connector_service.config import Log
from connector_service.errors import ConnectorNotFoundError
from connector_service.runtime.route import Routes
from connector_service.sdk.registry import Registry
from connector_service.server.hosting import Hosting, make_hosts
from connector_service.server.parts import load_plugins, offers, refuse_idle
from connector_service.telemetry import logging as log
from connector_service.telemetry.metrics import ServiceMetrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.config import Config
    from connector_service.plugins.loader import PluginRecord

__all__ = ["describe", "list_"]


class _Plugin(msgspec.Struct):
    name: str
    target: str
    distribution: str
    state: str
    task_categories: list[str]
    error: str
    host: str = ""


class _Host(msgspec.Struct):
    name: str
    kind: str
    status: str
    where: str
    versions: list[str]
    workers: int
    restarts: int
    error: str


class _Seen(NamedTuple):
    connectors: list[_Connector]
    plugins: list[_Plugin]
    hosts: list[_Host]


class _Connector(msgspec.Struct):
    name: str
    is_sync: bool | None  # None: Flyte 2's protocol does not tell
    task_types: list[str]
    operations: dict[str, list[str]] = {}


@click.command("list")
@settings_options("plugins", "hosting")
@endpoint_option
@protocol_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(
    config_file: str | None,
    endpoint: str | None,
    protocol: str | None,
    timeout: float,
    as_json: bool,
    **flags: Any,
) -> None:
    """List connectors and plugins, and why any failed.

    Looks at what is installed here, or at the running service at --endpoint.
    """
    connectors, plugins, hosts = _look(config_file, endpoint, protocol, timeout, flags)
    if as_json:
        shown = {"connectors": connectors, "plugins": plugins, "hosts": hosts}
        click.echo(json.dumps(msgspec.to_builtins(shown), indent=2))
        return
    print_table(
        ("connector", "task types", "kind"),
        [(c.name, ", ".join(c.task_types), _kind(c)) for c in connectors],
    )
    if plugins:
        print_table(
            ("plugin", "from", "state", "task types", *(("host",) if hosts else ())),
            [
                (
                    p.name,
                    p.distribution or p.target,
                    p.state,
                    ", ".join(p.task_categories),
                    *((p.host,) if hosts else ()),
                )
                for p in plugins
            ],
        )
    if hosts:
        print_table(
            ("host", "kind", "status", "processes", "restarts", "where", "with"),
            [
                (h.name, h.kind, h.status, h.workers, h.restarts, h.where, ", ".join(h.versions))
                for h in hosts
            ],
        )
    for plugin in plugins:
        if plugin.error:
            click.echo(f"{plugin.name} ({plugin.state}): {plugin.error}", err=True)
    for host in hosts:
        if host.error:
            click.echo(f"host {host.name} ({host.status}): {host.error}", err=True)


@click.command()
@settings_options("plugins", "hosting")
@endpoint_option
@protocol_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("name")
def describe(
    config_file: str | None,
    endpoint: str | None,
    protocol: str | None,
    timeout: float,
    as_json: bool,
    name: str,
    **flags: Any,
) -> None:
    """Describe one connector or plugin.

    NAME is the name of either, or a task type.
    """
    connectors, plugins, _ = _look(config_file, endpoint, protocol, timeout, flags)
    found = [c for c in connectors if name == c.name or name in {_bare(t) for t in c.task_types}]
    about = [p for p in plugins if name == p.name or name in {_bare(t) for t in p.task_categories}]
    if not found and not about:
        known = {c.name for c in connectors} | {_bare(t) for c in connectors for t in c.task_types}
        raise ConnectorNotFoundError(repr(name), known)
    if as_json:
        shown = {"connectors": found, "plugins": about}
        click.echo(json.dumps(msgspec.to_builtins(shown), indent=2))
        return
    for connector in found:
        kind = "" if connector.is_sync is None else f"{_kind(connector)} "
        click.echo(f"{connector.name}: {kind}connector")
        click.echo(f"  task types: {', '.join(connector.task_types)}")
        for operation, arguments in connector.operations.items():
            click.echo(f"  {operation}({', '.join(arguments)})")
    for plugin in about:
        click.echo(f"plugin {plugin.name}: {plugin.state}")
        click.echo(f"  target: {plugin.target}")
        if plugin.distribution:
            click.echo(f"  distribution: {plugin.distribution}")
        if plugin.error:
            click.echo(f"  error: {plugin.error}")


def _look(
    config_file: str | None,
    endpoint: str | None,
    protocol: str | None,
    timeout: float,
    flags: dict[str, Any],
) -> _Seen:
    if endpoint:
        refuse_with_endpoint(config_file, flags)
        return asyncio.run(_look_there(endpoint, protocol, timeout))
    if protocol:
        raise click.UsageError("--protocol is how to speak to a service; name it with --endpoint.")
    return _look_here(config_file, flags)


def _look_here(config_file: str | None, flags: dict[str, Any]) -> _Seen:
    registry = Registry()
    settings = load_config(config_file, flags)
    log.configure(Log(log_level="warning"))
    for quiet in ("plugins", "hosts", "server.hosting"):  # we print what failed ourselves
        logging.getLogger(f"connector_service.{quiet}").setLevel(logging.CRITICAL)
    logging.getLogger("connector_host").setLevel(logging.CRITICAL)
    records, idle = load_plugins(settings, registry)
    connectors = [_connector(agent) for agent in registry.list_connectors()]
    for registration in registry:
        listed = registration.category.listed
        for connector in connectors:
            if listed in connector.task_types and connector.is_sync == registration.is_sync:
                connector.operations = {
                    f"{operation} [{method.style}]": list(method.takes)
                    for operation, method in registration.methods.items()
                }
    plugins = [_plugin(record) for record in records]
    there = asyncio.run(_start_hosts(settings)) if settings.hosts else _Seen([], [], [])
    names = [_bare(listed) for connector in there.connectors for listed in connector.task_types]
    refuse_idle(idle, names)
    return _Seen(connectors + there.connectors, plugins + there.plugins, there.hosts)


async def _start_hosts(settings: Config) -> _Seen:
    """Start the hosts as the service would, look at them, and end them."""
    with tempfile.TemporaryDirectory(prefix="connector-service-") as folder:
        hosts = make_hosts(settings, Path(folder), ServiceMetrics())
        hosting = Hosting(hosts, ServiceMetrics())
        try:
            await hosting.start(lambda: None, strict=settings.plugins.strict)
            routes = Routes(hosts, {}, functools.partial(offers, settings.plugins))
            return _Seen(
                [_connector(agent) for agent in routes.agents],
                [_plugin(record, host) for host, record in hosting.plugins()],
                [
                    _Host(
                        state.name,
                        str(state.kind),
                        str(state.status),
                        state.where,
                        [f"{name} {number}" for name, number in state.versions.items()],
                        len(state.workers),
                        state.restarts,
                        state.error,
                    )
                    for state in hosting.states()
                ],
            )
        finally:
            await hosting.close(0.0)


async def _look_there(endpoint: str, protocol: str | None, timeout_seconds: float) -> _Seen:
    async with connect(endpoint, protocol, timeout_seconds) as client:
        connectors = [_connector(agent) for agent in await client.list_agents()]
        if await client.protocol() is FlyteProtocol.FLYTE2:
            for connector in connectors:
                connector.is_sync = None
        try:
            plugins, hosts = await client.list_plugins(), await client.list_hosts()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            plugins, hosts = [], []  # another implementation's service
    return _Seen(
        connectors,
        [
            _Plugin(
                plugin.name,
                plugin.target,
                plugin.distribution,
                plugin.state,
                list(plugin.task_categories),
                plugin.error,
                plugin.host,
            )
            for plugin in plugins
        ],
        [
            _Host(
                host.name,
                host.kind,
                host.status,
                host.where,
                list(host.versions),
                len(host.workers),
                host.restarts,
                host.error,
            )
            for host in hosts
        ],
    )


def _plugin(record: PluginRecord, host: str = "") -> _Plugin:
    return _Plugin(
        record.name,
        record.target,
        record.distribution,
        str(record.state),
        [category.listed for category in record.categories],
        record.error + (f" ({record.where})" if record.where else ""),
        host,
    )


def _connector(agent: Agent) -> _Connector:
    categories: Sequence[str] = [f"{c.name} v{c.version}" for c in agent.supported_task_categories]
    return _Connector(agent.name, agent.is_sync, list(categories or agent.supported_task_types))


def _kind(connector: _Connector) -> str:
    return {True: "sync", False: "async", None: "untold"}[connector.is_sync]


def _bare(listed: str) -> str:
    return listed.rpartition(" v")[0] or listed
