"""Reads the settings from flags, environment and file, and checks them with one sentence each."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from connector_service.config.hosts import HostSection
from connector_service.config.settings import (
    ConnectorSection,
    Drain,
    Hosting,
    Ledger,
    Listen,
    Log,
    Metrics,
    Plugins,
    Settings,
)
from connector_service.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "CONNECTORS_TABLE",
    "DEFAULT_FILE",
    "ENV_PREFIX",
    "HOSTS_TABLE",
    "Config",
    "Field",
    "fields",
    "load",
]

DEFAULT_FILE = "connector-service.toml"
ENV_PREFIX = "CONNECTOR_SERVICE_"
CONNECTORS_TABLE = "connectors"
HOSTS_TABLE = "hosts"

# A Kubernetes Service named `connector-service`, or `connector-service-canary`, puts variables
# with our prefix into every pod of its namespace (enableServiceLinks):
# CONNECTOR_SERVICE_PORT=tcp://10.0.0.1:8000, CONNECTOR_SERVICE_CANARY_SERVICE_HOST=10.0.0.1.
_SERVICE_LINK_NAME = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


class Config(Settings, frozen=True):
    """Every setting of one service, grouped by concern."""

    listen: Listen = Listen()
    metrics: Metrics = Metrics()
    plugins: Plugins = Plugins()
    hosting: Hosting = Hosting()
    drain: Drain = Drain()
    ledger: Ledger = Ledger()
    log: Log = Log()
    connectors: dict[str, ConnectorSection] = msgspec.field(default_factory=dict)
    hosts: dict[str, HostSection] = msgspec.field(default_factory=dict)


class Field(msgspec.Struct, frozen=True):
    """One setting as its three spellings need it."""

    name: str
    concern: str
    type: Any
    default: Any
    description: str

    @property
    def repeatable(self) -> bool:
        """Tell whether the setting holds several values."""
        return isinstance(self.default, tuple)

    @property
    def choices(self) -> tuple[str, ...]:
        """List the only values allowed, when there are such."""
        plain = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        if self.repeatable:
            plain = get_args(plain)[0]
        return get_args(plain) if get_origin(plain) is Literal else ()


@functools.cache
def fields() -> tuple[Field, ...]:
    """Return every setting that has the three spellings, in the order of the concerns."""
    return tuple(_fields())


def _fields() -> Iterator[Field]:
    for concern, group in get_type_hints(Config).items():
        if not (isinstance(group, type) and issubclass(group, Settings)):
            continue
        hints = get_type_hints(group, include_extras=True)
        for info in msgspec.structs.fields(group):
            description = _description(hints[info.name])
            yield Field(info.name, concern, hints[info.name], info.default, description)


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Config:
    """Merge flags, environment and file into one validated ``Config``.

    ``flags`` holds only what was given on the command line. ``file`` None reads
    ``connector-service.toml`` in the working directory when it exists.

    Raises:
        ConfigError: Naming the source, the key, and what was expected.
    """
    known = {field.name: field for field in fields()}
    merged: dict[str, Any] = {}
    source = str(file or DEFAULT_FILE)
    tables: dict[str, dict[str, Any]] = {name: {} for name in _TABLES}
    for name, value in _from_file(file).items():
        if name in _TABLES:
            tables[name] = _sections(name, value, source)
        elif isinstance(value, dict):
            raise ConfigError(
                f"{source}: [{name}] is no table; settings stand at the top, without tables."
            )
        else:
            merged[name] = _check(known, name, value, source, strict=True)
    for name, text in _from_environment(environ or {}, known).items():
        raw = _split(text) if known[name].repeatable else text
        merged[name] = _check(known, name, raw, ENV_PREFIX + name.upper(), strict=False)
    for name, value in (flags or {}).items():
        merged[name] = _check(known, name, value, f"--{name.replace('_', '-')}", strict=True)
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in merged.items():
        grouped.setdefault(known[name].concern, {})[name] = value
    for given in merged.get("host_from", ()):
        _add_host(tables[HOSTS_TABLE], given)
    return msgspec.convert({**grouped, **tables}, Config)


def _from_file(file: str | Path | None) -> dict[str, Any]:
    path = Path(file or DEFAULT_FILE)
    if file is None and not path.exists():
        return {}
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


_TABLES: Mapping[str, tuple[type[Settings], str]] = {
    CONNECTORS_TABLE: (ConnectorSection, "task type"),
    HOSTS_TABLE: (HostSection, "host"),
}


def _sections(table: str, sections: object, source: str) -> dict[str, Any]:
    """Check each ``[<table>.<name>]`` by itself, so that an error names it."""
    kind, what = _TABLES[table]
    if not isinstance(sections, dict):
        raise ConfigError(f"{source}: {table} is tables, one a {what}.")
    checked = {}
    for name, section in sections.items():
        where = f"{source}: [{table}.{name}]"
        try:
            checked[name] = msgspec.convert(section, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {_sentence(error)}") from None
        if table == HOSTS_TABLE and not _HOST_NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: a host's name is up to 32 small letters, digits and hyphens."
            )
    return checked


def _add_host(hosts: dict[str, Any], source: str) -> None:
    """Make the host that ``--host-from SOURCE`` asks for, named after its source."""
    name = re.sub(r"[^a-z0-9]+", "-", source.removeprefix("module:").lower()).strip("-")[-32:]
    if name in hosts:
        raise ConfigError(
            f"--host-from {source} makes a host {name}, and [hosts.{name}] is one already: give"
            f" one of the two."
        )
    section = {"sources": [source]}
    hosts.update(_sections(HOSTS_TABLE, {name: section}, f"--host-from {source}"))


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Field]) -> dict[str, str]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        spelled = variable.removeprefix(ENV_PREFIX)
        if _SERVICE_LINK_NAME.fullmatch(spelled) or _SERVICE_LINK_VALUE.match(text):
            continue
        name = spelled.lower()
        if name == "config":  # the command line reads it: it says where the file is
            continue
        if name not in known:
            raise ConfigError(_unknown(name, known, variable))
        found[name] = text.strip()
    return found


def _check(
    known: Mapping[str, Field], name: str, value: object, source: str, *, strict: bool
) -> object:
    if name not in known:
        raise ConfigError(_unknown(name, known, source))
    try:
        return msgspec.convert(value, known[name].type, strict=strict)
    except msgspec.ValidationError as error:
        where = source if name in source.lower().replace("-", "_") else f"{source}: {name}"
        allowed = (
            ("true", "false") if isinstance(known[name].default, bool) else known[name].choices
        )
        choices = ", ".join(allowed)
        expected = f" Choose from {choices}." if choices else ""
        raise ConfigError(f"{where} is {value!r}: {_sentence(error)}{expected}") from None


def _unknown(name: str, known: Mapping[str, Field], source: str) -> str:
    import difflib  # noqa: PLC0415 - only for a misspelling

    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}."
    return f"{source}: no setting is called {name}; {hint}"


def _sentence(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "") + "."


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _description(hint: Any) -> str:
    metas = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Meta)]
    return next((meta.description for meta in reversed(metas) if meta.description), "")
