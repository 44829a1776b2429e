"""All crossings over a real port: either of Flyte's clients, a connector in either shape or sync.

Each test runs for Flyte 1's client and for Flyte 2's, and most for both shapes of a connector: four
crossings, of which two re-read and two do not.
"""

from __future__ import annotations

import datetime as dt
import itertools
import random
import re
from typing import Any

import grpc
import grpc.aio
import pytest
from crossing_values import (
    ANY_OUTPUTS,
    BARE,
    INPUTS,
    LITERAL_OUTPUTS,
    LITERALS,
    META,
    SEEN,
    Answer,
    refusal,
    template,
    typed,
)
from flyte_clients import Meta, make_connector
from flyteidl.admin import agent_pb2
from flyteidl.core import execution_pb2, interface_pb2, literals_pb2, metrics_pb2, tasks_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.connector import connector_pb2
from flyteidl2.core import execution_pb2 as execution2_pb2
from flyteidl2.core import metrics_pb2 as metrics2_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2
from flyteidl2.task import common_pb2
from grpc import StatusCode

from connector_service import (
    Phase,
    Resource,
    from_literal_map,
    to_literal_map,
)
from connector_service.cli.options import message_json
from connector_service.codec import plans, to_literal_type
from connector_service.hosts import crossing
from connector_service.sdk import resource as sdk_resource
from connector_service.testing import serve

# --- create --------------------------------------------------------------------------------------


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


# --- get -----------------------------------------------------------------------------------------


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


# --- delete, metrics, logs, list, describe -------------------------------------------------------


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


# --- what does not happen ------------------------------------------------------------------------


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
    if crossed.shape == "base" or not plans.COMPILED:
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
