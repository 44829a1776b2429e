"""Who serves which task category: an owned ``Registry``, and the class-level door to one."""

from __future__ import annotations

import contextlib
import fnmatch
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flyteidl.admin import agent_pb2

from connector_service.codec.convert import FlyteProtocol
from connector_service.errors import (
    AuthorError,
    ConnectorNotFoundError,
    DuplicateConnectorError,
)
from connector_service.sdk.connector import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorBase,
    SyncConnectorBase,
)
from connector_service.sdk.method import Method, Operation, inspect_methods
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["ConnectorRegistry", "Registration", "Registry", "registering_into"]


@dataclass(frozen=True, slots=True)
class Registration:
    """One connector under its category, with its methods inspected."""

    connector: ConnectorBase
    category: TaskCategory
    methods: Mapping[Operation, Method]
    is_sync: bool
    shape: FlyteProtocol = FlyteProtocol.FLYTE1
    override: bool = False


class Registry:
    """Connectors by task category: check first, change after, refuse duplicates.

    Reading is safe from any thread, and lock-free but for the first time after a change: a change
    replaces the maps, never edits them. What is registered waits until it is read, so that many
    registrations are put in order and described once, not each time anew.
    """

    def __init__(self) -> None:
        self._by_category: Mapping[TaskCategory, Registration] = {}
        self._agents: Mapping[str, agent_pb2.Agent] = {}
        self._waiting: dict[TaskCategory, Registration] = {}  # not in the maps yet, and above them
        self.changes = 0  # how often it has changed: what was resolved stands until then
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._settled())

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._settled().values())

    def __contains__(self, category: object) -> bool:
        return category in self._settled()

    def register(self, connector: ConnectorBase, override: bool = False) -> None:
        """Serve ``connector``'s task category with it.

        Raises:
            AuthorError: It is no connector, or one of its methods cannot be called as we call.
            DuplicateConnectorError: The category is taken and ``override`` is False.
        """
        self.update([_inspect(connector, override)])

    def update(self, registrations: Sequence[Registration]) -> None:
        """Add all of ``registrations`` or, when one is refused, none.

        Raises:
            DuplicateConnectorError: As ``register``.
        """
        with self._changing:
            merged: dict[TaskCategory, Registration] = {}
            for new in registrations:
                holder = (
                    merged.get(new.category)
                    or self._waiting.get(new.category)
                    or self._by_category.get(new.category)
                )
                if holder and holder.connector is not new.connector and not new.override:
                    raise DuplicateConnectorError(
                        f"Duplicate connector for task type {new.category.spoken}:"
                        f" {new.connector.name!r} was refused, {holder.connector.name!r} has it;"
                        f" disable one, or register with override=True."
                    )
                _describe([new])  # what cannot be is its author's to know, not who lists all
                merged[new.category] = new
            self._waiting.update(merged)
            self.changes += 1

    def select(self, *, enable: Sequence[str] = (), disable: Sequence[str] = ()) -> list[str]:
        """Keep only the task types that ``enable`` matches and ``disable`` does not.

        Patterns have the shell's ``*`` and ``?``; an empty ``enable`` matches all. Returns the
        patterns that matched no task type, which are most likely misspelt.
        """
        with self._changing:
            held = {**self._by_category, **self._waiting}
            names = {category.name for category in held}
            idle = [p for p in (*enable, *disable) if not fnmatch.filter(names, p)]
            self._replace(
                {
                    category: registration
                    for category, registration in held.items()
                    if (not enable or _matches(category.name, enable))
                    and not _matches(category.name, disable)
                }
            )
            self.changes += 1
        return idle

    def resolve(self, category: TaskCategory) -> Registration:
        """Return the registration of ``category``.

        Raises:
            ConnectorNotFoundError: Nobody registered it; it names what is registered.
        """
        by_category = self._settled()
        try:
            return by_category[category]
        except KeyError:
            raise ConnectorNotFoundError(
                f"task type {category.spoken}",
                (known.listed for known in by_category),
            ) from None

    def get_connector(self, task_type_name: str, task_type_version: int = 0) -> ConnectorBase:
        """Return the connector of a task category; raises as ``resolve``."""
        return self.resolve(TaskCategory(task_type_name, task_type_version)).connector

    def get_connector_metadata(self, name: str) -> agent_pb2.Agent:
        """Return what the client may know of the connector called ``name``.

        Raises:
            ConnectorNotFoundError: No connector has that name.
        """
        self._settled()
        agents = self._agents
        try:
            return agents[name]
        except KeyError:
            raise ConnectorNotFoundError(f"name {name!r}", agents) from None

    def list_connectors(self) -> list[agent_pb2.Agent]:
        """Return one message a connector name, in a stable order."""
        self._settled()
        return list(self._agents.values())

    def _settled(self) -> Mapping[TaskCategory, Registration]:
        """Take into the maps what waits, and return that of the categories."""
        if self._waiting:
            with self._changing:
                if self._waiting:  # nobody else has meanwhile
                    self._replace({**self._by_category, **self._waiting})
        return self._by_category

    def _replace(self, by_category: Mapping[TaskCategory, Registration]) -> None:
        ordered = {category: by_category[category] for category in sorted(by_category)}
        self._agents = _describe(ordered.values())
        self._by_category = ordered
        self._waiting = {}  # last: whoever sees that nothing waits must find it in the maps


