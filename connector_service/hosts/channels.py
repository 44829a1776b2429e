"""The gRPC channels to hosts: their limits, their connections, and TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from connector_service.errors import ConfigError

if TYPE_CHECKING:
    from connector_service.config import HostSection

__all__ = ["CHILD_OPTIONS", "REMOTE_OPTIONS", "open_remote"]

Options = tuple[tuple[str, str | int], ...]

_LIMITS: Options = (
    # The front has limits of its own; what passed them shall pass here.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # An error's description, or upstream's traceback, does not fit gRPC's 8 KiB.
    ("grpc.max_metadata_size", 128 * 1024),
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    # A channel opened anew connects anew, instead of sharing the connection of the one before.
    ("grpc.use_local_subchannel_pool", 1),
    # Nobody but us decides what is tried again: no retries by a name server's TXT record.
    ("grpc.service_config_disable_resolution", 1),
)
_BACKOFF: Options = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
CHILD_OPTIONS: Options = (*_LIMITS, *_BACKOFF, ("grpc.enable_http_proxy", 0))
REMOTE_OPTIONS: Options = (
    *_LIMITS,
    *_BACKOFF,
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long connecting to one address may take
    # All addresses of a headless Service, and its new ones soon after a replica has gone.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # A peer that is not ours drops whoever pings more than once in 5 minutes. It is the timeout
    # that matters: unacknowledged for so long, a connection that sends (we list every 10 s) ends.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def open_remote(name: str, settings: HostSection) -> grpc.aio.Channel:
    """Open a channel to the endpoint of host ``name``, its TLS files read now.

    Raises:
        ConfigError: A file cannot be read, or is not what it should be.
    """
    if not settings.tls:
        return grpc.aio.insecure_channel(settings.endpoint, options=REMOTE_OPTIONS)
    ca, cert, key = (
        _read(name, field, getattr(settings, field)) for field in ("ca", "cert", "key")
    )
    _check(name, settings)
    options = REMOTE_OPTIONS
    if settings.server_name:
        options = (
            *options,
            ("grpc.ssl_target_name_override", settings.server_name),
            ("grpc.default_authority", settings.server_name),
        )
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.aio.secure_channel(settings.endpoint, credentials, options=options)


def _read(name: str, field: str, file: str) -> bytes | None:
    if not file:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"hosts.{name}.{field}: {file} cannot be read ({error.strerror}); name a file that the"
            f" service may read."
        ) from None


def _check(name: str, settings: HostSection) -> None:
    """Refuse what gRPC would only fail with later, at every connection and in its own words."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.ca:
        try:
            context.load_verify_locations(cafile=settings.ca)
        except (ssl.SSLError, OSError):
            raise ConfigError(
                f"hosts.{name}.ca: {settings.ca} holds no PEM certificate; give the certificate of"
                f" the authority that signed the endpoint's."
            ) from None
    if settings.cert:
        try:
            context.load_cert_chain(settings.cert, settings.key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError):
            raise ConfigError(
                f"hosts.{name}.cert: {settings.cert} and {settings.key} are no PEM certificate and"
                f" its private key, without a password; give a pair that belongs together."
            ) from None


def _no_password() -> str:
    raise ValueError("the key has a password")
