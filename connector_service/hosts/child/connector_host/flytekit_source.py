"""Runs the connectors of flytekit's plugins, which stay as they are.

A connector gets what flytekit's own service gives it (flytekit 1.16.31,
``flytekit/extend/backend/connector_service.py``), by the same names, and flytekit itself turns
what it returns into messages.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import output
from .engine import Engine, Lane, Method, Refusal, invoke, iterate
from .loading import Source, category_of, entry_points, load, modules, version
from .table import Category, Found, Options, Plugin, Request, Served, Work

__all__ = ["GROUP", "REMEDY", "find"]

REMEDY = "install flytekit there, or name another interpreter in the host's `python`."
GROUP = "flytekit.plugins"
PROTOCOL = "flyteidl"

_BACKEND = "flytekit.extend.backend"
# flytekit's own connectors, served only when a pattern names them: a call of a webhook, and code
# of any module in a sensor, are nothing to offer to everybody unasked.
_CORE = {"webhook": "flytekit.extras.webhook", "sensor": "flytekit.sensor"}
# The names before and after flytekit 1.16; each stands for the other.
_OLD_NAMES = {
    "AgentBase": "ConnectorBase",
    "AsyncAgentBase": "AsyncConnectorBase",
    "SyncAgentBase": "SyncConnectorBase",
    "AgentRegistry": "ConnectorRegistry",
    "AsyncAgentExecutorMixin": "AsyncConnectorExecutorMixin",
    "SyncAgentExecutorMixin": "SyncConnectorExecutorMixin",
    "AgentMetadata": "ConnectorMetadata",
}
_JOB_OPERATIONS = ("get", "delete", "get_metrics", "get_logs")
_OPTIONAL = ("get_metrics", "get_logs")


def find(options: Options, engine: Engine) -> Found:
    """Load flytekit, its plugins one by one, and plan every operation of their connectors.

    Raises:
        ImportError: flytekit is not installed, or does not load itself.
    """
    with _without_plugins():
        importlib.import_module("flytekit")
    output.adopt("flytekit", "user_space", "developer")
    kit = _Kit()
    kit.alias()
    wanted = [*entry_points(GROUP), *modules(options.modules)]
    plugins = load(wanted, kit.registered, kit.remove)
    core = [
        Source(name, module, f"flytekit {version('flytekit')}", _importing(module))
        for name, module in _CORE.items()
        if options.admits(name, only_named=True)
    ]
    plugins += _load_core(core, kit)
    served = []
    for category, connector in kit.registered().items():
        own = type(connector).__module__.startswith("flytekit.") and category[0] in _CORE
        if options.admits(category[0], only_named=own):
            served.append(_serve(kit, engine, category, connector))
    kept = {one.category for one in served}
    for plugin in plugins:
        plugin.categories = [category for category in plugin.categories if category in kept]
    return Found(served, plugins, {PROTOCOL: kit.messages}, {"flytekit": version("flytekit")})


class _Kit:
    """What is used of flytekit, found under its names of now or of before."""

    def __init__(self) -> None:
        try:
            self.base: Any = importlib.import_module(f"{_BACKEND}.base_connector")
        except ModuleNotFoundError:
            self.base = importlib.import_module(f"{_BACKEND}.base_agent")
        self.registry = self._named("AgentRegistry")
        self.sync_base = self._named("SyncAgentBase")
        self.messages: Any = importlib.import_module("flyteidl.admin.agent_pb2")
        self.literal_map = importlib.import_module("flytekit.models.literals").LiteralMap
        tasks = importlib.import_module("flytekit.models.task")
        self.task_template = tasks.TaskTemplate
        self.task_execution_metadata = getattr(tasks, "TaskExecutionMetadata", None)
        contexts: Any = importlib.import_module("flytekit.core.context_manager")
        self._stack = getattr(contexts, "flyte_context_Var", None)
        contexts.FlyteContextManager.current_context()  # there is one to copy from now on

    def _named(self, old: str) -> Any:
        found = getattr(self.base, _OLD_NAMES[old], None) or getattr(self.base, old, None)
        if found is None:
            raise ImportError(
                f"This flytekit ({version('flytekit')}) has neither {_OLD_NAMES[old]} nor {old};"
                f" install flytekit 1.11 or later."
            )
        return found

    def alias(self) -> None:
        """Offer the old names where plugins written for them look, and the new ones likewise."""
        for short in ("base_agent", "base_connector"):
            name = f"{_BACKEND}.{short}"
            try:
                module: Any = importlib.import_module(name)
            except ModuleNotFoundError:
                module = types.ModuleType(name, f"What {self.base.__name__} has, by other names.")
                sys.modules[name] = module
                setattr(importlib.import_module(_BACKEND), short, module)
            for key, value in vars(self.base).items():
                if not key.startswith("__") and not hasattr(module, key):
                    setattr(module, key, value)
            for old, new in _OLD_NAMES.items():
                for alias, original in ((old, new), (new, old)):
                    if not hasattr(module, alias) and hasattr(self.base, original):
                        setattr(module, alias, getattr(self.base, original))
        utils: Any = importlib.import_module(f"{_BACKEND}.utils")
        for alias, original in (
            ("get_agent_secret", "get_connector_secret"),
            ("get_connector_secret", "get_agent_secret"),
        ):
            if not hasattr(utils, alias) and hasattr(utils, original):
                setattr(utils, alias, getattr(utils, original))

    def registered(self) -> dict[Category, Any]:
        """Return what flytekit's registry holds now."""
        held: Mapping[Any, Any] = getattr(self.registry, "_REGISTRY", {})
        return {category_of(key.name, key.version): value for key, value in held.items()}

    def remove(self, category: Category) -> None:
        """Take out what a plugin registered before it failed."""
        held: dict[Any, Any] = getattr(self.registry, "_REGISTRY", {})
        for key in list(held):
            if (key.name, key.version) == category:
                del held[key]

    def prepare(self) -> None:
        """Give a call a stack of contexts of its own: all copies of a context share the list."""
        if self._stack is not None:
            self._stack.set(list(self._stack.get()))


