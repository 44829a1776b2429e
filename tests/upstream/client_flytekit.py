"""Drive a running connector service as a client of flytekit's would: its stubs, its encoders.

``client_flytekit.py ENDPOINT TASK_TYPE KIND`` sends every value of the vocabulary through one
connector and prints what came of it as JSON. Everything on the wire is made by flytekit and by the
flyteidl it was released with; of ours there is only the answer at the other end.
"""

import json
import sys
import uuid
from collections import OrderedDict

import flytekit
import grpc
import peer_flytekit as peer
import vocabulary
from answering import plain
from flyteidl.admin import agent_pb2
from flyteidl.core import literals_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.service import agent_pb2_grpc
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.core.base_task import PythonTask
from flytekit.core.interface import Interface
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import LiteralMap
from flytekit.tools.translator import get_serializable

PREFIX = f"mem://{uuid.uuid4()}"  # unique to each attempt, as the client's own
ROWS = {
    f"v{number}": (eval(kind, peer.NAMES), eval(value, peer.NAMES))
    for number, (kind, value) in enumerate(vocabulary.COMMON + vocabulary.FLYTEKIT)
}
TYPES = {name: kind for name, (kind, _) in ROWS.items()}


def template(task_type: str) -> object:
    """Let flytekit itself serialize a task that declares every value as input and as output."""
    task = PythonTask(
        task_type=task_type,
        name="upstream.echo",
        task_config=None,
        interface=Interface(inputs=TYPES, outputs=TYPES),
    )
    settings = SerializationSettings(
        project="p", domain="d", version="v", image_config=ImageConfig(Image("i", "i", "i"))
    )
    return get_serializable(OrderedDict(), settings, task).template.to_flyte_idl()


def encode() -> literals_pb2.LiteralMap:
    values = {name: value for name, (_, value) in ROWS.items()}
    return TypeEngine.dict_to_literal_map(peer.context, values, TYPES).to_flyte_idl()


def compare(outputs: literals_pb2.LiteralMap) -> dict[str, str]:
    """Decode with flytekit; return what differs, by its type and value as they were sent."""
    theirs = LiteralMap.from_flyte_idl(outputs).literals
    different = {}
    for name, (kind, value) in ROWS.items():
        label = " ".join((vocabulary.COMMON + vocabulary.FLYTEKIT)[int(name[1:])])
        try:
            got = TypeEngine.to_python_value(peer.context, theirs[name], kind)
        except Exception as error:  # noqa: BLE001 - flytekit raises anything
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
    """Create, poll, read and delete one job, as propeller fills its requests."""
    jobs = agent_pb2_grpc.AsyncAgentServiceStub(channel)
    category = agent_pb2.TaskCategory(name=task_type)
    meta = jobs.CreateTask(
        agent_pb2.CreateTaskRequest(
            inputs=encode(),
            template=template(task_type),
            output_prefix=PREFIX,
            task_execution_metadata=agent_pb2.TaskExecutionMetadata(namespace="flyte"),
        ),
        timeout=30,
    ).resource_meta
    job = {"task_type": task_type, "task_category": category, "resource_meta": meta}
    resource = jobs.GetTask(agent_pb2.GetTaskRequest(**job), timeout=30).resource
    logs = jobs.GetTaskLogs(agent_pb2.GetTaskLogsRequest(**job), timeout=30)
    metrics = jobs.GetTaskMetrics(agent_pb2.GetTaskMetricsRequest(**job, queries=["q"]), timeout=30)
    answer = {
        "phase": TaskExecution.Phase.Name(resource.phase),
        "message": resource.message,
        "different": compare(resource.outputs),
        "logs": [message.WhichOneof("part") for message in logs],
        "metrics": [result.metric for result in metrics.results],
        "links": [link.uri for link in resource.log_links],
    }
    jobs.DeleteTask(agent_pb2.DeleteTaskRequest(**job), timeout=30)
    gone = jobs.GetTask(agent_pb2.GetTaskRequest(**job), timeout=30).resource
    answer["after delete"] = TaskExecution.Phase.Name(gone.phase)
    return answer


def do(channel: grpc.Channel, task_type: str) -> dict[str, object]:
    """Run a sync task in one stream, as propeller does."""
    header = agent_pb2.CreateRequestHeader(template=template(task_type), output_prefix=PREFIX)
    requests = [
        agent_pb2.ExecuteTaskSyncRequest(header=header),
        agent_pb2.ExecuteTaskSyncRequest(inputs=encode()),
    ]
    stub = agent_pb2_grpc.SyncAgentServiceStub(channel)
    (message,) = stub.ExecuteTaskSync(iter(requests), timeout=30)
    resource = message.header.resource
    return {
        "phase": TaskExecution.Phase.Name(resource.phase),
        "message": resource.message,
        "different": compare(resource.outputs),
    }


def main() -> None:
    endpoint, task_type, kind = sys.argv[1:]
    with grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = (do if kind == "sync" else drive)(channel, task_type)
        metadata = agent_pb2_grpc.AgentMetadataServiceStub(channel)
        agents = metadata.ListAgents(agent_pb2.ListAgentsRequest(), timeout=30).agents
        answer["listed"] = {
            category.name: agent.is_sync
            for agent in agents
            for category in agent.supported_task_categories
        }
        one = metadata.GetAgent(agent_pb2.GetAgentRequest(name=agents[0].name), timeout=30).agent
        answer["described"] = one == agents[0]
        unknown = agent_pb2.CreateTaskRequest(template=template("nobody"))
        jobs = agent_pb2_grpc.AsyncAgentServiceStub(channel)
        answer["refused"] = refused(lambda: jobs.CreateTask(unknown, timeout=30))
    answer["version"] = flytekit.__version__
    sys.stdout.write(json.dumps(answer) + "\n")


main()
