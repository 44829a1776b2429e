"""Frozen, validated settings per concern: one definition, three spellings.

A setting has one name. ``drain_delay`` is ``drain_delay`` in the TOML file,
``CONNECTOR_SERVICE_DRAIN_DELAY`` in the environment and ``--drain-delay`` as a flag; a flag
wins over the environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from connector_service.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "CONNECTORS_TABLE",
    "DEFAULT_FILE",
    "ENV_PREFIX",
    "Config",
    "ConnectorSection",
    "Drain",
    "Ledger",
    "Listen",
    "Log",
    "Metrics",
    "Plugins",
    "fields",
    "load",
]

DEFAULT_FILE = "connector-service.toml"
ENV_PREFIX = "CONNECTOR_SERVICE_"
CONNECTORS_TABLE = "connectors"

# A Kubernetes Service named `connector-service`, or `connector-service-canary`, puts variables
# with our prefix into every pod of its namespace (enableServiceLinks):
# CONNECTOR_SERVICE_PORT=tcp://10.0.0.1:8000, CONNECTOR_SERVICE_CANARY_SERVICE_HOST=10.0.0.1.
_SERVICE_LINK_NAME = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")

_Port = Annotated[int, Meta(ge=0, le=65535)]
_Seconds = Annotated[float, Meta(ge=0, le=86400)]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen group of settings; a key it does not know is an error."""


class Listen(_Settings, frozen=True):
    """Where and how the gRPC server listens."""

    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address to listen on; :: is every interface, as a pod needs.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        _Port, Meta(description="gRPC port; 0 takes a free one, printed at the start.")
    ] = 8000
    protocol: Annotated[
        tuple[Literal["flyteidl", "flyteidl2"], ...],
        Meta(
            min_length=1,
            description="Protocols to answer: flyteidl is Flyte 1's, flyteidl2 Flyte 2's."
            " Repeatable.",
        ),
    ] = ("flyteidl", "flyteidl2")
    max_request_mib: Annotated[
        int,
        Meta(ge=4, le=1024, description="Largest request accepted, in MiB."),
    ] = 64


class Metrics(_Settings, frozen=True):
    """Where Prometheus scrapes."""

    prometheus_port: Annotated[
        _Port,
        Meta(description="HTTP port of /metrics, /livez and /readyz; 0 takes a free one."),
    ] = 9090


class Plugins(_Settings, frozen=True):
    """Which connectors are loaded and offered."""

    module: Annotated[
        tuple[str, ...],
        Meta(description="Import this module too; it registers its connectors. Repeatable."),
    ] = ()
    enable: Annotated[
        tuple[str, ...],
        Meta(description="Offer only these task types (* and ? match). Repeatable."),
    ] = ()
    disable: Annotated[
        tuple[str, ...],
        Meta(description="Never offer these task types (* and ? match). Repeatable."),
    ] = ()
    strict: Annotated[bool, Meta(description="Refuse to start when any plugin fails to load.")] = (
        False
    )


class Drain(_Settings, frozen=True):
    """How the service leaves."""

    drain_delay: Annotated[
        _Seconds,
        Meta(
            description="Seconds to keep serving after health turned NOT_SERVING; at least the"
            " readiness probe's period times its failure threshold."
        ),
    ] = 9.0
    grace: Annotated[_Seconds, Meta(description="Seconds that calls in flight get to finish.")] = (
        15.0
    )


class Log(_Settings, frozen=True):
    """What is logged, and how a line looks."""

    log_format: Annotated[
        Literal["text", "json"], Meta(description="text for people, json for collectors.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level shown.")
    ] = "info"


class Ledger(_Settings, frozen=True):
    """Where it is remembered which jobs were created."""

    state_dir: Annotated[
        str,
        Meta(
            description="Folder for what must survive a restart: created jobs, in SQLite. Without"
            " it they are remembered in memory."
        ),
    ] = ""
    ledger_url: Annotated[
        str,
        Meta(description="redis:// URL where several replicas remember created jobs together."),
    ] = ""
    ledger_down: Annotated[
        Literal["refuse", "continue"],
        Meta(
            description="When the ledger cannot be reached: refuse creates with UNAVAILABLE, or"
            " continue without the guarantee and say so."
        ),
    ] = "refuse"


_Count = Annotated[int, Meta(ge=1, le=100_000)]
_Wait = Annotated[float, Meta(gt=0, le=86400)]
_Span = Annotated[float, Meta(ge=0, le=30 * 86400)]


