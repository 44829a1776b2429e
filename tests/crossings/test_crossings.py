"""All crossings over a real port: either of Flyte's clients, a connector in either shape or sync.

Each test runs for Flyte 1's client and for Flyte 2's, and most for both shapes of a connector: four
crossings, of which two re-read and two do not.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from daemon import COMMAND, Daemon
from flyte_clients import Meta, make_connector
from flyteidl.admin import agent_pb2
from flyteidl.core import execution_pb2, interface_pb2, literals_pb2, metrics_pb2, tasks_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.connector import connector_pb2
from flyteidl2.core import execution_pb2 as execution2_pb2
from flyteidl2.core import metrics_pb2 as metrics2_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2
from flyteidl2.core.security_pb2 import Connection
from flyteidl2.task import common_pb2
from grpc import StatusCode

from connector_service import (
    Blob,
    Phase,
    Resource,
    StructuredDataset,
    SyncConnectorBase,
    from_literal_map,
    to_literal_map,
)
from connector_service.cli.options import message_json
from connector_service.codec import plans, to_literal_type
from connector_service.config import ConnectorSection
from connector_service.errors import InvalidInputError
from connector_service.hosts import crossing
from connector_service.runtime import envelope
from connector_service.sdk import resource as sdk_resource
from connector_service.testing import serve

META = b'{"job": "1"}'
# Each create reaches the connector, though all have one output prefix; errors are statuses.
BARE = ConnectorSection(guarantees=False)


@dataclass
class Row:
    name: str
    scores: list[float] = field(default_factory=list)


# name -> its declared type, the value that is sent, the value that a Python connector sees.
INPUTS: dict[str, tuple[Any, Any, Any]] = {
    "count": (int, 2**53 + 1, 2**53 + 1),
    "ratio": (float, 0.1, 0.1),
    "whole": (float, 2, 2.0),
    "text": (str, "größe\n", "größe\n"),
    "empty": (str, "", ""),
    "flag": (bool, False, False),
    "nothing": (type(None), None, None),
    "when": (dt.datetime, dt.datetime(2026, 1, 2, tzinfo=dt.UTC), ...),
    "long": (dt.timedelta, dt.timedelta(days=3, microseconds=5), ...),
    "raw": (bytes, b"\x00\xff", b"\x00\xff"),
    "numbers": (list[int], [3, 1, 2], [3, 1, 2]),
    "no_numbers": (list[int], [], []),
    "table": (dict[str, int], {"b": 1, "a": 2}, {"b": 1, "a": 2}),
    "loose": (dict, {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    "row": (Row, Row("x", [1.5]), {"name": "x", "scores": [1.5]}),
    "rows": (list[Row], [Row("x")], [{"name": "x", "scores": []}]),
    "file": (Blob, Blob("s3://bucket/file", "csv"), ...),
    "folder": (Blob, Blob("s3://bucket/folder", multipart=True), ...),
    "frame": (StructuredDataset, StructuredDataset("s3://bucket/frame", "parquet"), ...),
    "columns": (StructuredDataset, StructuredDataset("s3://b/c", "csv", {"n": int}), ...),
    "maybe": (int | None, None, None),
    "either": (int | str, "7", "7"),
    "nested": (dict[str, list[int | str]], {"a": [1, "b"]}, {"a": [1, "b"]}),
}
DECLARED = interface_pb2.VariableMap(
    variables={
        name: interface_pb2.Variable(type=to_literal_type(kind))
        for name, (kind, _, _) in INPUTS.items()
        if name not in ("folder", "frame", "columns")  # a value says more than its type here
    }
)
SEEN = {name: sent if seen is ... else seen for name, (_, sent, seen) in INPUTS.items()}
SEEN["columns"] = StructuredDataset("s3://b/c", "csv", {"n": to_literal_type(int)})
LITERALS = to_literal_map({name: sent for name, (_, sent, _) in INPUTS.items()}, DECLARED.variables)


def template(task_type: str = "crossed", **fields: Any) -> tasks_pb2.TaskTemplate:
    return tasks_pb2.TaskTemplate(type=task_type, **fields)


def typed(task_type: str = "crossed") -> tasks_pb2.TaskTemplate:
    """Make a template that declares the inputs, and some of everything else."""
    return template(
        task_type,
        interface=interface_pb2.TypedInterface(inputs=DECLARED),
        custom={"key": ["value", {"deep": 1}]},
        container=tasks_pb2.Container(image="i", args=["a", "b"]),
        config={"c": "d"},
    )


async def refusal(awaitable: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code(), caught.value.details() or ""


# --- create ------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
async def test_create_brings_everything_in_the_shape_s_own_messages(
    crossed: Any, flyte: Any, declared: bool
) -> None:
    """Template, prefix, inputs and execution metadata arrive whole, in the connector's protocol."""
    seen: dict[str, Any] = {}

    async def create(self: Any, task_template: Any, output_prefix: str, **kwargs: Any) -> Any:
        seen.update(kwargs, task_template=task_template, output_prefix=output_prefix)
        return Meta("made")

    sent = typed() if declared else template(custom={"k": 1})
    async with serve(crossed(create=create)) as served:
        assert await flyte(served).create(sent, LITERALS) == b'{"job": "made"}'
    first = crossed.shape == "base"
    tasks, about = (tasks_pb2, agent_pb2) if first else (tasks2_pb2, connector_pb2)
    assert type(seen["task_template"]) is tasks.TaskTemplate
    arrived = seen["task_template"].SerializeToString()
    assert tasks_pb2.TaskTemplate.FromString(arrived) == sent
    assert seen["output_prefix"] == "mem://out"
    assert type(seen["task_execution_metadata"]) is about.TaskExecutionMetadata
    execution = seen["task_execution_metadata"]
    assert (execution.namespace, dict(execution.labels)) == ("flyte", {"a": "b"})
    assert execution.task_execution_id.retry_attempt == 2
    if first:
        assert seen["inputs"] == LITERALS
    elif declared:
        assert seen["inputs"] == SEEN
        assert [type(value) for value in seen["inputs"].values()] == [
            type(SEEN[name]) for name in seen["inputs"]
        ]
    else:
        assert seen["inputs"] == from_literal_map(LITERALS)
    assert re.fullmatch(r"[0-9a-f]{32}", seen.pop("idempotency_key"))
    assert set(seen) == {"task_template", "output_prefix", "inputs", "task_execution_metadata"}


