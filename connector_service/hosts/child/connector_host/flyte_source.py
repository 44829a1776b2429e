"""Runs the connectors of plugins of Flyte 2's SDK, which stay as they are.

A connector gets what the SDK's own service gives it (flyte 2.12.1,
``flyte/connectors/_server.py``), by the same names, and the SDK itself turns what it returns into
messages. Of the task's connection a secret wins over a config of its name.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from . import output
from .engine import Engine, Lane, Method, invoke
from .loading import category_of, entry_points, load, modules, version
from .plan import JOB_OPERATIONS, OPTIONAL, Fit, encoded, plan_job
from .table import Category, Found, Options, Request, Served, Work

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GROUP", "REMEDY", "find"]

GROUP = "flyte.connectors"
PROTOCOL = "flyteidl2"
REMEDY = "install flyte[connector] there, or name another interpreter in the host's `python`."

_CREATE = ("task_template", "inputs", "output_prefix", "task_execution_metadata")
_OFFERED = {
    "get": ("resource_meta",),
    "delete": ("resource_meta",),
    "get_metrics": ("resource_meta",),
    "get_logs": ("resource_meta", "token"),
}
_CONNECTED = ("get", "delete")  # and create


def find(options: Options, engine: Engine) -> Found:
    """Load the SDK, its connectors' plugins one by one, and plan every operation.

    Raises:
        ImportError: The SDK or what its connectors need (its extra ``connector``) is missing.
    """
    kit = _Kit()
    output.adopt("flyte", "flyte.user")
    wanted = [*(entry_points(GROUP) if options.entries else ()), *modules(options.modules)]
    plugins = load(wanted, kit.registered, kit.remove, engine)
    served = [
        _serve(kit, engine, category, connector)
        for category, connector in kit.registered().items()
        if options.admits(category[0])
    ]
    kept = {one.category for one in served}
    for plugin in plugins:
        plugin.categories = [category for category in plugin.categories if category in kept]
    return Found(served, plugins, {PROTOCOL: kit.messages}, {"flyte": version("flyte")})


class _Kit:
    """What is used of the SDK."""

    def __init__(self) -> None:
        # The package imports its own service, and with it prometheus-client: the SDK's extra.
        connectors: Any = importlib.import_module("flyte.connectors")
        base: Any = importlib.import_module("flyte.connectors._connector")
        convert: Any = importlib.import_module("flyte._internal.runtime.convert")
        self.messages: Any = importlib.import_module("flyteidl2.connector.connector_pb2")
        self.registry = connectors.ConnectorRegistry
        self.base = base.AsyncConnector
        self._to_proto = base.get_resource_proto
        self._inputs = convert.Inputs
        self._to_native = convert.convert_from_inputs_to_native
        self._interface = importlib.import_module("flyte.models").NativeInterface
        self._engine = importlib.import_module("flyte.types").TypeEngine

    def registered(self) -> dict[Category, Any]:
        """Return what the SDK's registry holds now."""
        held: Mapping[Any, Any] = getattr(self.registry, "_REGISTRY", {})
        return {
            category_of(key.task_type_name, key.task_type_version): value
            for key, value in held.items()
        }

    def remove(self, category: Category) -> None:
        """Take out what a plugin registered before it failed."""
        held: dict[Any, Any] = getattr(self.registry, "_REGISTRY", {})
        for key in list(held):
            if (key.task_type_name, key.task_type_version) == category:
                del held[key]

    async def native(self, message: Any) -> Any:
        """Return a create's inputs as Python values, of the types that the SDK guesses."""
        declared = message.template.interface.inputs.variables
        entries = declared.items() if hasattr(declared, "items") else _pairs(declared)
        kinds = {
            name: (self._engine.guess_python_type(variable.type), inspect.Parameter.empty)
            for name, variable in entries
        }
        interface = self._interface.from_types(inputs=kinds, outputs={})
        return await self._to_native(interface, self._inputs(proto_inputs=message.inputs))

    async def resource(self, value: Any) -> Any:
        """Return a message by the SDK's own type engine."""
        if isinstance(value, self.messages.Resource):
            return value
        if not hasattr(value, "phase"):
            raise TypeError(f"The connector returned {type(value).__name__}, no Resource.")
        return await self._to_proto(value)


def _serve(kit: _Kit, engine: Engine, category: Category, connector: Any) -> Served:
    name = str(getattr(connector, "name", "") or type(connector).__name__)
    lane = engine.lane(connector, name)
    works: dict[str, Work] = {"create": _plan_create(kit, lane, connector)}
    for operation in JOB_OPERATIONS:
        inherited = getattr(type(connector), operation, None) is getattr(kit.base, operation, None)
        if operation in OPTIONAL and inherited:
            continue
        works[operation] = plan_job(
            lane,
            connector,
            operation,
            messages=kit.messages,
            offered=_OFFERED[operation],
            to_resource=kit.resource,
            connection=_connection if operation in _CONNECTED else _unconnected,
        )
    return Served(category, name, False, (PROTOCOL,), connector, lane, works)


def _plan_create(kit: _Kit, lane: Lane, connector: Any) -> Work:
    method = Method(connector.create)
    fit = Fit(lane.name, method, _CREATE)

    async def create(request: Request) -> bytes:
        message = request.message
        given = {
            "task_template": message.template,
            "inputs": await kit.native(message),
            "output_prefix": message.output_prefix,
            "task_execution_metadata": message.task_execution_metadata,
        }
        arguments = fit.arguments(given, _connection(message))
        meta = encoded(lane.name, await invoke(lane, method, arguments))
        answer: bytes = kit.messages.CreateTaskResponse(resource_meta=meta).SerializeToString()
        return answer

    return create


def _connection(message: Any) -> Mapping[str, str]:
    held = getattr(message, "connection", None)
    if held is None:
        return {}
    for value in held.secrets.values():
        output.learn(value)
    return {**held.configs, **held.secrets}


def _unconnected(_message: Any) -> Mapping[str, str]:
    return {}


def _pairs(entries: Any) -> list[tuple[str, Any]]:
    return [(entry.key, entry.value) for entry in entries]
