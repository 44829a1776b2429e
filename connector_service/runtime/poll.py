"""One poll: where it goes, who waits for it, and what may become of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.config import ConnectorSection
from connector_service.runtime.call import Call
from connector_service.runtime.known import Job
from connector_service.runtime.limits import Bulkhead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    Fetch: TypeAlias = Callable[[Call, float], Awaitable[Any]]
    Delete: TypeAlias = Callable[[Call], Awaitable[object]]

__all__ = ["Ask", "PollEvent", "Source"]


class PollEvent(StrEnum):
    """What became of a poll, where the connector's answer alone does not say it."""

    ABSORBED = "absorbed"  # a fault was answered with the last phase known
    GAVE_UP = "gave_up"  # patience ran out
    ORPHANED = "orphaned"  # ... and the job could not be deleted
    UNMAPPED = "unmapped"  # UNDEFINED, an unknown number or an unknown word became RUNNING
    SHARED = "shared"  # joined a call that was already on its way
    REMEMBERED = "remembered"  # answered without asking


class Source(msgspec.Struct, frozen=True):
    """Where a connector's polls go, and what is promised for them; made once for all its jobs.

    ``fetch`` asks the connector, within ``bulkhead`` and a deadline of its own. ``delete`` stops
    the job of a poll when patience runs out. ``permanent`` is as in ``faults.judge``.
    """

    policy: ConnectorSection
    bulkhead: Bulkhead
    fetch: Fetch
    delete: Delete
    permanent: Sequence[type[Exception]] = ()


class Ask(msgspec.Struct):
    """One poll on its way to the connector, and those who wait for its answer.

    ``job`` is what was known before it, in memory unless there was no room.
    """

    key: bytes
    call: Call
    source: Source
    job: Job | None
    joined: asyncio.Future[Any] | None = None
    apart: bool = False