@pytest.mark.parametrize("name", INPUTS)
async def test_each_value_crosses_by_itself(crossed: Any, flyte: Any, name: str) -> None:
    """One input of each type is the same value on the other side, whoever sends it."""
    seen: list[Any] = []

    def create(self: Any, inputs: Any) -> Any:
        seen.append(inputs)
        return Meta("1")

    one = literals_pb2.LiteralMap(literals={name: LITERALS.literals[name]})
    async with serve(crossed(create=create)) as served:
        await flyte(served).create(typed(), one)
    expected = one if crossed.shape == "base" else {name: SEEN[name]}
    assert seen == [expected]


async def test_no_inputs_are_an_empty_map_or_dict(crossed: Any, flyte: Any) -> None:
    """Propeller always sends inputs, if only empty ones; a connector never gets None for them."""
    seen: list[Any] = []

    def create(self: Any, inputs: Any) -> Any:
        seen.append(inputs)
        return Meta("1")

    async with serve(crossed(create=create)) as served:
        await flyte(served).create(template())
    assert seen == [literals_pb2.LiteralMap() if crossed.shape == "base" else {}]


async def test_the_order_of_inputs_changes_nothing(crossed: Any, reach: Any) -> None:
    """Flyte 2 ranges over a Go map to list its inputs: any order is the same call."""
    seen: list[Any] = []

    def create(self: Any, inputs: Any) -> Any:
        seen.append(inputs)
        return Meta("1")

    names = sorted(INPUTS)
    orders = [list(order) for order in itertools.permutations(names[:4])]
    chosen = random.Random(2)
    orders += [chosen.sample(names, len(names)) for _ in range(40)]
    async with serve(crossed(create=create), policy=BARE) as served:
        flyte = reach("flyteidl2", served.endpoint)
        for order in orders:
            inputs = common_pb2.Inputs(
                literals=[
                    common_pb2.NamedLiteral(
                        name=name,
                        value={},
                    )
                    for name in order
                ]
            )
            for entry in inputs.literals:
                entry.value.MergeFromString(LITERALS.literals[entry.name].SerializeToString())
            await flyte.create(typed(), inputs)
    for order, got in zip(orders, seen, strict=True):
        if crossed.shape == "base":
            expected = {name: LITERALS.literals[name] for name in order}
            assert got == literals_pb2.LiteralMap(literals=expected)
        else:
            assert got == {name: SEEN[name] for name in order}


async def test_a_wrong_value_is_a_sentence_with_its_path(flyte: Any) -> None:
    """An input that is not what its task declares is the caller's mistake, named by its path."""
    declared = interface_pb2.VariableMap(
        variables={"rows": interface_pb2.Variable(type=to_literal_type(list[int]))}
    )
    sent = template(interface=interface_pb2.TypedInterface(inputs=declared))
    wrong = to_literal_map({"rows": [1, 2, "x"]})
    connector = make_connector("connector", create=lambda self, task_template, inputs: Meta("1"))
    async with serve(connector, policy=BARE) as served:
        code, details = await refusal(flyte(served).create(sent, wrong))
    assert code is StatusCode.INVALID_ARGUMENT
    assert details.startswith("inputs.rows[2]: ")


