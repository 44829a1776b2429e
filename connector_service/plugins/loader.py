"""Runs the sources of connectors into a registry, each in its own ``try``, one record each."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.errors import AuthorError, PluginError
from connector_service.sdk.connector import ConnectorBase
from connector_service.sdk.registry import Registry, registering_into
from connector_service.sdk.resource import TaskCategory
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from connector_service.sdk.registry import Registration

__all__ = [
    "GROUP",
    "PluginRecord",
    "PluginState",
    "Source",
    "load",
    "refuse_failures",
    "sources",
]

GROUP = "connector_service.connectors"

_log = logging.getLogger(__name__)

# Where a plugin's failure passes on its way to us: no place for its author to look.
_OURS = (Path(__file__).parent, Path(inspect.getfile(Registry)).parent)


class PluginState(StrEnum):
    """How the loading of one plugin ended."""

    LOADED = "loaded"
    MISSING = "missing dependency"
    SKIPPED = "extra not installed"
    FAILED = "failed"


class PluginRecord(msgspec.Struct, frozen=True):
    """What became of one plugin: what it brought, or why it could not be loaded."""

    name: str
    target: str
    state: PluginState
    distribution: str = ""
    categories: tuple[TaskCategory, ...] = ()
    error: str = ""
    where: str = ""  # file and line of the failure: for the log and the console, not for callers

    @property
    def loaded(self) -> bool:
        """Tell whether its connectors are registered."""
        return self.state is PluginState.LOADED

    @property
    def failed(self) -> bool:
        """Tell whether it should have been loaded and was not."""
        return self.state in (PluginState.MISSING, PluginState.FAILED)


class Source(msgspec.Struct, frozen=True):
    """A plugin that is to be loaded: its name, where it is, and how to get at it."""

    name: str
    target: str
    distribution: str
    resolve: Callable[[], Any]
    extras: tuple[str, ...] = ()  # extras the entry point asks for: `module:name [extra]`


def sources(modules: Iterable[str] = (), *, group: str = GROUP) -> list[Source]:
    """List the installed entry points of ``group``, by name, then ``modules`` in their order.

    Modules are also looked for in the working directory, last, so that none there hides another.
    """
    if modules and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    spoken = functools.cache(_spoken)  # all entry points of a distribution have the same
    found = [
        Source(entry.name, entry.value, spoken(entry.dist), entry.load, tuple(entry.extras))
        for entry in sorted(importlib.metadata.entry_points(group=group))
    ]
    return found + [
        Source(module, module, "", functools.partial(importlib.import_module, module))
        for module in modules
    ]


def load(plugins: Iterable[Source], registry: Registry) -> list[PluginRecord]:
    """Load every source into ``registry``; one that fails leaves no trace but its record.

    A source is a connector class, an instance, or a module that registers on import. Whatever it
    raises, ``SystemExit`` included, ends only itself. What it prints goes to standard error.
    """
    refused: list[Registration] = []
    with contextlib.redirect_stdout(sys.stderr):
        return [_load_one(source, registry, refused) for source in plugins]


def refuse_failures(records: Sequence[PluginRecord]) -> None:
    """Raise when any plugin failed, for ``--strict``.

    Raises:
        PluginError: Naming each that failed, and why.
    """
    failed = [record for record in records if record.failed]
    if failed:
        reasons = "; ".join(f"{record.name}: {record.error}" for record in failed)
        raise PluginError(
            f"{len(failed)} of {len(records)} plugins failed and --strict is on: {reasons}"
        )


def _load_one(source: Source, registry: Registry, refused: list[Registration]) -> PluginRecord:
    staging = Registry()
    try:
        with registering_into(staging):
            found = source.resolve()
            _register(found, staging)
        registrations = list(staging) or _of_module(found, (*registry, *refused))
        registry.update(registrations)
    except KeyboardInterrupt:
        raise  # the operator's Ctrl+C while plugins load, not the plugin's doing
    except BaseException as error:  # noqa: BLE001 - sys.exit() at import ends the plugin alone
        refused.extend(staging)
        return _failed(source, error)
    if not registrations:
        _log.warning("plugin registered no connector", extra={"plugin": source.name})
    return PluginRecord(
        source.name,
        source.target,
        PluginState.LOADED,
        source.distribution,
        tuple(registration.category for registration in registrations),
    )


def _register(found: Any, staging: Registry) -> None:
    if isinstance(found, ModuleType):
        return  # it registered on import
    if isinstance(found, type) and issubclass(found, ConnectorBase):
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise AuthorError(f"{found.__name__} lacks {missing}.")
        if found in [type(registration.connector) for registration in staging]:
            return  # its module registered one already
        found = found()  # type: ignore[call-arg] # the class names its own task type
    staging.register(found)


def _of_module(found: Any, earlier: Iterable[Registration]) -> list[Registration]:
    """Find what a module registered when another plugin imported it, loaded or failed.

    Its second import runs nothing, so it cannot register again.
    """
    if not isinstance(found, ModuleType):
        return []
    return [
        registration
        for registration in earlier
        if f"{type(registration.connector).__module__}.".startswith(f"{found.__name__}.")
    ]


def _failed(source: Source, error: BaseException) -> PluginRecord:
    missing = isinstance(error, ImportError) and not _is_own(error, source)
    state = PluginState.MISSING if missing else PluginState.FAILED
    sentence = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
    if missing and source.extras and isinstance(error, ModuleNotFoundError):
        # Any other ImportError is a dependency that is there and does not fit.
        state = PluginState.SKIPPED
        package = source.distribution.partition(" ")[0]
        sentence = f"install {package}[{','.join(source.extras)}] to have it ({sentence})"
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    where = next(
        (
            f"{file}:{line}"
            for file, line in reversed(places)
            if "importlib" not in file and Path(file).parent not in _OURS
        ),
        "",
    )
    _log.log(
        logging.INFO if state is PluginState.SKIPPED else logging.ERROR,
        "plugin not loaded",
        extra={
            "plugin": source.name,
            "state": str(state),
            "target": source.target,
            "reason": sentence,
            "where": where,
        },
        exc_info=error if not missing else None,
    )
    return PluginRecord(
        source.name, source.target, state, source.distribution, error=sentence, where=where
    )


def _is_own(error: BaseException, source: Source) -> bool:
    """Tell whether a module of the plugin's own package is what could not be imported."""
    missing: str = getattr(error, "name", None) or ""
    return missing.partition(".")[0] == source.target.partition(".")[0].partition(":")[0]


def _spoken(distribution: importlib.metadata.Distribution | None) -> str:
    """Name a distribution with its version; its metadata is read and parsed for each question."""
    if distribution is None:
        return ""
    metadata = distribution.metadata
    return f"{metadata['Name']} {metadata['Version']}"
