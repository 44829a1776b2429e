"""One service from its settings to its end: startup, serve, drain, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from connector_service.codec.convert import FlyteProtocol
from connector_service.config import ConnectorSection
from connector_service.errors import ConfigError, PluginError, StartupError
from connector_service.hosts.inline import InlineHost
from connector_service.plugins import loader
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.guarantees import Guarantees
from connector_service.runtime.hooks import Happening, Hooks
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.ledger_memory import MemoryLedger
from connector_service.runtime.watchdog import Watchdog
from connector_service.sdk.registry import Registry
from connector_service.telemetry.http import HttpServer
from connector_service.telemetry.logging import LogHook
from connector_service.telemetry.metrics import MetricsHook, ServiceMetrics
from connector_service.wire import introspection, v1, v2
from connector_service.wire.binding import bind
from connector_service.wire.status import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from connector_service.config import Config, Listen
    from connector_service.plugins.loader import PluginRecord
    from connector_service.runtime.ledger import Ledger

__all__ = ["Service", "build"]

_log = logging.getLogger(__name__)

_PROTOCOLS: dict[str, ModuleType] = {FlyteProtocol.FLYTE1: v1, FlyteProtocol.FLYTE2: v2}
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def build(config: Config, registry: Registry | None = None) -> Service:
    """Wire one service; nothing else in the package puts layers together.

    ``registry`` None loads the installed plugins and ``--module``; a registry that is given is
    served as it is.

    Raises:
        OperatorError: A plugin failed under ``--strict``, or a connector refused its options.
    """
    records: list[PluginRecord] = []
    if registry is None:
        registry = Registry()
        records = load_plugins(config, registry)
    _configure(config, registry)
    metrics = ServiceMetrics()
    for record in records:
        if record.loaded or record.failed:
            metrics.plugin_up.labels(record.name).set(record.loaded)
    metrics.plugins_loaded.set(sum(record.loaded for record in records))
    metrics.plugins_failed.set(sum(record.failed for record in records))
    hooks = Hooks([MetricsHook(metrics), LogHook()])
    sections = config.connectors
    invoker = Invoker(lambda task_type: sections.get(task_type, ConnectorSection()).threads)
    dispatcher = Dispatcher(
        [InlineHost(registry, invoker)],
        classify,
        hooks,
        guarantees=Guarantees(_ledger(config), config.ledger, hooks),
        policies=sections,
    )
    watchdog = Watchdog(
        registry,
        on_block=lambda block: hooks.happened(
            Happening("blocked_loop", block.task_type, block.operation, block.seconds)
        ),
        isolate=invoker.isolate,
    )
    _watch(metrics, dispatcher, invoker)
    return Service(config, dispatcher, invoker, watchdog, metrics, records)


def _ledger(config: Config) -> Ledger:
    """Make the ledger that the settings name; only the one that is used is imported."""
    settings = config.ledger
    if settings.state_dir and settings.ledger_url:
        raise ConfigError(
            "state_dir and ledger_url exclude each other: created jobs are remembered in one place."
        )
    if settings.ledger_url:
        from connector_service.runtime.ledger_redis import RedisLedger  # noqa: PLC0415

        return RedisLedger(settings.ledger_url)
    if settings.state_dir:
        from connector_service.runtime.ledger_sqlite import SqliteLedger  # noqa: PLC0415

        return SqliteLedger(settings.state_dir)
    return MemoryLedger()


def _watch(metrics: ServiceMetrics, dispatcher: Dispatcher, invoker: Invoker) -> None:
    """Have the gauges read what they show when they are scraped."""
    metrics.abandoned_calls.set_function(lambda: len(invoker.abandoned()))
    for category, route in dispatcher.routes.items():
        calls = functools.partial(metrics.connector_calls.labels, category.name)
        calls("running").set_function(functools.partial(getattr, route.bulkhead, "running"))
        calls("waiting").set_function(functools.partial(getattr, route.bulkhead, "waiting"))


def load_plugins(config: Config, registry: Registry) -> list[PluginRecord]:
    """Load what the settings name into ``registry`` and keep what they choose.

    Raises:
        PluginError: Something failed, or a pattern matched nothing, and ``--strict`` is on.
    """
    plugins = config.plugins
    records = loader.load(loader.sources(plugins.module), registry)
    idle = registry.select(enable=plugins.enable, disable=plugins.disable)
    if plugins.strict:
        loader.refuse_failures(records)
    for pattern in idle:
        sentence = f"--enable/--disable {pattern} matches no registered task type"
        if plugins.strict:
            raise PluginError(f"{sentence}, and --strict is on.")
        _log.warning(sentence)
    return records


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
    ) -> None:
        """Take the parts; ``build`` makes them."""
        self.config = config
        self.metrics = metrics
        self.plugins = tuple(plugins)
        self.port = 0
        self.prometheus_port = 0
        self._dispatcher = dispatcher
        self._invoker = invoker
        self._watchdog = watchdog
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._http: HttpServer | None = None
        self._ready = False
        self._names: tuple[str, ...] = ()

    async def startup(self) -> None:
        """Bind both ports and serve.

        Raises:
            StartupError: A port is taken, the address is not this machine's, or the ledger can
                never work as it is configured.
        """
        listen = self.config.listen
        self._http = HttpServer(
            listen.host,
            self.config.metrics.prometheus_port,
            self.metrics.registry,
            lambda: self._ready,
            stuck=self._watchdog.stuck,
        )
        try:
            await self._dispatcher.start()
            self._server = _new_server(listen)
            self._names = self._add_services(self._server)
            self.port = _bind(self._server, listen)
            await self._server.start()
        except BaseException:
            self._http.close()
            await self._dispatcher.close(0.0)
            raise
        self.prometheus_port = self._http.port
        self._http.start()
        self._watchdog.start(asyncio.get_running_loop())
        await self._set_health(_SERVING)
        self._ready = True

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
        # 3. Threads of plain `def` connectors get no new work.
        self._watchdog.stop()
        self._invoker.shutdown()
        # 4. The last scrape is still answered while calls finish, so metrics go last.
        if self._http is not None:
            self._http.close()
            self._http = None

    async def run(self, announce: Callable[[Service], None] = lambda _: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain and shut down; a second signal ends at once.

        ``announce`` is called once the service answers, with its ports chosen.

        Raises:
            StartupError: As ``startup``.
        """
        stopping = asyncio.Event()
        with _signals(stopping):
            await self.startup()
            announce(self)
            await stopping.wait()
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

    def _add_services(self, server: grpc.aio.Server) -> tuple[str, ...]:
        spoken = [_PROTOCOLS[name] for name in self.config.listen.protocol]
        for protocol in spoken:
            protocol.add_to_server(server, self._dispatcher)
        introspection.add_to_server(server, self.plugins)
        health_service = health_pb2.DESCRIPTOR.services_by_name["Health"]
        bind(server, health_service, self._health)
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