def _serve(kit: _Kit, engine: Engine, category: Category, connector: Any) -> Served:
    name = str(getattr(connector, "name", "") or type(connector).__name__)
    is_sync = isinstance(connector, kit.sync_base)
    lane = engine.lane(connector, name, prepare=kit.prepare)
    works: dict[str, Work] = {}
    if is_sync:
        works["do"] = _plan_do(kit, lane, connector)
    else:
        works["create"] = _plan_create(kit, lane, connector)
        for operation in _JOB_OPERATIONS:
            function = getattr(connector, operation, None)
            if callable(function) and not (
                operation in _OPTIONAL and _is_inherited(kit, connector, operation)
            ):
                works[operation] = _plan_job(kit, lane, connector, operation)
    return Served(category, name, is_sync, (PROTOCOL,), connector, lane, works)


def _is_inherited(kit: _Kit, connector: Any, operation: str) -> bool:
    """Tell whether the method is flytekit's own, which only raises NotImplementedError."""
    for kind in type(connector).__mro__:
        if operation in vars(kind):
            return kind.__module__ == kit.base.__name__
    return False


def _plan_create(kit: _Kit, lane: Lane, connector: Any) -> Work:
    method = Method(connector.create)
    fit = _fitting(method, ("task_template", "inputs", "output_prefix", "task_execution_metadata"))

    async def create(request: Request) -> bytes:
        message = request.message
        given = {
            "task_template": kit.task_template.from_flyte_idl(message.template),
            "inputs": kit.literal_map.from_flyte_idl(message.inputs),
            "output_prefix": message.output_prefix,
        }
        if kit.task_execution_metadata is not None:
            given["task_execution_metadata"] = kit.task_execution_metadata.from_flyte_idl(
                message.task_execution_metadata
            )
        meta = await invoke(lane, method, fit(given))
        data = meta if isinstance(meta, bytes) else _encoded(lane.name, meta)
        answer: bytes = kit.messages.CreateTaskResponse(resource_meta=data).SerializeToString()
        return answer

    return create


def _plan_do(kit: _Kit, lane: Lane, connector: Any) -> Work:
    method = Method(connector.do)
    fit = _fitting(method, ("task_template", "inputs", "output_prefix"))

    async def do(request: Request) -> bytes:
        given = {
            "task_template": kit.task_template.from_flyte_idl(request.message.template),
            "inputs": kit.literal_map.from_flyte_idl(request.inputs),
            "output_prefix": request.message.output_prefix,
        }
        value = await invoke(lane, method, fit(given))
        resource = await _resource(kit, lane.name, "do", value)
        header = kit.messages.ExecuteTaskSyncResponseHeader(resource=resource)
        answer: bytes = kit.messages.ExecuteTaskSyncResponse(header=header).SerializeToString()
        return answer

    return do