class ConnectorSection(_Settings, frozen=True):
    """``[connectors.<task type>]``: the guarantees for one connector, and its own options.

    The time limits lie under propeller's own of 10 s, so that our answer is there first.
    """

    options: Annotated[
        dict[str, Any], Meta(description="Passed to the connector's configure() as it stands.")
    ] = {}
    guarantees: Annotated[
        bool,
        Meta(description="false passes calls straight through: no guarantee below holds."),
    ] = True
    concurrency: Annotated[
        _Count, Meta(description="Calls of the connector that run at a time.")
    ] = 64
    threads: Annotated[
        _Count, Meta(description="Of these, plain def calls that run at a time, each on a thread.")
    ] = 32
    queue: Annotated[
        int,
        Meta(ge=0, le=100_000, description="Calls that may wait; more are UNAVAILABLE at once."),
    ] = 256
    create_timeout: Annotated[
        _Wait, Meta(description="Seconds until a create is answered, when the client allows more.")
    ] = 9.0
    get_timeout: Annotated[_Wait, Meta(description="The same for get and get_metrics.")] = 5.0
    delete_timeout: Annotated[_Wait, Meta(description="The same for delete.")] = 9.0
    do_timeout: Annotated[_Wait, Meta(description="The same for do.")] = 9.0
    create_limit: Annotated[
        _Wait,
        Meta(description="Seconds that a create may go on after its caller has gone."),
    ] = 300.0
    create_retention: Annotated[
        _Span,
        Meta(description="Seconds in which a repeated create gets the first one's answer."),
    ] = 3600.0
    orphan_grace: Annotated[
        _Span,
        Meta(
            description="Seconds until a job whose caller had gone is deleted, unless a repeated"
            " create asks for it."
        ),
    ] = 120.0
    retry_transient: Annotated[
        bool, Meta(description="Retry transient faults inside the call's deadline.")
    ] = True
    min_poll_interval: Annotated[
        _Span,
        Meta(description="Seconds between two gets of one job that reach the connector."),
    ] = 0.0
    unknown_status_grace: Annotated[
        _Span,
        Meta(
            description="Seconds that a job's status may stay unknown for transient faults before"
            " it is RETRYABLE_FAILED."
        ),
    ] = 21_600.0
    bug_grace: Annotated[
        _Span,
        Meta(description="The same for errors of the connector's own get that nobody foresaw."),
    ] = 600.0
    terminal_retention: Annotated[
        _Span, Meta(description="Seconds in which a job's end is remembered.")
    ] = 600.0


class Config(_Settings, frozen=True):
    """Every setting of one service, grouped by concern."""

    listen: Listen = Listen()
    metrics: Metrics = Metrics()
    plugins: Plugins = Plugins()
    drain: Drain = Drain()
    ledger: Ledger = Ledger()
    log: Log = Log()
    connectors: dict[str, ConnectorSection] = {}


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


def fields() -> Iterator[Field]:
    """Yield every setting that has the three spellings, in the order of the concerns."""
    for concern, group in get_type_hints(Config).items():
        if not (isinstance(group, type) and issubclass(group, _Settings)):
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
    connectors: Any = {}
    for name, value in _from_file(file).items():
        if name == CONNECTORS_TABLE:
            connectors = value
        elif isinstance(value, dict):
            raise ConfigError(
                f"{file or DEFAULT_FILE}: [{name}] is no table; settings stand at the top, without"
                f" tables."
            )
        else:
            merged[name] = _check(known, name, value, str(file or DEFAULT_FILE), strict=True)
    for name, text in _from_environment(environ or {}, known).items():
        source = ENV_PREFIX + name.upper()
        raw = _split(text) if known[name].repeatable else text
        merged[name] = _check(known, name, raw, source, strict=False)
    for name, value in (flags or {}).items():
        merged[name] = _check(known, name, value, f"--{name.replace('_', '-')}", strict=True)
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in merged.items():
        grouped.setdefault(known[name].concern, {})[name] = value
    sections = _sections(connectors, str(file or DEFAULT_FILE))
    return msgspec.convert({**grouped, CONNECTORS_TABLE: sections}, Config)


def _from_file(file: str | Path | None) -> dict[str, Any]:
    path = Path(file or DEFAULT_FILE)
    if file is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def _sections(connectors: object, source: str) -> dict[str, ConnectorSection]:
    """Check each ``[connectors.<task type>]`` by itself, so that an error names its table."""
    if not isinstance(connectors, dict):
        raise ConfigError(f"{source}: {CONNECTORS_TABLE} is tables, one a task type.")
    sections = {}
    for name, section in connectors.items():
        try:
            sections[name] = msgspec.convert(section, ConnectorSection)
        except msgspec.ValidationError as error:
            where = f"{source}: [{CONNECTORS_TABLE}.{name}]"
            raise ConfigError(f"{where}: {_sentence(error)}") from None
    return sections


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
