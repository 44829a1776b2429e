"""Value types for literals that no Python built-in stands for, and the codec's error.

A ``Blob``, ``StructuredDataset`` or ``Schema`` is a reference: nothing here reads or writes what
its ``uri`` points at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from connector_service.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Blob",
    "CodecError",
    "LiteralError",
    "Schema",
    "StructuredDataset",
    "Trouble",
    "a_type",
    "type_name",
]

_LONGEST_KEY = 60


class CodecError(InvalidInputError):
    """A value has no literal form, or a literal is not what its declared type says.

    The text names the path to the value and the types, never the value: it could be a secret.
    """


@dataclass(frozen=True, slots=True)
class Blob:
    """A file (or, when ``multipart``, a directory of files) at ``uri``.

    ``format`` is Flyte's free word for the content (``csv``); empty means any. The format
    ``PythonPickle`` marks what an SDK pickled: it is passed along and never opened.
    """

    uri: str
    format: str = ""
    multipart: bool = False


@dataclass(frozen=True, slots=True)
class StructuredDataset:
    """A table stored at ``uri``; ``columns`` maps each name to a Python type or ``LiteralType``.

    A declared type's own format and columns win over these, as they do in both SDKs.
    """

    uri: str
    format: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schema:
    """A table of the older schema kind; ``columns`` maps names to words such as ``integer``.

    The words are those of ``SchemaColumnType`` in lower case: integer, float, string, boolean,
    datetime, duration.
    """

    uri: str
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiteralError:
    """What Flyte tells a failure node about the node that failed."""

    message: str
    failed_node_id: str = ""


class Trouble(Exception):  # noqa: N818 - not an error to see: every public function renders it
    """A problem on its way up: each container it leaves adds the step that leads to it.

    Paths cost nothing until something is wrong, which is what keeps the common case cheap.
    """

    def __init__(self, problem: str) -> None:
        """Take the end of the sentence, without the path."""
        super().__init__(problem)
        self.problem = problem
        self._steps: list[str | int] = []

    def under(self, step: object) -> Trouble:
        """Add the index, key or field name that leads to the trouble."""
        if type(step) is int or type(step) is str:
            self._steps.append(step)
        else:
            self._steps.append(f"<{type_name(type(step))}>")
        return self

    def error(self, path: str) -> CodecError:
        """Render the sentence for the public error."""
        rendered = [path]
        for step in reversed(self._steps):
            if isinstance(step, int):
                rendered.append(f"[{step}]")
            elif step.isidentifier():
                rendered.append(f".{step[:_LONGEST_KEY]}")
            else:
                rendered.append(f"[{step[:_LONGEST_KEY]!r}]")
        return CodecError(f"{''.join(rendered)}: {self.problem}.")


def type_name(kind: object) -> str:
    """Name a type for an error: ``set``, ``decimal.Decimal``, ``tuple[int, str]``."""
    if not isinstance(kind, type) or hasattr(kind, "__origin__"):
        return str(kind)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def a_type(kind: object) -> str:
    """Name a type with its article: ``a set``, ``an int``."""
    name = type_name(kind)
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
