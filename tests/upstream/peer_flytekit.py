"""Encode and decode with the real flytekit: one JSON request a line in, one answer a line out."""

import os
import sys

import flytekit
import vocabulary
from answering import answer, serve
from flyteidl.core import literals_pb2, types_pb2
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import Literal
from flytekit.models.types import LiteralType
from flytekit.types.directory import FlyteDirectory
from flytekit.types.error.error import FlyteError
from flytekit.types.file import FlyteFile
from flytekit.types.structured import StructuredDataset

context = FlyteContextManager.current_context()

NAMES = {
    **vars(vocabulary),
    "File": FlyteFile,
    "CsvFile": FlyteFile["csv"],
    "Directory": FlyteDirectory,
    "Dataset": StructuredDataset,
    "Failure": FlyteError,
    "file": lambda uri, kind="": FlyteFile[kind](uri) if kind else FlyteFile(uri),
    "directory": FlyteDirectory,
    "dataset": lambda uri, kind: StructuredDataset(uri=uri, file_format=kind),
    "failure": lambda message, node: FlyteError(message=message, failed_node_id=node),
}


def encode(kind: object, value: object) -> tuple[bytes, bytes]:
    literal_type = TypeEngine.to_literal_type(kind)
    literal = TypeEngine.to_literal(context, value, kind, literal_type)
    return (
        literal.to_flyte_idl().SerializeToString(),
        literal_type.to_flyte_idl().SerializeToString(),
    )


def encode_old(kind: object, value: object) -> tuple[bytes, bytes]:
    os.environ["FLYTE_USE_OLD_DC_FORMAT"] = "true"
    TypeEngine._LITERAL_CACHE.clear()  # it does not look at the setting
    try:
        return encode(kind, value)
    finally:
        del os.environ["FLYTE_USE_OLD_DC_FORMAT"]
        TypeEngine._LITERAL_CACHE.clear()


def decode(kind: object, data: bytes) -> object:
    literal = Literal.from_flyte_idl(literals_pb2.Literal.FromString(data))
    return TypeEngine.to_python_value(context, literal, kind)


def guess(data: bytes) -> object:
    literal_type = LiteralType.from_flyte_idl(types_pb2.LiteralType.FromString(data))
    return TypeEngine.guess_python_type(literal_type)


def comparable(value: object) -> object:
    if isinstance(value, (FlyteFile, FlyteDirectory)):
        source = getattr(value, "_remote_source", None) or value.path
        return [type(value).extension(), str(source)]
    if isinstance(value, StructuredDataset):
        return [value.uri or value.literal.uri, value.file_format]
    return value


if __name__ == "__main__":
    serve(lambda request: answer(request, sys.modules[__name__]), flytekit.__version__)
