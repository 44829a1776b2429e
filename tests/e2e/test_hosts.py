"""Hosts as an operator has them: the installed service, its file, its commands, and what breaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, Daemon, Serve, eventually, policies_of_threads
from flyte_clients import Flyte
from flyteidl.admin.agent_pb2 import ListAgentsRequest
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

# A connector that tells the number in a file beside it, its process, and breaks when it is told.
CONNECTOR = """
import ctypes, os, signal, time
from dataclasses import dataclass
from pathlib import Path
from connector_service import AsyncConnectorBase, ConnectorRegistry, Phase, Resource, ResourceMeta

HERE = Path(__file__).parent
if (HERE / "{name}.broken").exists():
    raise SystemExit("switched off")
if (HERE / "{name}.crash").exists():
    os._exit(9)

@dataclass
class Job(ResourceMeta):
    what: str

class Connector(AsyncConnectorBase):
    name = "{name}'s"

    def __init__(self):
        super().__init__(task_type_name="{name}", metadata_type=Job)
        self.kept = []

    def create(self, task_template, output_prefix, **kwargs):
        return Job(output_prefix)

    def get(self, resource_meta, **kwargs):
        what = resource_meta.what.rpartition("/")[2]
        if what.startswith("exit"):
            os._exit(7)
        if what.startswith("leak"):
            self.kept.append(bytearray(os.urandom(1)) * (200 << 20))
        if what.startswith("hang"):
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
        generation = (HERE / "{name}.generation").read_text()
        return Resource(Phase.RUNNING, message=f"{{os.getpid()}} {{generation}}")

    def delete(self, resource_meta, **kwargs): ...

ConnectorRegistry.register(Connector())
"""


class Hosts:
    """A settings file with a host for each name, and connectors that answer with their name."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.file = folder / "connector-service.toml"
        self.file.write_text('enable = ["sleep", "good", "bad", "third"]\n')
        for name in names:
            self.add(name)

    def add(self, name: str, more: str = "", *, module: str = "") -> None:
        module = module or name
        (self.folder / f"{name}.py").write_text(CONNECTOR.format(name=name))
        (self.folder / f"{name}.generation").write_text("1")
        with self.file.open("a") as file:
            file.write(
                f'[hosts.{name}]\nsources = ["module:{module}"]\n'
                f'env = {{ PYTHONPATH = "{self.folder}" }}\n{more}\n'
            )


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=environ, timeout=120
    )


def listed(daemon: Daemon) -> Any:
    done = run("list", "--endpoint", daemon.endpoint, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def host_states(daemon: Daemon) -> dict[str, str]:
    return {host["name"]: host["status"] for host in listed(daemon)["hosts"]}


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        text: str = response.read().decode()
        return text


async def create(flyte: Flyte, task_type: str, what: str) -> bytes:
    return await flyte.create(TaskTemplate(type=task_type), prefix=f"mem://{what}")


async def told(flyte: Flyte, task_type: str, meta: bytes, seconds: float = 20) -> tuple[str, str]:
    """Return the process and the generation that answered a get."""
    request = flyte.messages.GetTaskRequest(resource_meta=meta)
    request.task_category.name = task_type
    response = await flyte.jobs.GetTask(request, timeout=seconds)
    assert response.resource.phase == TaskExecution.RUNNING
    pid, _, generation = response.resource.message.partition(" ")
    return pid, generation


async def types_of(daemon: Daemon) -> set[str]:
    flyte = Flyte("flyteidl", daemon.endpoint)
    try:
        agents = (await flyte.metadata.ListAgents(ListAgentsRequest(), timeout=5)).agents
    finally:
        await flyte.channel.close()
    return {category.name for agent in agents for category in agent.supported_task_categories}


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
async def test_hosts_serve_beside_the_process_in_either_protocol(
    serve: Serve, hosts: Hosts, protocol: str
) -> None:
    """Two hosts and the process itself are one service to Flyte, each in a process of its own."""
    hosts.add("good")
    hosts.add("bad")
    daemon = serve()
    assert "hosts: good up, bad up" in daemon.announced
    assert await types_of(daemon) == {"sleep", "good", "bad"}
    flyte = Flyte(protocol, daemon.endpoint)
    pids = {
        (await told(flyte, name, await create(flyte, name, "job")))[0] for name in ("good", "bad")
    }
    await flyte.channel.close()
    assert len(pids | {str(daemon.process.pid)}) == 3
    seen = listed(daemon)
    assert {plugin["name"]: plugin["host"] for plugin in seen["plugins"] if plugin["host"]} == {
        "good": "good",
        "bad": "bad",
    }
    assert daemon.kill(signal.SIGTERM) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH"), reason="only Linux has a policy for threads that may wait"
)
async def test_grpcs_own_threads_wait_for_a_core_in_a_hosts_process_too(
    serve: Serve, hosts: Hosts
) -> None:
    """They do not take it from the connectors, whose own threads wait no longer than ever."""
    hosts.add("good")
    daemon = serve()
    flyte = Flyte("flyteidl", daemon.endpoint)
    pid = int((await told(flyte, "good", await create(flyte, "good", "job")))[0])
    await flyte.channel.close()
    policies = policies_of_threads(pid)
    assert policies["event_engine"] == {os.SCHED_BATCH}
    assert os.SCHED_OTHER in policies["python"]  # one that runs connectors, another is grpc's
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