class ConnectorRegistry:
    """The class-level door that Flyte users know, to the process's default ``Registry``.

    While the service loads a plugin, the door leads to that plugin's own staging registry.
    """

    @staticmethod
    def register(connector: ConnectorBase, override: bool = False) -> None:
        """Register; see ``Registry.register``."""
        _current.get().register(connector, override)

    @staticmethod
    def get_connector(task_type_name: str, task_type_version: int = 0) -> ConnectorBase:
        """Look up; see ``Registry.get_connector``."""
        return _current.get().get_connector(task_type_name, task_type_version)

    get_agent = get_connector

    @staticmethod
    def get_connector_metadata(name: str) -> agent_pb2.Agent:
        """Describe one; see ``Registry.get_connector_metadata``."""
        return _current.get().get_connector_metadata(name)

    @staticmethod
    def list_connectors() -> list[agent_pb2.Agent]:
        """Describe all; see ``Registry.list_connectors``."""
        return _current.get().list_connectors()


_default = Registry()
_current: ContextVar[Registry] = ContextVar("connector_registry", default=_default)


@contextlib.contextmanager
def registering_into(registry: Registry) -> Iterator[None]:
    """Lead ``ConnectorRegistry`` to ``registry`` for the code that runs inside."""
    token = _current.set(registry)
    try:
        yield
    finally:
        _current.reset(token)


def _inspect(connector: object, override: bool) -> Registration:
    if isinstance(connector, type) and issubclass(connector, ConnectorBase):
        raise AuthorError(
            f"{connector.__name__} is a class; register an instance: {connector.__name__}()."
        )
    bases = [
        base
        for base in (SyncConnectorBase, AsyncConnectorBase, AsyncConnector)
        if isinstance(connector, base)
    ]
    if not isinstance(connector, ConnectorBase) or not bases:
        raise AuthorError(
            f"{type(connector).__name__} is no connector; subclass AsyncConnectorBase,"
            f" SyncConnectorBase or AsyncConnector."
        )
    category = getattr(connector, "task_category", None)
    if category is None or not category.name:
        how = (
            "set task_type_name in its class"
            if isinstance(connector, AsyncConnector)
            else "call super().__init__(task_type_name=...) in its __init__"
        )
        raise AuthorError(f"{type(connector).__name__} has no task type; {how}.")
    if not isinstance(category.name, str) or not isinstance(category.version, int):
        raise AuthorError(
            f"{type(connector).__name__} serves {tuple(category)!r}; a task type's name is a str"
            f" and its version an int."
        )
    flyte2 = isinstance(connector, AsyncConnector)
    meta = getattr(connector, "metadata_type", None)
    if flyte2 and not callable(getattr(meta, "decode", None)):
        raise AuthorError(
            f"{type(connector).__name__} has no metadata_type; set it to its ResourceMeta."
        )
    shape = FlyteProtocol.FLYTE2 if flyte2 else FlyteProtocol.FLYTE1
    return Registration(
        connector,
        category,
        inspect_methods(connector, bases, connected=shape is FlyteProtocol.FLYTE2),
        isinstance(connector, SyncConnectorBase),
        shape,
        override,
    )


def _describe(registrations: Iterable[Registration]) -> dict[str, agent_pb2.Agent]:
    """Group by name and kind: one name with both kinds is listed as two connectors."""
    grouped: dict[tuple[str, bool], list[TaskCategory]] = {}
    for registration in registrations:
        key = (registration.connector.name, registration.is_sync)
        grouped.setdefault(key, []).append(registration.category)
    agents = {}
    for (name, is_sync), categories in grouped.items():
        unique = f"{name} (sync)" if is_sync and (name, False) in grouped else name
        agents[unique] = agent_pb2.Agent(
            name=unique,
            is_sync=is_sync,
            supported_task_types=list(dict.fromkeys(category.name for category in categories)),
            supported_task_categories=[
                agent_pb2.TaskCategory(name=category.name, version=category.version)
                for category in categories
            ],
        )
    return agents


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
