"""What the service tells whoever listens: one frozen record per operation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["OK", "UNKNOWN_TASK_TYPE", "CallRecord", "Happening", "Hook", "Hooks", "Kind"]

OK = "OK"
# A name that a caller made up must not become a metric label: 500 of them are 2,500 series.
UNKNOWN_TASK_TYPE = "unknown"

_log = logging.getLogger(__name__)


class CallRecord(msgspec.Struct, frozen=True, gc=False):
    """Everything that is known of one call when it has ended.

    ``task_type`` is a registered one, ``unknown``, or empty where the operation has none.
    ``seconds`` is how long it took here. ``error`` is the exception behind a code that is not OK.
    """

    protocol: str
    operation: str
    task_type: str
    code: str
    seconds: float
    input_bytes: int | None = None
    details: str = ""
    incident: str = ""
    error: BaseException | None = None


class Happening(msgspec.Struct, frozen=True, gc=False):
    """Something beside the calls that is worth counting: ``kind`` is constant, facts are fields.

    ``poll``: ``detail`` is a ``PollEvent``. ``orphan``: ``detail`` says how its deletion went.
    ``unguarded_create``: a create ran without the ledger. ``retry``: ``detail`` is the operation.
    ``blocked_loop``: ``detail`` is the operation, ``amount`` the seconds. ``batch``: ``amount`` is
    how many polls one call of a connector with ``get_many`` answers.
    """

    kind: str
    task_type: str
    detail: str = ""
    amount: float = 1.0


class Kind:
    """The calls of one protocol, operation and task type: counted in place of being told.

    Whoever answers them adds one to ``entered`` for each, and calls ``well`` with the seconds of
    one that ended well, and with the size of its inputs where it has any; any other is told to the
    hooks as a record. One that ended well is told as a record too, and not to ``well``, while
    ``loud`` says so. After ``well`` come those who ``hear`` the seconds, which may raise.
    """

    __slots__ = ("entered", "hear", "loud", "well")

    def __init__(self, well: Callable[..., None]) -> None:
        """Take what counts a call that ended well: its seconds, and the bytes of its inputs."""
        self.entered = 0
        self.well = well
        self.hear: tuple[Callable[[float], None], ...] = ()
        self.loud: Callable[[], bool] | None = None


class Hook:
    """A listener; override what you want to hear. What it raises is logged and dropped."""

    def started(self, protocol: str, operation: str) -> None:
        """Hear that a call has come in."""

    def ended(self, record: CallRecord) -> None:
        """Hear what became of it."""

    def happened(self, happening: Happening) -> None:
        """Hear what the guarantees did; from any thread."""

    def kind(self, protocol: str, operation: str, task_type: str) -> Kind | None:
        """Return what counts such calls, if this hook counts; one hook of a service does."""

    def loud(self, operation: str) -> Callable[[], bool]:
        """Return what tells whether this hook would hear of a call that ended well, now."""
        return _always

    def well(self, protocol: str, operation: str, task_type: str) -> Callable[[float], None] | None:
        """Return what hears the seconds of such a call that ended well, where no record is needed.

        None is for hooks that want the record, whenever they are ``loud``.
        """
        return None


class Hooks:
    """The listeners of one service, told in their order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        """Take the hooks; they never change afterwards, nor do their methods."""
        self._hooks = tuple(hooks)
        self._started = _listening(hooks, "started")
        self._ended = _listening(hooks, "ended")
        self._happened = _listening(hooks, "happened")

    def kind(self, protocol: str, operation: str, task_type: str) -> Kind | None:
        """Return what counts such calls; None where a listener must be told of every one."""
        found = [
            (hook, kind)
            for hook in self._hooks
            if (kind := hook.kind(protocol, operation, task_type)) is not None
        ]
        if len(found) != 1:
            return None
        counting, kind = found[0]
        others = [hook for hook in self._hooks if hook is not counting]
        if _listening(others, "started"):
            return None
        loud = []
        for hook in others:
            if _listening([hook], "ended"):
                hear = hook.well(protocol, operation, task_type)
                if hear is None:
                    loud.append(hook.loud(operation))
                else:
                    kind.hear = (*kind.hear, hear)
        if len(loud) == 1:
            kind.loud = loud[0]
        elif loud:
            kind.loud = lambda: any(each() for each in loud)
        return kind

    def started(self, protocol: str, operation: str) -> None:
        """Tell every hook that a call has come in."""
        for hook, hear in self._started:
            try:
                hear(protocol, operation)
            except Exception:  # noqa: BLE001 - a listener never fails a call
                _log.exception("A hook failed: %s.started", hook)

    def ended(self, record: CallRecord) -> None:
        """Tell every hook what became of a call."""
        for hook, hear in self._ended:
            try:
                hear(record)
            except Exception:  # noqa: BLE001 - a listener never fails a call
                _log.exception("A hook failed: %s.ended", hook)

    def happened(self, happening: Happening) -> None:
        """Tell every hook what the guarantees did."""
        for hook, hear in self._happened:
            try:
                hear(happening)
            except Exception:  # noqa: BLE001 - a listener never fails a call
                _log.exception("A hook failed: %s.happened", hook)


def _always() -> bool:
    return True


def _listening(hooks: Sequence[Hook], event: str) -> tuple[tuple[str, Callable[..., None]], ...]:
    """Return the name and the method of each hook that listens to ``event``."""
    return tuple(
        (type(hook).__name__, getattr(hook, event))
        for hook in hooks
        if getattr(getattr(hook, event), "__func__", None) is not getattr(Hook, event)
    )
