"""Drive a running connector service as a client of flyte 2's would: its stubs, its encoders.

``client_flyte.py ENDPOINT TASK_TYPE KIND`` sends every value of the vocabulary through one
connector and prints what came of it as JSON. Everything on the wire is made by flyte and by the
flyteidl2 it was released with; of ours there is only the answer at the other end.
"""

import inspect
import json
import random
import sys
import uuid

import flyte
import grpc
import peer_flyte as peer
import vocabulary
from answering import plain
from flyte._internal.runtime.convert import convert_from_native_to_inputs
from flyte._internal.runtime.task_serde import get_proto_task
from flyte._task import TaskTemplate
from flyte.models import NativeInterface, SerializationContext
from flyte.types import TypeEngine
from flyteidl2.connector import connector_pb2, service_pb2_grpc
from flyteidl2.core import security_pb2, tasks_pb2
from flyteidl2.core.execution_pb2 import TaskExecution

PREFIX = f"mem://{uuid.uuid4()}"  # unique to each attempt, as the client's own
LISTED = vocabulary.COMMON + vocabulary.FLYTE
ROWS = {
    f"v{number}": (eval(kind, peer.NAMES), eval(value, peer.NAMES))
    for number, (kind, value) in enumerate(LISTED)
}
TYPES = {name: kind for name, (kind, _) in ROWS.items()}
NEEDED = {name: (kind, inspect.Parameter.empty) for name, kind in TYPES.items()}
INTERFACE = NativeInterface.from_types(inputs=NEEDED, outputs=TYPES)


def template(task_type: str) -> object:
    """Let flyte itself serialize a task that declares every value as input and as output."""

    class Echo(TaskTemplate):
        def custom_config(self, _context: object) -> dict[str, object]:
            return {"configs": {"region": "eu"}}

        def sql(self, _context: object) -> tasks_pb2.Sql:
            return tasks_pb2.Sql(statement="select 1")  # without a query it would want a container

    task = Echo(name="upstream.echo", task_type=task_type, interface=INTERFACE, image="i")
    return get_proto_task(task, SerializationContext(version="v", project="p", domain="d"))


def encode() -> object:
    """Encode with flyte, in an order of no meaning, as the executor's Go map gives it."""
    values = {name: value for name, (_, value) in ROWS.items()}
    made = peer.loop.run_until_complete(convert_from_native_to_inputs(INTERFACE, **values))
    inputs = made.proto_inputs
    entries = list(inputs.literals)
    random.Random(0).shuffle(entries)
    del inputs.literals[:]
    inputs.literals.extend(entries)
    return inputs


def compare(outputs: object) -> dict[str, str]:
    """Decode with flyte; return what differs, by its type and value as they were sent."""
    literals = {entry.name: entry.value for entry in outputs.literals}
    different = {}
    for name, (kind, value) in ROWS.items():
        label = " ".join(LISTED[int(name[1:])])
        try:
            decoding = TypeEngine.to_python_value(literals[name], kind)
            got = peer.loop.run_until_complete(decoding)
        except Exception as error:  # noqa: BLE001 - flyte raises anything
            different[label] = f"{type(error).__name__}: {error}"
            continue
        if not vocabulary.same(plain(got, peer), plain(value, peer)):
            different[label] = repr(got)
    return different


def refused(call: object) -> list[str]:
    try:
        call()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    raise AssertionError("it was answered")


def drive(channel: grpc.Channel, task_type: str) -> dict[str, object]:
    """Create, poll, read and delete one job, as the executor fills its requests."""
    jobs = service_pb2_grpc.AsyncConnectorServiceStub(channel)
    category = connector_pb2.TaskCategory(name=task_type)
    connection = security_pb2.Connection(configs={"region": "eu"})
    request = connector_pb2.CreateTaskRequest(
        inputs=encode(),
        template=template(task_type),
        output_prefix=PREFIX,
        task_execution_metadata=connector_pb2.TaskExecutionMetadata(namespace="flyte"),
        connection=connection,
    )
    meta = jobs.CreateTask(request, timeout=30).resource_meta
    job = {"task_category": category, "resource_meta": meta}
    connected = {**job, "connection": connection}
    resource = jobs.GetTask(connector_pb2.GetTaskRequest(**connected), timeout=30).resource
    answer = {
        "phase": TaskExecution.Phase.Name(resource.phase),
        "message": resource.message,
        "different": compare(resource.outputs),
        "links": [link.uri for link in resource.log_links],
    }
    reads = [
        ("logs", lambda: jobs.GetTaskLogs(connector_pb2.GetTaskLogsRequest(**job), timeout=30)),
        (
            "metrics",
            lambda: jobs.GetTaskMetrics(
                connector_pb2.GetTaskMetricsRequest(**job, queries=["q"]), timeout=30
            ),
        ),
    ]
    for name, read in reads:
        try:
            got = read()
            answer[name] = (
                [message.WhichOneof("part") for message in got]
                if name == "logs"
                else [result.metric for result in got.results]
            )
        except grpc.RpcError as error:
            answer[name] = error.code().name
    jobs.DeleteTask(connector_pb2.DeleteTaskRequest(**connected), timeout=30)
    gone = jobs.GetTask(connector_pb2.GetTaskRequest(**connected), timeout=30).resource
    answer["after delete"] = TaskExecution.Phase.Name(gone.phase)
    return answer


def main() -> None:
    endpoint, task_type, _kind = sys.argv[1:]
    with grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = drive(channel, task_type)
        metadata = service_pb2_grpc.ConnectorMetadataServiceStub(channel)
        request = connector_pb2.ListConnectorsRequest()
        connectors = metadata.ListConnectors(request, timeout=30).connectors
        answer["listed"] = sorted(
            category.name
            for connector in connectors
            for category in connector.supported_task_categories
        )
        wanted = connector_pb2.GetConnectorRequest(name=connectors[0].name)
        one = metadata.GetConnector(wanted, timeout=30).connector
        answer["described"] = one == connectors[0]
        unknown = connector_pb2.CreateTaskRequest(template=template("nobody"))
        jobs = service_pb2_grpc.AsyncConnectorServiceStub(channel)
        answer["refused"] = refused(lambda: jobs.CreateTask(unknown, timeout=30))
    answer["version"] = flyte.__version__
    sys.stdout.write(json.dumps(answer) + "\n")


main()
