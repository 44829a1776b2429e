"""Plugins of the tests' own, for either SDK, as their authors would write and install them."""

from __future__ import annotations

from pathlib import Path

from distributions import Site

GROUPS = {"flytekit": "flytekit.plugins", "flyte": "flyte.connectors"}

# What differs between the SDKs: where things are, how a connector says what it is, and a phase.
HEADS = {
    "flytekit": """\
from flyteidl.core.execution_pb2 import TaskExecution
from flytekit.extend.backend.base_connector import (
    AsyncConnectorBase, ConnectorRegistry, Resource, ResourceMeta,
)

class Base(AsyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name=TYPE, metadata_type=Meta)
""",
    "flyte": """\
from flyte.connectors import AsyncConnector, ConnectorRegistry, Resource, ResourceMeta
from flyteidl2.core.execution_pb2 import TaskExecution

class Base(AsyncConnector):
    @property
    def task_type_name(self):
        return TYPE
    @property
    def metadata_type(self):
        return Meta
""",
}

# A job is a file: it runs until the file says how it ended. Its state is a pickle, with objects
# in it that JSON does not have.
PICKLED = """\
import datetime, pathlib
from dataclasses import dataclass, field
import cloudpickle
{head}
TYPE = "{type}"

@dataclass
class Place:
    path: pathlib.PurePath

@dataclass
class Meta(ResourceMeta):
    place: Place
    since: datetime.datetime
    tags: set = field(default_factory=set)

    def encode(self):
        return cloudpickle.dumps(self)

    @classmethod
    def decode(cls, data):
        return cloudpickle.loads(data)

class Files(Base):
    name = "Files Connector {type}"

    async def create(self, task_template, output_prefix=None, inputs=None, **kwargs):
        now = datetime.datetime.now(datetime.timezone.utc)
        return Meta(Place(pathlib.PurePosixPath(task_template.id.name)), now, {{"a", "b"}})

    async def get(self, resource_meta, **kwargs):
        assert isinstance(resource_meta, Meta) and resource_meta.since.tzinfo
        file = pathlib.Path(resource_meta.place.path)
        said = file.read_text() if file.exists() else ""
        if said == "break":
            raise RuntimeError("the backend's own words")
        outputs = {{"tags": "".join(sorted(resource_meta.tags))}} if said == "done" else None
        phase = TaskExecution.SUCCEEDED if said == "done" else TaskExecution.RUNNING
        return Resource(phase=phase, message=said, outputs=outputs)

    async def delete(self, resource_meta, **kwargs):
        pathlib.Path(resource_meta.place.path).write_text("deleted")

ConnectorRegistry.register(Files())
"""

NUMPY = """\
from dataclasses import dataclass
import numpy
{head}
TYPE = "{type}"

@dataclass
class Meta(ResourceMeta):
    job: str

class Numpy(Base):
    name = "Numpy Connector {type}"

    async def create(self, task_template, output_prefix=None, inputs=None, **kwargs):
        return Meta(numpy.__version__)

    async def get(self, resource_meta, **kwargs):
        # As old and new numpy differ: the repr of a scalar.
        text = f"{{resource_meta.job}} {{numpy.__version__}} {{numpy.float64(1)!r}}"
        return Resource(phase=TaskExecution.SUCCEEDED, message=text)

    async def delete(self, resource_meta, **kwargs):
        pass

ConnectorRegistry.register(Numpy())
"""


def install(folder: Path, source: str, task_type: str, sdk: str) -> Site:
    """Install a plugin, one module and its entry point, in a folder of its own."""
    site = Site(folder)
    module = f"plugin_{task_type}"
    text = source.format(head=HEADS[sdk], type=task_type)
    target = module if sdk == "flytekit" else f"{module}:ConnectorRegistry"
    site.install(f"plugin-{task_type}", {module: text}, {task_type: target}, group=GROUPS[sdk])
    return site