async def test_damaged_inputs_are_refused_and_not_read_when_nobody_takes_them(
    crossed: Any, flyte: Any
) -> None:
    """Inputs are decoded where they are wanted: bytes that are none refuse that call alone."""
    takes = crossed(create=lambda self, task_template, inputs: Meta("1"))
    leaves = crossed(task_type="left", create=lambda self, task_template: Meta("1"))
    async with serve(takes, leaves) as served:
        client = flyte(served)
        call = client.channel.unary_unary(
            f"/{client.service}/CreateTask",
            response_deserializer=client.messages.CreateTaskResponse.FromString,
        )

        def damaged(task_type: str) -> bytes:
            named = client.messages.CreateTaskRequest()
            named.template.type = task_type
            return b"\x0a\x02\x0a\x7f" + named.SerializeToString()

        code, details = await refusal(call(damaged("crossed")))
        assert code is StatusCode.INVALID_ARGUMENT
        assert details == "The inputs of create are damaged."
        assert (await call(damaged("left"))).resource_meta == META
        code, _ = await refusal(call(b"\x0a\x7f"))
        assert code is StatusCode.INVALID_ARGUMENT
        assert (await client.create(template("left"))) == META  # and the service goes on


async def test_inputs_in_two_parts_are_merged(crossed: Any, flyte: Any) -> None:
    """Protobuf lets a message field come in parts; both are read, in any place of the request."""
    seen: list[Any] = []

    def create(self: Any, inputs: Any) -> Any:
        seen.append(inputs)
        return Meta("1")

    async with serve(crossed(create=create)) as served:
        client = flyte(served)
        kind = client.messages.CreateTaskRequest
        parts = []
        for name in ("a", "b"):
            part = kind()
            part.inputs.MergeFromString(to_literal_map({name: name}).SerializeToString())
            parts.append(part.SerializeToString())
        named = kind(output_prefix="mem://out")
        named.template.type = "crossed"
        call = client.channel.unary_unary(f"/{client.service}/CreateTask")
        await call(parts[0] + named.SerializeToString() + parts[1])
    both = {"a": "a", "b": "b"}
    assert seen == [to_literal_map(both) if crossed.shape == "base" else both]


# --- get ---------------------------------------------------------------------------------------

OUTPUTS = {"n": 1, "row": Row("x"), "file": Blob("s3://b/f")}
LITERAL_OUTPUTS = to_literal_map(OUTPUTS)
ANY_OUTPUTS = {
    "dict": OUTPUTS,
    "LiteralMap": LITERAL_OUTPUTS,
    "Outputs": common_pb2.Outputs.FromString(LITERAL_OUTPUTS.SerializeToString()),
}


@pytest.mark.parametrize("form", ANY_OUTPUTS)
async def test_outputs_of_any_form_are_the_same_on_the_wire(
    crossed: Any, flyte: Any, form: str
) -> None:
    """A dict, Flyte 1's map and Flyte 2's list of outputs reach each client as its own message."""
    get = lambda self, resource_meta: Resource(Phase.SUCCEEDED, outputs=ANY_OUTPUTS[form])  # noqa: E731
    async with serve(crossed(get=get)) as served:
        client = flyte(served)
        got = (await client.get(META)).outputs
    wire = literals_pb2.LiteralMap if client.is_first else common_pb2.Outputs
    assert type(got) is wire
    assert literals_pb2.LiteralMap.FromString(got.SerializeToString()) == LITERAL_OUTPUTS


@pytest.mark.parametrize(
    ("outputs", "is_set"),
    [(None, False), ({}, True), (literals_pb2.LiteralMap(), True), (common_pb2.Outputs(), True)],
    ids=["None", "dict", "LiteralMap", "Outputs"],
)
async def test_empty_outputs_and_none_stay_different(
    crossed: Any, flyte: Any, outputs: Any, is_set: bool
) -> None:
    """Empty outputs are written by the client as they are, none make it look for a file."""
    get = lambda self, resource_meta: Resource(Phase.SUCCEEDED, outputs=outputs)  # noqa: E731
    async with serve(crossed(get=get)) as served:
        got = await flyte(served).get(META)
    assert got.HasField("outputs") is is_set
    assert len(got.outputs.literals) == 0


