"""``connector-service call``: one RPC against a live service, JSON in and out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
import grpc.aio
from flyteidl.admin.agent_pb2 import TaskExecutionMetadata
from flyteidl2.core.security_pb2 import Connection

from connector_service.cli.options import (
    connect,
    message_json,
    parse_category,
    parse_inputs,
    parse_message,
    parse_template,
    protocol_option,
    read_text,
    target_option,
    timeout_option,
)
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connector_service.client import Client

__all__ = ["call"]

_task_type = click.option(
    "--task-type", metavar="NAME[:VERSION]", help="Task type; a template may name it instead."
)
_template = click.option(
    "--template", metavar="FILE", help="TaskTemplate as JSON: a file, - for standard input, or it."
)
_inputs = click.option(
    "--inputs", metavar="FILE", help='Inputs as JSON, such as {"n": 3}: a file, -, or it.'
)
_output_prefix = click.option(
    "--output-prefix", default="", metavar="URI", help="Where the job's outputs go."
)
_metadata = click.option(
    "--metadata", metavar="FILE", help="TaskExecutionMetadata as JSON: a file, -, or it."
)
_connection = click.option(
    "--connection",
    metavar="FILE",
    help='Connection as JSON, such as {"secrets": {"token": "..."}, "configs": {}}: a file, -, or'
    " it. Flyte 2 only.",
)
_meta = click.option(
    "--meta",
    required=True,
    metavar="META",
    help="Resource meta: base64, the JSON that `call create` printed, a file, or -.",
)
_job_type = click.option(
    "--task-type", required=True, metavar="NAME[:VERSION]", help="Task type of the job."
)


@click.group()
def call() -> None:
    """Call one RPC of a running service and print its answer as JSON."""


@call.command()
@target_option
@protocol_option
@timeout_option
@_task_type
@_template
@_inputs
@_output_prefix
@_metadata
@_connection
def create(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str | None,
    template: str | None,
    inputs: str | None,
    output_prefix: str,
    metadata: str | None,
    connection: str | None,
) -> None:
    """CreateTask: start a job and print its resource meta."""
    task = parse_template(template, task_type)
    values = parse_inputs(inputs, task)
    about = parse_message(metadata, TaskExecutionMetadata()) if metadata else None
    connected = _read_connection(connection)

    async def ask(client: Client) -> dict[str, Any]:
        meta = await client.create(
            task,
            values,
            output_prefix=output_prefix,
            task_execution_metadata=about,
            connection=connected,
        )
        return {"resource_meta": base64.b64encode(meta).decode()}

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@_job_type
@_meta
@_output_prefix
@_connection
def get(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str,
    meta: str,
    output_prefix: str,
    connection: str | None,
) -> None:
    """GetTask: poll a job."""
    category, data = TaskCategory(*parse_category(task_type)), _read_meta(meta)
    connected = _read_connection(connection)

    async def ask(client: Client) -> dict[str, Any]:
        return message_json(
            await client.get(category, data, output_prefix=output_prefix, connection=connected)
        )

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@_job_type
@_meta
@_connection
def delete(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str,
    meta: str,
    connection: str | None,
) -> None:
    """DeleteTask: stop a job."""
    category, data = TaskCategory(*parse_category(task_type)), _read_meta(meta)
    connected = _read_connection(connection)

    async def ask(client: Client) -> dict[str, Any]:
        await client.delete(category, data, connection=connected)
        return {}

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@_job_type
@_meta
@click.option("--query", "queries", multiple=True, help="Metric to read; all without. Repeatable.")
def metrics(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str,
    meta: str,
    queries: tuple[str, ...],
) -> None:
    """GetTaskMetrics: read a job's metrics."""
    category, data = TaskCategory(*parse_category(task_type)), _read_meta(meta)

    async def ask(client: Client) -> dict[str, Any]:
        return message_json(await client.get_metrics(category, data, queries=queries))

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@_job_type
@_meta
@click.option("--lines", type=click.IntRange(min=0), default=0, help="Lines a page; 0 for all.")
@click.option("--token", default="", help="Where to go on: the token of the page before.")
def logs(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str,
    meta: str,
    lines: int,
    token: str,
) -> None:
    """GetTaskLogs: stream a job's log, one JSON message a line."""
    category, data = TaskCategory(*parse_category(task_type)), _read_meta(meta)

    async def ask(client: Client) -> None:
        async for message in client.get_logs(category, data, lines=lines, token=token):
            click.echo(json.dumps(message_json(message)))

    _run(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@_task_type
@_template
@_inputs
@_output_prefix
@_metadata
@_connection
def do(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    task_type: str | None,
    template: str | None,
    inputs: str | None,
    output_prefix: str,
    metadata: str | None,
    connection: str | None,
) -> None:
    """ExecuteTaskSync: do a task's work within the call.

    Flyte 2 has no such RPC: there it is CreateTask and GetTask.
    """
    task = parse_template(template, task_type)
    values = parse_inputs(inputs, task)
    about = parse_message(metadata, TaskExecutionMetadata()) if metadata else None
    connected = _read_connection(connection)

    async def ask(client: Client) -> dict[str, Any]:
        return message_json(
            await client.do(
                task,
                values,
                output_prefix=output_prefix,
                task_execution_metadata=about,
                connection=connected,
            )
        )

    _print(endpoint, protocol, timeout, ask)


@call.command("list")
@target_option
@protocol_option
@timeout_option
def list_(endpoint: str, protocol: str | None, timeout: float) -> None:
    """ListAgents or ListConnectors: what the service offers to Flyte."""

    async def ask(client: Client) -> dict[str, Any]:
        return {"agents": [message_json(agent) for agent in await client.list_agents()]}

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@protocol_option
@timeout_option
@click.argument("name")
def agent(endpoint: str, protocol: str | None, timeout: float, name: str) -> None:
    """GetAgent or GetConnector: describe the connector called NAME."""

    async def ask(client: Client) -> dict[str, Any]:
        return message_json(await client.get_agent(name))

    _print(endpoint, protocol, timeout, ask)


@call.command()
@target_option
@timeout_option
@click.argument("service", default="")
def health(endpoint: str, timeout: float, service: str) -> None:
    """Health: whether SERVICE, or the whole, serves.

    The exit code is 1 when it does not.
    """

    async def ask(client: Client) -> str:
        try:
            return await client.health(service)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"  # as the protocol's own Watch says it
            raise

    status = _run(endpoint, None, timeout, ask)
    click.echo(json.dumps({"status": status}))
    sys.exit(0 if status == "SERVING" else 1)


def _print(
    endpoint: str,
    protocol: str | None,
    timeout: float,
    ask: Callable[[Client], Awaitable[Any]],
) -> None:
    click.echo(json.dumps(_run(endpoint, protocol, timeout, ask), indent=2))


def _run(
    endpoint: str, protocol: str | None, timeout: float, ask: Callable[[Client], Awaitable[Any]]
) -> Any:
    async def main() -> Any:
        async with connect(endpoint, protocol, timeout) as client:
            return await ask(client)

    return asyncio.run(main())


def _read_connection(source: str | None) -> Connection | None:
    return parse_message(source, Connection()) if source else None


def _read_meta(source: str) -> bytes:
    """Return the bytes of a resource meta, however it is given."""
    text = source
    if source == "-":
        text = sys.stdin.read()
    elif _is_file(source):
        text = read_text(source)
    text = text.strip()
    try:
        if text.startswith("{"):
            text = json.loads(text)["resource_meta"]
        return base64.b64decode(text, validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise click.UsageError(
            "--meta is base64, or the JSON that `connector-service call create` printed, or a file"
            " of either."
        ) from None


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # longer than any file's name: it is the meta itself
        return False
