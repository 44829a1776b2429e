"""``connector-service run``: one job from create to its outputs, as Flyte would drive it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc.aio
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from rich.console import Console
from rich.status import Status
from rich.text import Text

from connector_service.cli.options import (
    endpoint_option,
    load_config,
    parse_inputs,
    parse_template,
    refuse_with_endpoint,
    settings_options,
    timeout_option,
)
from connector_service.client import Client
from connector_service.codec.literals import from_literal_map
from connector_service.config import Log
from connector_service.errors import ConnectorNotFoundError
from connector_service.plugins import loader
from connector_service.sdk.resource import TaskCategory, is_terminal_phase
from connector_service.server.server import build
from connector_service.telemetry import logging as log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flyteidl.admin.agent_pb2 import Agent, Resource
    from flyteidl.core.tasks_pb2 import TaskTemplate

__all__ = ["run"]

_INTERRUPTED = 130


@click.command()
@settings_options("plugins")
@endpoint_option
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
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between polls.",
)
def run(
    config_file: str | None,
    endpoint: str | None,
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
    the job. Without --endpoint the job runs in a service of its own, started for it on a free
    port of 127.0.0.1.
    """
    if endpoint:
        refuse_with_endpoint(config_file, flags)
    task = parse_template(template, task_type)
    values = parse_inputs(inputs, task)
    prefix = output_prefix or Path(tempfile.mkdtemp(prefix="connector-service-run-")).as_uri()

    async def main() -> int:
        async with (
            _service(endpoint, config_file, flags) as target,
            Client(target, timeout=timeout) as client,
        ):
            return await _Job(client, task, values, prefix, poll).run()

    raise click.exceptions.Exit(asyncio.run(main()))


@contextlib.asynccontextmanager
async def _service(
    endpoint: str | None, config_file: str | None, flags: dict[str, Any]
) -> AsyncIterator[str]:
    """Yield the endpoint to call: the one given, or that of a service started for this job."""
    if endpoint:
        yield endpoint
        return
    own = {"host": "127.0.0.1", "port": 0, "prometheus_port": 0, "drain_delay": 0.0, "grace": 1.0}
    settings = load_config(config_file, {**flags, **own})
    log.configure(Log(log_level="error"))
    logging.getLogger(loader.__name__).setLevel(logging.CRITICAL)  # we print what failed ourselves
    service = build(settings)
    for record in service.plugins:
        if record.failed:
            click.echo(f"plugin {record.name} ({record.state}): {record.error}", err=True)
    await service.startup()
    try:
        yield f"127.0.0.1:{service.port}"
    finally:
        await service.shutdown()


class _Job:
    """One job and its progress on the console."""

    def __init__(
        self, client: Client, template: TaskTemplate, inputs: LiteralMap, prefix: str, poll: float
    ) -> None:
        self._client = client
        self._template = template
        self._inputs = inputs
        self._prefix = prefix
        self._poll = poll
        self._category = TaskCategory(template.type, template.task_type_version)
        self._started = time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._said = ""

    async def run(self) -> int:
        """Drive the job; return the command's exit code."""
        agent = self._find(await self._client.list_agents())
        with self._progress() as progress:
            if agent.is_sync:
                resource = await self._client.do(
                    self._template, self._inputs, output_prefix=self._prefix
                )
            else:
                ended = await self._create_and_follow(progress)
                if ended is None:
                    return _INTERRUPTED
                resource = ended
        return self._finish(resource)

    def _find(self, agents: list[Agent]) -> Agent:
        offered = {
            TaskCategory(category.name, category.version): agent
            for agent in agents
            for category in agent.supported_task_categories
        }
        if self._category not in offered:
            raise ConnectorNotFoundError(
                f"task type {self._category.spoken}", (category.listed for category in offered)
            )
        return offered[self._category]

    async def _create_and_follow(self, progress: Status | None) -> Resource | None:
        with _interrupts() as interrupted:
            meta = await self._client.create(
                self._template, self._inputs, output_prefix=self._prefix
            )
            try:
                return await self._follow(meta, interrupted, progress)
            except BaseException:
                # Whatever stops us from following, nobody else will delete the job.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._delete(meta, "cannot follow the job; deleting it")
                raise

    async def _follow(
        self, meta: bytes, interrupted: asyncio.Event, progress: Status | None
    ) -> Resource | None:
        while not interrupted.is_set():
            resource = await self._client.get(self._category, meta, output_prefix=self._prefix)
            self._report(resource, progress)
            if is_terminal_phase(resource.phase):
                return resource
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupted.wait(), self._poll)
        await self._delete(meta, "interrupted; deleting the job")
        return None

    async def _delete(self, meta: bytes, why: str) -> None:
        self._say(why)
        try:
            await self._client.delete(self._category, meta)
        except grpc.aio.AioRpcError:
            self._say("the job is not deleted and may still run")
            raise
        self._say("the job is deleted")

    def _report(self, resource: Resource, progress: Status | None) -> None:
        line = TaskExecution.Phase.Name(resource.phase)
        if resource.message:
            line += f": {resource.message}"
        if progress is not None:
            progress.update(Text(f"{line} ({self._clock()})"))
        if line == self._said:
            return
        self._said = line
        self._say(line)
        for link in resource.log_links:
            self._console.print(f"  {link.name}: {link.uri}", markup=False)

    def _say(self, line: str) -> None:
        self._console.print(f"{self._clock()} {line}", markup=False)

    def _finish(self, resource: Resource) -> int:
        phase = TaskExecution.Phase.Name(resource.phase)
        if resource.phase != TaskExecution.SUCCEEDED:
            click.echo(f"Error: the job ended {phase}: {resource.message}", err=True)
            return 1
        click.echo(json.dumps(self._outputs(resource), indent=2, default=str))
        return 0

    def _outputs(self, resource: Resource) -> dict[str, Any]:
        outputs = resource.outputs if resource.HasField("outputs") else self._written_outputs()
        return from_literal_map(outputs, self._template.interface.outputs.variables)

    def _written_outputs(self) -> LiteralMap:
        """Read what the client would read when the reply has no outputs."""
        path = Path(self._prefix.removeprefix("file://")) / "outputs.pb"
        return LiteralMap.FromString(path.read_bytes()) if path.is_file() else LiteralMap()

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:6.1f}s"

    def _progress(self) -> contextlib.AbstractContextManager[Status | None]:
        if not self._console.is_terminal:
            return contextlib.nullcontext()
        # A Text, for brackets in a plain string are markup, and the words are not ours.
        return Status(Text(f"creating a {self._template.type} job"), console=self._console)


@contextlib.contextmanager
def _interrupts() -> Any:
    """Turn Ctrl+C and SIGTERM into an event, so that the job is deleted in good order."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        yield interrupted
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
