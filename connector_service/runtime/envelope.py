"""A resource meta that holds its job's end, for jobs that have ended when they are created.

The client keeps the bytes and sends them with every GetTask, so any replica can answer. They are
a magic prefix, which no connector's JSON begins with, and the bytes of a ``Resource``, which both
protocols parse alike. ``protos/README.md`` has the format for other readers.
"""

from __future__ import annotations

from typing import Any

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from google.protobuf.message import DecodeError, Message

from connector_service.codec.convert import MESSAGES
from connector_service.errors import InvalidMetaError

__all__ = ["LARGEST", "MAGIC", "holds", "open_as", "seal"]

MAGIC = b"\x00connector-service/1\x00"
# The meta lives in the workflow's custom resource, next to everything else etcd stores for it.
LARGEST = 64 * 1024  # bytes


def holds(resource_meta: bytes) -> bool:
    """Tell whether a resource meta is an envelope."""
    return resource_meta.startswith(MAGIC)


def seal(resource: Message) -> bytes:
    """Make the resource meta of a job that ended as ``resource`` says.

    A result over ``LARGEST`` becomes a failure that says so, since the client could not keep it.
    """
    data = resource.SerializeToString()
    if len(data) > LARGEST:
        data = agent_pb2.Resource(
            phase=TaskExecution.FAILED,
            message=(
                f"The result has {len(data)} bytes, and what rides in a resource meta has at most"
                f" {LARGEST}: write large outputs under the output prefix."
            ),
        ).SerializeToString()
    return MAGIC + data


def open_as(protocol: str, resource_meta: bytes) -> Any:
    """Return the ``Resource`` in an envelope, as a message of ``protocol``.

    Raises:
        InvalidMetaError: What follows the prefix is no Resource.
    """
    try:
        return MESSAGES[protocol].resource.FromString(resource_meta.removeprefix(MAGIC))
    except DecodeError:
        raise InvalidMetaError("The resource meta is a damaged envelope.") from None
