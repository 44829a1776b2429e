"""The event loop that serves, and gRPC's own threads: neither interrupts the other for nothing.

Three fifths of what a bare grpc.aio server costs is spent in the kernel: every event of grpc-core
is one byte that a thread of its own writes to a socket, each byte woke the loop anew, and each
thread that woke took the core from the one that worked. ``docs/performance.md`` has the figures.
The service itself serves with it, too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

__all__ = ["drain_wake_ups", "patient_threads"]

_MOST = 4096  # bytes taken at a time; more wake the loop again


class _Woken(socket.socket):
    """grpc's end of the pair of sockets through which its thread wakes the loop.

    grpc reads one byte and then takes all events there are; each further byte would wake the loop
    for nothing. So its one byte is all of them. A byte that comes after that stands for an event
    that it may not have seen, and wakes the loop again.
    """

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        return _recv(self, _MOST, flags)


_recv = socket.socket.recv


def drain_wake_ups(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop take all wake-ups of grpc at once; it is for one that grpc has not met yet."""
    add_reader = loop.add_reader

    def add(fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        if _is_grpc(callback) and type(fd) is socket.socket:
            fd.__class__ = _Woken
        add_reader(fd, callback, *args)

    loop.add_reader = add  # type: ignore[assignment, method-assign]


@contextlib.contextmanager
def patient_threads() -> Iterator[None]:
    """Have threads that begin meanwhile, and those they begin, wait for a core to be free.

    Linux lets no thread of ``SCHED_BATCH`` take the core from one that works, only because it
    woke; it has the same share of the processor otherwise. Where the operator has chosen another
    policy, or the system refuses, nothing changes.
    """
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            raise PermissionError
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or forbidden here
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _is_grpc(callback: Callable[..., Any]) -> bool:
    """Tell whether it is what takes all events of grpc-core, for one byte that it reads before.

    Any other reader may want all its bytes.
    """
    function = callback.func if isinstance(callback, functools.partial) else callback
    return type(getattr(function, "__self__", None)).__name__ == "PollerCompletionQueue"
