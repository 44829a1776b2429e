"""Deletes jobs that were created and that nobody asked for again."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from connector_service.errors import (
    ConnectorNotFoundError,
    GoneError,
    LedgerDownError,
    UnavailableError,
)
from connector_service.runtime.faults import Fault, judge

if TYPE_CHECKING:
    from connector_service.runtime.ledger import Ledger, Orphan
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Outcome", "Sweeper"]

_log = logging.getLogger(__name__)

Delete = Callable[["TaskCategory", bytes], Awaitable[None]]
Outcome = str  # "deleted", "retried" or "failed"

_CLAIM = 60.0  # seconds until an orphan whose deletion failed, or whose deleter died, is due again
_LIMIT = 30.0  # seconds for one deletion; well inside the claim
_AT_ONCE = 16
_MOST_ATTEMPTS = 1440  # a day of claims


class Sweeper:
    """Asks the ledger for orphans every ``interval`` seconds; ``start`` it, ``close`` it."""

    def __init__(
        self,
        ledger: Ledger,
        delete: Delete,
        *,
        on_orphan: Callable[[TaskCategory, Outcome], None] = lambda _category, _outcome: None,
        interval: float = 5.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take where orphans stand, what deletes one, and whom to tell how it went.

        ``delete`` gets the category and the resource meta; a job that is gone is no error.
        """
        self._ledger = ledger
        self._delete = delete
        self._on_orphan = on_orphan
        self._interval = interval
        self._sleep = sleep
        self._owner = secrets.token_hex(8)
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to sweep."""
        self._sweeping = asyncio.create_task(self._keep_sweeping(), name="sweep-orphans")

    async def close(self) -> None:
        """Stop sweeping; an orphan in the middle of its deletion stays claimed, and comes again."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
            self._sweeping = None

    async def sweep(self) -> int:
        """Delete the orphans that are due, at most 16 at once, and return how many there were.

        Raises:
            LedgerDownError: The ledger cannot say.
        """
        found = await self._ledger.orphans(self._owner, _CLAIM, _AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for orphan in found:
                group.create_task(self._remove(orphan))
        return len(found)

    async def _keep_sweeping(self) -> None:
        while True:
            await self._sleep(self._interval)
            try:
                while await self.sweep() == _AT_ONCE:
                    pass
            except LedgerDownError:
                _log.debug("ledger_down", exc_info=True)  # said aloud where creates need it
            except Exception:  # noqa: BLE001 - the next sweep may do better
                _log.exception("sweep_failed")

    async def _remove(self, orphan: Orphan) -> None:
        facts = {
            "key": orphan.key,
            "task": str(orphan.category),
            "attempt": orphan.attempts,
        }
        try:
            async with asyncio.timeout(_LIMIT):
                await self._delete(orphan.category, orphan.meta)
        except GoneError:
            self._tell("deleted", orphan)
            _log.info("orphan_gone", extra=facts)
        except Exception as error:  # noqa: BLE001 - a connector's code may raise anything
            if _may_pass(error) and orphan.attempts < _MOST_ATTEMPTS:
                self._tell("retried", orphan)
                _log.warning("orphan_not_deleted_yet", extra=facts, exc_info=error)
                return
            self._tell("failed", orphan)
            _log.exception("orphan_left_behind", extra=facts)
        else:
            self._tell("deleted", orphan)
            _log.warning("orphan_deleted", extra=facts)
        try:
            await self._ledger.forget(orphan.key, self._owner)
        except LedgerDownError:  # it is deleted once more when the claim is over
            _log.debug("ledger_down", exc_info=True)

    def _tell(self, outcome: Outcome, orphan: Orphan) -> None:
        try:
            self._on_orphan(orphan.category, outcome)
        except Exception:  # noqa: BLE001 - a listener never fails a deletion
            _log.exception("A hook failed: on_orphan")


def _may_pass(error: Exception) -> bool:
    """Tell whether a deletion that failed so may succeed later, or on another replica."""
    if judge(error).fault in (Fault.TRANSIENT, Fault.TROUBLED):
        return True
    # Our own refusals: overload, and a connector that only another replica has.
    return isinstance(error, ConnectorNotFoundError | UnavailableError)
