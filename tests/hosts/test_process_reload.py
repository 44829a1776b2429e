"""A reload puts a fresh child in the old one's place, and no call notices."""

from __future__ import annotations

import asyncio
import time

import pytest
from process_hosts import (
    CHILDREN,
    FAULTY,
    QUICK,
    Hosts,
    ask,
    descriptors,
    kill,
    logs,
    own_children,
    pid_of,
    runs,
    until,
)

from connector_service.errors import HostError, TransientError
from connector_service.hosts.outer import HostStatus
from connector_service.sdk.resource import TaskCategory


@pytest.mark.parametrize("workers", [1, 2])
async def test_reload_under_load(hosts: Hosts, workers: int) -> None:
    """While calls come without a pause, a reload loses none and later calls reach the new child."""
    host, events = await hosts.started(workers=workers)
    old = {worker.pid for worker in host.snapshot().workers}
    stop = asyncio.Event()
    answered: list[int] = []

    async def load() -> None:
        while not stop.is_set() and len(answered) < 100_000:
            what = ("sleep", "0.02") if len(answered) % 2 else ("answer", "")
            answered.append(int((await ask(host, *what, seconds=10.0)).split()[0]))

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        for _ in range(2):
            await host.reload()
        stop.set()
    assert events.counts["reloaded"] == 2
    assert events.counts["exited"] == 0
    assert len(answered) > 50
    new = {worker.pid for worker in host.snapshot().workers}
    assert not new & old
    assert {await pid_of(host) for _ in range(4)} <= new
    await until(lambda: len(own_children()) == workers)


async def test_old_child_drains(hosts: Hosts) -> None:
    """The old child ends its calls and streams after the new one took over, and then ends."""
    host, _ = await hosts.started(timing=QUICK._replace(last=0.2))
    old = await pid_of(host)
    got: list[object] = []

    async def send(message: object) -> None:
        got.append(message)

    release = hosts.folder / "release"
    slow = asyncio.create_task(ask(host, "wait", str(release), seconds=60.0))
    stream = asyncio.create_task(host.stream(logs(release, seconds=60.0), send))
    await until(lambda: host.snapshot().workers[0].calls == 2)
    await host.reload()
    assert not slow.done()
    assert not stream.done()
    assert await pid_of(host) != old
    await asyncio.sleep(0.6)  # longer than a child that was told to end may live
    release.touch()
    assert await slow == str(old)
    await stream
    assert got
    await until(lambda: not runs(old), within=5)


async def test_drain_has_an_end(hosts: Hosts) -> None:
    """A stream that outlasts the drain is ended with a transient error, and the old child goes."""
    host, _ = await hosts.started(timing=QUICK._replace(drain=0.3, last=0.3))
    old = await pid_of(host)
    got: list[object] = []

    async def send(message: object) -> None:
        got.append(message)

    stream = asyncio.create_task(host.stream(logs(2000, seconds=100.0), send))
    await until(lambda: got)
    await host.reload()
    with pytest.raises(TransientError):
        await stream
    await until(lambda: not runs(old), within=5)
    assert host.snapshot().restarts == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("exit", "exited with code 1"),
        ("raise", "now fail in a new process: faulty .*the fault is switched on"),
        ("hang", "did not answer within 6 s"),
    ],
)
async def test_worse_child_is_refused(hosts: Hosts, fault: str, words: str) -> None:
    """A new child that does not come up, or comes up with less, is ended and the old one stays."""
    host, events = await hosts.started(
        sources=("module:faulty", "module:second"), start_timeout=6.0 if fault == "hang" else 30.0
    )
    old = await pid_of(host)
    before = own_children(), descriptors()
    hosts.switch.write_text(fault)
    with pytest.raises(HostError, match=words):
        await host.reload()
    assert await pid_of(host) == old
    assert host.snapshot().status is HostStatus.UP
    assert FAULTY in host.categories()
    assert events.counts["reload_refused"] == 1
    assert events.counts["exited"] == 0
    await until(lambda: (own_children(), descriptors()) == before, within=5)
    hosts.switch.unlink()
    await host.reload()
    assert await pid_of(host) != old


