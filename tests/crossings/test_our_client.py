"""The service's own client and commands, which speak either protocol."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from crossing_values import (
    CONNECTION,
    LITERAL_OUTPUTS,
    LITERALS,
    OUTPUTS,
    SEEN,
    Answer,
    refusal,
    template,
    typed,
)
from daemon import COMMAND, Daemon
from flyte_clients import Meta, make_connector
from flyteidl.admin import agent_pb2
from grpc import StatusCode

from connector_service import (
    Phase,
    Resource,
)
from connector_service.sdk import resource as sdk_resource
from connector_service.testing import serve


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2", None])
async def test_our_client_hides_the_protocol(crossed: Any, protocol: str | None) -> None:
    """Callers of Client give and get Flyte 1's messages, whatever is spoken on the wire."""
    line = agent_pb2.GetTaskLogsResponse(header=agent_pb2.GetTaskLogsResponseHeader(token="t"))
    seen: list[Any] = []

    def create(self: Any, inputs: Any, task_execution_metadata: Any) -> Any:
        seen.append((inputs, task_execution_metadata.namespace))
        return Meta("1")

    connector = crossed(
        create=create,
        get=lambda self, resource_meta: Resource(Phase.SUCCEEDED, outputs=OUTPUTS),
        get_metrics=lambda self, resource_meta: agent_pb2.GetTaskMetricsResponse(),
        get_logs=lambda self, resource_meta: line,
    )
    category = sdk_resource.TaskCategory("crossed")
    async with serve(connector, Answer()) as served, served.client(protocol=protocol) as client:
        assert await client.protocol() == (protocol or "flyteidl")
        about = agent_pb2.TaskExecutionMetadata(namespace="flyte")
        meta = await client.create(typed(), LITERALS, task_execution_metadata=about)
        resource = await client.get(category, meta)
        assert type(resource) is agent_pb2.Resource
        assert resource.outputs == LITERAL_OUTPUTS
        metrics = await client.get_metrics(category, meta, queries=["cpu"])
        assert type(metrics) is agent_pb2.GetTaskMetricsResponse
        assert [message async for message in client.get_logs(category, meta)] == [line]
        await client.delete(category, meta)
        agents = await client.list_agents()
        assert [agent.name for agent in agents] == ["Answer", "Crossed"]
        assert agents[1].supported_task_types == ["crossed"]
        assert await client.get_agent("Crossed") == agents[1]
        done = await client.do(template("answer"), LITERALS)
        assert (done.phase, done.outputs) == (Phase.SUCCEEDED, LITERAL_OUTPUTS)
    assert seen == [(LITERALS if crossed.shape == "base" else SEEN, "flyte")]


async def test_our_client_sends_a_connection_where_the_protocol_has_one() -> None:
    """Over Flyte 2 it arrives with create, get and delete; over Flyte 1 it is refused unsent."""
    seen: list[str] = []

    def note(result: Any) -> Callable[..., Any]:
        def method(self: Any, *, token: str, **kwargs: Any) -> Any:
            seen.append(token)
            return result

        return method

    connector = make_connector(
        "connector",
        create=note(Meta("1")),
        get=note(Resource(Phase.RUNNING)),
        delete=note(None),
    )
    category = sdk_resource.TaskCategory("crossed")
    async with serve(connector) as served:
        async with served.client(protocol="flyteidl2") as client:
            meta = await client.create(template(), connection=CONNECTION)
            await client.get(category, meta, connection=CONNECTION)
            await client.delete(category, meta, connection=CONNECTION)
            assert seen == ["s3cr3t-value"] * 3
        async with served.client() as client:
            for call in (
                client.create(template(), connection=CONNECTION),
                client.get(category, meta, connection=CONNECTION),
                client.delete(category, meta, connection=CONNECTION),
                client.do(template(), connection=CONNECTION),
            ):
                with pytest.raises(ValueError, match="Flyte 1's protocol has no connection"):
                    await call
    assert len(seen) == 3


async def test_doing_a_job_over_flyte_2_is_refused_and_leaves_none(crossed: Any) -> None:
    """Flyte 2 does not tell sync from async: a job that turns out to run on is deleted again."""
    deleted: list[str] = []
    connector = crossed(
        get=lambda self, resource_meta: Resource(Phase.RUNNING),
        delete=lambda self, resource_meta: deleted.append(resource_meta.job),
    )
    async with serve(connector) as served, served.client(protocol="flyteidl2") as client:
        with pytest.raises(TypeError, match="'crossed' version 0 runs as a job"):
            await client.do(template())
    assert deleted == ["1"]