async def test_a_resource_arrives_whole(crossed: Any, flyte: Any) -> None:
    """Phase, message, custom info, and log links of either protocol, in one list or in two."""
    links = [
        execution_pb2.TaskLog(name="one", uri="https://one", ttl={"seconds": 5}),
        execution2_pb2.TaskLog(name="two", uri="https://two"),
    ]
    info = {"list": [1, "x", None], "deep": {"flag": True}}

    def get(self: Any, resource_meta: Any, output_prefix: str) -> Resource:
        assert (resource_meta.job, output_prefix) == ("1", "mem://out")
        return Resource(Phase.RUNNING, "so far", log_links=links, custom_info=info)

    async with serve(crossed(get=get)) as served:
        got = await flyte(served).get(META)
    assert message_json(got) == {
        "phase": "RUNNING",
        "message": "so far",
        "log_links": [
            {"name": "one", "uri": "https://one", "ttl": "5s"},
            {"name": "two", "uri": "https://two"},
        ],
        "custom_info": info,
    }


@pytest.mark.parametrize("messages", [agent_pb2, connector_pb2], ids=["flyteidl", "flyteidl2"])
async def test_a_ready_made_resource_of_either_protocol_is_passed_on(
    crossed: Any, flyte: Any, messages: Any
) -> None:
    """A connector may return the protocol's own Resource, its client's or the other's."""
    made = messages.Resource(phase=TaskExecution.FAILED, message="no")
    made.outputs.SetInParent()
    async with serve(crossed(get=lambda self, resource_meta: made)) as served:
        got = await flyte(served).get(META)
    assert (got.phase, got.message, got.HasField("outputs")) == (TaskExecution.FAILED, "no", True)


@pytest.mark.parametrize("phase", [p for p in Phase.values() if p])
async def test_every_phase_crosses(crossed: Any, flyte: Any, phase: int) -> None:
    """The phases have the same numbers in both protocols."""
    async with serve(crossed(get=lambda self, resource_meta: Resource(phase))) as served:
        assert (await flyte(served).get(META)).phase == phase


# --- delete, metrics, logs, list, describe -----------------------------------------------------


async def test_delete_reaches_the_job(crossed: Any, flyte: Any) -> None:
    """The resource meta comes back as the connector's own class, whoever sends it."""
    seen: list[Any] = []
    delete = lambda self, resource_meta: seen.append(resource_meta)  # noqa: E731
    async with serve(crossed(delete=delete)) as served:
        client = flyte(served)
        assert await client.delete(b'{"job": "2"}') == client.messages.DeleteTaskResponse()
        code, details = await refusal(client.delete(b"{}"))
    assert [meta.job for meta in seen] == ["2"]
    assert code is StatusCode.INVALID_ARGUMENT
    assert "Meta" in details


@pytest.mark.parametrize("module", [agent_pb2, connector_pb2], ids=["flyteidl", "flyteidl2"])
async def test_metrics_of_either_class_reach_either_client(
    crossed: Any, flyte: Any, module: Any
) -> None:
    """Queries and the step arrive, and a response of either protocol answers."""
    metrics = metrics_pb2 if module is agent_pb2 else metrics2_pb2
    seen: list[Any] = []

    def get_metrics(self: Any, resource_meta: Any, queries: list[str], step: Any) -> Any:
        seen.append((resource_meta.job, queries, step))
        result = metrics.ExecutionMetricResult(metric="cpu", data={"v": 1})
        return module.GetTaskMetricsResponse(results=[result])

    async with serve(crossed(get_metrics=get_metrics)) as served:
        got = await flyte(served).metrics(META, queries=["cpu", "mem"], step={"seconds": 5})
    assert seen == [("1", ["cpu", "mem"], dt.timedelta(seconds=5))]
    assert message_json(got) == {"results": [{"metric": "cpu", "data": {"v": 1.0}}]}


@pytest.mark.parametrize("module", [agent_pb2, connector_pb2], ids=["flyteidl", "flyteidl2"])
async def test_logs_of_either_class_reach_either_client(
    crossed: Any, flyte: Any, module: Any
) -> None:
    """Bodies come first and in order, then the header with the token, in the client's messages."""

    async def get_logs(self: Any, resource_meta: Any, lines: int, token: str) -> Any:
        assert (lines, token) == (2, "page")
        for text in ("one", "two"):
            body = module.GetTaskLogsResponseBody(results=[text])
            yield module.GetTaskLogsResponse(body=body)
        yield module.GetTaskLogsResponse(header=module.GetTaskLogsResponseHeader(token="next"))

    async with serve(crossed(get_logs=get_logs)) as served:
        client = flyte(served)
        got = await client.logs(META, lines=2, token="page")
    assert all(type(message) is client.messages.GetTaskLogsResponse for message in got)
    assert [message_json(message) for message in got] == [
        {"body": {"results": ["one"]}},
        {"body": {"results": ["two"]}},
        {"header": {"token": "next"}},
    ]


