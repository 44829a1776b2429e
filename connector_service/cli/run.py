"""``connector-service run``: one job from create to its outputs, as Flyte would drive it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import click

from connector_service.cli.options import (
    connect,
    endpoint_option,
    parse_inputs,
    parse_template,
    protocol_option,
    timeout_option,
)
from connector_service.cli.settings import load_config, refuse_with_endpoint, settings_options
from connector_service.codec.literals import from_literal_map
from connector_service.config import Log
from connector_service.local.backends import InProcess, Remote
from connector_service.local.runner import POLL, Job, LocalRun
from connector_service.plugins import loader
from connector_service.sdk.registry import Registry
from connector_service.server.parts import configure, load_plugins, refuse_idle
from connector_service.telemetry import logging as log

if TYPE_CHECKING:
    from connector_service.local.backends import Backend

__all__ = ["run"]


@click.command()
@settings_options("plugins")
@endpoint_option
@protocol_option
@timeout_option
@click.option("--task-type", metavar="NAME[:VERSION]", help="Task type, if not in the template.")
@click.option("--template", metavar="FILE", help="TaskTemplate as JSON: a file, -, or it.")
@click.option(
    "--inputs", metavar="FILE", help='Inputs as JSON, such as {"n": 3}: a file, -, or it.'
)
@click.option(
    "--output-prefix", default="", metavar="URI", help="Where outputs go; a new folder by default."
)
@click.option(
    "--poll",
    type=click.FloatRange(min=0.01),
    default=POLL,
    show_default=True,
    metavar="SECONDS",
    help="Longest time between polls.",
)
def run(
    config_file: str | None,
    endpoint: str | None,
    protocol: str | None,
    timeout: float,
    task_type: str | None,
    template: str | None,
    inputs: str | None,
    output_prefix: str,
    poll: float,
    **flags: Any,
) -> None:
    """Run one job to its end and print its outputs.

    The outputs are JSON on standard output, progress goes to standard error, and Ctrl+C deletes
    the job. Without --endpoint the job runs in this process, by what is installed here.
    """
    if endpoint:
        refuse_with_endpoint(config_file, flags)
    elif protocol:
        raise click.UsageError("--protocol is for a service at --endpoint.")
    task = parse_template(template, task_type)
    values = parse_inputs(inputs, task)
    if endpoint:
        backend: Backend = Remote(endpoint, lambda target: connect(target, protocol, timeout))
    else:
        backend = InProcess(_installed(config_file, flags), timeout=timeout)
    job = Job(task.id.name or task.type, task, values, output_prefix)
    outputs = LocalRun(backend, job, poll=poll).run()
    shown = from_literal_map(outputs, task.interface.outputs.variables, path="outputs")
    click.echo(json.dumps(shown, indent=2, default=str))


def _installed(config_file: str | None, flags: dict[str, Any]) -> Registry:
    """Load the plugins and give them their options, as the service does before it serves them."""
    settings = load_config(config_file, flags)
    log.configure(Log(log_level="error"))
    logging.getLogger(loader.__name__).setLevel(logging.CRITICAL)  # we print what failed ourselves
    registry = Registry()
    records, idle = load_plugins(settings, registry)
    for record in records:
        if record.failed:
            click.echo(f"plugin {record.name} ({record.state}): {record.error}", err=True)
    refuse_idle([*idle, *configure(settings, registry)])
    return registry
