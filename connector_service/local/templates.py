"""Render the templates in a container's arguments, as Flyte does before it calls a connector.

The names are those of Flyte's ``template.go`` (in any case, after ``.`` or ``$``) and those that
Flyte 2's SDK adds. What is rendered is not rendered again, and an unknown name stays as it is.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flyteidl.core.literals_pb2 import Literal, LiteralMap, Primitive, Scalar

__all__ = ["Execution", "mentions", "render"]

_TEMPLATE = re.compile(r"\{\{\s*[.$](?:inputs\.(?P<input>[^}\s]+)|(?P<name>\w+))\s*\}\}", re.I)
_MSGPACK = "msgpack"
# Go's %v writes a float without an exponent from 1e-4 up to here; Python's repr stops at 1e16.
_GO_EXPONENT = 1e21


@dataclass(frozen=True)
class Execution:
    """One attempt at one task: where its files are, and what it is called.

    The paths below ``output_prefix`` are those of flytekit's own local execution.
    """

    output_prefix: str
    run_name: str = "local"
    action_name: str = "a0"
    attempt: int = 0
    namespace: str = "local"
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    @property
    def inputs(self) -> str:
        """Where the inputs are."""
        return self.below("inputs.pb")

    @property
    def outputs(self) -> str:
        """Where a job writes the outputs that it does not return."""
        return self.below("outputs.pb")

    @property
    def task_template(self) -> str:
        """Where the template is, for jobs that ask for it."""
        return self.below("task.pb")

    def below(self, name: str) -> str:
        """Return a path under the output prefix."""
        return f"{self.output_prefix.rstrip('/')}/{name}"


def mentions(arguments: Iterable[str], *names: str) -> bool:
    """Tell whether any argument has a template of one of these names."""
    wanted = {name.lower() for name in names}
    return any(
        (found["name"] or "").lower() in wanted
        for argument in arguments
        for found in _TEMPLATE.finditer(argument)
    )


def render(arguments: Iterable[str], execution: Execution, inputs: LiteralMap) -> list[str]:
    """Return the arguments with every template of a known name replaced.

    Raises:
        InvalidInputError: An argument asks for an input that there is not, or for one that has no
            text, such as a table.
    """

    def replace(found: re.Match[str]) -> str:
        if found["input"] is not None:
            return _input(found["input"], inputs)
        value = _VALUES.get(found["name"].lower())
        return found[0] if value is None else value(execution)

    return [_TEMPLATE.sub(replace, argument) for argument in arguments]


def _unique_key(execution: Execution) -> str:
    """Name the attempt so that it fits an identifier, as Flyte does."""
    name = f"{execution.run_name}-{execution.action_name}-{execution.attempt}"
    return re.sub(r"[^a-zA-Z0-9_]+", "_", re.sub(r"^[^a-zA-Z_]+", "a", name))


_VALUES: Mapping[str, Callable[[Execution], str]] = {
    "input": lambda execution: execution.inputs,
    "inputprefix": lambda execution: execution.output_prefix,
    "outputprefix": lambda execution: execution.output_prefix,
    "rawoutputdataprefix": lambda execution: execution.below("raw_output"),
    "checkpointoutputprefix": lambda execution: execution.below("checkpoint_output"),
    # A first attempt has nothing before it, which Flyte writes as two quotes.
    "prevcheckpointprefix": lambda _execution: '""',
    "perretryuniquekey": _unique_key,
    "tasktemplatepath": lambda execution: execution.task_template,
    "namespace": lambda execution: execution.namespace,
    "runname": lambda execution: execution.run_name,
    "actionname": lambda execution: execution.action_name,
    "runstarttime": lambda execution: execution.started_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
}


def _input(name: str, inputs: LiteralMap) -> str:
    if name not in inputs.literals:
        known = ", ".join(sorted(inputs.literals)) or "none"
        raise InvalidInputError(
            f"An argument of the container asks for inputs.{name}; the task's inputs: {known}."
        )
    try:
        return _literal(inputs.literals[name])
    except _NoTextError as error:
        raise InvalidInputError(
            f"An argument of the container asks for inputs.{name}, and {error} has no text there."
        ) from None


class _NoTextError(Exception):
    """A literal that Flyte cannot put into an argument."""


def _literal(literal: Literal) -> str:
    arm = literal.WhichOneof("value")
    if arm == "collection":
        return f"[{','.join(_literal(item) for item in literal.collection.literals)}]"
    if arm == "scalar":
        return _scalar(literal.scalar)
    raise _NoTextError(f"a {arm or 'missing value'}")


def _scalar(scalar: Scalar) -> str:
    arm = scalar.WhichOneof("value")
    if arm == "primitive":
        return _primitive(scalar.primitive)
    if arm in ("blob", "schema"):
        uri: str = getattr(scalar, arm).uri
        return uri
    if arm == "binary" and scalar.binary.tag == _MSGPACK:
        try:
            return _go(msgspec.msgpack.decode(scalar.binary.value))
        except (msgspec.DecodeError, UnicodeError):
            raise _NoTextError("malformed MessagePack") from None
    raise _NoTextError(f"a {str(arm).replace('_', ' ')}")


def _primitive(primitive: Primitive) -> str:
    arm = primitive.WhichOneof("value")
    if arm == "datetime":
        text = primitive.datetime.ToJsonString()  # RFC 3339, with 0, 3, 6 or 9 digits of a second
        return re.sub(r"(\.\d*?)0+Z$", r"\1Z", text).replace(".Z", "Z")
    if arm == "duration":
        parts = (("seconds", primitive.duration.seconds), ("nanos", primitive.duration.nanos))
        return " ".join(f"{name}:{number}" for name, number in parts if number)
    if arm is None:
        raise _NoTextError("a missing value")
    return _go(getattr(primitive, arm))


def _go(value: Any) -> str:
    """Write a value as Go's %v does, for whoever reads the argument reads Flyte's."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _go_float(value)
    if isinstance(value, dict):
        pairs = sorted((_go(key), _go(item)) for key, item in value.items())
        return f"map[{' '.join(f'{key}:{item}' for key, item in pairs)}]"
    if isinstance(value, list | tuple | bytes):
        return f"[{' '.join(_go(item) for item in value)}]"
    return str(value)


def _go_float(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value).removesuffix(".0")
    return f"{Decimal(text):f}" if "e+" in text and abs(value) < _GO_EXPONENT else text
