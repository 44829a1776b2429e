"""Encode and decode with the real flyte 2: one JSON request a line in, one answer a line out."""

import asyncio
import sys

import flyte
import flyte.io
import vocabulary
from answering import answer, serve
from flyte.types import TypeEngine
from flyteidl2.core import literals_pb2, types_pb2

loop = asyncio.new_event_loop()

NAMES = {
    **vars(vocabulary),
    "File": flyte.io.File,
    "Directory": flyte.io.Dir,
    "Dataset": flyte.io.DataFrame,
    "file": flyte.io.File.from_existing_remote,
    "directory": flyte.io.Dir.from_existing_remote,
    "dataset": lambda uri, kind: flyte.io.DataFrame.from_existing_remote(uri, format=kind),
}


def encode(kind: object, value: object) -> tuple[bytes, bytes]:
    literal_type = TypeEngine.to_literal_type(kind)
    literal = loop.run_until_complete(TypeEngine.to_literal(value, kind, literal_type))
    return literal.SerializeToString(), literal_type.SerializeToString()


def decode(kind: object, data: bytes) -> object:
    literal = literals_pb2.Literal.FromString(data)
    return loop.run_until_complete(TypeEngine.to_python_value(literal, kind))


def guess(data: bytes) -> object:
    return TypeEngine.guess_python_type(types_pb2.LiteralType.FromString(data))


def comparable(value: object) -> object:
    if isinstance(value, (flyte.io.File, flyte.io.Dir)):
        return [type(value).__name__, value.path]
    if isinstance(value, flyte.io.DataFrame):
        return [value.uri, value.format]
    return value


if __name__ == "__main__":
    serve(lambda request: answer(request, sys.modules[__name__]), flyte.__version__)
