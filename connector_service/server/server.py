"""One service from its settings to its end: startup, serve, drain, shutdown."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from connector_service.codec import plans
from connector_service.codec.convert import FlyteProtocol
from connector_service.config import ConnectorSection
from connector_service.errors import ConfigError
from connector_service.hosts.inline import InlineHost
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.guarantees import Guarantees
from connector_service.runtime.hooks import Happening, Hooks
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.watchdog import Watchdog
from connector_service.sdk.registry import Registry
from connector_service.server.hosting import Hosting, make_hosts
from connector_service.server.listening import listen, new_server
from connector_service.server.parts import (
    Idle,
    configure,
    load_plugins,
    make_ledger,
    offers,
    refuse_idle,
)
from connector_service.server.run_dir import RunDir, run_dir
from connector_service.server.signals import signals, until
from connector_service.telemetry.http import HttpServer
from connector_service.telemetry.logging import LogHook
from connector_service.telemetry.metrics import MetricsHook, ServiceMetrics
from connector_service.wire import introspection, v1, v2
from connector_service.wire.binding import Methods
from connector_service.wire.status import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    import grpc.aio

    from connector_service.config import Config
    from connector_service.hosts.outer import HostState
    from connector_service.plugins.loader import PluginRecord
    from connector_service.runtime.ledger import Ledger
    from connector_service.runtime.route import Conflict
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Service", "Shared", "build"]

_log = logging.getLogger(__name__)

_PROTOCOLS: dict[str, ModuleType] = {FlyteProtocol.FLYTE1: v1, FlyteProtocol.FLYTE2: v2}
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Shared(NamedTuple):
    """What one of several workers does not have for itself: its supervisor serves HTTP for all.

    ``ledger`` is the one that they share; None takes the one that the settings name.
    """

    ledger: Ledger | None = None


def build(
    config: Config, registry: Registry | None = None, *, shared: Shared | None = None
) -> Service:
    """Wire one service; nothing else in the package puts layers together.

    ``registry`` None loads the installed plugins and ``--module``; a registry that is given is
    served as it is. ``shared`` makes it one of several that share the gRPC port.

    Raises:
        OperatorError: A plugin failed under ``--strict``, or a connector refused its options.
    """
    records: list[PluginRecord] = []
    idle: list[Idle] = []
    if registry is None:
        registry = Registry()
        records, idle = load_plugins(config, registry)
    idle += configure(config, registry)
    if not config.hosts:
        refuse_idle(idle)
        idle = []
    metrics = ServiceMetrics()
    for record in records:
        if record.loaded or record.failed:
            metrics.plugin_up.labels(record.name).set(record.loaded)
    metrics.plugins_loaded.set(sum(record.loaded for record in records))
    metrics.plugins_failed.set(sum(record.failed for record in records))
    hooks = Hooks([MetricsHook(metrics), LogHook()])
    sections = config.connectors
    invoker = Invoker(lambda task_type: sections.get(task_type, ConnectorSection()).threads)

    def on_batch(category: TaskCategory, polls: int) -> None:
        hooks.happened(Happening("batch", category.name, amount=polls))

    folder = RunDir(run_dir(config))
    hosts = make_hosts(config, folder.path, metrics)
    ledger = (shared.ledger if shared else None) or make_ledger(config)
    dispatcher = Dispatcher(
        [InlineHost(registry, invoker, on_batch), *hosts],
        classify,
        hooks,
        guarantees=Guarantees(ledger, config.ledger, hooks),
        policies=sections,
        offered=functools.partial(offers, config.plugins),
    )
    watchdog = Watchdog(
        registry,
        on_block=lambda block: hooks.happened(
            Happening("blocked_loop", block.task_type, block.operation, block.seconds)
        ),
        isolate=invoker.isolate,
    )
    metrics.abandoned_calls.set_function(lambda: len(invoker.abandoned()))
    hosting = Hosting(hosts, metrics)
    return Service(
        config,
        dispatcher,
        invoker,
        watchdog,
        metrics,
        records,
        hosting,
        folder,
        idle,
        is_worker=shared is not None,
    )


class Service:
    """A wired service: ``startup``, then ``drain`` and ``shutdown`` when it is told to stop."""

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        invoker: Invoker,
        watchdog: Watchdog,
        metrics: ServiceMetrics,
        plugins: Sequence[PluginRecord],
        hosting: Hosting,
        folder: RunDir,
        idle: Sequence[Idle],
        *,
        is_worker: bool = False,
    ) -> None:
        """Take the parts; ``build`` makes them. A worker shares its port and serves no HTTP."""
        self.config = config
        self.metrics = metrics
        self._plugins = tuple(plugins)
        self._hosting = hosting
        self._folder = folder
        self._idle = tuple(idle)
        self._is_worker = is_worker
        self.port = 0
        self.prometheus_port = 0
        self._dispatcher = dispatcher
        self._invoker = invoker
        self._watchdog = watchdog
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._http: HttpServer | None = None
        self._ready = False
        self._stopping = asyncio.Event()
        self._names: tuple[str, ...] = ()
        self._reloading: asyncio.Future[Any] | None = None

    async def startup(self) -> None:
        """Bind both ports, start the hosts, and serve.

        Raises:
            OperatorError: A port is taken, the address is not this machine's, the ledger or a host
                can never work as it is configured, or two hosts offer one task type.
        """
        listen_on = self.config.listen
        if not self._is_worker:
            self._http = HttpServer(
                listen_on.host,
                self.config.metrics.prometheus_port,
                self.metrics.registry,
                lambda: self._ready,
                stuck=self.stuck,
                troubles=self.troubles,
            )
            self.prometheus_port = self._http.port
        try:
            methods = Methods()
            self._server = new_server(listen_on, methods, shares_port=self._is_worker)
            self._names = self._add_services(self._server, methods)
            if self._http is not None:
                self.port = listen(self._server, listen_on)
                # Alive while hosts start, which may take them a minute; ready when they have.
                self._http.start()
            await self._dispatcher.start()
            if self._hosting:
                await self._start_hosts(self._server)
            self._follow_routes()
            if self._is_worker:  # not before it answers: the kernel sends it clients at once
                self.port = listen(self._server, listen_on)
            # Only now: the client forgets a task type that one answer of ListAgents lacks.
            await self._server.start()
        except BaseException:
            await self._abandon()
            raise
        self._watchdog.start(asyncio.get_running_loop())
        if not plans.COMPILED:
            _log.info(
                "inputs of connectors in Flyte 2's shape are read without compiled code",
                extra={"hint": "install again where a C compiler and Python's headers are"},
            )
        await self._set_health(_SERVING)
        self._ready = True

    async def _start_hosts(self, server: grpc.aio.Server) -> None:
        self._folder.open()
        # The operator's own door: its folder is private to this user.
        server.add_insecure_port(f"unix:{self._folder.admin_socket}")
        await self._hosting.start(self._rerouted, strict=self.config.plugins.strict)
        if conflicts := self._dispatcher.routes.refresh():
            raise ConfigError(_contradiction(conflicts[0]))
        refuse_idle(self._idle, [category.name for category in self._dispatcher.routes])

    def _rerouted(self) -> None:
        """Take up what a host serves now."""
        for conflict in self._dispatcher.routes.refresh():
            _log.error(_contradiction(conflict))
        self._follow_routes()

    def _follow_routes(self) -> None:
        """Have the gauges of each connector read its bulkhead when they are scraped."""
        for category, route in self._dispatcher.routes.items():
            calls = functools.partial(self.metrics.connector_calls.labels, category.name)
            calls("running").set_function(functools.partial(getattr, route.bulkhead, "running"))
            calls("waiting").set_function(functools.partial(getattr, route.bulkhead, "waiting"))

    async def _abandon(self) -> None:
        """Leave nothing behind of a start that failed."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        await self._hosting.close(0.0)
        self._folder.close()
        await self._dispatcher.close(0.0)
        if self._http is not None:
            self._http.close()
            self._http = None

    def plugins(self) -> Iterator[tuple[str, PluginRecord]]:
        """Yield what became of each plugin, with the host that loaded it; empty is this process."""
        for record in self._plugins:
            yield "", record
        yield from self._hosting.plugins()

    @property
    def ready(self) -> bool:
        """Tell whether it serves, and is not about to leave."""
        return self._ready

    def stuck(self) -> str:
        """Say what keeps it from ever answering again; nothing is fine. From any thread."""
        return self._watchdog.stuck()

    def troubles(self) -> str:
        """Say what an operator should look at while it answers. From any thread."""
        return self._hosting.troubles()

    def hosts(self) -> tuple[HostState, ...]:
        """Tell how each host beside this process is."""
        return self._hosting.states()

    async def reload(self, name: str = "") -> Mapping[str, str]:
        """Put fresh processes in the place of one host's, or of all; no call fails.

        Returns each host's name with why its old processes stay, or nothing.
        """
        return await self._hosting.reload(name)

    async def drain(self) -> None:
        """Say NOT_SERVING, and keep serving until every prober has seen it."""
        self._ready = False
        await self._set_health(_NOT_SERVING)
        await asyncio.sleep(self.config.drain.drain_delay)

    async def shutdown(self) -> None:
        """Stop accepting, let calls in flight finish within ``grace``, close; fine twice."""
        self._ready = False
        if self._server is not None:
            # 1. GOAWAY to every client, new calls refused, calls in flight get `grace`.
            over = time.monotonic() + self.config.drain.grace
            await self._server.stop(self.config.drain.grace)
            self._server = None
            # 2. Creates whose callers have gone end, in what is left of it, and are written down.
            await self._dispatcher.close(max(0.0, over - time.monotonic()))
            await self._hosting.close(max(0.0, over - time.monotonic()))
            self._folder.close()
        # 3. Threads of plain `def` connectors get no new work.
        self._watchdog.stop()
        self._invoker.shutdown()
        # 4. The last scrape is still answered while calls finish, so metrics go last.
        if self._http is not None:
            self._http.close()
            self._http = None

    def stop(self) -> None:
        """Ask ``run`` to drain and return, as a first signal does; fine twice."""
        self._stopping.set()

    async def run(self, announce: Callable[[Service], None] = lambda _: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain and shut down; a second signal ends at once.

        SIGHUP reloads every host. ``announce`` is called once the service answers, with its ports
        chosen.

        Raises:
            OperatorError: As ``startup``.
        """
        with signals(self._stopping, self.reload_all):
            if not await until(self._stopping, self.startup()):
                _log.info("stopped before it served")
                return
            announce(self)
            await self._stopping.wait()
            _log.info(
                "draining",
                extra={
                    "seconds": self.config.drain.drain_delay,
                    "hint": "a second signal ends now",
                },
            )
            await self.drain()
            await self.shutdown()
            _log.info("stopped")

    def reload_all(self) -> None:
        """Reload every host, beside the calls; what came of it is logged."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self.reload())

    def _add_services(self, server: grpc.aio.Server, methods: Methods) -> tuple[str, ...]:
        spoken = [_PROTOCOLS[name] for name in self.config.listen.protocol]
        for protocol in spoken:
            protocol.add_methods(methods, self._dispatcher)
        introspection.add_methods(methods, self)
        health_service = health_pb2.DESCRIPTOR.services_by_name["Health"]
        methods.add(health_service, self._health)
        server.add_generic_rpc_handlers((methods,))
        names = (
            *(service.full_name for protocol in spoken for service in protocol.services()),
            introspection.SERVICE.full_name,
            health_service.full_name,
        )
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        return names

    async def _set_health(self, status: int) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)


def _contradiction(conflict: Conflict) -> str:
    return (
        f"Task type {conflict.category.spoken} is offered by {conflict.kept} and by"
        f" {', '.join(conflict.refused)}: give one of these hosts a `prefer` that matches it, or"
        f" disable it in the others."
    )
