"""``[hosts.<name>]``: connectors in processes of their own, or behind another service."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from connector_service.config.settings import Count, Settings, Wait

__all__ = ["HostSection"]

_SOURCE = re.compile(r"flytekit|flyte|entry-points|module:.+")
_SIZE = re.compile(r"(\d+)\s*(|[KMG]i?B?|B)", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class HostSection(Settings, frozen=True):
    """``[hosts.<name>]``: connectors in processes of their own, or behind another service."""

    sources: Annotated[
        tuple[str, ...],
        Meta(description="What a child process loads: flytekit, flyte, entry-points, module:NAME."),
    ] = ()
    endpoint: Annotated[
        str,
        Meta(description="Another connector service instead: a gRPC target, as dns:///name:port."),
    ] = ""
    python: Annotated[
        str,
        Meta(description="Interpreter of the environment that has them; default: the service's."),
    ] = ""
    enable: Annotated[
        tuple[str, ...],
        Meta(
            description="Offer only these task types (* and ? match). flytekit's own webhook and"
            " sensor are offered only when they match."
        ),
    ] = ()
    disable: Annotated[
        tuple[str, ...], Meta(description="Never offer these task types (* and ? match).")
    ] = ()
    prefer: Annotated[
        tuple[str, ...],
        Meta(description="Task types that this host serves though another offers them too."),
    ] = ()
    env: Annotated[dict[str, str], Meta(description="Variables added to the child's.")] = (
        msgspec.field(default_factory=dict)
    )
    cwd: Annotated[str, Meta(description="The child's working folder.")] = ""
    workers: Annotated[
        int, Meta(ge=1, le=256, description="Processes; calls are spread over them.")
    ] = 1
    concurrency: Annotated[
        Count, Meta(description="Calls of the host, of all its connectors, at a time.")
    ] = 256
    threads: Annotated[
        Count, Meta(description="Plain def calls of one connector at a time, in each process.")
    ] = 32
    memory_limit: Annotated[
        str | int,
        Meta(
            description="Memory at which a process is replaced by a fresh one: bytes, or as 512MiB."
        ),
    ] = 0
    start_timeout: Annotated[
        Wait, Meta(description="Seconds until a process, or the endpoint, must have answered.")
    ] = 60.0
    heartbeat_timeout: Annotated[
        Wait, Meta(description="Seconds of silence after which a process is killed.")
    ] = 10.0
    tls: Annotated[bool, Meta(description="Speak TLS to the endpoint.")] = False
    ca: Annotated[
        str, Meta(description="File of the certificates to trust; default: the system's.")
    ] = ""
    cert: Annotated[str, Meta(description="File of our own certificate, where it asks.")] = ""
    key: Annotated[str, Meta(description="File of its private key.")] = ""
    server_name: Annotated[
        str, Meta(description="Name in the endpoint's certificate, where it is another.")
    ] = ""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; msgspec turns a ValueError into its own."""
        if bool(self.sources) == bool(self.endpoint):
            raise ValueError("give either sources, for a process, or endpoint, for a service")
        for source in self.sources:
            if not _SOURCE.fullmatch(source):
                raise ValueError(
                    f"{source!r} is no source; choose flytekit, flyte, entry-points or module:NAME"
                )
        given = {name for name in self.__struct_fields__ if getattr(self, name)}
        if self.endpoint and (local := sorted(given & {"python", "env", "cwd", "memory_limit"})):
            raise ValueError(f"{local[0]} is for a process, and endpoint names a service")
        if self.sources and (remote := sorted(given & {"tls", "ca", "cert", "key", "server_name"})):
            raise ValueError(f"{remote[0]} is for an endpoint, and sources makes a process")
        if not self.tls and (secure := sorted(given & {"ca", "cert", "key", "server_name"})):
            raise ValueError(f"{secure[0]} needs tls = true")
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int:
        """``memory_limit`` in bytes; 0 is none."""
        match = _SIZE.fullmatch(str(self.memory_limit).strip())
        if match is None:
            raise ValueError(f"memory_limit {self.memory_limit!r} is no size; write it as 512MiB")
        return int(match[1]) * _UNITS[match[2][:1].upper().replace("B", "")]
