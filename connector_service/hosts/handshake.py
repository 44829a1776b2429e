"""The one line with which a child says what it serves, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from flyteidl.admin import agent_pb2

from connector_service.hosts.replica import Permanent
from connector_service.plugins.loader import PluginRecord, PluginState
from connector_service.runtime.route import Served
from connector_service.sdk.resource import TaskCategory
from connector_service.sdk.secrets import redact

__all__ = ["VERSION", "Handshake", "Offer"]

VERSION = 1


class _Agent(msgspec.Struct, frozen=True):
    """A connector object."""

    name: str
    is_sync: bool
    protocols: tuple[str, ...]
    categories: tuple[tuple[str, int], ...]


class _Plugin(msgspec.Struct, frozen=True):
    """What became of a plugin."""

    name: str
    target: str = ""
    distribution: str = ""
    state: str = PluginState.FAILED
    categories: tuple[tuple[str, int], ...] = ()
    error: str = ""
    where: str = ""


class Handshake(msgspec.Struct, frozen=True):
    """What a child says of itself once it listens."""

    v: int
    pid: int = 0
    python: str = ""
    versions: dict[str, str] = {}
    agents: tuple[_Agent, ...] = ()
    plugins: tuple[_Plugin, ...] = ()

    @staticmethod
    def parse(data: bytes) -> Handshake:
        """Read the line without its first word.

        Raises:
            ValueError: It is no handshake, or one of another version; the text says which.
        """
        try:
            version = msgspec.json.decode(data, type=_Versioned).v
            if version != VERSION:
                raise ValueError(f"it speaks version {version} of the handshake, not {VERSION}")
            return msgspec.json.decode(data, type=Handshake)
        except msgspec.DecodeError as error:
            raise ValueError(f"its handshake is malformed: {error}") from None

    def protocols(self) -> dict[TaskCategory, tuple[str, ...]]:
        """Tell which protocols the connector of each category takes."""
        found: dict[TaskCategory, tuple[str, ...]] = {}
        for agent in self.agents:
            for category in agent.categories:
                found.setdefault(TaskCategory(*category), agent.protocols)
        return found

    def records(self) -> tuple[PluginRecord, ...]:
        """Return what became of the plugins."""
        return tuple(
            PluginRecord(
                plugin.name,
                plugin.target,
                _state(plugin.state),
                plugin.distribution,
                tuple(TaskCategory(*category) for category in plugin.categories),
                redact(plugin.error)[:500],
                plugin.where,
            )
            for plugin in self.plugins
        )


class _Versioned(msgspec.Struct):
    v: int


class Offer(msgspec.Struct, frozen=True):
    """What a host serves: its task types and how they are listed.

    ``loaded`` has every plugin that once loaded and was not uninstalled since, with its types.
    """

    categories: Mapping[TaskCategory, Served] = {}
    plugins: tuple[PluginRecord, ...] = ()
    versions: Mapping[str, str] = {}
    loaded: Mapping[str, tuple[TaskCategory, ...]] = {}

    @classmethod
    def of(cls, handshake: Handshake) -> Offer:
        """Read a handshake; the first of two connectors for one category has it."""
        categories: dict[TaskCategory, Served] = {}
        for agent in handshake.agents:
            for category in agent.categories:
                served = Served(agent.name, agent.is_sync, (Permanent,))
                categories.setdefault(TaskCategory(*category), served)
        plugins = handshake.records()
        loaded = {plugin.name: plugin.categories for plugin in plugins if plugin.loaded}
        return cls(categories, plugins, handshake.versions, loaded)

    def losses(self, newer: Offer) -> list[PluginRecord]:
        """Return the plugins that are loaded here and fail in ``newer``.

        One that is not there any more was uninstalled: that is its operator's wish.
        """
        here = {plugin.name for plugin in self.plugins if plugin.loaded}
        return [plugin for plugin in newer.plugins if plugin.failed and plugin.name in here]

    def followed_by(self, newer: Offer) -> Offer:
        """Return what is listed once a child that offers ``newer`` took this one's place.

        The client forgets a type that is missing from one list, and with it every job; so the
        types of a plugin that failed to load this time stay.
        """
        failed = {plugin.name for plugin in newer.plugins if plugin.failed}
        lost = {name: types for name, types in self.loaded.items() if name in failed}
        if not newer.categories:
            lost = dict(self.loaded)
        stay = {
            category: served
            for category, served in self.categories.items()
            if not newer.categories or any(category in types for types in lost.values())
        }
        return msgspec.structs.replace(
            newer,
            categories={**stay, **newer.categories},
            loaded={**lost, **newer.loaded},
        )

    def agents(self) -> Sequence[agent_pb2.Agent]:
        """Describe the connectors; one name with both kinds is listed as two."""
        grouped: dict[tuple[str, bool], list[TaskCategory]] = {}
        for category, served in sorted(self.categories.items()):
            grouped.setdefault((served.name, served.is_sync), []).append(category)
        return [
            agent_pb2.Agent(
                name=f"{name} (sync)" if is_sync and (name, False) in grouped else name,
                is_sync=is_sync,
                supported_task_types=list(dict.fromkeys(category.name for category in categories)),
                supported_task_categories=[
                    agent_pb2.TaskCategory(name=category.name, version=category.version)
                    for category in categories
                ],
            )
            for (name, is_sync), categories in grouped.items()
        ]


def _state(text: Any) -> PluginState:
    try:
        return PluginState(text)
    except ValueError:
        return PluginState.FAILED
