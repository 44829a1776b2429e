"""What another service says that it serves, remembered over its answers."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, NamedTuple

from flyteidl.admin import agent_pb2

from connector_service.codec.convert import FlyteProtocol
from connector_service.runtime.route import Served
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flyteidl2.connector import connector_pb2

__all__ = ["Listing", "Offer", "is_offered", "offers_of"]

# A type that is missing from so many answers in a row is gone. Replicas that are being replaced
# differ for a while, and a client forgets a type that is missing from one answer of ours.
_MISSES = 3
# flytekit registers these two in every process; they are served where somebody asked for them.
_ON_REQUEST = frozenset({"webhook", "sensor"})


class Offer(NamedTuple):
    """What a peer says of one task category: its connector's name, and its kind."""

    name: str
    is_sync: bool


class _Known(NamedTuple):
    offer: Offer
    misses: int = 0


class Listing:
    """The task categories of one peer; ``enable`` and ``disable`` are patterns of task types."""

    def __init__(self, enable: Sequence[str] = (), disable: Sequence[str] = ()) -> None:
        """Begin with nothing listed."""
        self._enable = tuple(enable)
        self._disable = tuple(disable)
        self._known: dict[FlyteProtocol, dict[TaskCategory, _Known]] = {}
        self._protocols: Mapping[TaskCategory, tuple[FlyteProtocol, ...]] = {}
        self.categories: Mapping[TaskCategory, Served] = {}
        self.agents: Sequence[agent_pb2.Agent] = ()

    def answered(self, protocol: FlyteProtocol, offers: Mapping[TaskCategory, Offer]) -> bool:
        """Take one answer about ``protocol``; tell whether it changed a thing.

        A peer that does not have its metadata service offers nothing in it.
        """
        known = self._known.get(protocol, {})
        fresh = {
            category: _Known(offer)
            for category, offer in offers.items()
            if is_offered(category.name, self._enable, self._disable)
        }
        kept = {
            category: entry._replace(misses=entry.misses + 1)
            for category, entry in known.items()
            if category not in fresh and entry.misses + 1 < _MISSES
        }
        self._known[protocol] = {**fresh, **kept}
        return self._derive()

    def protocols(self, category: TaskCategory) -> Sequence[FlyteProtocol]:
        """Return the protocols in which the peer takes calls of ``category``."""
        return self._protocols.get(category, ())

    def _derive(self) -> bool:
        before = (self.categories, self._protocols)
        offers: dict[TaskCategory, Offer] = {}
        protocols: dict[TaskCategory, tuple[FlyteProtocol, ...]] = {}
        # Flyte 1's first: only it tells which connectors are sync.
        for protocol in FlyteProtocol:
            for category, entry in self._known.get(protocol, {}).items():
                offers.setdefault(category, entry.offer)
                protocols[category] = (*protocols.get(category, ()), protocol)
        self._protocols = protocols
        self.categories = {category: Served(*offers[category]) for category in sorted(offers)}
        self.agents = _describe(self.categories)
        return before != (self.categories, self._protocols)


def is_offered(task_type: str, enable: Sequence[str], disable: Sequence[str]) -> bool:
    """Tell whether a task type is served under a host's ``enable`` and ``disable``."""
    if _matches(task_type, disable):
        return False
    return _matches(task_type, enable) if enable else task_type not in _ON_REQUEST


def offers_of(
    agents: Sequence[agent_pb2.Agent] | Sequence[connector_pb2.Connector],
) -> dict[TaskCategory, Offer]:
    """Read the answer of either metadata service; the first to name a category has it.

    Agents of old name task types alone, which are of version 0. Flyte 2's connectors do not tell
    whether they are sync: they are created and polled like any other.
    """
    offers: dict[TaskCategory, Offer] = {}
    for agent in agents:
        offer = Offer(agent.name, getattr(agent, "is_sync", False))
        categories = [
            TaskCategory(category.name, category.version)
            for category in agent.supported_task_categories
        ] or [TaskCategory(name) for name in getattr(agent, "supported_task_types", ())]
        for category in categories:
            if category.name:
                offers.setdefault(category, offer)
    return offers


def _matches(task_type: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(task_type, pattern) for pattern in patterns)


def _describe(categories: Mapping[TaskCategory, Served]) -> list[agent_pb2.Agent]:
    grouped: dict[tuple[str, bool], list[TaskCategory]] = {}
    for category, served in categories.items():
        grouped.setdefault((served.name, served.is_sync), []).append(category)
    return [
        agent_pb2.Agent(
            name=name,
            is_sync=is_sync,
            supported_task_types=list(dict.fromkeys(category.name for category in own)),
            supported_task_categories=[
                agent_pb2.TaskCategory(name=category.name, version=category.version)
                for category in own
            ],
        )
        for (name, is_sync), own in grouped.items()
    ]
