"""Our own service beside Flyte's: what was loaded and what failed, hosts, and their reload.

The messages are built from a table, because generated code warns as soon as the installed
protobuf is a major version ahead of the generator. ``protos/connector_service/v1`` has the
source, and a test compiles it and compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from connector_service.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping, Sequence

    from connector_service.hosts.outer import HostState
    from connector_service.plugins.loader import PluginRecord
    from connector_service.wire.binding import Methods

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["METHODS", "SERVICE", "Inside", "Introspection", "add_methods"]

_PACKAGE = "connector_service.v1"
_FILE = "connector_service/v1/introspection.proto"
_RPCS = ("ListPlugins", "ListHosts", "Reload")
_SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}
# Message -> fields in the order of their numbers, each with its type; a list is repeated.
_MESSAGES: Mapping[str, Mapping[str, str | list[str]]] = {
    "ListPluginsRequest": {},
    "ListPluginsResponse": {"plugins": ["Plugin"], "version": "string"},
    "Plugin": {
        "name": "string",
        "target": "string",
        "distribution": "string",
        "state": "string",
        "task_categories": ["string"],
        "error": "string",
        "host": "string",
    },
    "ListHostsRequest": {},
    "ListHostsResponse": {"hosts": ["Host"]},
    "Host": {
        "name": "string",
        "kind": "string",
        "status": "string",
        "where": "string",
        "error": "string",
        "restarts": "uint64",
        "workers": ["Worker"],
        "versions": ["string"],
    },
    "Worker": {
        "index": "uint64",
        "pid": "uint64",
        "status": "string",
        "restarts": "uint64",
        "uptime_seconds": "uint64",
        "rss_bytes": "uint64",
        "calls": "uint64",
    },
    "ReloadRequest": {"host": "string"},
    "ReloadResponse": {"reloaded": ["Reloaded"]},
    "Reloaded": {"host": "string", "error": "string"},
}


class Inside(Protocol):
    """What the service tells of itself; ``server`` is it."""

    def plugins(self) -> Iterable[tuple[str, PluginRecord]]:
        """Yield each host's name, empty for this process, with what became of a plugin there."""

    def hosts(self) -> Sequence[HostState]:
        """Tell how each host is."""

    def reload(self, name: str) -> Awaitable[Mapping[str, str]]:
        """Reload one host, or all; return each one's name with why it was not, or nothing."""


def file_descriptor() -> FileDescriptorProto:
    """Build what the protocol compiler makes of the service's ``.proto``."""
    file = FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        built = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), start=1):
            field = built.field.add(name=name, number=number, json_name=_camel(name))
            if isinstance(kind, list):
                field.label, (plain,) = FieldDescriptorProto.LABEL_REPEATED, kind
            else:
                field.label, plain = FieldDescriptorProto.LABEL_OPTIONAL, kind
            if plain in _SCALARS:
                field.type = _SCALARS[plain]
            else:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{plain}"
    service = file.service.add(name="Introspection")
    for rpc in _RPCS:
        service.method.add(
            name=rpc,
            input_type=f".{_PACKAGE}.{rpc}Request",
            output_type=f".{_PACKAGE}.{rpc}Response",
        )
    return file


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(file_descriptor().SerializeToString())
SERVICE = _pool.FindServiceByName(f"{_PACKAGE}.Introspection")
# RPC -> the classes of its request and of its response.
METHODS: Mapping[str, tuple[Any, Any]] = {
    method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
    for method in SERVICE.methods
}


def add_methods(methods: Methods, inside: Inside) -> None:
    """Put what tells of ``inside`` in ``methods``."""
    methods.add(SERVICE, Introspection(inside))


class Introspection:
    """connector_service.v1.Introspection."""

    def __init__(self, inside: Inside) -> None:
        """Take whom to ask."""
        self._inside = inside

    async def ListPlugins(self, _request: Any, _context: Context) -> Any:
        """Tell what became of every plugin."""
        return METHODS["ListPlugins"][1](
            version=__version__,
            plugins=[
                {
                    "name": record.name,
                    "target": record.target,
                    "distribution": record.distribution,
                    "state": str(record.state),
                    "task_categories": [category.listed for category in record.categories],
                    "error": record.error,
                    "host": host,
                }
                for host, record in self._inside.plugins()
            ],
        )

    async def ListHosts(self, _request: Any, _context: Context) -> Any:
        """Tell how every host is."""
        return METHODS["ListHosts"][1](
            hosts=[
                {
                    "name": host.name,
                    "kind": str(host.kind),
                    "status": str(host.status),
                    "where": host.where,
                    "error": host.error,
                    "restarts": host.restarts,
                    "versions": [f"{name} {number}" for name, number in host.versions.items()],
                    "workers": [
                        {
                            "index": worker.index,
                            "pid": worker.pid or 0,
                            "status": str(worker.status),
                            "restarts": worker.restarts,
                            "uptime_seconds": int(worker.uptime_seconds),
                            "rss_bytes": worker.rss_bytes,
                            "calls": worker.calls,
                        }
                        for worker in host.workers
                    ],
                }
                for host in self._inside.hosts()
            ]
        )

    async def Reload(self, request: Any, context: Context) -> Any:
        """Reload hosts, for whoever may open our unix socket."""
        if not context.peer().startswith("unix:"):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "Reload is answered on the service's unix socket alone: run connector-service"
                " reload on its machine, as its user.",
            )
        reloaded = await self._inside.reload(request.host)
        return METHODS["Reload"][1](
            reloaded=[{"host": host, "error": error} for host, error in reloaded.items()]
        )
