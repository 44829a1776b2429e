"""What a job is called, what identifies it, and what is known of it.

Names, signatures and bytes are those of flytekit's ``base_connector``, so that a connector and
its jobs in flight move here by changing one import.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, get_type_hints

import msgspec
from flyteidl.core.execution_pb2 import TaskExecution, TaskLog
from google.protobuf import json_format
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from connector_service.codec.convert import MESSAGES, FlyteProtocol, reread
from connector_service.codec.literals import fill
from connector_service.errors import AuthorError, InvalidMetaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flyteidl.admin import agent_pb2
    from flyteidl.core.interface_pb2 import Variable
    from flyteidl.core.literals_pb2 import LiteralMap
    from google.protobuf.descriptor import EnumDescriptor

__all__ = [
    "Phase",
    "Resource",
    "ResourceMeta",
    "TaskCategory",
    "convert_to_flyte_phase",
    "is_terminal_phase",
    "quick_decode",
]

if TYPE_CHECKING:
    Phase: TypeAlias = TaskExecution.Phase
else:

    class _Phases(EnumTypeWrapper):
        """protobuf's enum, which by itself looks a name up in Python at every use."""

        def __init__(self, descriptor: EnumDescriptor) -> None:
            super().__init__(descriptor)
            self.__dict__.update(self.items())

    Phase = _Phases(TaskExecution.Phase.DESCRIPTOR)

_TERMINAL = frozenset(
    (
        TaskExecution.SUCCEEDED,
        TaskExecution.FAILED,
        TaskExecution.ABORTED,
        TaskExecution.RETRYABLE_FAILED,
    )
)

_PHASE_OF_STATE: dict[str, Phase] = {
    "failed": TaskExecution.FAILED,
    "timeout": TaskExecution.FAILED,
    "timedout": TaskExecution.FAILED,
    "canceled": TaskExecution.FAILED,
    "cancelled": TaskExecution.FAILED,
    "skipped": TaskExecution.FAILED,
    "internal_error": TaskExecution.RETRYABLE_FAILED,
    "done": TaskExecution.SUCCEEDED,
    "succeeded": TaskExecution.SUCCEEDED,
    "success": TaskExecution.SUCCEEDED,
    "completed": TaskExecution.SUCCEEDED,
    "running": TaskExecution.RUNNING,
    "terminating": TaskExecution.RUNNING,
    "pending": TaskExecution.INITIALIZING,
}


# What json.dumps writes a text with.
_quoted = json.encoder.encode_basestring_ascii


class TaskCategory(NamedTuple):
    """A task type and its version: the key under which a connector is found."""

    name: str
    version: int = 0

    def __str__(self) -> str:
        return f"{self.name}_v{self.version}"

    @property
    def spoken(self) -> str:
        """The category in a sentence: ``'spark' version 1``."""
        return f"{self.name!r} version {self.version}"

    @property
    def listed(self) -> str:
        """The category in a list: ``spark v1``."""
        return f"{self.name} v{self.version}"


