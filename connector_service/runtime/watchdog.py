"""A thread that watches the event loop, and names the connector that blocks it."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from connector_service.sdk.connector import ConnectorBase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FrameType

    from connector_service.sdk.registry import Registration

__all__ = ["Block", "Watchdog"]

_log = logging.getLogger(__name__)

_THRESHOLD = 0.1
_INTERVAL = 0.025
_OFFENCES = 3
_STUCK = 60.0
_HEARTBEAT = 1.0  # seconds between beats without cause
_STACK = 30  # frames of a stack that are logged
_BACKGROUND = "background"


class Block(NamedTuple):
    """One time that a connector's code held the event loop."""

    task_type: str
    operation: str  # ``background`` for code of the connector that no operation runs
    connector: str
    line: str  # file, line and function: the innermost of the connector's own module
    seconds: float


class _Culprit(NamedTuple):
    """A frame of a connector's code on the loop's stack."""

    registration: Registration
    operation: str
    frame: FrameType
    innermost: FrameType


class Watchdog:
    """Glances at the stack of the event loop's thread, and beats its heart when there is cause.

    Everything is read off the stack: a call pays nothing for being watched. A glance costs
    microseconds and wakes nobody; a connector's code on the stack is cause for a beat, which
    waits its turn as any call does, so that its delay is what calls suffer. A block of
    ``threshold`` and one ``interval`` is always noticed, a shorter one often.
    """

    def __init__(
        self,
        registrations: Iterable[Registration],
        *,
        on_block: Callable[[Block], None] = lambda _: None,
        isolate: Callable[[object], None] = lambda _: None,
        threshold: float = _THRESHOLD,
        interval: float = _INTERVAL,
        offences: int = _OFFENCES,
        stuck_after: float = _STUCK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what may block the loop, and whom to tell; all times are in seconds.

        ``on_block`` hears of each block when it has ended, ``isolate`` of the connector whose
        offence it is for the ``offences``-th time; both on the watchdog's thread.
        """
        self._registrations = registrations
        self._on_block = on_block
        self._isolate = isolate
        self._threshold = threshold
        self._interval = interval
        self._offences = offences
        self._stuck_after = stuck_after
        self._clock = clock
        self._counts: Counter[int] = Counter()
        self._beat = threading.Event()
        self._sent = 0.0
        self._stopping = False
        self._files: frozenset[str] = frozenset()
        self._culprit = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = 0
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch ``loop``, which runs on the calling thread."""
        self._loop = loop
        self._watched = threading.get_ident()
        self._beat.set()
        thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self) -> None:
        """Watch no more; fine twice and before ``start``."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def stuck(self) -> str:
        """Say what is wrong when the loop has not answered for ``stuck_after``; else nothing.

        From any thread: it is what ``/livez`` asks.
        """
        if self._thread is None or self._beat.is_set():
            return ""
        late = self._clock() - self._sent
        if late < self._stuck_after:
            return ""
        culprit = self._culprit or "no connector's code is on its stack"
        return f"the event loop has not answered for {late:.0f} s: {culprit}"

    # --- the watchdog's thread -----------------------------------------------------------------

    def _watch(self) -> None:
        assert self._loop is not None  # noqa: S101 - set by start
        due = float("-inf")
        while not self._stopping:
            time.sleep(self._interval)
            now = self._clock()
            if now < due and not self._suspicious():
                continue
            if now >= due:  # a beat now and then without cause, for what no connector blocks
                due = now + _HEARTBEAT
                self._files = frozenset(_files(self._registrations))
            self._beat.clear()
            self._sent = now
            try:
                self._loop.call_soon_threadsafe(self._beat.set)
            except RuntimeError:  # the loop has closed
                self._beat.set()
                return
            if not self._beat.wait(self._threshold / 2):
                try:
                    self._late()
                except Exception:  # noqa: BLE001 - a look at a stack must not end the watch
                    _log.warning("the watchdog failed", exc_info=True)

    def _suspicious(self) -> bool:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001 - the way there is
        return any(one.f_code.co_filename in self._files for one in _outwards(frame))

    def _late(self) -> None:
        """Look for who holds the loop, until it beats again."""
        held: list[tuple[_Culprit, str]] = []
        before: _Culprit | None = None
        while True:
            found = self._look()
            # A beat is late for many short calls, too. One frame that is there at two looks, half
            # a threshold apart, has held the loop from the one to the other.
            same = before is not None and found is not None and found.frame is before.frame
            late = self._clock() - self._sent
            new = found is not None and all(one.frame is not found.frame for one, _ in held)
            if found is not None and same and new and late >= self._threshold:
                held.append((found, self._name(found)))
                self._tell(found, held[-1][1])
            before = found
            if self._beat.wait(self._threshold / 2) or self._stopping:
                break
        seconds = self._clock() - self._sent
        self._culprit = ""
        for culprit, line in held:
            self._ended(culprit, line, seconds / len(held))

    def _tell(self, culprit: _Culprit, line: str) -> None:
        registration = culprit.registration
        name, task_type = registration.connector.name, registration.category.name
        self._culprit = f"{name} (task type {task_type}) blocks it in {culprit.operation} at {line}"
        stack = traceback.StackSummary.extract(_inwards(culprit), lookup_lines=True)
        _log.warning(
            "a connector blocks the event loop",
            extra={
                "connector": name,
                "task_type": task_type,
                "operation": culprit.operation,
                "line": line,
                "stack": "".join(stack.format()[-_STACK:]).rstrip(),
                "hint": "make the method a plain def, which runs on a thread, or await",
            },
        )

    def _ended(self, culprit: _Culprit, line: str, seconds: float) -> None:
        registration, operation = culprit.registration, culprit.operation
        connector = registration.connector
        _log.info(
            "the event loop is free again",
            extra={
                "connector": connector.name,
                "operation": operation,
                "milliseconds": round(seconds * 1000),
            },
        )
        self._on_block(Block(registration.category.name, operation, connector.name, line, seconds))
        self._counts[id(connector)] += 1
        if self._counts[id(connector)] == self._offences:
            self._isolate(connector)
            _log.warning(
                "a connector's coroutines run on a loop of their own from now on",
                extra={
                    "connector": connector.name,
                    "task_type": registration.category.name,
                    "offences": self._offences,
                    "hint": "what it bound to the common loop may refuse to work there",
                },
            )

    # --- reading the stack ---------------------------------------------------------------------

    def _look(self) -> _Culprit | None:
        """Find the innermost connector's operation on the stack of the loop's thread."""
        innermost = sys._current_frames().get(self._watched)  # noqa: SLF001 - as above
        if innermost is None:
            return None
        methods: dict[CodeType, list[tuple[Registration, str]]] = {}
        owners: dict[int, Registration] = {}
        for registration in self._registrations:
            owners[id(registration.connector)] = registration
            for operation, method in registration.methods.items():
                code = getattr(method.function, "__code__", None)
                if code is not None:
                    methods.setdefault(code, []).append((registration, str(operation)))
        background: _Culprit | None = None
        for frame in _outwards(innermost):
            owner = owners.get(id(_first_argument(frame)))
            for running, name in methods.get(frame.f_code, ()):
                # One class can serve several task types: `self` says which one it is.
                if owner is None or running is owner:
                    return _Culprit(running, name, frame, innermost)
            if owner is not None:
                background = _Culprit(owner, _BACKGROUND, frame, innermost)
        return background

    def _name(self, culprit: _Culprit) -> str:
        """Return file, line and function of the connector's own innermost frame."""
        own = culprit.frame.f_code.co_filename
        frames = _outwards(culprit.innermost)
        frame = next((one for one in frames if one.f_code.co_filename == own), culprit.frame)
        return f"{own}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _inwards(culprit: _Culprit) -> Iterator[tuple[FrameType, int]]:
    frames = []
    for frame in _outwards(culprit.innermost):
        frames.append((frame, frame.f_lineno))
        if frame is culprit.frame:
            break
    return reversed(frames)


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _files(registrations: Iterable[Registration]) -> Iterator[str]:
    """Yield the source files of connectors: their methods', and their classes'."""
    for registration in registrations:
        for method in registration.methods.values():
            code = getattr(method.function, "__code__", None)
            if code is not None:
                yield code.co_filename
        for base in type(registration.connector).__mro__:
            file = getattr(sys.modules.get(base.__module__), "__file__", None)
            if file and base.__module__ != ConnectorBase.__module__:
                yield file
