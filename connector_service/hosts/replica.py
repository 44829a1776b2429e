"""Rebuilds, from a child's description, an exception that is judged as the original would be.

Nothing is imported for it. What is Python's or ours becomes the real class; of a stranger's class
there are the names, in the order of its bases, and the attributes that say what its backend told.
"""

from __future__ import annotations

import builtins
import contextlib
import socket
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from connector_service import errors
from connector_service.errors import BackendError, ConnectorFault, ConnectorServiceError
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Permanent", "rebuild"]

_MOST_BYTES = 64 * 1024  # of a description; a child sends at most a tenth
_MOST_CLASSES = 32
_MOST_MEMBERS = 32  # of a group
_DEEPEST = 4  # errors within errors
_LONGEST_NAME = 200
_MOST_KINDS = 512  # rebuilt classes kept


class Permanent(Exception):  # noqa: N818 - never raised by itself: a mark on what is
    """Marks what a connector lists as permanent; hosts give it as ``Served.permanent_errors``."""


class _Facts(msgspec.Struct):
    """What a child says of one exception."""

    mro: list[str] = []
    text: str = ""
    attrs: dict[str, Any] = {}
    grpc_code: str | None = None
    response: dict[str, Any] | None = None
    reason: _Facts | None = None
    group: list[_Facts] = []
    permanent: bool = False
    traceback: str = ""


class _Response:
    """The response that an HTTP library's error holds."""

    headers: Mapping[str, Any]


