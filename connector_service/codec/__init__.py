"""Layer 1: Flyte's literals and literal types <-> Python values."""

from connector_service.codec.literals import (
    from_literal_map,
    to_literal,
    to_literal_map,
    to_literal_type,
    to_python,
)
from connector_service.codec.values import (
    Blob,
    CodecError,
    LiteralError,
    Schema,
    StructuredDataset,
)

__all__ = [
    "Blob",
    "CodecError",
    "LiteralError",
    "Schema",
    "StructuredDataset",
    "from_literal_map",
    "to_literal",
    "to_literal_map",
    "to_literal_type",
    "to_python",
]
