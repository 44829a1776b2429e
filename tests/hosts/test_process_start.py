"""A process host starts its children, shakes hands with them, and ends them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from process_hosts import (
    CHILDREN,
    FAULTY,
    QUICK,
    Hosts,
    ask,
    descriptors,
    get,
    own_children,
    pid_of,
    runs,
    until,
)

from connector_service.config import HostSection
from connector_service.errors import ConfigError, UnavailableError
from connector_service.hosts.outer import HostKind, HostStatus
from connector_service.hosts.process import ProcessHost
from connector_service.sdk.resource import TaskCategory


async def test_serves_what_the_handshake_says(hosts: Hosts) -> None:
    """A host that started lists its child's connectors, answers their calls, and says how it is."""
    changes: list[int] = []
    host, events = hosts.make(env={"TASK_TYPES": "faulty,other"}, prefer=("ot*",))
    host.on_change(lambda: changes.append(len(host.categories())))
    assert host.snapshot().status is HostStatus.STARTING
    await host.start()
    assert set(host.categories()) == {FAULTY, TaskCategory("other")}
    assert host.categories()[FAULTY].name == "Faulty"
    assert [list(agent.supported_task_types) for agent in host.agents()] == [["faulty", "other"]]
    assert changes == [2]
    assert host.prefers(TaskCategory("other"))
    assert not host.prefers(FAULTY)
    state = host.snapshot()
    assert (state.kind, state.status, state.error) == (HostKind.PROCESS, HostStatus.UP, "")
    assert state.where == sys.executable
    assert state.versions
    assert [record.name for record in state.plugins] == ["faulty"]
    assert await pid_of(host) == state.workers[0].pid
    assert events.told == [("started", "worker 0")]


async def test_socket_and_its_folder_are_private(hosts: Hosts) -> None:
    """The sockets lie in a folder for this user alone and go when their child does."""
    hosts.run_dir.mkdir(mode=0o755)
    host, _ = await hosts.started()
    assert stat.S_IMODE(hosts.run_dir.stat().st_mode) == 0o700
    (socket,) = hosts.run_dir.iterdir()
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert not socket.stat().st_mode & 0o077
    await host.close(0.0)
    assert not list(hosts.run_dir.iterdir())


async def test_environment_and_folder_of_the_child(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child has our environment without what is the service's, its own, and its folder."""
    monkeypatch.setenv("CONNECTOR_SERVICE_PORT", "8000")
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    monkeypatch.setenv("SHARED_WITH_CHILDREN", "yes")
    host, _ = await hosts.started(env={"OWN": "child's"})
    assert await ask(host, "environ", "CONNECTOR_SERVICE_PORT") == "-"
    assert await ask(host, "environ", "VIRTUAL_ENV") == "-"
    assert await ask(host, "environ", "SHARED_WITH_CHILDREN") == "yes"
    assert await ask(host, "environ", "OWN") == "child's"
    assert (await ask(host, "environ", "PATH")).startswith(str(Path(sys.executable).parent) + ":")
    assert await ask(host, "cwd") == str(CHILDREN)


async def test_token_is_nowhere_to_be_read(hosts: Hosts) -> None:
    """The child's command line and environment hold no token, and a call without it is refused."""
    host, _ = await hosts.started()
    pid = host.snapshot().workers[0].pid
    assert (Path("/proc") / str(pid) / "cmdline").read_bytes().count(b"\0") == 3
    (socket,) = hosts.run_dir.iterdir()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        ping = channel.unary_unary("/connector_service.host.v1.Host/Ping")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ping(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"python": "/nowhere/bin/python"}, "python = '/nowhere/bin/python' does not exist; set"),
        ({"python": __file__}, "cannot be executed; set it to the interpreter"),
        ({"cwd": "/nowhere/at/all"}, "cwd = '/nowhere/at/all' is no folder; create it"),
    ],
)
async def test_impossible_settings_are_refused(
    hosts: Hosts, settings: dict[str, str], words: str
) -> None:
    """A python or cwd that cannot work is a ConfigError that says what to set."""
    host, _ = hosts.make(**settings)
    with pytest.raises(ConfigError, match=words) as refused:
        await host.start()
    assert str(refused.value).count(". ") == 0


async def test_file_that_is_no_program_is_refused(hosts: Hosts) -> None:
    """An executable file that the system cannot execute is a ConfigError, and nothing is left."""
    program = hosts.folder / "python"
    program.write_bytes(b"\0\1\2 no program")
    program.chmod(0o755)
    before = descriptors()
    host, _ = hosts.make(python=str(program))
    with pytest.raises(ConfigError, match="cannot be started"):
        await host.start()
    assert descriptors() <= before


async def test_long_folder_is_refused(tmp_path: Path) -> None:
    """A run folder whose path no socket can have is refused before any child is started."""
    host = ProcessHost("faulty", HostSection(sources=("module:x",)), tmp_path / ("x" * 120))
    with pytest.raises(ConfigError, match="--run-dir"):
        await host.start()