async def test_child_without_types_is_refused(hosts: Hosts) -> None:
    """A new child that serves nothing at all is ended and the old one stays."""
    host, _ = await hosts.started()
    old = await pid_of(host)
    for fault in ("empty", "raise"):
        hosts.switch.write_text(fault)
        with pytest.raises(HostError, match="offers no task type"):
            await host.reload()
        assert await pid_of(host) == old


async def test_changes_are_taken_up(hosts: Hosts) -> None:
    """Types that came are listed and served after a reload, those uninstalled are gone."""
    module = hosts.folder / "changing.py"
    text = hosts.folder / "source.txt"
    text.write_text("")
    body = (
        "import sys; sys.path.append(%r)\n"
        "from faulty import Faulty\n"
        "from connector_service import ConnectorRegistry\n"
        "for name in %r: ConnectorRegistry.register(Faulty(name))\n"
    )
    module.write_text(body % (str(CHILDREN), ["one", "two"]))
    host, _ = hosts.make(
        sources=("module:changing",), cwd=str(hosts.folder), env={"TASK_TYPES": "faulty"}
    )
    changes: list[set[str]] = []
    host.on_change(lambda: changes.append({category.name for category in host.categories()}))
    await host.start()
    module.write_text(body % (str(CHILDREN), ["two", "three"]))
    await host.reload()
    await host.reload()
    assert [change & {"one", "two", "three"} for change in changes] == [
        {"one", "two"},
        {"two", "three"},
    ]
    assert await pid_of(host, category=TaskCategory("three"))


async def test_reloads_take_turns(hosts: Hosts) -> None:
    """Reloads asked for at once run one after the other, and each does its work."""
    host, events = await hosts.started()
    await asyncio.gather(*(host.reload() for _ in range(3)))
    assert events.counts["reloaded"] == 3
    assert events.counts["started"] == 4
    await until(lambda: len(own_children()) == 1)


async def test_reload_brings_back_a_host_that_is_down(hosts: Hosts) -> None:
    """A reload does not wait for the next restart: a mended environment is tried at once."""
    timing = QUICK._replace(first_wait=60.0, longest_wait=60.0)
    hosts.switch.write_text("exit")
    host, _ = await hosts.started(timing=timing)
    assert host.snapshot().status is HostStatus.DOWN
    with pytest.raises(HostError):
        await host.reload()
    hosts.switch.unlink()
    began = time.monotonic()
    await host.reload()
    assert await pid_of(host)
    assert time.monotonic() - began < 20
    kill(await pid_of(host))


async def test_close_during_a_reload(hosts: Hosts) -> None:
    """A service that leaves during a reload ends the child that is starting, too."""
    host, _ = await hosts.started()
    hosts.switch.write_text("hang")
    reloading = asyncio.create_task(host.reload())
    await until(lambda: len(own_children()) == 2)
    await host.close(1.0)
    with pytest.raises(HostError, match="leaving"):
        await reloading
    assert not own_children()
    with pytest.raises(HostError, match="not running"):
        await host.reload()


async def test_reload_cut_short(hosts: Hosts) -> None:
    """An operator who gives up on a reload leaves the old child and nothing of the new one."""
    host, _ = await hosts.started()
    old = await pid_of(host)
    hosts.switch.write_text("hang")
    reloading = asyncio.create_task(host.reload())
    await until(lambda: len(own_children()) == 2)
    reloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reloading
    assert own_children() == {old}
    hosts.switch.unlink()
    await host.reload()
    assert await pid_of(host) != old


async def test_old_child_that_dies_during_a_reload(hosts: Hosts) -> None:
    """When the old child dies while the new one starts, the new one alone follows."""
    host, events = await hosts.started()
    old = await pid_of(host)
    reloading = asyncio.create_task(host.reload())
    await until(lambda: len(own_children()) == 2)
    kill(old)
    await reloading
    assert await pid_of(host) != old
    await asyncio.sleep(1.0)
    assert len(own_children()) == 1
    assert events.counts["started"] == 2
