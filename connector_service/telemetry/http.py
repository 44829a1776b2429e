"""Metrics, liveness and readiness over HTTP, on threads of their own.

Nothing here touches the event loop, so a connector that blocks it blocks no scrape.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from connector_service.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

__all__ = ["HttpServer"]

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class HttpServer:
    """Serves /metrics, /livez and /readyz until it is closed."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        *,
        stuck: Callable[[], str] = str,
        troubles: Callable[[], str] = str,
    ) -> None:
        """Bind at once, so that a busy port is known before anything else starts.

        ``stuck`` says what keeps the service from ever answering again; nothing is fine.
        ``troubles`` says what an operator should look at while the service answers.

        Raises:
            StartupError: The port is taken or the address is not this machine's.
        """
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # noqa: S104 - what :: means where the kernel has no IPv6
        self._metrics = make_wsgi_app(registry)
        self._ready = ready
        self._stuck = stuck
        self._troubles = troubles
        try:
            self._server = make_server(
                host, port, self._answer, server_class=_server_class(host), handler_class=_Handler
            )
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {host}:{port} for metrics: {error.strerror}; choose another with"
                f" --prometheus-port or --host, or --prometheus-port 0 for a free one."
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-http", daemon=True
        )

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port; fine twice and before ``start``."""
        if self._thread.is_alive():
            # Wakes the thread now; by itself it looks every half second whether to stop.
            with contextlib.suppress(OSError):  # not every platform can
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            body: Iterable[bytes] = self._metrics(environ, start_response)
            return body
        status, text = HTTPStatus.NOT_FOUND, "Try /metrics, /livez or /readyz."
        if path == "/livez":
            wrong = self._stuck()
            status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
            text = f"stuck: {wrong}" if wrong else "alive"
        elif path == "/readyz":
            ready = self._ready()
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            text = "ready" if ready else "not ready: starting or draining"
            # Still ready: one host's trouble must not take the others out of the balance.
            if wrong := self._troubles():
                text = f"{text}; {wrong}"
        # A list of its own: wsgiref adds the answer's length to it.
        start_response(f"{status.value} {status.phrase}", [_TEXT])
        return [text.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # SO_REUSEADDR is for restarts; it does not let two servers share a listening port.
    allow_reuse_address = True
    request_queue_size = 128  # of five, a burst of probes loses its sixth for seconds

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse look-up of its own name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds a client may dawdle over its request before its thread is freed

    def log_message(self, *_args: object) -> None:
        """Stay silent: a probe every few seconds is no news."""


def _server_class(host: str) -> type[WSGIServer]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return type("_BoundServer", (_Server,), {"address_family": family})