def _new_server(listen: Listen) -> grpc.aio.Server:
    limit = listen.max_request_mib * 1024 * 1024
    return grpc.aio.server(
        options=(
            # A second service on the same port would start silently and steal connections.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            # Flyte 2's executor pings every 30 s; the default policy closes on the fourth.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Flyte 1 never pings: find out ourselves when a peer vanished without a word.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Clients that keep one connection for life are spread over new replicas; grpc-core
            # adds its own jitter of 10 %. The grace outlasts the longest call.
            ("grpc.max_connection_age_ms", 300_000),
            ("grpc.max_connection_age_grace_ms", 600_000),
        )
    )


def _bind(server: grpc.aio.Server, listen: Listen) -> int:
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    try:
        return server.add_insecure_port(f"{host}:{listen.port}")
    except RuntimeError:
        raise StartupError(
            f"Cannot listen on {host}:{listen.port}: the port is taken or the address is not this"
            f" machine's; choose another with --port or --host, or --port 0 for a free one."
        ) from None


def _configure(config: Config, registry: Registry) -> None:
    """Give every connector its options; a section nobody owns is most likely misspelt."""
    owned = {registration.category.name for registration in registry}
    for name in config.connectors.keys() - owned:
        _log.warning("[connectors.%s] is for a task type that is not registered", name)
    for registration in registry:
        section = config.connectors.get(registration.category.name)
        try:
            registration.connector.configure(section.options if section else {})
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"[connectors.{registration.category.name}.options]:"
                f" {registration.connector.name} refused them: {type(error).__name__}: {error}."
            ) from error


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for the end, and the second of them bring it at once.

    As process 1 a program without handlers never hears SIGTERM, so these are always set.
    """
    loop = asyncio.get_running_loop()
    asked = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: signal.Signals) -> None:
        if stopping.is_set():
            _log.warning("second signal: ending at once")
            os._exit(128 + number)  # the default action does not end process 1
        stopping.set()

    for number in asked:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in asked:
            loop.remove_signal_handler(number)