class _Code:
    """The method ``code`` of a gRPC error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> Any:
        return grpc.StatusCode[self._name]


_STATUSES = ("status_code", "status", "code")
_ATTRIBUTES = (*_STATUSES, "errno", "retry_after", "origin", "key")
# Raised inside a coroutine it would become a RuntimeError that names nobody.
_UNRAISABLE = (StopIteration, StopAsyncIteration)


def _real() -> dict[str, type[Exception]]:
    found: dict[str, type[Exception]] = {
        # Before Python 3.11 these were classes of their own.
        "asyncio.exceptions.TimeoutError": TimeoutError,
        "concurrent.futures._base.TimeoutError": TimeoutError,
    }
    for module in (builtins, ssl, socket, errors):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Exception):
                found[f"{kind.__module__}.{kind.__name__}"] = kind
    # Those of `socket` say that they are of no module but `socket`; `errors` holds ours alone.
    return found


_REAL = _real()
_kinds: OrderedDict[tuple[str, ...], type[Exception]] = OrderedDict()
_decoder = msgspec.json.Decoder(_Facts)


def rebuild(facts: bytes) -> Exception:
    """Return an exception like the one described; it never raises.

    The child's traceback is a note on it, so that whoever logs the exception logs both.
    ``SystemExit`` and whatever else is no ``Exception`` come as ``ConnectorFault``, as they do
    from the invoker: they would end this process.
    """
    try:
        if len(facts) > _MOST_BYTES:
            raise ValueError("too large")  # noqa: TRY301 - refused as what does not decode is
        known = _decoder.decode(facts)
        error = _build(known, _DEEPEST)
    except Exception as reason:  # noqa: BLE001 - a child that is broken may send anything
        fault = ConnectorFault("The connector failed, and its host could not say how.")
        fault.add_note(f"Its description does not read: {type(reason).__name__}.")
        return fault
    if known.traceback:
        error.add_note(redact(f"In the host's process:\n{known.traceback}"))
    if isinstance(error, Exception) and _names(known.mro, "builtins.Exception"):
        return error if not isinstance(error, _UNRAISABLE) else _contained(error)
    return _contained(error)


def _contained(error: Exception) -> ConnectorFault:
    fault = ConnectorFault(f"The connector raised {type(error).__name__}.")
    fault.__cause__ = error
    return fault


def _names(mro: Iterable[str], wanted: str) -> bool:
    # A description that had to be cut to its first classes names an Exception too.
    listed = list(mro)
    return wanted in listed or "builtins.BaseException" not in listed


def _build(facts: _Facts, depth: int) -> Exception:
    members = [_build(member, depth - 1) for member in facts.group[:_MOST_MEMBERS] if depth > 1]
    kind = _kind(tuple(facts.mro[:_MOST_CLASSES]), is_group=bool(members), marked=facts.permanent)
    if members:
        error: Any = kind.__new__(kind, facts.text, members)
    else:
        error = kind.__new__(kind, facts.text)
    error.args = (facts.text,)
    if isinstance(error, ConnectorServiceError):
        _complete(error)
    for name in _ATTRIBUTES:
        value = facts.attrs.get(name)
        if isinstance(value, str | int | float):
            _set(error, name, value)
    if facts.grpc_code in grpc.StatusCode.__members__:
        error.code = _Code(str(facts.grpc_code))
    if facts.response is not None:
        _set(error, "response", _response(facts.response))
    if facts.reason is not None and depth > 1:
        _set(error, "reason", _build(facts.reason, depth - 1))
    return error  # type: ignore[no-any-return]


def _complete(error: Any) -> None:
    """Give one of our errors the attributes that its ``__init__`` would have."""
    error.retry_after = None
    error.key = ""
    if isinstance(error, BackendError):
        error.code = type(error).__name__.removesuffix("Error")
        error.origin = error.default_origin


def _set(error: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        setattr(error, name, value)


def _response(facts: Mapping[str, Any]) -> Any:
    """Rebuild an HTTP response as far as it is read: its status and when to come back."""
    if "ResponseMetadata" in facts:  # botocore's is a dictionary
        metadata = facts["ResponseMetadata"]
        return {"ResponseMetadata": metadata if isinstance(metadata, dict) else {}}
    response = _Response()
    for name in _STATUSES:
        if isinstance(facts.get(name), int):
            setattr(response, name, facts[name])
    if isinstance(facts.get("headers"), dict):
        response.headers = facts["headers"]
    return response


def _kind(mro: tuple[str, ...], *, is_group: bool, marked: bool) -> type[Exception]:
    key = (*mro, f"{is_group:d}{marked:d}")
    kind = _kinds.get(key)
    if kind is None:
        kind = _make(mro, is_group=is_group, marked=marked)
        _kinds[key] = kind
        while len(_kinds) > _MOST_KINDS:
            _kinds.popitem(last=False)
    return kind


def _make(mro: tuple[str, ...], *, is_group: bool, marked: bool) -> type[Exception]:
    """Make a class of that name and those bases; each real one only where it says most."""
    names = [_split(name) for name in mro if len(name) <= _LONGEST_NAME]
    names = [(module, name) for module, name in names if name.isidentifier()]
    module, name = names[0] if names else ("builtins", "Exception")
    own = _REAL.get(f"{module}.{name}")
    if own is not None and issubclass(own, ConnectorServiceError) and not marked:
        return own
    real: list[type[Exception]] = [Permanent] if marked else []
    if is_group:
        real.append(ExceptionGroup)
    for full in mro:
        known = _REAL.get(full)
        if known is None or (known is ExceptionGroup and not is_group):
            continue
        if not any(issubclass(other, known) for other in real):
            real.append(known)
    real = real or [Exception]
    strangers = [
        type(base, (), {"__module__": package, "__slots__": ()})
        for package, base in names[1:]
        if f"{package}.{base}" not in _REAL and (package, base) not in _ROOTS
    ]
    body = {"__module__": module, "__qualname__": name, "__str__": _str}
    for bases in ((*strangers, *real), (*strangers, Exception)):
        with contextlib.suppress(TypeError):  # bases that no class can have together
            return type(name, bases, body)
    return Exception


_ROOTS = (("builtins", "BaseException"), ("builtins", "object"), ("builtins", "BaseExceptionGroup"))


def _split(name: str) -> tuple[str, str]:
    module, _, name = name.rpartition(".")
    parts = module.split(".")
    return (module if all(part.isidentifier() for part in parts) else "unknown"), name


def _str(error: Exception) -> str:
    return str(error.args[0]) if error.args else ""
