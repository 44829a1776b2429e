"""What every host beside this process has: a life of its own, and a state that people ask for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from connector_service.plugins.loader import PluginRecord
from connector_service.runtime.route import Host

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HostKind", "HostState", "HostStatus", "OuterHost", "WorkerState"]


class HostKind(StrEnum):
    """Where a host's connectors run."""

    PROCESS = "process"
    REMOTE = "remote"


class HostStatus(StrEnum):
    """How a host is; its task types stay listed in every one of these."""

    STARTING = "starting"
    UP = "up"
    DEGRADED = "degraded"  # some of its workers are not up
    DOWN = "down"
    CRASH_LOOP = "crash loop"  # its processes end again and again soon after their start


class WorkerState(msgspec.Struct, frozen=True):
    """One process of a host, as it is now."""

    index: int
    pid: int | None = None
    status: HostStatus = HostStatus.STARTING
    restarts: int = 0
    uptime_seconds: float = 0.0
    rss_bytes: int = 0
    calls: int = 0


class HostState(msgspec.Struct, frozen=True):
    """A host as it is now; ``error`` is one redacted sentence, empty when nothing is wrong.

    ``where`` is the interpreter or the endpoint, ``versions`` of the libraries that matter there.
    """

    name: str
    kind: HostKind
    status: HostStatus
    where: str
    workers: tuple[WorkerState, ...] = ()
    restarts: int = 0
    error: str = ""
    plugins: tuple[PluginRecord, ...] = ()
    versions: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Tell whether nobody needs to look at it."""
        return self.status in (HostStatus.UP, HostStatus.STARTING)


class OuterHost(Host, Protocol):
    """A host in other processes. It raises nothing while they come and go: calls wait or fail."""

    name: str

    async def start(self) -> None:
        """Start, and return when all of it answered or failed once.

        Raises:
            ConfigError: Its settings can never work.
        """

    async def close(self, grace: float) -> None:
        """Let calls end within ``grace`` seconds and leave nothing behind; fine twice."""

    async def reload(self) -> None:
        """Put a fresh one in its place without failing a call.

        Raises:
            HostError: The fresh one is worse; the old one stays.
        """

    def snapshot(self) -> HostState:
        """Tell how it is."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, on the event loop, whenever what it serves has changed."""
