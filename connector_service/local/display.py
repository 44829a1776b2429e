"""Show a job while it runs: live on a terminal that rich can draw on, else plain lines."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

import click
from flyteidl.core.execution_pb2 import TaskExecution

if TYPE_CHECKING:
    from collections.abc import Callable

    from flyteidl.admin.agent_pb2 import Resource

    from connector_service.local.live import LiveView

__all__ = ["Display", "phase_name"]

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "ABORTED": "red", "RETRYABLE_FAILED": "red"}


def phase_name(phase: int) -> str:
    """Name a phase; a later Flyte may send one that this flyteidl has no name for."""
    try:
        name: str = TaskExecution.Phase.Name(phase)
        return name
    except ValueError:
        return f"phase {phase}"


class Display:
    """One job's phase, message, time and log links, on standard error; a context manager."""

    def __init__(self, title: str) -> None:
        """Take what the job is called."""
        self._title = _printable(title)
        self._started = time.monotonic()
        self._links: tuple[tuple[str, str], ...] = ()
        self._said: tuple[str, str] | None = None
        self._linked: tuple[tuple[str, str], ...] = ()
        self._live: LiveView | None = None
        self._closing = threading.Lock()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._live = _open_live(self._title, self._clock) if _on_terminal() else None
        if self._live is not None:
            self._live.update("creating", "", ())
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, with the job's last state; from any thread, fine twice."""
        with self._closing:
            live, self._live = self._live, None
            if live is not None:
                with contextlib.suppress(OSError):  # the terminal has gone
                    live.stop()
                if self._said is not None:
                    self._print_state(*self._said)

    def show(self, resource: Resource) -> None:
        """Show what was just heard of the job; plain lines appear only when something changed."""
        state = phase_name(resource.phase), _printable(resource.message)
        links = tuple((_printable(link.name), _printable(link.uri)) for link in resource.log_links)
        self._links = links or self._links
        changed = state != self._said or self._links != self._linked
        self._said = state
        if (live := self._live) is not None:
            live.update(*state, self._links)
        elif changed:
            self._print_state(*state)

    def say(self, sentence: str) -> None:
        """Print a line of our own, above the live display when there is one."""
        line = f"{self._clock()} {_printable(sentence)}"
        if (live := self._live) is None:
            _print(line)
        else:
            with contextlib.suppress(OSError):
                live.print(line)

    def _print_state(self, phase: str, message: str) -> None:
        state = f"{phase}: {message}" if message else phase
        if phase in _COLOURS and _on_terminal() and not os.environ.get("NO_COLOR"):
            state = click.style(state, fg=_COLOURS[phase])
        _print(f"{self._clock()} {state}")
        if self._links != self._linked:
            self._linked = self._links
            for name, uri in self._links:
                _print(f"  {name}: {uri}")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:6.1f}s"


def _open_live(title: str, clock: Callable[[], str]) -> LiveView | None:
    try:
        # Only here: rich is an extra, and slow to import.
        from connector_service.local.live import LiveView  # noqa: PLC0415
    except ImportError:
        return None
    view = LiveView(title, clock)
    return view if view.can_move else None


def _on_terminal() -> bool:
    """Tell whether standard error is a terminal that understands colours."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # there is none, or it was closed
        return False


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens: the job goes on
        click.echo(line, err=True)


def _printable(text: str) -> str:
    """Keep what a backend wrote from steering the terminal, and on one line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
