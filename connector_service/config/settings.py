"""The settings of each concern: frozen, validated, one definition for three spellings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "ConnectorSection",
    "Count",
    "Drain",
    "Hosting",
    "Ledger",
    "Listen",
    "Log",
    "Metrics",
    "Plugins",
    "Settings",
    "Wait",
]

_Port = Annotated[int, Meta(ge=0, le=65535)]
_Seconds = Annotated[float, Meta(ge=0, le=86400)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen group of settings; a key it does not know is an error."""


class Listen(Settings, frozen=True):
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
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Processes that share the gRPC port, each a whole service with process"
            " hosts of its own; each connection stays with one.",
        ),
    ] = 1


class Metrics(Settings, frozen=True):
    """Where Prometheus scrapes."""

    prometheus_port: Annotated[
        _Port,
        Meta(description="HTTP port of /metrics, /livez and /readyz; 0 takes a free one."),
    ] = 9090


class Plugins(Settings, frozen=True):
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


class Hosting(Settings, frozen=True):
    """Hosts beside this process; ``[hosts.<name>]`` tables say the rest."""

    host_from: Annotated[
        tuple[str, ...],
        Meta(
            description="Run the connectors of this source in a process of their own: flytekit,"
            " flyte, entry-points or module:NAME. Repeatable."
        ),
    ] = ()
    run_dir: Annotated[
        str,
        Meta(
            description="Private folder for sockets; default: one of the port's own in"
            " $XDG_RUNTIME_DIR or the system's folder for temporary files."
        ),
    ] = ""


class Drain(Settings, frozen=True):
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


class Log(Settings, frozen=True):
    """What is logged, and how a line looks."""

    log_format: Annotated[
        Literal["text", "json"], Meta(description="text for people, json for collectors.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level shown.")
    ] = "info"


class Ledger(Settings, frozen=True):
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


Count = Annotated[int, Meta(ge=1, le=100_000)]
Wait = Annotated[float, Meta(gt=0, le=86400)]
_Span = Annotated[float, Meta(ge=0, le=30 * 86400)]


class ConnectorSection(Settings, frozen=True):
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
        Count, Meta(description="Calls of the connector that run at a time.")
    ] = 64
    threads: Annotated[
        Count, Meta(description="Of these, plain def calls that run at a time, each on a thread.")
    ] = 32
    queue: Annotated[
        int,
        Meta(ge=0, le=100_000, description="Calls that may wait; more are UNAVAILABLE at once."),
    ] = 256
    create_timeout: Annotated[
        Wait, Meta(description="Seconds until a create is answered, when the client allows more.")
    ] = 9.0
    get_timeout: Annotated[Wait, Meta(description="The same for get and get_metrics.")] = 5.0
    delete_timeout: Annotated[Wait, Meta(description="The same for delete.")] = 9.0
    do_timeout: Annotated[Wait, Meta(description="The same for do.")] = 9.0
    create_limit: Annotated[
        Wait,
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