async def test_any_host_name_has_a_socket(hosts: Hosts) -> None:
    """Names that are long or hold any character work: sockets are then named otherwise."""
    for name in ("x" * 90, "../ü b/%41"):
        host, _ = await hosts.started(name)
        assert await pid_of(host)
        await host.close(0.0)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("leaves.py", "exited with code 4 .* Install grpcio there."),
        ("malformed.py", "malformed"),
        ("noisy.py", "malformed"),
        ("newer.py", "version 2 of the handshake, not 1"),
        ("garbage.py", "did not answer within 1 s of its start; raise start_timeout"),
        ("mute.py", "did not answer within 1 s"),
    ],
)
async def test_child_that_does_not_shake_hands(hosts: Hosts, program: str, words: str) -> None:
    """However a child fails to start, start() returns, the host is down and says why."""
    limit = 1.0 if "within 1 s" in words else 20.0
    host, events = hosts.make(program=f"programs/{program}", start_timeout=limit)
    await host.start()
    state = host.snapshot()
    assert state.status in (HostStatus.DOWN, HostStatus.CRASH_LOOP)
    assert state.error.startswith("Host faulty's process ")
    assert re.search(words, state.error), state.error
    assert ("exited", "worker 0: failed to start") in events.told
    with pytest.raises(UnavailableError) as refused:
        await host.run(get("answer", seconds=0.3))
    assert "Host faulty has no process now" in str(refused.value)
    assert refused.value.retry_after is not None
    await events.seen("crash_loop")
    assert host.snapshot().status is HostStatus.CRASH_LOOP


async def test_start_cut_short_leaves_nothing(hosts: Hosts) -> None:
    """A start() that is cancelled half-way leaves no process, socket, task or descriptor."""
    hosts.switch.write_text("hang")
    tasks, before = asyncio.all_tasks(), descriptors()
    host, _ = hosts.make(workers=2)
    children = own_children()
    starting = asyncio.create_task(host.start())
    await until(lambda: len(own_children() - children) == 2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert own_children() == children
    assert asyncio.all_tasks() == tasks
    assert descriptors() <= before
    assert not list(hosts.run_dir.iterdir())


async def test_close_lets_calls_end(hosts: Hosts) -> None:
    """close() waits for the calls in flight, refuses new ones, and may be called twice."""
    host, _ = await hosts.started()
    pid = await pid_of(host)
    running = asyncio.create_task(ask(host, "sleep", "1"))
    await until(lambda: host.snapshot().workers[0].calls == 1)
    closing = asyncio.create_task(host.close(20.0))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="leaving"):
        await host.run(get("answer"))
    assert await running == str(pid)
    await closing
    await host.close(0.0)
    assert not runs(pid)


async def test_close_ends_what_does_not_end(hosts: Hosts) -> None:
    """A child that ignores everything, and what it started, are killed after the grace."""
    host, _ = await hosts.started(timing=QUICK._replace(last=0.3))
    pids = [await pid_of(host)]
    pids += [int(await ask(host, "spawn")), int(await ask(host, "fork"))]
    os.kill(pids[0], signal.SIGSTOP)
    await host.close(0.2)
    await until(lambda: not any(runs(pid) for pid in pids), within=5)


_NO_FORK = """
import asyncio, ctypes, os, sys
from pathlib import Path

libc = ctypes.CDLL(None)
forks = []
note = ctypes.CFUNCTYPE(None)(lambda: forks.append(1))
libc.__register_atfork(note, None, None, None)
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    os._exit(0)
assert forks == [1], "the probe does not see a fork"

from connector_service.config import HostSection
from connector_service.hosts.process import ProcessHost

async def main():
    section = HostSection(sources=("module:faulty",), cwd=sys.argv[1])
    host = ProcessHost("faulty", section, Path(sys.argv[2]))
    await host.start()
    assert host.snapshot().workers[0].pid, host.snapshot()
    await host.close(0)

asyncio.run(main())
print(len(forks))
"""


def test_children_are_never_forked(tmp_path: Path) -> None:
    """Starting a child runs none of the C library's fork handlers: it is vfork and exec."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _NO_FORK, str(CHILDREN), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("what", ["idle", "hold_lock", "stopped"])
async def test_children_end_with_a_killed_parent(tmp_path: Path, what: str) -> None:
    """A parent that is killed takes its child and that one's children along, whatever they do."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILDREN / "parent.py"),
        str(tmp_path),
        what,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert parent.stdout is not None
    pids = json.loads(await asyncio.wait_for(parent.stdout.readline(), 60))
    assert [pid for pid in pids if not runs(pid)] == []
    parent.kill()
    await parent.wait()
    await until(lambda: not any(runs(pid) for pid in pids), within=2)
