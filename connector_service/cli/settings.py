"""Flags of the settings, made from their one definition; no gRPC, for commands that need none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from connector_service import config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["load_config", "refuse_with_endpoint", "settings_options"]


def settings_options(*concerns: str) -> Callable[[Any], Any]:
    """Add --config and a flag for every setting of ``concerns``."""

    def decorate(command: Any) -> Any:
        for field in reversed([field for field in config.fields() if field.concern in concerns]):
            command = _option(field)(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(dir_okay=False),
            envvar=f"{config.ENV_PREFIX}CONFIG",
            help=f"Settings file (TOML); {config.DEFAULT_FILE} is read when it is there.",
        )(command)

    return decorate


def load_config(config_file: str | None, flags: dict[str, Any]) -> config.Config:
    """Merge what was given on the command line with the environment and the file."""
    return config.load(_chosen(flags), environ=os.environ, file=config_file)


def refuse_with_endpoint(config_file: str | None, flags: dict[str, Any]) -> None:
    """Refuse settings of a service of our own where a running one is asked."""
    given = [f"--{name.replace('_', '-')}" for name in _chosen(flags)]
    if config_file is not None and os.environ.get(f"{config.ENV_PREFIX}CONFIG") != config_file:
        given.append("--config")
    if given:
        raise click.UsageError(
            f"{', '.join(given)} cannot change the service at --endpoint; leave one of them out."
        )


def _chosen(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that stood on the command line."""
    return {name: value for name, value in flags.items() if value is not None and value != ()}


def _option(field: config.Field) -> Callable[[Any], Any]:
    spelled = f"--{field.name.replace('_', '-')}"
    default = ", ".join(field.default) if field.repeatable else field.default
    text = f"{field.description}  [{config.ENV_PREFIX}{field.name.upper()}"
    text += f"; default: {default}]" if default not in ("", False) else "]"
    shown: dict[str, Any] = {"default": None, "help": text}
    if isinstance(field.default, bool):
        return click.option(f"{spelled}/--no-{spelled[2:]}", field.name, **shown)
    if field.repeatable:
        shown |= {"multiple": True, "default": ()}
    if field.choices:
        return click.option(spelled, field.name, type=click.Choice(field.choices), **shown)
    if field.repeatable:
        return click.option(spelled, field.name, **shown)
    kinds: Iterable[type] = (int, float)
    kind = next((kind for kind in kinds if isinstance(field.default, kind)), str)
    return click.option(spelled, field.name, type=kind, **shown)
