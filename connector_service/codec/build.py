"""Plain data to Python objects: what a literal decoded to, as the type that the caller wants.

Accepts every form in which either SDK writes a type: an enum by value (flytekit) or by name
(flyte), a timedelta as seconds (dataclasses) or ISO 8601 text (pydantic), an int that went through
a protobuf Struct and came back a float, a tuple as a list or as flyte's ``item_0`` map.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from connector_service.codec.flatten import is_namedtuple, is_pydantic
from connector_service.codec.leaves import EXACT, unfit
from connector_service.codec.values import Trouble, type_name

if typing.TYPE_CHECKING:
    from flyteidl.core import types_pb2

__all__ = ["build", "is_union", "required_keys", "strip"]


_BARE: dict[Any, Any] = {
    list: list[Any],
    dict: dict[Any, Any],
    tuple: tuple[Any, ...],
    set: set[Any],
    frozenset: frozenset[Any],
}


def build(  # noqa: PLR0911 - one line per kind of type
    value: Any, wanted: Any, declared: types_pb2.LiteralType | None = None
) -> Any:
    """Turn plain data (or what a literal already decoded to) into the wanted Python type.

    The declared literal type matters to enums alone: it lists either values or names.
    """
    wanted = strip(wanted)
    if wanted is Any or wanted is object or isinstance(wanted, typing.TypeVar):
        return value
    if wanted is None or wanted is types.NoneType:
        if value is None:
            return None
        raise unfit(value, wanted)
    wanted = _BARE.get(wanted, wanted)
    exact = EXACT.get(wanted)
    if exact is not None:
        return exact(value)
    if is_union(wanted):
        return _build_union(value, wanted, declared)
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in wanted.__args__):
            return value
        raise unfit(value, wanted)
    if origin is not None and not dataclasses.is_dataclass(origin):
        return _build_generic(value, origin, wanted, declared)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return _build_enum(value, wanted, declared)
    return _build_class(value, wanted)


def strip(wanted: Any) -> Any:
    """Take the type out of ``Annotated``, ``NewType`` and a type alias."""
    while True:
        if typing.get_origin(wanted) is typing.Annotated:
            wanted = wanted.__origin__
        elif isinstance(wanted, typing.NewType):
            wanted = wanted.__supertype__
        elif type(wanted).__name__ == "TypeAliasType":  # Python 3.12's `type X = ...`
            wanted = wanted.__value__
        else:
            return wanted


def is_union(wanted: object) -> bool:
    """Tell whether a type is ``X | Y`` or ``Union[X, Y]``."""
    return typing.get_origin(wanted) in (typing.Union, types.UnionType)


def required_keys(kind: Any) -> set[str]:
    """Return the keys that a TypedDict requires.

    ``__required_keys__`` is wrong about ``Required`` and ``NotRequired`` where annotations are
    postponed, as its documentation says.
    """
    required = set(kind.__required_keys__)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        origin = typing.get_origin(hint)
        if origin is typing.Required:
            required.add(name)
        elif origin is typing.NotRequired:
            required.discard(name)
    return required


def _build_union(value: Any, wanted: Any, declared: types_pb2.LiteralType | None) -> Any:
    choices = [strip(choice) for choice in typing.get_args(wanted)]
    for choice in choices:
        if choice is type(value) or (value is None and choice is types.NoneType):
            return value
    # Of several records, the one that knows every key of the map is meant.
    choices.sort(key=lambda choice: not _knows(choice, value))
    for choice in choices:
        try:
            return build(value, choice, declared)
        except Trouble:
            continue
    raise unfit(value, wanted)


def _knows(choice: Any, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if dataclasses.is_dataclass(choice):
        return value.keys() == {field.name for field in dataclasses.fields(choice)}
    names: Any = getattr(choice, "model_fields", None) or getattr(choice, "__struct_fields__", ())
    return value.keys() == set(names)


def _build_generic(
    value: Any, origin: Any, wanted: Any, declared: types_pb2.LiteralType | None
) -> Any:
    arguments = typing.get_args(wanted)
    if not isinstance(origin, type):
        raise unfit(value, wanted)
    if issubclass(origin, tuple):
        return _build_tuple(value, arguments, wanted)
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise unfit(value, wanted)
        keys, elements = arguments
        inner = _inner(declared, "map_value_type")
        return {_build_key(key, keys): _step(value[key], elements, key, inner) for key in value}
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise unfit(value, wanted)
    (elements,) = arguments
    inner = _inner(declared, "collection_type")
    built: list[Any] = [_step(element, elements, i, inner) for i, element in enumerate(value)]
    try:
        if origin is set:
            return set(built)
        return frozenset(built) if origin is frozenset else built
    except TypeError:
        raise unfit(value, wanted) from None


def _build_tuple(value: Any, arguments: tuple[Any, ...], wanted: Any) -> tuple[Any, ...]:
    if isinstance(value, dict) and all(f"item_{index}" in value for index in range(len(value))):
        value = [value[f"item_{index}"] for index in range(len(value))]  # flyte 2's tuples
    if not isinstance(value, (list, tuple)):
        raise unfit(value, wanted)
    if len(arguments) == 2 and arguments[1] is ...:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise Trouble(f"holds {len(value)} elements where {type_name(wanted)} has {len(arguments)}")
    pairs = enumerate(zip(value, arguments, strict=True))
    return tuple(_step(element, kind, index) for index, (element, kind) in pairs)


def _build_key(key: Any, wanted: Any) -> Any:
    try:
        return build(key, wanted)
    except Trouble:
        # JSON and the protobuf Struct turn every key into text.
        if type(key) is str and strip(wanted) in (int, float):
            try:
                return strip(wanted)(key)
            except ValueError:
                pass
        raise


def _step(
    value: Any, wanted: Any, step: object, declared: types_pb2.LiteralType | None = None
) -> Any:
    try:
        return build(value, wanted, declared)
    except Trouble as trouble:
        raise trouble.under(step) from None


def _build_class(value: Any, wanted: Any) -> Any:
    if isinstance(wanted, type) and not typing.is_typeddict(wanted) and isinstance(value, wanted):
        return value
    if is_pydantic(wanted):
        return _build_pydantic(value, wanted)
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return _build_struct(value, wanted)
    if is_namedtuple(wanted):
        return _build_namedtuple(value, wanted)
    if isinstance(value, dict):
        if typing.is_typeddict(wanted):
            return _build_fields(value, wanted, required_keys(wanted))
        base = typing.get_origin(wanted) or wanted
        if dataclasses.is_dataclass(base):
            return _build_dataclass(value, base)
    raise unfit(value, wanted)


def _inner(declared: types_pb2.LiteralType | None, wanted: str) -> types_pb2.LiteralType | None:
    """Return the element type of a declared container, found in a union if need be."""
    for kind in _variants(declared):
        if kind.WhichOneof("type") == wanted:
            inner: types_pb2.LiteralType = getattr(kind, wanted)
            return inner
    return None


def _variants(declared: types_pb2.LiteralType | None) -> list[types_pb2.LiteralType]:
    if declared is None:
        return []
    union = declared.WhichOneof("type") == "union_type"
    return list(declared.union_type.variants) if union else [declared]


def _build_enum(
    value: Any, wanted: type[enum.Enum], declared: types_pb2.LiteralType | None
) -> enum.Enum:
    """Find a member by value (flytekit, and every dataclass) or by name (flyte).

    The declared list decides, so that an enum whose names are other members' values is not mixed
    up; without one, a value is tried first.
    """
    if isinstance(value, wanted):
        return value
    members = wanted.__members__
    if isinstance(value, str) and value in members:
        lists = [list(kind.enum_type.values) for kind in _variants(declared)]
        if [member.name for member in wanted] in lists:
            return members[value]
    for candidate in (
        (value, int(value)) if type(value) is float and value.is_integer() else (value,)
    ):
        try:
            return wanted(candidate)
        except ValueError:
            continue
    if isinstance(value, str) and value in members:
        return members[value]
    raise unfit(value, wanted)


def _build_fields(value: dict[Any, Any], kind: Any, required: Any) -> dict[str, Any]:
    hints = _hints(kind)
    for name in sorted(required):
        if name not in value:
            raise Trouble(f"lacks the field {name!r} of {type_name(kind)}")
    return {
        name: _step(element, hints.get(name, Any), name)
        for name, element in value.items()
        if name in hints or not hints
    }


def _hints(kind: Any) -> dict[str, Any]:
    """Return the fields' types, or none at all where an annotation cannot be resolved."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def _build_dataclass(value: dict[Any, Any], kind: Any) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = [
        name
        for name, field in fields.items()
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    known = {name: element for name, element in value.items() if name in fields}
    built = _build_fields(known, kind, required)
    given = {name: element for name, element in built.items() if fields[name].init}
    return _construct(kind, lambda: kind(**given))


