"""What a service is made of before it is put together: plugins, their options, its ledger."""

from __future__ import annotations

import fnmatch
import logging
from typing import TYPE_CHECKING, NamedTuple

from connector_service.errors import ConfigError, PluginError
from connector_service.plugins import loader
from connector_service.runtime.ledger_memory import MemoryLedger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from connector_service.config import Config, Plugins
    from connector_service.plugins.loader import PluginRecord
    from connector_service.runtime.ledger import Ledger
    from connector_service.sdk.registry import Registry

__all__ = ["Idle", "configure", "load_plugins", "make_ledger", "offers", "refuse_idle"]

_log = logging.getLogger(__name__)


class Idle(NamedTuple):
    """A setting that names task types and matched none of this process: most likely misspelt."""

    pattern: str
    sentence: str
    fatal: bool = False


def make_ledger(config: Config) -> Ledger:
    """Make the ledger that the settings name; only the one that is used is imported."""
    settings = config.ledger
    if settings.state_dir and settings.ledger_url:
        raise ConfigError(
            "state_dir and ledger_url exclude each other: created jobs are remembered in one place."
        )
    if settings.ledger_url:
        from connector_service.runtime.ledger_redis import RedisLedger  # noqa: PLC0415

        return RedisLedger(settings.ledger_url)
    if settings.state_dir:
        from connector_service.runtime.ledger_sqlite import SqliteLedger  # noqa: PLC0415

        return SqliteLedger(settings.state_dir)
    return MemoryLedger()


def load_plugins(config: Config, registry: Registry) -> tuple[list[PluginRecord], list[Idle]]:
    """Load what the settings name into ``registry`` and keep what they choose.

    Returns a record of each plugin, and the settings that matched nothing.

    Raises:
        PluginError: Something failed, and ``--strict`` is on.
    """
    plugins = config.plugins
    records = loader.load(loader.sources(plugins.module), registry)
    idle = registry.select(enable=plugins.enable, disable=plugins.disable)
    if plugins.strict:
        loader.refuse_failures(records)
    return records, [
        Idle(
            pattern,
            f"--enable/--disable {pattern} matches no registered task type",
            fatal=plugins.strict,
        )
        for pattern in idle
    ]


def refuse_idle(idle: Iterable[Idle], task_types: Sequence[str] = ()) -> None:
    """Say which settings match none of ``task_types`` either, those of the hosts.

    Raises:
        PluginError: ``--strict`` makes one of them fatal.
    """
    for pattern, sentence, fatal in idle:
        if fnmatch.filter(task_types, pattern):
            continue
        if fatal:
            raise PluginError(f"{sentence}, and --strict is on.")
        _log.warning(sentence)


def offers(plugins: Plugins, task_type: str) -> bool:
    """Tell whether the settings let ``task_type`` be served, wherever it runs."""

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(task_type, pattern) for pattern in patterns)

    return (not plugins.enable or matches(plugins.enable)) and not matches(plugins.disable)


def configure(config: Config, registry: Registry) -> list[Idle]:
    """Give every connector its options, and return the sections that nobody owns."""
    owned = {registration.category.name for registration in registry}
    idle = [
        Idle(name, f"[connectors.{name}] is for a task type that is not registered")
        for name in sorted(config.connectors.keys() - owned)
    ]
    for registration in registry:
        section = config.connectors.get(registration.category.name)
        try:
            registration.connector.configure(section.options if section else {})
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"[connectors.{registration.category.name}.options]:"
                f" {registration.connector.name} refused them: {type(error).__name__}: {error}."
            ) from error
    return idle
