"""Write down what Flyte's protocols look like on the wire, as the installed packages have it.

``python protos/pin.py`` rewrites ``flyteidl.toml`` and ``flyteidl2.toml`` beside this file; the
tests compare the installed packages with them (``moved``). Pinning is a person's step: read the
difference before you commit it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, ServiceDescriptor

__all__ = ["PROTOCOLS", "SECTIONS", "Protocol", "describe", "load", "moved", "render"]

SECTIONS = ("services", "messages", "enums")

# A field says nothing about these two when they have their usual value.
_USUAL = {"label": "singular", "oneof": "none"}

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One Flyte protocol, and where to start reading it.

    Everything that the services' messages reach is pinned, ``google.protobuf`` excepted.
    """

    package: str
    modules: tuple[str, ...]
    services: tuple[str, ...]
    messages: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The pinned facts of this protocol."""
        return Path(__file__).with_name(f"{self.package}.toml")


PROTOCOLS = {
    protocol.package: protocol
    for protocol in (
        Protocol(
            package="flyteidl",
            modules=("flyteidl.service.agent_pb2", "flyteidl.core.execution_pb2"),
            services=(
                "flyteidl.service.AsyncAgentService",
                "flyteidl.service.SyncAgentService",
                "flyteidl.service.AgentMetadataService",
            ),
            messages=("flyteidl.core.ExecutionError",),
        ),
        Protocol(
            package="flyteidl2",
            modules=("flyteidl2.connector.service_pb2", "flyteidl2.core.execution_pb2"),
            services=(
                "flyteidl2.connector.AsyncConnectorService",
                "flyteidl2.connector.ConnectorMetadataService",
            ),
            messages=("flyteidl2.core.ExecutionError",),
        ),
    )
}


def load(protocol: Protocol) -> dict[str, Any]:
    """Read the pinned facts."""
    return tomllib.loads(protocol.file.read_text(encoding="utf-8"))


def describe(protocol: Protocol, also: Iterable[str] = ()) -> dict[str, Any]:
    """Read the facts from the installed package; ``also`` names messages to include unreached.

    A service or message the package no longer has is left out.

    Raises:
        ImportError: The package, or one of the protocol's modules, is not installed.
    """
    for module in protocol.modules:
        importlib.import_module(module)
    pool = descriptor_pool.Default()
    facts: dict[str, Any] = {
        "package": protocol.package,
        "version": importlib.metadata.version(protocol.package),
        **{section: {} for section in SECTIONS},
    }
    pending: list[Descriptor] = []
    for name in protocol.services:
        service = _find(pool.FindServiceByName, name)
        if service is not None:
            facts["services"][name] = _rpcs(service)
            pending += [
                kind for rpc in service.methods for kind in (rpc.input_type, rpc.output_type)
            ]
    found = (_find(pool.FindMessageTypeByName, name) for name in (*protocol.messages, *also))
    pending += [message for message in found if message is not None]
    while pending:
        message = pending.pop()
        if message.full_name in facts["messages"] or message.file.package == "google.protobuf":
            continue
        facts["messages"][message.full_name] = _fields(message)
        for enum in (*message.enum_types, *(f.enum_type for f in message.fields if f.enum_type)):
            facts["enums"][enum.full_name] = _values(enum)
        pending += [field.message_type for field in message.fields if field.message_type]
    return facts


def moved(
    pinned: Mapping[str, Any], found: Mapping[str, Any], section: str, name: str
) -> list[str]:
    """Say, a sentence each, what of one pinned service, message or enum is no longer so.

    What ``found`` has beyond ``pinned`` is no difference: adding is how a protocol grows.
    """
    if name not in found[section]:
        return [f"{name} is gone"]
    now = found[section][name]
    differences = []
    for member, fact in pinned[section][name].items():
        if member not in now:
            differences.append(f"{name}.{member} is gone")
            continue
        before, after = _spelled_out(fact), _spelled_out(now[member])
        differences += [
            f"{name}.{member}: {what} is {after.get(what)}, pinned {value}"
            for what, value in before.items()
            if after.get(what) != value
        ]
    return differences


def render(facts: Mapping[str, Any]) -> str:
    """Spell facts as TOML, one line a fact, in one order, so that differences read well."""
    lines = [
        f"# What {facts['package']} {facts['version']} looks like on the wire. Written by pin.py.",
        "",
        f"package = {_toml(facts['package'])}",
        f"version = {_toml(facts['version'])}",
    ]
    for section in SECTIONS:
        for name, members in sorted(facts[section].items()):
            lines += ["", f"[{section}.{_toml(name)}]"]
            for member, fact in sorted(members.items(), key=_place):
                lines.append(f"{member} = {_toml(fact)}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite the pinned facts of the protocols named, or of both."""
    parser = argparse.ArgumentParser(description="Pin Flyte's protocols as installed here.")
    parser.add_argument("package", nargs="*", help=f"of {', '.join(PROTOCOLS)}; default: all")
    for package in parser.parse_args().package or PROTOCOLS:
        if package not in PROTOCOLS:
            parser.error(f"{package} is no protocol; known: {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[package]
        try:
            facts = describe(protocol)
        except ImportError as error:
            sys.stderr.write(f"{package} is not pinned: {error}. Install it first.\n")
            return 2
        protocol.file.write_text(render(facts), encoding="utf-8")
        sys.stdout.write(
            f"{protocol.file.name}: {package} {facts['version']},"
            f" {', '.join(f'{len(facts[section])} {section}' for section in SECTIONS)}\n"
        )
    return 0


def _find(find: Callable[[str], _T], name: str) -> _T | None:
    try:
        return find(name)
    except KeyError:
        return None


def _rpcs(service: ServiceDescriptor) -> dict[str, Any]:
    return {
        rpc.name: {
            "request": rpc.input_type.full_name,
            "response": rpc.output_type.full_name,
            "client_streaming": rpc.client_streaming,
            "server_streaming": rpc.server_streaming,
        }
        for rpc in service.methods
    }


def _fields(message: Descriptor) -> dict[str, Any]:
    proto = DescriptorProto()  # its spelling is the same in every protobuf release
    message.CopyToProto(proto)
    entries = {
        f".{message.full_name}.{nested.name}"
        for nested in proto.nested_type
        if nested.options.map_entry
    }
    facts = {}
    for field in proto.field:
        fact: dict[str, Any] = {"number": field.number, "type": _type(field)}
        if field.type_name in entries:
            fact["label"] = "map"
        elif field.label == FieldDescriptorProto.LABEL_REPEATED:
            fact["label"] = "repeated"
        elif field.proto3_optional:
            fact["label"] = "optional"
        if field.HasField("oneof_index") and not field.proto3_optional:
            fact["oneof"] = proto.oneof_decl[field.oneof_index].name
        facts[field.name] = fact
    return facts


def _type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.removeprefix(".")
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def _spelled_out(fact: Any) -> dict[str, Any]:
    if not isinstance(fact, dict):
        return {"number": fact}
    return fact if "request" in fact else {**_USUAL, **fact}


def _place(member: tuple[str, Any]) -> tuple[int, str]:
    name, fact = member
    number = fact.get("number", 0) if isinstance(fact, dict) else fact
    return number, name


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value)  # a string, a number or a truth value: TOML spells them as JSON does


if __name__ == "__main__":
    sys.exit(main())
