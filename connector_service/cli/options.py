"""Command-line options that several commands share, and what they read."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from google.protobuf import json_format

from connector_service.client import Client
from connector_service.codec.convert import FlyteProtocol
from connector_service.codec.literals import to_literal_map
from connector_service.errors import InvalidInputError

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = [
    "connect",
    "endpoint_option",
    "message_json",
    "parse_inputs",
    "parse_message",
    "parse_template",
    "protocol_option",
    "read_text",
    "target_option",
    "timeout_option",
]


def _given(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; give an address such as 127.0.0.1:8000.")
    return value


endpoint_option = click.option(
    "--endpoint",
    metavar="TARGET",
    callback=_given,
    help="Address of a running service, such as 127.0.0.1:8000.",
)
target_option = click.option(
    "--endpoint",
    default="127.0.0.1:8000",
    show_default=True,
    metavar="TARGET",
    callback=_given,
    help="Address of the service.",
)
protocol_option = click.option(
    "--protocol",
    type=click.Choice([str(protocol) for protocol in FlyteProtocol]),
    help="Protocol to speak; by default the service is asked which it serves.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of one call.",
)


def connect(endpoint: str, protocol: str | None, timeout: float) -> Client:
    """Return a client that says on standard error what it had to guess."""
    notice = functools.partial(click.echo, err=True)
    return Client(endpoint, protocol=protocol, timeout=timeout, notice=notice)


def read_text(source: str) -> str:
    """Return the text of ``-`` (standard input), of a file, or ``source`` itself if it is JSON."""
    if source == "-":
        return sys.stdin.read()
    if source.lstrip().startswith(("{", "[")):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"Cannot read {source}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{source} is not UTF-8 text.") from None


def parse_message(source: str, message: Message) -> Any:
    """Fill ``message`` from protobuf's JSON."""
    try:
        return json_format.Parse(read_text(source), message)
    except json_format.ParseError as error:
        name = type(message).DESCRIPTOR.name
        what = {"-": "Standard input", "{": "The JSON", "[": "The JSON"}.get(
            source.lstrip()[:1], source
        )
        reason = str(error).splitlines()[0].rstrip(".")
        raise click.UsageError(f"{what} is not a {name}: {reason}.") from None


def parse_template(source: str | None, task_type: str | None) -> TaskTemplate:
    """Read a task template; ``task_type`` (``name`` or ``name:version``) wins over its own."""
    template = TaskTemplate()
    if source:
        parse_message(source, template)
    if task_type:
        name, version = parse_category(task_type)
        template.type, template.task_type_version = name, version
    if not template.type:
        raise click.UsageError("Name the task type with --task-type, or in --template as `type`.")
    return template


def parse_category(text: str) -> tuple[str, int]:
    """Split ``name:version``; the version is 0 when there is none."""
    name, colon, version = text.rpartition(":")
    if not colon:
        return text, 0
    if not version.isdigit():
        raise click.UsageError(f"--task-type {text}: the version after the colon is a number.")
    return name, int(version)


def parse_inputs(source: str | None, template: TaskTemplate) -> LiteralMap:
    """Read inputs: plain JSON values, typed by the template's interface, or a LiteralMap."""
    if source is None:
        return LiteralMap()
    try:
        values = json.loads(read_text(source))
    except ValueError as error:
        raise click.UsageError(f"--inputs is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise click.UsageError('--inputs is a JSON object, such as {"n": 3}.')
    if set(values) == {"literals"}:
        try:
            return json_format.ParseDict(values, LiteralMap())
        except json_format.ParseError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise click.UsageError(f"--inputs is not a LiteralMap in JSON: {reason}.") from None
    try:
        return to_literal_map(values, template.interface.inputs.variables, path="--inputs")
    except InvalidInputError as error:
        raise click.UsageError(str(error)) from None


def message_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON with the field names of the protocol."""
    as_json: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return as_json
