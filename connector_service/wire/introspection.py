"""Our own service beside Flyte's: which plugins were loaded, which failed, and why.

The messages are built from a table, because generated code warns as soon as the installed
protobuf is a major version ahead of the generator. ``protos/connector_service/v1`` has the
source, and a test compiles it and compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from connector_service.version import __version__
from connector_service.wire.binding import bind

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc.aio

    from connector_service.plugins.loader import PluginRecord

__all__ = [
    "SERVICE",
    "Introspection",
    "ListPluginsRequest",
    "ListPluginsResponse",
    "add_to_server",
]

_PACKAGE = "connector_service.v1"
_FILE = "connector_service/v1/introspection.proto"
# Message -> fields in the order of their numbers: name, repeated, message type or "" for string.
_MESSAGES: dict[str, tuple[tuple[str, bool, str], ...]] = {
    "ListPluginsRequest": (),
    "ListPluginsResponse": (("plugins", True, "Plugin"), ("version", False, "")),
    "Plugin": (
        ("name", False, ""),
        ("target", False, ""),
        ("distribution", False, ""),
        ("state", False, ""),
        ("task_categories", True, ""),
        ("error", False, ""),
    ),
}


def file_descriptor() -> FileDescriptorProto:
    """Build what the protocol compiler makes of the service's ``.proto``."""
    file = FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        built = file.message_type.add(name=message)
        for number, (name, repeated, kind) in enumerate(fields, start=1):
            field = built.field.add(name=name, number=number, json_name=_camel(name))
            field.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if repeated
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
            if kind:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = FieldDescriptorProto.TYPE_STRING
    file.service.add(name="Introspection").method.add(
        name="ListPlugins",
        input_type=f".{_PACKAGE}.ListPluginsRequest",
        output_type=f".{_PACKAGE}.ListPluginsResponse",
    )
    return file


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(file_descriptor().SerializeToString())
SERVICE = _pool.FindServiceByName(f"{_PACKAGE}.Introspection")
ListPluginsRequest: Any = GetMessageClass(SERVICE.methods_by_name["ListPlugins"].input_type)
ListPluginsResponse: Any = GetMessageClass(SERVICE.methods_by_name["ListPlugins"].output_type)


def add_to_server(server: grpc.aio.Server, records: Iterable[PluginRecord]) -> None:
    """Serve the records of what was loaded; they never change while the service lives."""
    bind(server, SERVICE, Introspection(records))


class Introspection:
    """connector_service.v1.Introspection."""

    def __init__(self, records: Iterable[PluginRecord]) -> None:
        """Take the records and make the answer once."""
        self._answer = ListPluginsResponse(
            version=__version__,
            plugins=[
                {
                    "name": record.name,
                    "target": record.target,
                    "distribution": record.distribution,
                    "state": str(record.state),
                    "task_categories": [category.listed for category in record.categories],
                    "error": record.error,
                }
                for record in records
            ],
        )

    async def ListPlugins(self, _request: Any, _context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Tell what became of every plugin."""
        return self._answer
