"""What the sources of a child bring: connectors by task category, and a record of each plugin."""

from __future__ import annotations

import fnmatch
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Lane

__all__ = ["Category", "Found", "Options", "Plugin", "Request", "Served", "Table", "Work"]

Category = tuple[str, int]


@dataclass(frozen=True)
class Options:
    """What the parent asked of this child's sources."""

    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    entries: bool = True  # whether installed entry points are asked for
    settings: dict[str, Any] = field(default_factory=dict)  # of connectors, by task type

    def admits(self, name: str, *, only_named: bool = False) -> bool:
        """Tell whether a task type is wanted; ``only_named`` ones only if a pattern says so."""
        if not self.enable:
            wanted = not only_named
        else:
            wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.enable)
        return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.disable)


@dataclass
class Plugin:
    """What became of one plugin: what it brought, or why it could not be loaded."""

    name: str
    target: str
    state: str
    distribution: str = ""
    categories: list[Category] = field(default_factory=list)
    error: str = ""
    where: str = ""


class Request:
    """One call, read as far as every source needs it.

    ``message`` is the request, or for a sync task its header; ``deadline`` is on
    ``time.monotonic``'s clock; ``send`` takes the bytes of one message of a stream.
    """

    __slots__ = ("deadline", "inputs", "key", "message", "protocol", "send")

    def __init__(
        self,
        protocol: str,
        message: Any,
        inputs: Any = None,
        *,
        deadline: float | None = None,
        key: str = "",
        send: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        self.protocol = protocol
        self.message = message
        self.inputs = inputs
        self.deadline = deadline
        self.key = key
        self.send = send


# Runs on the connector's loop; gives the bytes of the response, or nothing for a stream.
Work = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Served:
    """One task category: whose it is, where its code runs, and its operations."""

    category: Category
    name: str
    is_sync: bool
    protocols: tuple[str, ...]
    connector: object
    lane: Lane
    works: Mapping[str, Work]


@dataclass
class Found:
    """What one source brought; ``messages`` has the module of each protocol's messages."""

    served: list[Served] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    messages: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class Table:
    """Everything that this child serves; of two offers of a category the first wins."""

    def __init__(self, found: Iterable[Found]) -> None:
        """Merge what the sources brought, and note in a plugin's record what it lost."""
        self.by_protocol: dict[str, dict[Category, Served]] = {}
        self.messages: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.plugins: list[Plugin] = []
        holders: dict[Category, Served] = {}
        for source in found:
            self.messages.update(source.messages)
            self.versions.update(source.versions)
            self.plugins.extend(source.plugins)
            lost = {}
            for served in source.served:
                holder = holders.setdefault(served.category, served)
                if holder is not served:
                    lost[served.category] = holder
                    continue
                for protocol in served.protocols:
                    self.by_protocol.setdefault(protocol, {})[served.category] = served
            for plugin in source.plugins:
                _note_lost(plugin, lost)
        self._holders = holders

    def agents(self) -> list[dict[str, Any]]:
        """Describe the connectors, one entry for each object, as the handshake has them."""
        described: dict[int, dict[str, Any]] = {}
        for category, served in sorted(self._holders.items()):
            agent = described.setdefault(
                id(served.connector),
                {
                    "name": served.name,
                    "is_sync": served.is_sync,
                    "protocols": list(served.protocols),
                    "categories": [],
                },
            )
            agent["categories"].append(list(category))
        return list(described.values())


def _note_lost(plugin: Plugin, lost: Mapping[Category, Served]) -> None:
    mine = [category for category in plugin.categories if category in lost]
    if not mine:
        return
    plugin.categories = [category for category in plugin.categories if category not in lost]
    names = ", ".join(f"{name} (v{version})" for name, version in mine)
    holder = lost[mine[0]].name
    plugin.error = (
        f"{holder} of another source of this host has {names} already; disable one of the two."
    )
    if not plugin.categories:
        plugin.state = "failed"