def _build_namedtuple(value: Any, kind: Any) -> Any:
    hints = _hints(kind)
    if isinstance(value, (list, tuple)):
        value = dict(zip(kind._fields, value, strict=False))
    if not isinstance(value, dict):
        raise unfit(value, kind)
    missing = [n for n in kind._fields if n not in value and n not in kind._field_defaults]
    if missing:
        raise Trouble(f"lacks the field {missing[0]!r} of {type_name(kind)}")
    given = {n: _step(value[n], hints.get(n, Any), n) for n in kind._fields if n in value}
    return _construct(kind, lambda: kind(**given))


def _build_struct(value: Any, kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.convert(
            value, kind, strict=False, dec_hook=lambda to, plain: build(plain, to)
        )
    except msgspec.ValidationError as error:
        # msgspec's text can quote the value; the place it ends with cannot.
        _, found, place = str(error).rpartition(" - at `$")
        at = f" at {place.rstrip('`').lstrip('.')}" if found else ""
        raise Trouble(f"does not fit {type_name(kind)}{at}") from None
    except Trouble:
        raise
    except Exception as error:  # noqa: BLE001 - __post_init__ is the author's code
        raise _refused(kind, error) from None


def _build_pydantic(value: Any, kind: Any) -> Any:
    try:
        return kind.model_validate(value, strict=False, context={"deserialize": True})
    except ValueError as error:
        first = error
    except Exception as error:  # noqa: BLE001 - validators are the author's code
        raise _refused(kind, error) from None
    try:
        # flyte writes an enum inside a model by its name, pydantic and flytekit by its value.
        renamed = _enums_by_name(value, kind)
        return kind.model_validate(renamed, strict=False, context={"deserialize": True})
    except ValueError:
        places = [item.get("loc", ()) for item in getattr(first, "errors", list)()][:1]
        at = " at " + ".".join(map(str, places[0])) if places and places[0] else ""
        raise Trouble(f"does not fit {type_name(kind)}{at}") from None


def _enums_by_name(value: Any, wanted: Any) -> Any:  # noqa: PLR0911 - one line per kind
    wanted = strip(wanted)
    if isinstance(value, str):
        kinds = typing.get_args(wanted) if is_union(wanted) else (wanted,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in kind.__members__:
                return kind.__members__[value]
        return value
    if isinstance(value, dict) and is_pydantic(wanted):
        hints = {name: field.annotation for name, field in wanted.model_fields.items()}
        return {name: _enums_by_name(item, hints.get(name)) for name, item in value.items()}
    if is_union(wanted):
        for kind in typing.get_args(wanted):
            changed = _enums_by_name(value, kind)
            if changed != value:
                return changed
        return value
    arguments = typing.get_args(wanted)
    if isinstance(value, list) and arguments:
        return [_enums_by_name(item, arguments[0]) for item in value]
    if isinstance(value, dict) and len(arguments) == 2:
        keys, items = arguments
        return {_enums_by_name(k, keys): _enums_by_name(v, items) for k, v in value.items()}
    return value


def _construct(kind: type, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Trouble:
        raise
    except Exception as error:  # noqa: BLE001 - __post_init__ is the author's code
        raise _refused(kind, error) from None


def _refused(kind: type, error: Exception) -> Trouble:
    return Trouble(f"{type_name(kind)} refused it ({type_name(type(error))})")