def test_list_starts_the_hosts_of_the_settings_and_ends_them(hosts: Hosts) -> None:
    """Before anything is served, `list` shows what each host would load and why one would not."""
    hosts.add("good")
    hosts.add("bad")
    (hosts.folder / "bad.broken").touch()
    done = run("list", "--json", cwd=hosts.folder)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {c["name"] for c in shown["connectors"]} == {"Sleep Connector", "good's"}
    (broken,) = [plugin for plugin in shown["plugins"] if plugin["host"] == "bad"]
    assert (broken["state"], "switched off" in broken["error"]) == ("failed", True)


async def test_reload_and_sighup_take_up_what_has_changed(serve: Serve, hosts: Hosts) -> None:
    """A new generation answers after either, from new processes, and the job is still known."""
    hosts.add("good")
    hosts.add("bad")
    run_dir = f"--run-dir={hosts.folder}/r"
    daemon = serve(run_dir)
    flyte = Flyte("flyteidl", daemon.endpoint)
    meta = await create(flyte, "good", "job")
    other = await told(flyte, "bad", await create(flyte, "bad", "job"))
    first = await told(flyte, "good", meta)
    (hosts.folder / "good.generation").write_text("2")
    done = run("reload", "good", run_dir, cwd=hosts.folder)
    assert (done.returncode, done.stdout) == (0, "good: reloaded\n"), done.stderr
    second = await told(flyte, "good", meta)
    assert (second[1], second[0] != first[0]) == ("2", True)
    assert await told(flyte, "bad", await create(flyte, "bad", "job2")) == other
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count("host reloaded") >= 3, "SIGHUP reloads every host")
    assert (await told(flyte, "good", meta))[0] != second[0]
    await flyte.channel.close()


async def test_a_worse_process_is_not_taken(serve: Serve, hosts: Hosts) -> None:
    """A reload into a broken environment says why, exits 3, and the old process goes on."""
    hosts.add("good")
    run_dir = f"--run-dir={hosts.folder}/r"
    daemon = serve(run_dir)
    flyte = Flyte("flyteidl", daemon.endpoint)
    meta = await create(flyte, "good", "job")
    before = await told(flyte, "good", meta)
    (hosts.folder / "good.broken").touch()
    done = run("reload", run_dir, cwd=hosts.folder)
    assert done.returncode == 3
    assert "switched off" in done.stderr
    assert "Error: Not reloaded: good." in done.stderr
    assert await told(flyte, "good", meta) == before
    await flyte.channel.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run-dir=r"], "No service with hosts answers at"),
        (["none", "--run-dir=there"], "No host is called 'none'; configured: good."),
    ],
)
def test_a_reload_that_reaches_nothing_says_what_to_give(
    serve: Serve, hosts: Hosts, arguments: list[str], sentence: str
) -> None:
    """No such service and no such host are one sentence each."""
    hosts.add("good")
    serve(f"--run-dir={hosts.folder}/there")
    done = run("reload", *arguments, cwd=hosts.folder)
    assert done.returncode == 3
    assert sentence in done.stderr


def test_a_type_that_two_hosts_offer_is_refused_until_one_is_preferred(
    serve: Serve, hosts: Hosts
) -> None:
    """Nothing is served by chance; the sentence names both hosts and the way out."""
    hosts.add("good")
    hosts.add("third", module="good")
    done = run("serve", "--port=0", "--prometheus-port=0", cwd=hosts.folder)
    assert done.returncode == 2
    assert "is offered by good and by third" in done.stderr.splitlines()[-1]
    assert "`prefer`" in done.stderr
    hosts.file.write_text(hosts.file.read_text() + 'prefer = ["good"]\n')
    daemon = serve()
    assert "hosts: good up, third up" in daemon.announced


def test_options_reach_a_connector_in_a_host(serve: Serve, hosts: Hosts) -> None:
    """[connectors.<task type>.options] is handed over as it stands, and a refusal is told."""
    hosts.add("good")
    module = hosts.folder / "good.py"
    module.write_text(
        module.read_text().replace(
            "def delete",
            "def configure(self, options):\n"
            "        if options.get('word') != 'egg':\n"
            "            raise ValueError(f'no {options}')\n\n    def delete",
        )
    )
    hosts.file.write_text(hosts.file.read_text() + '[connectors.good.options]\nword = "egg"\n')
    assert "hosts: good up" in serve().announced
    hosts.file.write_text(hosts.file.read_text().replace('"egg"', '"leg"'))
    done = run("serve", "--strict", "--port=0", "--prometheus-port=0", cwd=hosts.folder)
    assert done.returncode == 3
    shown = run("list", cwd=hosts.folder)
    assert "[connectors.good.options]: good's refused them: ValueError: no" in shown.stderr