async def test_structured_log_lines_are_the_same_field_in_both(crossed: Any, flyte: Any) -> None:
    """Flyte 1's ``structured_lines`` are Flyte 2's ``lines``: same number, same type."""
    body = agent_pb2.GetTaskLogsResponseBody(structured_lines=[{"message": "hello"}])
    line = agent_pb2.GetTaskLogsResponse(body=body)
    async with serve(crossed(get_logs=lambda self, resource_meta: line)) as served:
        (got,) = await flyte(served).logs(META)
    name = "structured_lines" if type(got).__module__.startswith("flyteidl.") else "lines"
    assert [one.message for one in getattr(got.body, name)] == ["hello"]


async def test_what_a_connector_lacks_is_unimplemented(crossed: Any, flyte: Any) -> None:
    """Neither protocol promises logs and metrics of every connector."""
    async with serve(crossed()) as served:
        client = flyte(served)
        for call in (client.metrics(META), client.logs(META)):
            code, details = await refusal(call)
            assert code is StatusCode.UNIMPLEMENTED
            assert "Crossed" in details


async def test_every_connector_is_listed_and_described(crossed: Any, flyte: Any) -> None:
    """Either client sees connectors of every shape, by name and category; unknown is NOT_FOUND."""
    async with serve(crossed(name="The Async"), Answer(name="The Sync")) as served:
        client = flyte(served)
        if client.is_first:
            listed = (await client.metadata.ListAgents(agent_pb2.ListAgentsRequest())).agents
            one = client.metadata.GetAgent(agent_pb2.GetAgentRequest(name="The Async"))
            assert (await one).agent == next(a for a in listed if a.name == "The Async")
            none = client.metadata.GetAgent(agent_pb2.GetAgentRequest(name="Nobody"))
            assert {a.name: a.is_sync for a in listed} == {"The Async": False, "The Sync": True}
        else:
            request = connector_pb2.ListConnectorsRequest()
            listed = (await client.metadata.ListConnectors(request)).connectors
            wanted = connector_pb2.GetConnectorRequest(name="The Async")
            found = (await client.metadata.GetConnector(wanted)).connector
            assert found == next(c for c in listed if c.name == "The Async")
            nobody = connector_pb2.GetConnectorRequest(name="Nobody")
            none = client.metadata.GetConnector(nobody)
        categories = {
            (one.name, category.name, category.version)
            for one in listed
            for category in one.supported_task_categories
        }
        assert categories == {("The Async", "crossed", 0), ("The Sync", "answer", 0)}
        code, details = await refusal(none)
    assert code is StatusCode.NOT_FOUND
    assert "The Async" in details


# --- connection --------------------------------------------------------------------------------

CONNECTION = Connection(
    task_type="crossed",
    secrets={"token": "s3cr3t-value", "both": "the-secret"},
    configs={"region": "eu", "both": "the-config"},
)


async def test_a_connection_arrives_as_keywords_and_a_secret_wins(crossed: Any, reach: Any) -> None:
    """Create, get and delete of either shape take any key; a secret beats a config of its name."""
    seen: list[dict[str, str]] = []
    ours = {"task_template", "output_prefix", "inputs", "task_execution_metadata", "resource_meta"}
    ours.add("idempotency_key")

    def note(result: Any) -> Callable[..., Any]:
        def method(self: Any, **kwargs: Any) -> Any:
            seen.append({key: value for key, value in kwargs.items() if key not in ours})
            return result

        return method

    connector = crossed(
        create=note(Meta("1")), get=note(Resource(Phase.RUNNING)), delete=note(None)
    )
    async with serve(connector) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template(), connection=CONNECTION)
        await flyte.get(META, connection=CONNECTION)
        await flyte.delete(META, connection=CONNECTION)
    assert seen == [{"token": "s3cr3t-value", "both": "the-secret", "region": "eu"}] * 3


async def test_a_method_gets_only_the_keys_it_can_take(crossed: Any, reach: Any) -> None:
    """A key that no parameter names is left out, never a TypeError."""
    seen: list[Any] = []

    def create(self: Any, task_template: Any, region: str = "none", zone: str = "none") -> Any:
        seen.append((region, zone))
        return Meta("1")

    async with serve(crossed(create=create), policy=BARE) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template(), connection=CONNECTION)
        assert (await flyte.get(META, connection=CONNECTION)).phase == Phase.SUCCEEDED
        await flyte.create(template())
        await reach("flyteidl", served.endpoint).create(template())
    assert seen == [("eu", "none"), ("none", "none"), ("none", "none")]


