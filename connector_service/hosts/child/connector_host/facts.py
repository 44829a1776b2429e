"""An exception of connector code as facts that cross to the parent, which judges them."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

from .output import redact

__all__ = ["MOST_BYTES", "describe", "qualified"]

MOST_BYTES = 6_000  # of a description: it travels as metadata, of which gRPC takes little
_TEXT = 1_000  # characters
_TRACEBACK = 3_000
_WORD = 200
_CLASSES = 24
_MEMBERS = 8  # of a group
_DEEPEST = 3  # wrapped errors described
_ATTRIBUTES = ("status_code", "status", "code", "errno", "retry_after", "origin", "key")
_STATUSES = ("status_code", "status", "code")
_OURS = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - as tracebacks spell it


def describe(error: BaseException, permanent: tuple[type, ...] = ()) -> bytes:
    """Return what is known of ``error`` as JSON of at most ``MOST_BYTES``; it never raises.

    ``permanent`` lists the classes that the connector calls permanent.
    """
    facts = _facts(error, _DEEPEST)
    facts["permanent"] = bool(permanent) and isinstance(error, permanent)
    facts["traceback"] = _traceback(error)
    return _fitting(facts)


def qualified(kind: type) -> str:
    """Return a class's name with its module's."""
    module = getattr(kind, "__module__", "") or ""
    return f"{module}.{kind.__name__}"[:_WORD]


def _facts(error: BaseException, depth: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "mro": [qualified(kind) for kind in type(error).__mro__ if kind is not object][:_CLASSES],
        "text": _text(error),
    }
    attributes = {name: _plain(_read(error, name)) for name in _ATTRIBUTES}
    own_headers = _retry_after(_read(error, "headers"))
    if attributes["retry_after"] is None and own_headers is not None:
        attributes["retry_after"] = own_headers  # urllib's errors carry the answer's headers
    facts["attrs"] = {name: value for name, value in attributes.items() if value is not None}
    code = _grpc_code(error)
    if code is not None:
        facts["grpc_code"] = code
    response = _response(_read(error, "response"))
    if response:
        facts["response"] = response
    reason = _read(error, "reason")
    if isinstance(reason, BaseException) and depth > 1:
        facts["reason"] = _facts(reason, depth - 1)
    members = _members(error)
    if members and depth > 1:
        facts["group"] = [_facts(member, depth - 1) for member in members[:_MEMBERS]]
    return facts


def _read(holder: object, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except BaseException:  # noqa: BLE001 - a stranger's attribute may raise anything when read
        return None


def _plain(value: object) -> Any:
    """Return ``value`` where JSON has it; an enum's number as a number."""
    if isinstance(value, bool):
        return value
    try:
        if isinstance(value, int):
            number = int(value)
            return number if abs(number) < 2**53 else None
        if isinstance(value, float):
            return float(value) if abs(value) < 1e15 else None  # neither infinite nor NaN
        if isinstance(value, str):
            return redact(str(value)[:_WORD])
    except BaseException:  # noqa: BLE001 - a subclass of theirs
        return None
    return None


def _text(error: BaseException) -> str:
    try:
        return redact(str(error)[: 2 * _TEXT])[:_TEXT]
    except BaseException:  # noqa: BLE001 - as above
        return ""


def _grpc_code(error: BaseException) -> str | None:
    if not any(kind.__name__ == "RpcError" for kind in type(error).__mro__):
        return None
    try:
        code: Any = _read(error, "code")
        name = getattr(code() if callable(code) else code, "name", None)
    except BaseException:  # noqa: BLE001 - as above
        return None
    return name[:_WORD] if isinstance(name, str) else None


def _response(response: Any) -> dict[str, Any]:
    """Describe an error's response: its status and when to come back; botocore's is a dict."""
    try:
        if isinstance(response, dict):
            metadata = response.get("ResponseMetadata") or {}
            held: dict[str, Any] = {}
            status = metadata.get("HTTPStatusCode")
            if isinstance(status, int):
                held["HTTPStatusCode"] = status
            after = _retry_after(metadata.get("HTTPHeaders"))
            if after is not None:
                held["HTTPHeaders"] = {"retry-after": after}
            return {"ResponseMetadata": held} if held else {}
        found: dict[str, Any] = {}
        for name in _STATUSES:
            value = _plain(_read(response, name))
            if isinstance(value, int) and not isinstance(value, bool):
                found[name] = value
        after = _retry_after(_read(response, "headers"))
        if after is not None:
            found["headers"] = {"retry-after": after}
        return found
    except BaseException:  # noqa: BLE001 - as above
        return {}


def _retry_after(headers: Any) -> str | int | float | None:
    try:
        for name in ("retry-after", "Retry-After"):
            value = headers.get(name) if hasattr(headers, "get") else None
            if isinstance(value, bytes):
                value = value.decode("ascii", "replace")
            if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                found: str | int | float | None = _plain(value)
                return found
    except BaseException:  # noqa: BLE001 - as above
        return None
    return None


def _members(error: BaseException) -> list[BaseException]:
    # By name: Python 3.10 has groups only from a backport.
    if not any(kind.__name__ == "BaseExceptionGroup" for kind in type(error).__mro__):
        return []
    members = _read(error, "exceptions")
    if not isinstance(members, (tuple, list)):
        return []
    return [member for member in members if isinstance(member, BaseException)]


def _traceback(error: BaseException) -> str:
    """Return the end of the traceback, without our own frames at its start."""
    try:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace, limit=-40)
        return redact("".join(lines)[-4 * _TRACEBACK :])[-_TRACEBACK:]
    except BaseException:  # noqa: BLE001 - as above
        return ""


def _fitting(facts: dict[str, Any]) -> bytes:
    """Encode, and shorten what matters least until it fits."""
    data = _encode(facts)
    for field, most in (("traceback", 1_500), ("traceback", 300), ("text", 300)):
        if len(data) <= MOST_BYTES:
            return data
        facts[field] = facts[field][-most:] if field == "traceback" else facts[field][:most]
        data = _encode(facts)
    for field in ("group", "reason", "traceback", "text"):
        if len(data) <= MOST_BYTES:
            return data
        if field == "group" and field in facts:
            for member in facts[field]:
                member["text"] = member["text"][:80]
                member.pop("group", None)
        else:
            facts.pop(field, None)
        data = _encode(facts)
    if len(data) > MOST_BYTES:
        facts.pop("group", None)
        data = _encode(facts)
    return data if len(data) <= MOST_BYTES else _encode({"mro": facts["mro"][:4]})


def _encode(facts: dict[str, Any]) -> bytes:
    # ASCII: a text of emoji must not be cut in the middle of a character by anybody.
    return json.dumps(facts, separators=(",", ":")).encode("ascii", "replace")
