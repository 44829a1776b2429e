"""What many or large inputs cost others: the event loop goes on while they are decoded."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from flyte_clients import Meta, make_connector
from flyteidl.core import interface_pb2, literals_pb2
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl2.task import common_pb2

from connector_service import from_literal_map, to_literal_map
from connector_service.codec import to_literal_type
from connector_service.testing import serve

SOURCE = """
import asyncio
import time

from connector_service import *

class Two(AsyncConnector):
    task_type_name = "two"
    metadata_type = ResourceMeta
    longest = 0.0
    ticking = None

    async def create(self, task_template, output_prefix, inputs, **kwargs):
        return ResourceMeta()

    async def get(self, resource_meta, **kwargs):
        if self.ticking is None:
            self.ticking = asyncio.create_task(self.tick())
            await asyncio.sleep(0.01)
        longest, self.longest = self.longest, 0.0
        return Resource(Phase.RUNNING, message=str(longest))

    async def tick(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - before)

    async def delete(self, resource_meta, **kwargs):
        pass

ConnectorRegistry.register(Two())
"""
LITERALS = 60_000


def unions() -> tuple[TaskTemplate, literals_pb2.LiteralMap]:
    """Make inputs that are quickly parsed, and take long to decode: ints that might be none."""
    declared = to_literal_type(list[int | None])
    inputs = literals_pb2.LiteralMap()
    literals = inputs.literals["numbers"].collection.literals
    one = literals_pb2.Literal()
    one.scalar.union.value.scalar.primitive.integer = 1
    one.scalar.union.type.CopyFrom(declared.collection_type.union_type.variants[0])
    literals.extend([one] * LITERALS)
    interface = interface_pb2.TypedInterface(
        inputs={"variables": {"numbers": interface_pb2.Variable(type=declared)}}
    )
    return TaskTemplate(type="two", interface=interface), inputs


def seconds_to_decode(template: TaskTemplate, inputs: literals_pb2.LiteralMap) -> float:
    """Take the time that decoding takes on this machine, in this moment."""
    message = common_pb2.Inputs.FromString(inputs.SerializeToString())
    before = time.monotonic()
    decoded = from_literal_map(message, template.interface.inputs.variables)
    assert decoded == {"numbers": [1] * LITERALS}
    return time.monotonic() - before


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
async def test_other_calls_go_on_while_large_inputs_are_decoded(
    daemon: Any, reach: Any, protocol: str
) -> None:
    """The service's event loop never stands still for a third of what decoding takes."""
    flyte = reach(protocol, daemon(SOURCE).endpoint)
    template, inputs = unions()
    takes = seconds_to_decode(template, inputs)

    async def longest_stop() -> float:
        """Return the longest time that the service's loop did nothing since asked last."""
        return float((await flyte.get(b"{}", "two")).message)

    await longest_stop()
    await flyte.create(template, inputs, prefix="mem://first")  # what is loaded only once
    await longest_stop()
    create = asyncio.create_task(flyte.create(template, inputs, prefix="mem://second"))
    answered = 0
    while not create.done():
        await flyte.get(b"{}", "two")
        answered += 1
    await create
    assert answered > 1
    stops: list[float] = []
    for number in range(3):
        await flyte.create(template, inputs, prefix=f"mem://{number}")
        stops.append(await longest_stop())
    assert min(stops) < takes / 3, (stops, takes)


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
@pytest.mark.parametrize("length", [10, 2_000, 30_000], ids=["small", "large", "very large"])
async def test_many_inputs_arrive_as_they_were_sent(reach: Any, protocol: str, length: int) -> None:
    """Whichever way is quickest for their number and size, and a wrong one is named."""
    seen: list[Any] = []

    def create(self: Any, inputs: dict[str, Any]) -> Meta:
        seen.append(inputs)
        return Meta("1")

    values: dict[str, Any] = {f"n{number}": f"{number}" * length for number in range(100)}
    declared = {
        name: interface_pb2.Variable(type=to_literal_type(str)) for name in (*values, "other")
    }
    template = TaskTemplate(type="crossed", interface={"inputs": {"variables": declared}})
    async with serve(make_connector("connector", create=create)) as served:
        flyte = reach(protocol, served.endpoint)
        await flyte.create(template, to_literal_map(values), prefix="mem://strings")
        none = values | {"n7": ""}
        await flyte.create(template, to_literal_map(none), prefix="mem://empty")
        wrong = to_literal_map(values | {"n7": 7})
        failed = await flyte.create(template, wrong, prefix="mem://wrong")
    assert b"inputs.n7: expected STRING, found int" in failed  # the job's end, in its meta
    assert seen == [values, none]


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
async def test_each_of_two_wide_interfaces_declares_its_own(reach: Any, protocol: str) -> None:
    """What is remembered of a template with thousands of variables is that template's alone."""
    seen: list[Any] = []

    def create(self: Any, inputs: dict[str, Any]) -> Meta:
        seen.append(inputs)
        return Meta("1")

    inputs = to_literal_map({f"number_{number}": number for number in range(3000)})

    def template(kind: Any) -> TaskTemplate:
        declared = {
            name: interface_pb2.Variable(type=to_literal_type(kind)) for name in inputs.literals
        }
        return TaskTemplate(type="crossed", interface={"inputs": {"variables": declared}})

    async with serve(make_connector("connector", create=create)) as served:
        flyte = reach(protocol, served.endpoint)
        for number, kind in enumerate((int, float, int, float)):
            await flyte.create(template(kind), inputs, prefix=f"mem://{number}")
    for kind, values in zip((int, float, int, float), seen, strict=True):
        assert values == {f"number_{number}": number for number in range(3000)}
        assert {type(value) for value in values.values()} == {kind}


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
async def test_a_template_that_comes_in_parts_is_not_known_by_its_first(
    reach: Any, protocol: str
) -> None:
    """Protobuf merges what comes again: the second part may declare a variable anew."""
    seen: list[Any] = []

    def create(self: Any, inputs: dict[str, Any]) -> Meta:
        seen.append(inputs["number_7"])
        return Meta("1")

    inputs = to_literal_map({f"number_{number}": number for number in range(3000)})

    def template(kind: Any, names: Any) -> TaskTemplate:
        declared = {name: interface_pb2.Variable(type=to_literal_type(kind)) for name in names}
        return TaskTemplate(type="crossed", interface={"inputs": {"variables": declared}})

    async with serve(make_connector("connector", create=create)) as served:
        flyte = reach(protocol, served.endpoint)
        request = flyte.messages.CreateTaskRequest
        given = {"template": template(int, inputs.literals), "inputs": inputs}
        again = request()
        again.template.MergeFromString(template(float, ["number_7"]).SerializeToString())
        create_task = flyte.channel.unary_unary(f"/{flyte.service}/CreateTask")
        for number, more in enumerate((b"", again.SerializeToString())):
            first = request(output_prefix=f"mem://{number}")
            for name, message in given.items():
                getattr(first, name).MergeFromString(message.SerializeToString())
            await create_task(first.SerializeToString() + more, timeout=20)
    assert [repr(number) for number in seen] == ["7", "7.0"]
