"""The gRPC server itself: its options, and where it listens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connector_service.errors import StartupError
from connector_service.hosts.child.connector_host.accepting import make_server

if TYPE_CHECKING:
    import grpc.aio

    from connector_service.config import Listen
    from connector_service.hosts.child.connector_host.accepting import Reader

__all__ = ["listen", "new_server"]

# Calls that have come and that the loop has not taken up yet. grpc-core refuses some of a burst
# from 1,000 on by itself, with CANCELLED: our own limits do not count them, and the caller does not
# learn that it may come again. One that waits costs 16 KB beside its request (grpcio 1.76).
_MOST_PENDING = 16_384


def new_server(settings: Listen, reader: Reader, *, shares_port: bool = False) -> grpc.aio.Server:
    """Make a server for clients that stay for months and for some that vanish.

    ``shares_port`` lets other servers of the same user listen on its port, each of which gets a
    share of the connections.
    """
    limit = settings.max_request_mib * 1024 * 1024
    options = (
        # A second service on the same port would start silently and steal connections.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # From the first on some are refused, from the second on all.
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
        # Flyte 2's executor pings every 30 s; the default policy closes on the fourth.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Flyte 1 never pings: find out ourselves when a peer vanished without a word.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients that keep one connection for life are spread over new replicas; grpc-core
        # adds its own jitter of 10 %. The grace outlasts the longest call.
        ("grpc.max_connection_age_ms", 300_000),
        ("grpc.max_connection_age_grace_ms", 600_000),
    )
    return make_server(options, reader)


def listen(server: grpc.aio.Server, settings: Listen) -> int:
    """Bind the port and return it.

    Raises:
        StartupError: It is taken or the address is not this machine's.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        return server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError:
        raise StartupError(
            f"Cannot listen on {host}:{settings.port}: the port is taken or the address is not this"
            f" machine's; choose another with --port or --host, or --port 0 for a free one."
        ) from None
