"""Connectors in every shape that return a task's inputs as its outputs, for clients to compare."""

from dataclasses import dataclass

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskLog
from flyteidl2.connector import connector_pb2

from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorRegistry,
    Phase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    from_literal_map,
)

JOBS = {}


@dataclass
class Job(ResourceMeta):
    prefix: str


def resource(job):
    if job.prefix not in JOBS:
        return Resource(Phase.ABORTED, "deleted")
    links = [TaskLog(name="console", uri="https://backend.example/1")]
    return Resource(Phase.SUCCEEDED, "echoed", outputs=JOBS[job.prefix], log_links=links)


class Base(AsyncConnectorBase):
    """Keeps literals, and speaks of logs and metrics in Flyte 2's messages."""

    def __init__(self):
        super().__init__(task_type_name="echo_base", metadata_type=Job)

    async def create(self, task_template, output_prefix, inputs, **kwargs):
        JOBS["base"] = inputs
        return Job("base")

    def get(self, resource_meta):
        return resource(resource_meta)

    def delete(self, resource_meta):
        JOBS.pop(resource_meta.prefix, None)

    def get_metrics(self, resource_meta, queries):
        results = [{"metric": query} for query in queries]
        return connector_pb2.GetTaskMetricsResponse(results=results)

    def get_logs(self, resource_meta):
        body = connector_pb2.GetTaskLogsResponseBody(results=["line"])
        yield connector_pb2.GetTaskLogsResponse(body=body)
        yield connector_pb2.GetTaskLogsResponse(header={"token": "next"})


class Python(AsyncConnector):
    """Keeps Python values, and speaks of logs and metrics in Flyte 1's messages."""

    task_type_name = "echo_python"
    metadata_type = Job

    async def create(
        self, task_template, output_prefix, inputs, task_execution_metadata, **connection
    ):
        assert task_execution_metadata.namespace == "flyte"
        JOBS["python"] = inputs
        return Job("python")

    async def get(self, resource_meta, **connection):
        return resource(resource_meta)

    async def delete(self, resource_meta, **connection):
        JOBS.pop(resource_meta.prefix, None)

    async def get_metrics(self, resource_meta, queries):
        results = [{"metric": query} for query in queries]
        return agent_pb2.GetTaskMetricsResponse(results=results)

    async def get_logs(self, resource_meta):
        body = agent_pb2.GetTaskLogsResponseBody(results=["line"])
        yield agent_pb2.GetTaskLogsResponse(body=body)
        yield agent_pb2.GetTaskLogsResponse(header={"token": "next"})


class Sync(SyncConnectorBase):
    """Decodes by the declared inputs; the service encodes by the declared outputs."""

    def __init__(self):
        super().__init__(task_type_name="echo_sync")

    def do(self, task_template, output_prefix, inputs):
        declared = task_template.interface.inputs.variables
        return Resource(Phase.SUCCEEDED, "echoed", outputs=from_literal_map(inputs, declared))


for connector in (Base(), Python(), Sync()):
    ConnectorRegistry.register(connector)