@dataclass
class ResourceMeta:
    """The bytes that identify a remote job; subclass it as a dataclass.

    The client keeps these bytes in its own state and logs them, so no secret belongs here.
    """

    def encode(self) -> bytes:
        """Encode as the JSON object that flytekit writes, byte for byte."""
        parts: list[str] = []
        for before, name in _before(type(self)):  # type: ignore[arg-type] # a class is hashable
            value = getattr(self, name)
            if type(value) is str:
                parts += before, _quoted(value)
            elif type(value) is int:
                parts += before, str(value)
            else:
                return json.dumps(dataclasses.asdict(self)).encode("utf-8")
        return f"{{{''.join(parts)}}}".encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode ``encode``'s bytes, of this release, an older or a newer one, or flytekit's.

        Unknown fields are ignored and missing ones take their default, so neither an upgrade
        nor a roll-back strands a job.

        Raises:
            InvalidMetaError: The bytes are no JSON object, lack a field without a default, or
                hold a value of the wrong type.
        """
        try:
            decoded: Self = _decoder(cls)(data)  # type: ignore[arg-type] # a class is hashable
            return decoded
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidMetaError(
                f"The resource meta is not a {cls.__name__}: {_without_value(_first_line(error))}."
            ) from None


@dataclass
class Resource:
    """What is known of a job: its phase and, once it ended, its outputs.

    ``outputs`` None leaves the outputs unset, so the client reads
    ``<output_prefix>/outputs.pb``; an empty dict is set and empty, and the client writes that.
    """

    phase: Phase
    message: str | None = None
    log_links: Sequence[TaskLog] | None = None
    outputs: LiteralMap | Mapping[str, Any] | None = None
    custom_info: Mapping[str, Any] | None = None

    def to_flyte_idl(
        self, output_variables: Mapping[str, Variable] | None = None
    ) -> agent_pb2.Resource:
        """Build the Flyte 1 message; as ``to_message``."""
        message: agent_pb2.Resource = self.to_message(FlyteProtocol.FLYTE1, output_variables)
        return message

    def to_message(
        self, protocol: str, output_variables: Mapping[str, Variable] | None = None
    ) -> Any:
        """Build the message of ``protocol``; ``output_variables`` are the declared ones, if known.

        Raises:
            CodecError: An output has no literal form; the path to the value is named.
            AuthorError: ``custom_info`` is not JSON.
        """
        messages: Any = MESSAGES[protocol]
        made = messages.resource(phase=self.phase, message=self.message)
        outputs = self.outputs
        if isinstance(outputs, Message):
            made.outputs.CopyFrom(reread(outputs, messages.outputs))
        elif outputs is not None:
            fill(made.outputs, outputs, output_variables)
        for link in self.log_links or ():
            made.log_links.append(reread(link, messages.task_log))
        if self.custom_info:
            made.custom_info.CopyFrom(_to_struct(self.custom_info))
        return made

    @classmethod
    def from_flyte_idl(cls, message: agent_pb2.Resource) -> Self:
        """Read the Flyte 1 message back; outputs stay a ``LiteralMap``."""
        return cls(
            phase=message.phase,
            message=message.message,
            log_links=list(message.log_links),
            outputs=message.outputs if message.HasField("outputs") else None,
            custom_info=(
                json_format.MessageToDict(message.custom_info)
                if message.HasField("custom_info")
                else None
            ),
        )


def convert_to_flyte_phase(state: str) -> Phase:
    """Translate a backend's word for a job's state (``done``, ``PENDING``) into a phase.

    Raises:
        ValueError: The word is unknown; as flytekit does.
    """
    try:
        return _PHASE_OF_STATE[state.lower()]
    except KeyError:
        raise ValueError(
            f"Unrecognized state: {state}; known: {', '.join(sorted(_PHASE_OF_STATE))}."
        ) from None


def is_terminal_phase(phase: Phase) -> bool:
    """Tell whether a job in this phase has ended: succeeded, failed, aborted or retryable."""
    return phase in _TERMINAL


def quick_decode(cls: Any) -> Callable[[bytes], Any]:
    """Return what decodes most metas of a class as its ``decode`` does, in fewer steps.

    What it raises says little: ask ``decode`` itself then, which may even succeed.
    """
    decode: Callable[[bytes], Any] = cls.decode
    if getattr(decode, "__func__", None) is not getattr(ResourceMeta.decode, "__func__", None):
        return decode
    typed = _typed(cls)
    return decode if typed is None else typed.decode


@functools.cache
def _typed(cls: type[ResourceMeta]) -> msgspec.json.Decoder[Any] | None:
    """Build msgspec's decoder of one meta class, where it knows the types."""
    try:
        return msgspec.json.Decoder(cls, dec_hook=_give_up) if _none_fits(cls) else None
    except (TypeError, NameError):
        # A field of a type msgspec has no rule for, or an annotation that does not resolve.
        return None


@functools.cache
def _before(cls: type[ResourceMeta]) -> tuple[tuple[str, str], ...]:
    """Return what stands before each field's value in JSON, and the field's name."""
    return tuple(
        (f"{', ' if number else ''}{_quoted(field.name)}: ", field.name)
        for number, field in enumerate(dataclasses.fields(cls))
    )


@functools.cache
def _decoder(cls: type[ResourceMeta]) -> Callable[[bytes], Any]:
    """Build the decoder of one meta class once: typed where msgspec knows the types."""
    typed = _typed(cls)  # type: ignore[arg-type] # a class is hashable
    if typed is None:
        return functools.partial(_decode_untyped, cls)

    def decode(data: bytes) -> object:
        try:
            try:
                return typed.decode(data)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                # Python's JSON has NaN and Infinity, and flytekit writes them; msgspec has not.
                return msgspec.convert(json.loads(data), cls, dec_hook=_give_up)
        except _UnknownTypeError:
            return _decode_untyped(cls, data)

    return decode


def _none_fits(cls: type[ResourceMeta]) -> bool:
    """Tell whether every default of None is of its field's type: many write ``job: str = None``."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is None:
            try:
                msgspec.convert(None, hints[field.name])
            except msgspec.ValidationError:
                return False
    return True


def _decode_untyped(cls: type[ResourceMeta], data: bytes) -> object:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError(f"Expected object, got {type(values).__name__}")  # noqa: TRY004
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    missing = [
        name
        for name, field in known.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"Object missing required field {missing[0]}")
    return cls(**{name: value for name, value in values.items() if name in known})


class _UnknownTypeError(Exception):
    """A field is of a class that msgspec has no rule for; upstream leaves its value alone."""


def _give_up(_expected: type, _value: object) -> object:
    raise _UnknownTypeError


def _to_struct(info: Mapping[str, Any]) -> Struct:
    struct = Struct()
    try:
        json_format.ParseDict(_plain(info), struct)
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise AuthorError(f"custom_info is not JSON: {_first_line(error)}.") from None
    return struct


def _plain(value: Any) -> Any:
    """Replace what a Struct cannot carry: non-finite numbers become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _without_value(sentence: str) -> str:
    """Leave out what an enumeration refused: the bytes are the caller's, the sentence is ours."""
    return re.sub(r"^(Invalid enum value).*?( - at \S+)?$", r"\1\2", sentence)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].replace("`", "")