async def test_our_client_says_what_a_server_without_either_protocol_serves() -> None:
    """A wrong address that is some other gRPC service is a sentence, not UNIMPLEMENTED."""
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 - this test's own server

    from connector_service.client import Client  # noqa: PLC0415

    server = grpc.aio.server()
    reflection.enable_server_reflection(("other.Service", reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(NotImplementedError, match=r"serves neither .* it serves .*other\.S"):
            await client.list_agents()
    await server.stop(None)


async def test_our_client_guesses_where_there_is_no_reflection() -> None:
    """A server that does not tell is spoken to in Flyte 1's protocol, and somebody is told."""
    from connector_service.client import Client  # noqa: PLC0415 - beside its test

    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    said: list[str] = []
    async with Client(f"127.0.0.1:{port}", notice=said.append) as client:
        for _ in range(2):
            code, _ = await refusal(client.list_agents())
            assert code is StatusCode.UNIMPLEMENTED
        assert await client.protocol() == "flyteidl"
    await server.stop(None)
    (sentence,) = said
    assert "does not tell which protocol it serves" in sentence


# --- the commands --------------------------------------------------------------------------------

COMMANDED = """
from connector_service import *

class Asked(AsyncConnector):
    task_type_name = "asked"
    metadata_type = ResourceMeta

    def create(self, task_template, output_prefix, inputs, *, region="none"):
        return ResourceMeta()

    def get(self, resource_meta, *, region="none"):
        return Resource(Phase.SUCCEEDED, message=region)

    def delete(self, resource_meta):
        pass

class Shout(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="shout")

    def do(self, task_template, output_prefix, inputs):
        return Resource(Phase.SUCCEEDED, outputs={"text": "HI"})

ConnectorRegistry.register(Asked())
ConnectorRegistry.register(Shout())
"""


@pytest.fixture
def command(daemon: Any) -> Callable[..., tuple[int, str, str]]:
    """Run the installed command against a service of its own; give code, output and errors."""
    services: dict[tuple[str, ...], Daemon] = {}

    def run(*arguments: str, serves: tuple[str, ...] = ()) -> tuple[int, str, str]:
        if serves not in services:
            services[serves] = daemon(COMMANDED, *(f"--protocol={name}" for name in serves))
        endpoint = services[serves].endpoint
        done = subprocess.run(
            [str(COMMAND), *arguments, "--endpoint", endpoint], capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("serves", [("flyteidl",), ("flyteidl2",), ()], ids=str)
def test_the_commands_find_out_the_protocol(command: Any, serves: tuple[str, ...]) -> None:
    """list, describe, call and run work on any service without being told what it speaks."""
    code, listed, errors = command("list", "--json", serves=serves)
    assert (code, errors) == (0, "")
    kinds = {one["name"]: one["is_sync"] for one in json.loads(listed)["connectors"]}
    told = serves != ("flyteidl2",)
    assert (kinds["Asked"], kinds["Shout"]) == ((False, True) if told else (None, None))
    code, described, _ = command("describe", "shout", serves=serves)
    assert code == 0
    assert described.startswith("Shout: sync connector" if told else "Shout: connector")
    code, answered, errors = command("call", "do", "--task-type", "shout", serves=serves)
    assert (code, errors) == (0, "")
    text = json.loads(answered)["outputs"]["literals"]["text"]
    assert text["scalar"]["primitive"]["string_value"] == "HI"
    for task_type, outputs in (("asked", {}), ("shout", {"text": "HI"})):
        code, printed, errors = command("run", "--task-type", task_type, serves=serves)
        assert code == 0, errors
        assert json.loads(printed) == outputs


def test_a_connection_goes_with_a_call_over_flyte_2_alone(command: Any) -> None:
    """``--connection`` is what the executor would send; Flyte 1's protocol has no place for it."""
    connection = ("--connection", '{"configs": {"region": "eu"}}')
    asked = ("--task-type", "asked", *connection)
    code, made, errors = command("call", "create", *asked, "--protocol", "flyteidl2")
    assert (code, errors) == (0, "")
    meta = json.loads(made)["resource_meta"]
    code, got, _ = command("call", "get", *asked, "--meta", meta, "--protocol", "flyteidl2")
    assert (code, json.loads(got)["message"]) == (0, "eu")
    code, _, errors = command("call", "create", *asked)
    assert code == 1
    assert errors.startswith("Error: Flyte 1's protocol has no connection")


def test_a_protocol_that_is_not_served_is_said_to_be_unimplemented(command: Any) -> None:
    """``--protocol`` is taken at its word."""
    code, _, errors = command("call", "list", "--protocol", "flyteidl2", serves=("flyteidl",))
    assert code == 1
    assert errors.startswith("Error: UNIMPLEMENTED")