def _plan_job(kit: _Kit, lane: Lane, connector: Any, operation: str) -> Work:
    method = Method(getattr(connector, operation))
    fit = _fitting(method, ("resource_meta",))

    def arguments(request: Request) -> dict[str, Any]:
        try:
            meta = connector.metadata_type.decode(request.message.resource_meta)
        except Exception as error:
            raise Refusal(
                "INVALID_ARGUMENT",
                f"The resource meta is not one of {lane.name}'s: {type(error).__name__}.",
            ) from error
        return fit({"resource_meta": meta})

    async def get(request: Request) -> bytes:
        value = await invoke(lane, method, arguments(request))
        resource = await _resource(kit, lane.name, operation, value)
        answer: bytes = kit.messages.GetTaskResponse(resource=resource).SerializeToString()
        return answer

    async def delete(request: Request) -> bytes:
        await invoke(lane, method, arguments(request))
        return b""

    async def get_metrics(request: Request) -> bytes:
        value = await invoke(lane, method, arguments(request))
        return _serialized(lane.name, operation, value, "GetTaskMetricsResponse")

    async def get_logs(request: Request) -> None:
        if request.send is None:
            raise RuntimeError("A stream has no reader.")
        async with contextlib.aclosing(iterate(lane, method, arguments(request))) as items:
            async for item in items:
                await request.send(_serialized(lane.name, operation, item, "GetTaskLogsResponse"))

    plans: Mapping[str, Work] = {
        "get": get,
        "delete": delete,
        "get_metrics": get_metrics,
        "get_logs": get_logs,
    }
    return plans[operation]


def _fitting(
    method: Method, offered: tuple[str, ...]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Inspect what a method takes, once, and return what leaves out the rest.

    One that names the resource meta otherwise gets it all the same.
    """
    try:
        parameters = list(inspect.signature(method.function).parameters.values())
    except (TypeError, ValueError):  # nothing to inspect: it takes what flytekit passes
        return lambda given: given
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return lambda given: given
    named = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if offered == ("resource_meta",) and "resource_meta" not in named and named:
        own = named[0]
        return lambda given: {own: given["resource_meta"]}
    taken = tuple(name for name in offered if name in named)
    return lambda given: {name: given[name] for name in taken if name in given}


def _encoded(name: str, meta: Any) -> bytes:
    encode = getattr(meta, "encode", None)
    if not callable(encode) or isinstance(meta, str):
        raise TypeError(f"{name}'s create returned {type(meta).__name__}, no ResourceMeta.")
    data = encode()
    if not isinstance(data, bytes):
        raise TypeError(f"{name}'s resource meta encodes to {type(data).__name__}, no bytes.")
    return data


async def _resource(kit: _Kit, name: str, operation: str, value: Any) -> Any:
    """Return a message by flytekit's own type engine; older releases do so without awaiting."""
    if isinstance(value, kit.messages.Resource):
        return value
    convert = getattr(value, "to_flyte_idl", None)
    if not callable(convert):
        raise TypeError(f"{name}'s {operation} returned {type(value).__name__}, no Resource.")
    message = convert()
    return await message if inspect.isawaitable(message) else message


def _serialized(name: str, operation: str, value: Any, wanted: str) -> bytes:
    if value is None:
        return b""
    if getattr(getattr(value, "DESCRIPTOR", None), "name", "") != wanted:
        raise TypeError(f"{name}'s {operation} returned {type(value).__name__}, no {wanted}.")
    data: bytes = value.SerializeToString()
    return data


def _load_core(core: list[Source], kit: _Kit) -> list[Plugin]:
    """Load flytekit's own connectors; ``import flytekit`` may have brought one already."""
    plugins = load(core, kit.registered, kit.remove)
    for plugin in plugins:
        plugin.categories = [key for key in kit.registered() if key[0] == plugin.name]
    return plugins


def _importing(module: str) -> Callable[[], Any]:
    return lambda: importlib.import_module(module)


@contextlib.contextmanager
def _without_plugins() -> Iterator[None]:
    """Hide the plugins from ``import flytekit``, which loads them all and fails with any one."""
    patched: list[tuple[Any, Any]] = []
    for name in ("importlib.metadata", "importlib_metadata"):  # the latter is the backport
        if name != "importlib.metadata" and importlib.util.find_spec(name) is None:
            continue
        library: Any = importlib.import_module(name)
        patched.append((library, library.entry_points))
        library.entry_points = _hiding(library.entry_points, library.EntryPoints)
    try:
        yield
    finally:
        for library, original in patched:
            library.entry_points = original


def _hiding(original: Callable[..., Any], none: Callable[[tuple[()]], Any]) -> Callable[..., Any]:
    def list_entry_points(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("group") == GROUP:
            return none(())
        return original(*args, **kwargs)

    return list_entry_points