@pytest.mark.parametrize(
    ("call", "key"),
    [
        ("create", "inputs"),
        ("create", "task_template"),
        ("get", "resource_meta"),
        ("get", "output_prefix"),
        ("delete", "resource_meta"),
    ],
)
@pytest.mark.parametrize("where", ["secrets", "configs"])
async def test_a_key_that_collides_with_a_parameter_is_refused_in_a_sentence(
    crossed: Any, reach: Any, call: str, key: str, where: str
) -> None:
    """A key called like one of our arguments could only shadow it; the user must rename it."""
    async with serve(crossed()) as served:
        flyte = reach("flyteidl2", served.endpoint)
        subject = template() if call == "create" else META
        connection = Connection(**{where: {key: "value-of-it"}})
        code, details = await refusal(getattr(flyte, call)(subject, connection=connection))
    assert code is StatusCode.INVALID_ARGUMENT
    assert details == (
        f"The task's connection has the key {key!r}, which is a parameter of {call} itself;"
        f" rename it in custom.secrets or custom.configs."
    )


async def test_a_key_that_a_method_cannot_do_without_is_asked_for(flyte: Any) -> None:
    """Flyte 1 sends no connection and Flyte 2 may lack a key: either way the sentence names it."""
    seen: list[str] = []

    def create(self: Any, task_template: Any, *, token: str) -> Any:
        seen.append(token)
        return Meta("1")

    async with serve(make_connector("connector", create=create)) as served:
        client = flyte(served)
        code, details = await refusal(client.create(template()))
        if not client.is_first:
            await client.create(template(), connection=CONNECTION)
            assert seen == ["s3cr3t-value"]
    assert code is StatusCode.INVALID_ARGUMENT
    assert details == (
        "Crossed.create needs token from the task's connection; set it in custom.secrets or"
        " custom.configs."
    )


LEAKY = """
import logging
from dataclasses import dataclass
from connector_service import AsyncConnector, ConnectorRegistry, ResourceMeta
from connector_service.errors import PermanentError

class Leaky(AsyncConnector):
    task_type_name = "leaky"
    metadata_type = ResourceMeta

    def create(self, task_template, output_prefix, *, passphrase_of_the_day, **kwargs):
        logging.getLogger("leaky").warning("opening with %s", passphrase_of_the_day)
        raise PermanentError(f"refused: {passphrase_of_the_day} is no good")

    def get(self, resource_meta):
        raise ValueError("never")

    delete = get

ConnectorRegistry.register(Leaky())
"""


@pytest.mark.parametrize("guarantees", [True, False])
async def test_a_secret_of_a_connection_is_masked_wherever_it_is_said(
    daemon: Any, reach: Any, tmp_path: Path, guarantees: bool
) -> None:
    """What came as a secret leaves in no status, no failed job and no line of the log."""
    secret = "correct-horse-battery"
    settings = f"[connectors.leaky]\nguarantees = {str(guarantees).lower()}\n"
    (tmp_path / "connector-service.toml").write_text(settings)
    service = daemon(LEAKY)
    flyte = reach("flyteidl2", service.endpoint)
    connection = Connection(secrets={"passphrase_of_the_day": secret})
    creating = flyte.create(template("leaky"), connection=connection)
    if guarantees:
        meta = await creating
        got = await flyte.get(meta, "leaky")
        assert (got.phase, got.message) == (Phase.FAILED, "refused: *** is no good")
        assert secret.encode() not in meta
    else:
        code, details = await refusal(creating)
        assert (code, details) == (StatusCode.FAILED_PRECONDITION, "refused: *** is no good")
    service.kill()
    assert "opening with ***" in service.log
    assert secret not in service.log


# --- sync connectors ---------------------------------------------------------------------------


class Answer(SyncConnectorBase):
    """Answers at once what its template's config asks for."""

    def __init__(self, name: str = "Answer") -> None:
        super().__init__(task_type_name="answer")
        self.name = name
        self.calls: list[Any] = []

    def do(self, task_template: Any, output_prefix: str, inputs: Any, **kwargs: Any) -> Resource:
        self.calls.append((task_template, output_prefix, inputs, kwargs))
        asked = dict(task_template.config)
        if "error" in asked:
            raise InvalidInputError(asked["error"])
        outputs = {"text": "x" * int(asked["size"])} if "size" in asked else OUTPUTS
        if "echo" in asked:
            outputs = from_literal_map(inputs, task_template.interface.inputs.variables)
        return Resource(int(asked.get("phase", Phase.SUCCEEDED)), "done", outputs=outputs)


async def test_a_sync_connector_answers_either_client(flyte: Any) -> None:
    """Flyte 1 calls it in one stream; in Flyte 2 it runs once, at create, and the poll answers."""
    connector = Answer()
    async with serve(connector) as served:
        client = flyte(served)
        got = await client.do(template("answer"), LITERALS)
    assert (got.phase, got.message) == (Phase.SUCCEEDED, "done")
    outputs = literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString())
    assert outputs == LITERAL_OUTPUTS
    ((task_template, output_prefix, inputs, _),) = connector.calls
    assert type(task_template) is tasks_pb2.TaskTemplate
    assert (output_prefix, inputs) == ("mem://out", LITERALS)


