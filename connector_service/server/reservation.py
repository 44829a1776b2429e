"""The gRPC port that workers share, held by their supervisor so that nobody else takes it."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from connector_service.errors import StartupError

if TYPE_CHECKING:
    from connector_service.config import Listen

__all__ = ["Reservation"]

_TRIES = 16  # for a port that is free on every address of a name, as localhost's two


class Reservation:
    """Sockets that are bound and never listen: the kernel gives them no connection."""

    def __init__(self, settings: Listen) -> None:
        """Bind every address of the host; port 0 becomes a free one.

        Raises:
            StartupError: The port is taken or the address is not this machine's.
        """
        self._sockets: list[socket.socket] = []
        for left in reversed(range(_TRIES)):
            try:
                self.port = self._bind(settings.host, settings.port)
                return
            except OSError:
                self.close()
                if settings.port or not left:
                    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
                    raise StartupError(
                        f"Cannot listen on {shown}:{settings.port}: the port is taken or the"
                        f" address is not this machine's; choose another with --port or --host, or"
                        f" --port 0 for a free one."
                    ) from None

    def close(self) -> None:
        """Give the port up; fine twice."""
        while self._sockets:
            self._sockets.pop().close()

    def _bind(self, host: str, port: int) -> int:
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # noqa: S104 - what :: means where the kernel has no IPv6
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            made = socket.socket(family, socket.SOCK_STREAM)
            self._sockets.append(made)
            if family == socket.AF_INET6:
                with contextlib.suppress(OSError):
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            # As a plain server binds, so that whoever is there already refuses us, though that
            # were another supervisor; connections that a former server closed do not.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address[0], port, *address[2:]))
            # From now on workers may share it, and a plain server may not.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = made.getsockname()[1]
        return port