def test_strict_refuses_to_start_without_a_host(hosts: Hosts) -> None:
    """Under --strict a plugin of a host that fails stops the start, as one of the process does."""
    hosts.add("good")
    (hosts.folder / "good.broken").touch()
    done = run("serve", "--strict", "--port=0", "--prometheus-port=0", cwd=hosts.folder)
    assert done.returncode == 3
    assert "good" in done.stderr.splitlines()[-1]


def test_impossible_settings_of_a_host_are_one_sentence(hosts: Hosts) -> None:
    """An interpreter that does not exist stops the start and names the setting."""
    hosts.add("good", 'python = "/nowhere/bin/python"')
    done = run("serve", "--port=0", "--prometheus-port=0", cwd=hosts.folder)
    assert done.returncode == 2
    assert "/nowhere/bin/python" in done.stderr.splitlines()[-1]
    assert "python" in done.stderr.splitlines()[-1]


class Load:
    """A bounded stream of calls to one task type, each on a job of its own; every error is kept."""

    def __init__(self, daemon: Daemon, task_type: str) -> None:
        self.flyte = Flyte("flyteidl", daemon.endpoint)
        self.task_type = task_type
        self.seconds: list[float] = []
        self.errors: list[str] = []

    async def drive(self, until: Callable[[], bool], most: float = 60.0) -> None:
        end = time.monotonic() + most
        while not until() and time.monotonic() < end:
            started = time.perf_counter()
            try:
                meta = await create(self.flyte, self.task_type, f"ok-{started}")
                await told(self.flyte, self.task_type, meta)
            except Exception as error:  # noqa: BLE001 - each is counted against the claim
                self.errors.append(repr(error))
            self.seconds.append(time.perf_counter() - started)
            await asyncio.sleep(0.005)

    async def baseline(self) -> float:
        await self.drive(lambda: len(self.seconds) >= 200)
        median = statistics.median(self.seconds)
        self.seconds.clear()
        return median


FAULTS = ["exit", "hang", "leak", "crash loop"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_host_that_fails_under_load_disturbs_nobody_else(
    serve: Serve, hosts: Hosts, fault: str
) -> None:
    """While one host exits, hangs, leaks or crash-loops, another host's calls and the front's own
    see no error and take no more than twice as long; the types stay listed; and the host is back.
    """  # noqa: D205 - one claim
    hosts.add("good")
    hosts.add("bad", 'memory_limit = "150MiB"\nheartbeat_timeout = 2')
    daemon = serve()
    good, flyte = Load(daemon, "good"), Flyte("flyteidl", daemon.endpoint)
    base = await good.baseline()
    meta = await create(flyte, "bad", "fine")
    before, _ = await told(flyte, "bad", meta)
    if fault == "crash loop":
        (hosts.folder / "bad.crash").touch()
        os.kill(int(before), signal.SIGKILL)
    else:
        poison = await create(flyte, "bad", f"{fault}-0")
        # The poll is answered whatever becomes of the host: RUNNING, from memory.
        await told(flyte, "bad", poison, seconds=9)

    over = asyncio.Event()
    watching = asyncio.create_task(good.drive(over.is_set))
    listings = [await types_of(daemon)]
    if fault == "crash loop":
        end = time.monotonic() + 60
        while (await asyncio.to_thread(host_states, daemon))["bad"] != "crash loop":
            listings.append(await types_of(daemon))
            assert time.monotonic() < end, "it is never called a crash loop"
        ready = await asyncio.to_thread(read, f"{daemon.metrics}/readyz")
        assert ready.startswith("ready; host bad: crash loop")
        metrics = await asyncio.to_thread(read, f"{daemon.metrics}/metrics")
        assert 'connector_service_host_crash_loop{host="bad"} 1.0' in metrics
        (hosts.folder / "bad.crash").unlink()
    after = before
    end = time.monotonic() + 60
    while after == before and time.monotonic() < end:
        listings.append(await types_of(daemon))
        after = (await told(flyte, "bad", meta))[0] or before
        if not after.isdigit():
            after = before
        await asyncio.sleep(0.1)
    over.set()
    await watching
    await good.flyte.channel.close()
    await flyte.channel.close()
    assert after != before, "the host never came back"
    assert good.errors == []
    assert all(one == {"sleep", "good", "bad"} for one in listings)
    assert statistics.median(good.seconds) <= 2 * base


async def test_a_reload_under_load_loses_no_call(serve: Serve, hosts: Hosts) -> None:
    """Five reloads of a host of two processes while calls come in: not one fails."""
    hosts.add("good", "workers = 2")
    run_dir = f"--run-dir={hosts.folder}/r"
    daemon = serve(run_dir)
    loads = [Load(daemon, "good") for _ in range(4)]
    over = asyncio.Event()
    driving = [asyncio.create_task(load.drive(over.is_set, 120)) for load in loads]
    for _ in range(5):
        done = await asyncio.to_thread(run, "reload", run_dir, cwd=hosts.folder)
        assert done.returncode == 0, done.stderr
    over.set()
    await asyncio.gather(*driving)
    for load in loads:
        await load.flyte.channel.close()
    assert [load.errors for load in loads] == [[], [], [], []]
    assert sum(len(load.seconds) for load in loads) > 100