async def test_a_sync_connector_s_outputs_are_encoded_as_they_are_declared(flyte: Any) -> None:
    """The template's interface steers them, whichever protocol brought the template."""
    declared = interface_pb2.TypedInterface(inputs=DECLARED, outputs=DECLARED)
    sent = template("answer", interface=declared, config={"echo": ""})
    async with serve(Answer()) as served:
        got = await flyte(served).do(sent, LITERALS)
    assert literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString()) == LITERALS


async def test_a_sync_result_rides_in_the_meta_to_every_poll(reach: Any) -> None:
    """Create on a sync type, from either client, runs it; polls and deletes do not run it again."""
    connector = Answer()
    async with serve(connector) as served:
        metas = [
            await reach(protocol, served.endpoint).create(
                template("answer"), prefix=f"mem://{protocol}"
            )
            for protocol in ("flyteidl", "flyteidl2")
        ]
        for meta, protocol in itertools.product(metas, ("flyteidl", "flyteidl2")):
            assert meta.startswith(envelope.MAGIC)
            client = reach(protocol, served.endpoint)
            for _ in range(2):
                got = await client.get(meta, "answer")
                assert (got.phase, got.message) == (Phase.SUCCEEDED, "done")
            await client.delete(meta, "answer")
            assert (await client.get(meta, "answer")).phase == Phase.SUCCEEDED
            for call in (client.logs(meta, "answer"), client.metrics(meta, "answer")):
                code, details = await refusal(call)
                assert code is StatusCode.UNIMPLEMENTED
                assert details.startswith("The job ended when it was created and has no ")
    assert len(connector.calls) == 2


async def test_a_sync_result_that_is_too_large_fails_and_says_so(flyte: Any) -> None:
    """The meta lives in etcd: a result it cannot hold is a failure with the way out."""
    async with serve(Answer(), policy=BARE) as served:
        client = flyte(served)
        most = template("answer", config={"size": str(envelope.LARGEST - 100)})
        assert (await client.get(await client.create(most), "answer")).phase == Phase.SUCCEEDED
        asked = template("answer", config={"size": str(envelope.LARGEST)})
        meta = await client.create(asked)
        got = await client.get(meta, "answer")
    assert len(meta) < 1024
    assert got.phase == Phase.FAILED
    assert not got.HasField("outputs")
    assert "write large outputs under the output prefix" in got.message


@pytest.mark.parametrize("damage", [b"\xff", b"\x0a\x7f", b"\x12\x03\x0a\x7f\x00"])
async def test_a_damaged_envelope_is_refused(flyte: Any, damage: bytes) -> None:
    """Bytes that only begin as ours do are the caller's mistake, and no crash."""
    async with serve(Answer()) as served:
        code, details = await refusal(flyte(served).get(envelope.MAGIC + damage, "answer"))
    assert (code, details) == (
        StatusCode.INVALID_ARGUMENT,
        "The resource meta is a damaged envelope.",
    )


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.QUEUED, Phase.UNDEFINED])
async def test_a_sync_reply_that_is_no_end_becomes_retryable(flyte: Any, phase: int) -> None:
    """Flyte 1's client panics at one and Flyte 2's would poll it for ever."""
    async with serve(Answer()) as served:
        asked = template("answer", config={"phase": str(phase)})
        got = await flyte(served).do(asked)
    assert got.phase == Phase.RETRYABLE_FAILED
    assert got.message.startswith(f"The sync connector answered {Phase.Name(phase)}")


async def test_a_sync_connector_s_refusal_is_a_job_that_failed(flyte: Any) -> None:
    """What ``do`` calls the user's fault is phase FAILED with its text, for either client."""
    async with serve(Answer()) as served:
        got = await flyte(served).do(template("answer", config={"error": "no such model"}))
    assert (got.phase, got.message) == (Phase.FAILED, "no such model")


async def test_a_sync_connector_s_refusal_is_a_status_without_the_guarantees(flyte: Any) -> None:
    """Passed straight through, an error of ``do`` is told where it runs."""
    async with serve(Answer(), policy=BARE) as served:
        code, details = await refusal(
            flyte(served).do(template("answer", config={"error": "no such model"}))
        )
    assert (code, details) == (StatusCode.INVALID_ARGUMENT, "no such model")


async def test_a_sync_connector_takes_a_connection_too(reach: Any) -> None:
    """Its keywords arrive in ``do``, where there are any to take them."""
    connector = Answer()
    async with serve(connector) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template("answer"), connection=CONNECTION)
    kwargs = connector.calls[0][3]
    assert (kwargs["token"], kwargs["both"], kwargs["region"]) == (
        "s3cr3t-value",
        "the-secret",
        "eu",
    )


