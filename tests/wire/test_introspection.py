"""Our own service: its hand-made descriptor against the compiler's, and ListPlugins on a port."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from connector_service import config as settings
from connector_service.server.server import build
from connector_service.testing import Served, serve
from connector_service.version import __version__
from connector_service.wire.introspection import METHODS, file_descriptor

PROTOS = Path(__file__).parents[2] / "protos"

LOADS = """
from connector_service import ConnectorRegistry, SyncConnectorBase

class Loads(SyncConnectorBase):
    def do(self):
        pass

for version in (0, 1):
    ConnectorRegistry.register(Loads(task_type_name="introspected", task_type_version=version))
"""


def test_the_descriptor_is_what_the_compiler_makes(tmp_path: Path) -> None:
    """The table in the code and the .proto in the repository describe one and the same file."""
    compiled = tmp_path / "introspection.binpb"
    source = "connector_service/v1/introspection.proto"
    arguments = ["protoc", f"-I{PROTOS}", f"--descriptor_set_out={compiled}", source]
    assert protoc.main(arguments) == 0
    (expected,) = FileDescriptorSet.FromString(compiled.read_bytes()).file
    assert file_descriptor() == expected


async def test_list_plugins_tells_what_became_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded, broken and incomplete plugins are all listed, without secrets or paths."""
    modules = {
        "introspected_loads": LOADS,
        "introspected_breaks": "raise RuntimeError('bad password=hunter2\\nsecond line')",
        "introspected_exits": "import sys\nsys.exit('gone')",
        "introspected_lacks": "import no_such_module_at_all",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = {"port": 0, "prometheus_port": 0, "module": tuple(modules)}
    service = build(settings.load(chosen, environ={}, file=os.devnull))
    await service.startup()
    try:
        async with Served(service).client() as client:
            plugins = {plugin.name: plugin for plugin in await client.list_plugins()}
            agents = {agent.name for agent in await client.list_agents()}
    finally:
        await service.shutdown()
    expected = {
        "introspected_loads": {
            "state": "loaded",
            "task_categories": ["introspected v0", "introspected v1"],
        },
        "introspected_breaks": {
            "state": "failed",
            "error": "RuntimeError: bad password=*** second line",
        },
        "introspected_exits": {"state": "failed", "error": "SystemExit: gone"},
        "introspected_lacks": {
            "state": "missing dependency",
            "error": "ModuleNotFoundError: No module named 'no_such_module_at_all'",
        },
    }
    assert {name: plugins[name] for name in modules} == {
        name: type(plugins[name])(name=name, target=name, **fields)
        for name, fields in expected.items()
    }
    assert "Loads" in agents


async def test_a_service_without_plugins_still_tells_its_version() -> None:
    """ListPlugins is answered by every service, with the release that it runs."""
    request, response = METHODS["ListPlugins"]
    async with serve() as served, grpc.aio.insecure_channel(served.endpoint) as channel:
        ask = channel.unary_unary(
            "/connector_service.v1.Introspection/ListPlugins",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        assert await ask(request()) == response(version=__version__)


async def test_reload_is_refused_over_the_network() -> None:
    """Whoever reaches the gRPC port cannot restart processes: that is for the unix socket."""
    async with serve() as served, served.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.reload()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "connector-service reload" in str(refused.value.details())
