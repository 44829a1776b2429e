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
from typing import TYPE_CHECKING, Any

from . import output
from .engine import Engine, Lane, Method, invoke
from .loading import Source, category_of, entry_points, load, modules, version
from .plan import JOB_OPERATIONS, OPTIONAL, Fit, encoded, plan_job
from .table import Category, Found, Options, Plugin, Request, Served, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
_CREATE = ("task_template", "inputs", "output_prefix", "task_execution_metadata")
_DO = ("task_template", "inputs", "output_prefix")


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
    wanted = [*(entry_points(GROUP) if options.entries else ()), *modules(options.modules)]
    plugins = load(wanted, kit.registered, kit.remove, engine)
    core = [
        Source(name, module, f"flytekit {version('flytekit')}", _importing(module))
        for name, module in _CORE.items()
        if options.admits(name, only_named=True)
    ]
    plugins += _load_core(core, kit, engine)
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
        self._current = contexts.FlyteContextManager.current_context
        self._current()  # there is one to copy from now on

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

    async def resource(self, value: Any) -> Any:
        """Return a message by flytekit's own type engine; older releases do so at once."""
        if isinstance(value, self.messages.Resource):
            return value
        convert = getattr(value, "to_flyte_idl", None)
        if callable(convert):
            message = convert()
            return await message if inspect.isawaitable(message) else message
        if not hasattr(value, "phase"):
            raise TypeError(f"The connector returned {type(value).__name__}, no Resource.")
        return await self._resource_of_old(value)

    async def _resource_of_old(self, value: Any) -> Any:
        """Return the message of a Resource that does not know how (flytekit before 1.14)."""
        outputs = getattr(value, "outputs", None)
        if isinstance(outputs, dict):
            engine: Any = importlib.import_module("flytekit.core.type_engine").TypeEngine
            outputs = engine.dict_to_literal_map(self._current(), outputs)
            outputs = await outputs if inspect.isawaitable(outputs) else outputs
        return self.messages.Resource(
            phase=value.phase,
            message=getattr(value, "message", None),
            log_links=getattr(value, "log_links", None),
            outputs=None if outputs is None else outputs.to_flyte_idl(),
        )


def _serve(kit: _Kit, engine: Engine, category: Category, connector: Any) -> Served:
    name = str(getattr(connector, "name", "") or type(connector).__name__)
    is_sync = isinstance(connector, kit.sync_base)
    lane = engine.lane(connector, name, prepare=kit.prepare)
    works: dict[str, Work] = {}
    if is_sync:
        works["do"] = _plan_do(kit, lane, connector)
    else:
        works["create"] = _plan_create(kit, lane, connector)
        for operation in JOB_OPERATIONS:
            if operation in OPTIONAL and _is_inherited(kit, connector, operation):
                continue
            works[operation] = plan_job(
                lane,
                connector,
                operation,
                messages=kit.messages,
                offered=("resource_meta",),
                to_resource=kit.resource,
            )
    return Served(category, name, is_sync, (PROTOCOL,), connector, lane, works)


def _is_inherited(kit: _Kit, connector: Any, operation: str) -> bool:
    """Tell whether the method is flytekit's own, which only raises NotImplementedError."""
    for kind in type(connector).__mro__:
        if operation in vars(kind):
            return bool(kind.__module__ == kit.base.__name__)
    return True  # a release that had no such operation


def _plan_create(kit: _Kit, lane: Lane, connector: Any) -> Work:
    method = Method(connector.create)
    fit = Fit(lane.name, method, _CREATE)

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
        meta = encoded(lane.name, await invoke(lane, method, fit.arguments(given)))
        answer: bytes = kit.messages.CreateTaskResponse(resource_meta=meta).SerializeToString()
        return answer

    return create


def _plan_do(kit: _Kit, lane: Lane, connector: Any) -> Work:
    method = Method(connector.do)
    fit = Fit(lane.name, method, _DO)

    async def do(request: Request) -> bytes:
        given = {
            "task_template": kit.task_template.from_flyte_idl(request.message.template),
            "inputs": kit.literal_map.from_flyte_idl(request.inputs),
            "output_prefix": request.message.output_prefix,
        }
        resource = await kit.resource(await invoke(lane, method, fit.arguments(given)))
        header = kit.messages.ExecuteTaskSyncResponseHeader(resource=resource)
        answer: bytes = kit.messages.ExecuteTaskSyncResponse(header=header).SerializeToString()
        return answer

    return do


def _load_core(core: list[Source], kit: _Kit, engine: Engine) -> list[Plugin]:
    """Load flytekit's own connectors; ``import flytekit`` may have brought one already."""
    plugins = load(core, kit.registered, kit.remove, engine)
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
