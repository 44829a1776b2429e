"""A job's state, redrawn in place on a terminal; imported only where rich is installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

__all__ = ["LiveView"]

_PER_SECOND = 5
_LONGEST = 500  # characters of a message; the whole of it is printed at the end


class LiveView:
    """Title, phase, time, message and links of one job, on standard error."""

    def __init__(self, title: str, clock: Callable[[], str]) -> None:
        """Take what the job is called, and who tells how long it has run."""
        self._title = title
        self._clock = clock
        self._phase = ""
        self._message = ""
        self._links: Sequence[tuple[str, str]] = ()
        self._spinner = Spinner("dots")
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            # What a connector prints is not progress: it goes where it was sent.
            redirect_stdout=sys.stdout.isatty(),
        )

    @property
    def can_move(self) -> bool:
        """Whether the terminal can redraw, also by rich's own settings, as TTY_COMPATIBLE."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def start(self) -> None:
        """Draw, and redraw until ``stop``."""
        self._live.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def update(self, phase: str, message: str, links: Sequence[tuple[str, str]]) -> None:
        """Show another state from the next drawing on; every text is printable."""
        self._phase, self._message, self._links = phase, message, links

    def print(self, line: str) -> None:
        """Print a line above."""
        self._console.print(Text(line))

    def _render(self) -> RenderableType:
        head = Text.assemble(
            (self._title, "bold"), "  ", (self._phase, "cyan"), f"  {self._clock().strip()}"
        )
        self._spinner.update(text=head)
        rows: list[RenderableType] = [self._spinner]
        if self._message:
            rows.append(Text(f"  {self._message[:_LONGEST]}", overflow="ellipsis"))
        rows += [
            Text.assemble(f"  {name}: ", (uri, f"link {uri}" if _is_web(uri) else ""))
            for name, uri in self._links
        ]
        return Group(*rows)


def _is_web(uri: str) -> bool:
    return uri.startswith(("https://", "http://")) and " " not in uri
