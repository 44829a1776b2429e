"""Show a job while it runs: live on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from flyteidl.core.execution_pb2 import TaskExecution
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

if TYPE_CHECKING:
    from flyteidl.admin.agent_pb2 import Resource
    from rich.console import RenderableType

__all__ = ["Display", "phase_name"]

_STYLES = {"SUCCEEDED": "green", "FAILED": "red", "ABORTED": "red", "RETRYABLE_FAILED": "red"}
_PER_SECOND = 5
_LONGEST_LIVE = 500  # characters of a message; the whole of it is printed at the end


def phase_name(phase: int) -> str:
    """Name a phase; a later Flyte may send one that this flyteidl has no name for."""
    try:
        name: str = TaskExecution.Phase.Name(phase)
        return name
    except ValueError:
        return f"phase {phase}"


class Display:
    """One job's phase, message, time and log links; a context manager around the job."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        """Take what the job is called, and where to show it."""
        self._title = _printable(title)
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._phase = "creating"
        self._message = ""
        self._links: tuple[tuple[str, str], ...] = ()
        self._said: tuple[str, str] | None = None
        self._linked: tuple[tuple[str, str], ...] = ()
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._closing = threading.Lock()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_PER_SECOND,
                transient=True,
                # What a connector prints is not progress: it goes where it was sent.
                redirect_stdout=sys.stdout.isatty(),
            )
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
                    self._print_state()

    def show(self, resource: Resource) -> None:
        """Show what was just heard of the job; plain lines appear only when something changed."""
        state = phase_name(resource.phase), _printable(resource.message)
        links = tuple((_printable(link.name), _printable(link.uri)) for link in resource.log_links)
        self._phase, self._message = state
        self._links = links or self._links
        changed = state != self._said or self._links != self._linked
        self._said = state
        if self._live is None and changed:
            self._print_state()

    def say(self, sentence: str) -> None:
        """Print a line of our own, above the live display when there is one."""
        self._print(Text(f"{self._clock()} {_printable(sentence)}"))

    def _print_state(self) -> None:
        line = self._phase + (f": {self._message}" if self._message else "")
        self._print(Text.assemble(f"{self._clock()} ", (line, _STYLES.get(self._phase, ""))))
        if self._links != self._linked:
            self._linked = self._links
            for name, uri in self._links:
                self._print(Text(f"  {name}: {uri}"))

    def _print(self, text: Text) -> None:
        with contextlib.suppress(OSError):  # nobody listens: the job goes on
            self._console.print(text)

    def _render(self) -> RenderableType:
        head = Text.assemble(
            (self._title, "bold"), "  ", (self._phase, "cyan"), f"  {self._clock().strip()}"
        )
        self._spinner.update(text=head)
        rows: list[RenderableType] = [self._spinner]
        if self._message:
            rows.append(Text(f"  {self._message[:_LONGEST_LIVE]}", overflow="ellipsis"))
        rows += [
            Text.assemble(f"  {name}: ", (uri, f"link {uri}" if _is_web(uri) else ""))
            for name, uri in self._links
        ]
        return Group(*rows)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:6.1f}s"


def _is_web(uri: str) -> bool:
    return uri.startswith(("https://", "http://")) and " " not in uri


def _printable(text: str) -> str:
    """Keep what a backend wrote from steering the terminal, and on one line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
