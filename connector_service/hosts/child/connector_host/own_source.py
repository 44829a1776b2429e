"""Runs connectors written for connector-service itself, which must be installed here too.

They run as in the service's own process, by its invoker, but each on the loop that this program
gives it. Either protocol is served.
"""

from __future__ import annotations

import importlib
from typing import Any

from .engine import Engine, Refusal
from .loading import version
from .output import redact
from .table import Category, Found, Options, Plugin, Request, Served, Work

__all__ = ["REMEDY", "find"]

REMEDY = (
    "the sources entry-points and module: are loaded by connector-service, so install it there, or"
    " use the sources flytekit or flyte."
)


def find(options: Options, engine: Engine) -> Found:
    """Load connector-service's plugins and plan every operation of their connectors.

    Raises:
        ImportError: connector-service is not installed.
    """
    ours = _Ours(engine)
    plugins = [_plugin(record) for record in ours.load(options)]
    served = []
    for registration in ours.registry:
        refusal = _configure(registration, options)
        if not refusal:
            served.append(ours.serve(registration))
            continue
        for plugin in plugins:
            if _plain(registration.category) in plugin.categories:
                plugin.state, plugin.error = "failed", refusal
    kept = {one.category for one in served}
    for plugin in plugins:
        plugin.categories = [category for category in plugin.categories if category in kept]
    return Found(
        served, plugins, ours.messages, {"connector-service": version("connector-service")}
    )


class _Ours:
    """What is used of connector-service; imported here, for a child without it must start too."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loader = _import("plugins.loader")
        self._call: Any = _import("runtime.call").Call
        self._errors = _import("errors")
        protocols = _import("codec.convert").FlyteProtocol
        self._protocols = {str(protocol): protocol for protocol in protocols}
        self.messages = {
            "flyteidl": importlib.import_module("flyteidl.admin.agent_pb2"),
            "flyteidl2": importlib.import_module("flyteidl2.connector.connector_pb2"),
        }
        self.registry: Any = _import("sdk.registry").Registry()
        self._host: Any = _import("hosts.inline").InlineHost(
            self.registry, _import("runtime.invoker").Invoker(engine.threads)
        )

    def load(self, options: Options) -> list[Any]:
        sources = self._loader.sources(options.modules)
        if not options.entries:
            sources = [source for source in sources if source.target in options.modules]
        records: list[Any] = self._loader.load(sources, self.registry)
        self.registry.select(enable=options.enable, disable=options.disable)
        return records

    def serve(self, registration: Any) -> Served:
        connector = registration.connector
        lane = self._engine.lane(
            connector, connector.name, permanent=tuple(connector.permanent_errors)
        )
        works = {
            str(operation): self._plan(operation, registration.category)
            for operation in registration.methods
        }
        return Served(
            _plain(registration.category),
            connector.name,
            registration.is_sync,
            tuple(self.messages),
            connector,
            lane,
            works,
        )

    def _plan(self, operation: Any, category: Any) -> Work:
        run = self._stream if str(operation) == "get_logs" else self._run

        async def work(request: Request) -> Any:
            call = self._call(
                self._protocols[request.protocol],
                operation,
                category,
                request.message,
                request.inputs,
                request.deadline,
                idempotency_key=request.key,
            )
            try:
                return await run(call, request)
            except self._errors.UnsupportedOperationError as error:
                raise Refusal("UNIMPLEMENTED", str(error)) from error

        return work

    async def _run(self, call: Any, request: Request) -> bytes:
        value = await self._host.run(call)
        messages = self.messages[request.protocol]
        operation = str(call.operation)
        message: Any
        if operation == "create":
            message = messages.CreateTaskResponse(resource_meta=value)
        elif operation == "get":
            message = messages.GetTaskResponse(resource=value)
        elif operation == "do":
            header = messages.ExecuteTaskSyncResponseHeader(resource=value)
            message = messages.ExecuteTaskSyncResponse(header=header)
        elif operation == "get_metrics":
            message = value
        else:
            return b""
        data: bytes = message.SerializeToString()
        return data

    async def _stream(self, call: Any, request: Request) -> None:
        send: Any = request.send
        await self._host.stream(call, lambda item: send(item.SerializeToString()))


def _configure(registration: Any, options: Options) -> str:
    """Give a connector its options, and return why it refused them, or nothing."""
    connector, name = registration.connector, registration.category.name
    try:
        connector.configure(options.settings.get(name, {}))
    except Exception as error:  # noqa: BLE001 - its neighbours go on
        said = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
        return f"[connectors.{name}.options]: {connector.name} refused them: {said}"
    return ""


def _import(name: str) -> Any:
    return importlib.import_module(f"connector_service.{name}")


def _plain(category: Any) -> Category:
    return category.name, category.version


def _plugin(record: Any) -> Plugin:
    return Plugin(
        record.name,
        record.target,
        str(record.state),
        record.distribution,
        [_plain(category) for category in record.categories],
        record.error,
        record.where,
    )