SYNC = """
import os
from connector_service import ConnectorRegistry, Phase, Resource, SyncConnectorBase

class Pid(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="pid")

    def do(self, task_template, output_prefix, inputs):
        return Resource(Phase.SUCCEEDED, outputs={"pid": os.getpid()})

ConnectorRegistry.register(Pid())
"""


async def test_a_sync_result_is_read_by_another_process(daemon: Any, reach: Any) -> None:
    """Replicas share nothing: the one that is polled need not be the one that ran the task."""
    ran, polled = daemon(SYNC), daemon(SYNC)
    meta = await reach("flyteidl2", ran.endpoint).create(template("pid"))
    for protocol in ("flyteidl", "flyteidl2"):
        got = await reach(protocol, polled.endpoint).get(meta, "pid")
        outputs = literals_pb2.LiteralMap.FromString(got.outputs.SerializeToString())
        assert from_literal_map(outputs) == {"pid": ran.process.pid}


# --- what does not happen ----------------------------------------------------------------------


async def test_nothing_is_re_read_where_shape_and_protocol_agree(
    crossed: Any, flyte: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a crossing converts; inputs are decoded once, in the shape's own message.

    Where they become Python values and the compiled reader is built, there is no message of them.
    """
    conversions: list[str] = []
    decoded: list[Any] = []
    reread, read = crossing.reread, crossing.read

    def spy(message: Any, kind: Any) -> Any:
        got = reread(message, kind)
        if got is not message:
            conversions.append(kind.DESCRIPTOR.full_name)
        return got

    def spy_on_inputs(data: Any, kind: Any, *, discard: bool) -> Any:
        decoded.append((bytes(data), kind.DESCRIPTOR.full_name))
        return read(data, kind, discard=discard)

    monkeypatch.setattr(crossing, "reread", spy)
    monkeypatch.setattr(crossing, "read", spy_on_inputs)
    monkeypatch.setattr(sdk_resource, "reread", spy)
    package = "flyteidl" if crossed.shape == "base" else "flyteidl2"
    logs = execution_pb2 if crossed.shape == "base" else execution2_pb2
    messages = agent_pb2 if crossed.shape == "base" else connector_pb2
    outputs = ANY_OUTPUTS["LiteralMap" if crossed.shape == "base" else "Outputs"]
    links = [logs.TaskLog(name="n", uri="u")]
    connector = crossed(
        create=lambda self, **kwargs: Meta("1"),
        get=lambda self, resource_meta: Resource(Phase.SUCCEEDED, outputs=outputs, log_links=links),
        get_metrics=lambda self, resource_meta: messages.GetTaskMetricsResponse(),
        get_logs=lambda self, resource_meta: messages.GetTaskLogsResponse(),
    )
    async with serve(connector) as served:
        client = flyte(served)
        await client.create(typed(), LITERALS)
        await client.get(META)
        await client.delete(META)
        await client.metrics(META)
        await client.logs(META)
    kind = "flyteidl.core.LiteralMap" if crossed.shape == "base" else "flyteidl2.task.Inputs"
    if crossed.shape == "base" or plans.quick is None:
        ((data, decoded_as),) = decoded
        assert (literals_pb2.LiteralMap.FromString(data), decoded_as) == (LITERALS, kind)
    else:
        assert decoded == []
    if client.protocol == package:
        assert conversions == []
        return
    names = [name.rpartition(".")[2] for name in conversions]
    result = "LiteralMap" if client.is_first else "Outputs"
    assert sorted(names) == sorted(
        [
            *("TaskTemplate", "TaskExecutionMetadata"),  # what the connector gets
            *("TaskLog", result, "GetTaskMetricsResponse", "GetTaskLogsResponse"),  # and gave
        ]
    )


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
async def test_one_protocol_alone_serves_nothing_of_the_other(
    crossed: Any, reach: Any, protocol: str
) -> None:
    """``--protocol`` narrows: the other's services can neither be called nor are they listed."""
    other = {"flyteidl": "flyteidl2", "flyteidl2": "flyteidl"}[protocol]
    async with serve(crossed(), protocol=(protocol,)) as served:
        assert await reach(protocol, served.endpoint).create(template()) == META
        code, _ = await refusal(reach(other, served.endpoint).create(template()))
        assert code is StatusCode.UNIMPLEMENTED
        async with served.client() as client:
            assert await client.protocol() == protocol
            assert await client.create(template()) == META
            absent = {"flyteidl": "flyteidl.service.AsyncAgentService"}.get(
                other, "flyteidl2.connector.AsyncConnectorService"
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.health(absent)
            assert caught.value.code() is StatusCode.NOT_FOUND


# --- our own client ----------------------------------------------------------------------------


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


# --- the commands ------------------------------------------------------------------------------

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
