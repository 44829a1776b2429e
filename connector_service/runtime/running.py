"""One create on its way, and how many callers wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from connector_service.errors import DeadlineError, UnavailableError

if TYPE_CHECKING:
    from connector_service.runtime.alarms import Slot
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Limits", "Running", "cut_short", "key_held"]


class Limits(Protocol):
    """The settings of one connector that count here; ``config.ConnectorSection`` has them."""

    @property
    def create_limit(self) -> float:
        """Seconds that a create may take altogether."""

    @property
    def create_retention(self) -> float:
        """Seconds in which a repeat gets the first answer."""

    @property
    def orphan_grace(self) -> float:
        """Seconds until a job without a caller is deleted."""


class Running:
    """What is known of one create; what most creates never change is the class's."""

    task: asyncio.Task[None] | None = None  # once it has had to wait
    until: float | None = None  # once the connector was asked, on the monotonic clock
    alarm: Slot | None = None
    taken = False  # by a caller: the answer
    reserved = False
    creating = False
    recording = False
    cancellable = False
    # The number of the hand-out, once callers have been given the answer.
    handed_out: int | None = None
    callers = 0
    _answer: bytes | Exception | None = None
    _turns: list[asyncio.Future[bool]] | None = None  # of those who wait; True is out of time

    def __init__(self, category: TaskCategory, key: str, limits: Limits, owner: str) -> None:
        """Take what never changes."""
        self.category = category
        self.key = key
        self.limits = limits
        self.owner = owner

    @property
    def deserted(self) -> bool:
        """Tell whether nobody waits for it."""
        return self.callers == 0

    @property
    def answered(self) -> bool:
        """Tell whether there is an answer."""
        return self._answer is not None

    def enter(self) -> asyncio.Future[bool] | None:
        """Count a caller, and return what it is to wait for, if there is no answer yet."""
        self.callers += 1
        if self._answer is not None:
            return None
        turn = asyncio.get_running_loop().create_future()
        if self._turns is None:
            self._turns = []
        self._turns.append(turn)
        return turn

    def leave(self, turn: asyncio.Future[bool] | None) -> None:
        """Count a caller out."""
        self.callers -= 1
        if turn is not None and self._turns is not None:
            self._turns.remove(turn)

    def answer(self) -> bytes:
        """Return the resource meta, or raise what became of the create instead."""
        if isinstance(self._answer, bytes):
            return self._answer
        raise cut_short() if self._answer is None else self._answer

    def settle(self, answer: bytes | Exception) -> None:
        """Give every caller the answer; the first one stands."""
        if self._answer is not None:
            return
        self._answer = answer
        if self._turns is not None:
            for turn in self._turns:
                if not turn.done():
                    turn.set_result(False)
            self._turns = None

    def stop_alarm(self) -> bool:
        """Tell whether the alarm has rung, which it does not any more."""
        slot, self.alarm = self.alarm, None
        return slot is not None and slot.pop(self, None) is None

    def ended(self, _task: asyncio.Task[None]) -> None:
        """See that callers get an answer though the task was cancelled."""
        if self._answer is None:
            self.settle(cut_short())

    def late(self) -> Exception:
        """Say what a caller hears whose deadline has passed."""
        if self.key and not self.creating:
            return key_held()
        return DeadlineError("The create did not end within the call's deadline; it goes on.")


def key_held() -> UnavailableError:
    """Say that another replica has the key."""
    return UnavailableError(
        "Another replica is creating or deleting this job; ask again.", retry_after=1.0
    )


def cut_short() -> UnavailableError:
    """Say that the service ended too early."""
    return UnavailableError("The service ended before the create did; ask again.")
