"""One method of one connector, inspected once: how it runs and which arguments it takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from connector_service.errors import AuthorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from connector_service.sdk.connector import ConnectorBase

__all__ = ["ARGUMENTS", "Method", "Operation", "Style", "inspect_methods"]


class Operation(StrEnum):
    """What can be asked of a connector, and of the service about its connectors."""

    CREATE = "create"
    GET = "get"
    GET_MANY = "get_many"  # nobody asks for it: it answers many a GET together
    DELETE = "delete"
    GET_METRICS = "get_metrics"
    GET_LOGS = "get_logs"
    DO = "do"
    DESCRIBE = "describe"
    LIST = "list"


class Style(StrEnum):
    """How a method's code is run."""

    COROUTINE = "coroutine"
    ASYNC_GENERATOR = "async generator"
    GENERATOR = "generator"
    PLAIN = "plain"


# What the service can pass to each operation; a method gets those that it can take.
ARGUMENTS: Mapping[Operation, tuple[str, ...]] = {
    Operation.CREATE: (
        "task_template",
        "output_prefix",
        "inputs",
        "task_execution_metadata",
        "idempotency_key",
    ),
    Operation.GET: ("resource_meta", "output_prefix"),
    Operation.GET_MANY: ("resource_metas",),
    Operation.DELETE: ("resource_meta",),
    Operation.GET_METRICS: ("resource_meta", "queries", "start_time", "end_time", "step"),
    Operation.GET_LOGS: ("resource_meta", "lines", "token"),
    Operation.DO: ("task_template", "output_prefix", "inputs", "task_execution_metadata"),
}
_OPTIONAL = (Operation.GET_MANY, Operation.GET_METRICS, Operation.GET_LOGS)
# Flyte 2 sends the task's connection with these, and with no other.
_CONNECTED = (Operation.CREATE, Operation.GET, Operation.GET_MANY, Operation.DELETE)


@dataclass(frozen=True, slots=True)
class Method:
    """A bound method with everything about it that never changes."""

    operation: Operation
    function: Callable[..., Any]
    style: Style
    takes: tuple[str, ...]
    # Beyond ours, a method may take keys of the task's connection: those it names, those it
    # cannot do without, or any.
    named: frozenset[str] = frozenset()
    demands: tuple[str, ...] = ()
    takes_any: bool = False


def inspect_methods(
    connector: ConnectorBase, bases: Sequence[type[ConnectorBase]], *, connected: bool = False
) -> dict[Operation, Method]:
    """Inspect every operation of ``bases`` that ``connector`` implements beyond them.

    Any other method is its author's own affair, even one that is called ``get``. ``connected``
    says that a task's connection may bring what a method demands beyond our arguments.

    Raises:
        AuthorError: A method demands an argument that the service never passes, or ``get_many``
            cannot answer for a list.
    """
    methods = {}
    for operation in ARGUMENTS:
        inherited = [getattr(base, operation) for base in bases if hasattr(base, operation)]
        function = getattr(connector, operation, None)
        if not inherited or not callable(function):
            continue
        if operation in _OPTIONAL and getattr(function, "__func__", None) in inherited:
            continue
        methods[operation] = _plan(connector, operation, function, connected)
    if Operation.GET_MANY in methods:
        _check_many(connector, methods[Operation.GET_MANY])
    return methods


def _check_many(connector: Any, method: Method) -> None:
    name = f"{type(connector).__name__}.{method.operation}"
    (metas,) = ARGUMENTS[Operation.GET_MANY]
    if metas not in method.takes:
        raise AuthorError(
            f"{name} does not take {metas!r}, the list of jobs to answer for; give it a parameter"
            f" of that name."
        )
    if method.style in (Style.GENERATOR, Style.ASYNC_GENERATOR):
        raise AuthorError(
            f"{name} yields; let it return one list, with a Resource or an exception for each"
            f" meta in its order."
        )
    size = connector.batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise AuthorError(
            f"{type(connector).__name__}.batch_size is {size!r}; set it to the most jobs that one"
            f" get_many takes, a whole number of at least 1."
        )


def _style(function: Callable[..., Any]) -> Style:
    if inspect.iscoroutinefunction(function):
        return Style.COROUTINE
    if inspect.isasyncgenfunction(function):
        return Style.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(function):
        return Style.GENERATOR
    return Style.PLAIN


def _plan(
    connector: ConnectorBase,
    operation: Operation,
    function: Callable[..., Any],
    connected: bool,
) -> Method:
    offered = ARGUMENTS[operation]
    parameters = list(inspect.signature(function).parameters.values())
    named = frozenset(
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    demands = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty:
            continue
        if parameter.name in offered and parameter.kind is not parameter.POSITIONAL_ONLY:
            continue
        if not (connected and operation in _CONNECTED and parameter.name in named):
            raise AuthorError(
                f"{type(connector).__name__}.{operation} demands {parameter.name!r}, which the"
                f" service never passes; it can take {', '.join(offered)}, or give it a default."
            )
        demands.append(parameter.name)
    return Method(
        operation,
        function,
        _style(function),
        offered if takes_any else tuple(name for name in offered if name in named),
        named - set(offered),
        tuple(demands),
        takes_any,
    )
