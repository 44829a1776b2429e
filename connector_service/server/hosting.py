"""The hosts beside this process: made, started, watched, reloaded and closed together."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any

from connector_service.errors import HostError, PluginError
from connector_service.hosts.outer import HostStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from connector_service.config import Config
    from connector_service.hosts.outer import HostState, OuterHost
    from connector_service.plugins.loader import PluginRecord
    from connector_service.telemetry.metrics import ServiceMetrics

__all__ = ["Hosting", "make_hosts"]

_log = logging.getLogger(__name__)


def make_hosts(config: Config, run_dir: Path, metrics: ServiceMetrics) -> list[OuterHost]:
    """Make the hosts that the settings name; only the kinds that are used are imported."""
    hosts: list[OuterHost] = []
    for name, section in config.hosts.items():
        on_event = functools.partial(_count, metrics, name)
        if section.endpoint:
            from connector_service.hosts.remote import RemoteHost  # noqa: PLC0415

            hosts.append(RemoteHost(name, section, on_event=on_event))
        else:
            from connector_service.hosts.process import ProcessHost  # noqa: PLC0415

            hosts.append(
                ProcessHost(
                    name,
                    section,
                    run_dir,
                    on_event=on_event,
                    log_level=config.log.log_level,
                    options={
                        task_type: connector.options
                        for task_type, connector in config.connectors.items()
                        if connector.options
                    },
                )
            )
    return hosts


def _count(metrics: ServiceMetrics, host: str, event: str, _detail: str = "") -> None:
    metrics.host_events.labels(host, event).inc()


class Hosting:
    """Every host of one service; without any it costs nothing."""

    def __init__(self, hosts: Sequence[OuterHost], metrics: ServiceMetrics) -> None:
        """Take the hosts and have the gauges read them when they are scraped."""
        self._hosts = {host.name: host for host in hosts}
        for name, host in self._hosts.items():
            _watch(metrics, name, host)

    def __bool__(self) -> bool:
        return bool(self._hosts)

    def states(self) -> tuple[HostState, ...]:
        """Tell how each host is."""
        return tuple(host.snapshot() for host in self._hosts.values())

    def plugins(self) -> Iterator[tuple[str, PluginRecord]]:
        """Yield what became of each plugin, with its host's name."""
        for state in self.states():
            for record in state.plugins:
                yield state.name, record

    def troubles(self) -> str:
        """Say which hosts somebody should look at; nothing when all is well."""
        return "; ".join(
            f"host {state.name}: {state.status}" + (f" ({state.error})" if state.error else "")
            for state in self.states()
            if not state.healthy
        )

    async def start(self, on_change: Callable[[], None], *, strict: bool) -> None:
        """Start all at once, and return when each answered or failed once.

        Raises:
            ConfigError: A host's settings can never work.
            HostError: ``strict`` is on and a host is not up.
            PluginError: ``strict`` is on and a plugin of a host failed.
        """
        for host in self._hosts.values():
            host.on_change(on_change)
        try:
            async with asyncio.TaskGroup() as group:
                for host in self._hosts.values():
                    group.create_task(host.start())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the operator mends one at a time
        if not strict:
            return
        for state in self.states():
            if state.status is not HostStatus.UP:
                raise HostError(
                    f"Host {state.name} is {state.status}: {state.error.rstrip('.')}. Mend it, or"
                    f" start without --strict."
                )
        if failed := [
            f"{record.name} ({host})" for host, record in self.plugins() if record.failed
        ]:
            raise PluginError(
                f"Plugins of hosts failed to load: {', '.join(failed)}; `connector-service list`"
                f" says why. Mend or disable them, or start without --strict."
            )

    async def reload(self, name: str = "") -> Mapping[str, str]:
        """Reload one host, or all; return each one's name with why it was not, or nothing."""
        if name and name not in self._hosts:
            known = ", ".join(self._hosts) or "none"
            return {name: f"No host is called {name!r}; configured: {known}."}
        return {
            host.name: await _reload(host)
            for host in self._hosts.values()
            if name in {"", host.name}
        }

    async def close(self, grace: float) -> None:
        """Let their calls end within ``grace`` seconds, and end them; fine twice."""
        await asyncio.gather(
            *(host.close(grace) for host in self._hosts.values()), return_exceptions=True
        )


async def _reload(host: OuterHost) -> str:
    try:
        await host.reload()
    except HostError as error:
        _log.error("host not reloaded", extra={"host": host.name, "reason": str(error)})
        return str(error)
    _log.info("host reloaded", extra={"host": host.name})
    return ""


def _watch(metrics: ServiceMetrics, name: str, host: OuterHost) -> None:
    def show(gauge: Any, read: Callable[[HostState], float]) -> None:
        gauge.labels(name).set_function(lambda: read(host.snapshot()))

    show(metrics.host_up, lambda state: state.status in {HostStatus.UP, HostStatus.DEGRADED})
    show(metrics.host_crash_loop, lambda state: state.status is HostStatus.CRASH_LOOP)
    show(metrics.host_workers, lambda state: sum(w.status is HostStatus.UP for w in state.workers))
    show(metrics.host_memory, lambda state: sum(w.rss_bytes for w in state.workers))
    show(metrics.host_calls, lambda state: sum(w.calls for w in state.workers))
    show(metrics.host_plugins_failed, lambda state: sum(r.failed for r in state.plugins))
