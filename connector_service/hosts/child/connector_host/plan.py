"""How a call of a job becomes a call of a connector's method: what is common to both SDKs."""

from __future__ import annotations

import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

from .engine import Lane, Method, Refusal, invoke, iterate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .table import Request, Work

__all__ = ["JOB_OPERATIONS", "OPTIONAL", "Fit", "encoded", "plan_job"]

JOB_OPERATIONS = ("get", "delete", "get_metrics", "get_logs")
OPTIONAL = ("get_metrics", "get_logs")

_log = logging.getLogger(__name__)

_NOTHING: Mapping[str, str] = {}


class Fit:
    """What a method takes, inspected once: it is passed that, by name, and no more."""

    def __init__(self, name: str, method: Method, offered: tuple[str, ...]) -> None:
        """Take the connector's name, its method, and what the SDK's own service passes."""
        self._name = f"{name}'s {getattr(method.function, '__name__', 'method')}"
        self._offered = offered
        self._taken = offered
        self._any = True
        self._own = ""
        self._named: frozenset[str] = frozenset()
        self._demands: tuple[str, ...] = ()
        try:
            parameters = list(inspect.signature(method.function).parameters.values())
        except (TypeError, ValueError):  # nothing to inspect: it takes what the SDK passes
            return
        named = [
            parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        self._any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._named = frozenset(parameter.name for parameter in named)
        if offered[0] == "resource_meta" and "resource_meta" not in self._named and named:
            self._own = named[0].name  # whoever calls the meta otherwise gets it all the same
        if not self._any or self._own:
            self._taken = tuple(name for name in offered if name in self._named)
        self._demands = tuple(
            parameter.name
            for parameter in named
            if parameter.default is parameter.empty and parameter.name not in (*offered, self._own)
        )

    def arguments(
        self, given: Mapping[str, Any], connection: Mapping[str, str] = _NOTHING
    ) -> dict[str, Any]:
        """Return what the method takes of ``given``, and of the task's connection.

        Raises:
            Refusal: The connection has a name of ours, or lacks what the method cannot do without.
        """
        fitting = {name: given[name] for name in self._taken if name in given}
        if self._own:
            fitting[self._own] = given["resource_meta"]
        if not connection and not self._demands:
            return fitting
        for key in connection:
            if key in self._offered:
                raise Refusal(
                    "INVALID_ARGUMENT",
                    f"The task's connection has the key {key!r}, which is a parameter of"
                    f" {self._name} itself; rename it in custom.secrets or custom.configs.",
                )
        if missing := [name for name in self._demands if name not in connection]:
            raise Refusal(
                "INVALID_ARGUMENT",
                f"{self._name} needs {', '.join(missing)} from the task's connection; set it in"
                f" custom.secrets or custom.configs.",
            )
        fitting.update(
            connection
            if self._any
            else {key: value for key, value in connection.items() if key in self._named}
        )
        return fitting


def plan_job(
    lane: Lane,
    connector: Any,
    operation: str,
    *,
    messages: Any,
    offered: tuple[str, ...],
    to_resource: Callable[[Any], Awaitable[Any]],
    connection: Callable[[Any], Mapping[str, str]] = lambda _: _NOTHING,
) -> Work:
    """Return what runs one operation on a job: ``get``, ``delete``, ``get_metrics``, ``get_logs``.

    ``offered`` is what the SDK's own service passes; ``connection`` reads a request's.
    """
    method = Method(getattr(connector, operation))
    fit = Fit(lane.name, method, offered)

    def arguments(request: Request) -> dict[str, Any]:
        message = request.message
        try:
            meta = connector.metadata_type.decode(message.resource_meta)
        except Exception as error:
            _log.warning("a resource meta of %s does not decode", lane.name, exc_info=True)
            raise Refusal(
                "INVALID_ARGUMENT",
                f"The resource meta is not one of {lane.name}'s: {type(error).__name__}.",
            ) from error
        given = {name: getattr(message, name) for name in offered[1:]}
        return fit.arguments({"resource_meta": meta, **given}, connection(message))

    async def get(request: Request) -> bytes:
        value = await invoke(lane, method, arguments(request))
        response = messages.GetTaskResponse(resource=await to_resource(value))
        data: bytes = response.SerializeToString()
        return data

    async def delete(request: Request) -> bytes:
        await invoke(lane, method, arguments(request))
        return b""

    async def get_metrics(request: Request) -> bytes:
        value = await invoke(lane, method, arguments(request))
        return _serialized(f"{lane.name}'s {operation}", value, "GetTaskMetricsResponse")

    async def get_logs(request: Request) -> None:
        send: Any = request.send
        async with contextlib.aclosing(iterate(lane, method, arguments(request))) as items:
            async for item in items:
                await send(_serialized(f"{lane.name}'s {operation}", item, "GetTaskLogsResponse"))

    plans: Mapping[str, Work] = {
        "get": get,
        "delete": delete,
        "get_metrics": get_metrics,
        "get_logs": get_logs,
    }
    return plans[operation]


def encoded(name: str, meta: Any) -> bytes:
    """Return a resource meta's bytes, exactly as it encodes itself.

    Raises:
        TypeError: It is none.
    """
    if isinstance(meta, bytes):
        return meta
    encode = getattr(meta, "encode", None)
    if not callable(encode) or isinstance(meta, str):
        raise TypeError(f"{name}'s create returned {type(meta).__name__}, no ResourceMeta.")
    data = encode()
    if not isinstance(data, bytes):
        raise TypeError(f"{name}'s resource meta encodes to {type(data).__name__}, no bytes.")
    return data


def _serialized(what: str, value: Any, wanted: str) -> bytes:
    if value is None:
        return b""
    if getattr(getattr(value, "DESCRIPTOR", None), "name", "") != wanted:
        raise TypeError(f"{what} returned {type(value).__name__}, no {wanted}.")
    data: bytes = value.SerializeToString()
    return data
