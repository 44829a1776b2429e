"""A child that grows over its limit is replaced, gently when there is time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from process_hosts import QUICK, Hosts, ask, kill, own_children, pid_of, runs, until

from connector_service.errors import TransientError
from connector_service.hosts.outer import HostStatus
from connector_service.hosts.procfs import Sizes

_MIB = 1024 * 1024


async def grown(hosts: Hosts) -> int:
    """Return what a child needs when it has done nothing, in MiB."""
    host, _ = await hosts.started("measure")
    size = await Sizes(0.0).of(await pid_of(host))
    await host.close(0.0)
    return size // _MIB


async def test_large_child_is_replaced(hosts: Hosts) -> None:
    """Over its limit a child is replaced by a fresh one, and the calls in it end in peace."""
    limit = await grown(hosts) + 150
    timing = QUICK._replace(short=0.0)
    host, events = await hosts.started(timing=timing, memory_limit=f"{limit}MiB")
    old = await pid_of(host)
    release = hosts.folder / "release"
    waiting = asyncio.create_task(ask(host, "wait", str(release), seconds=60.0))
    await until(lambda: host.snapshot().workers[0].calls == 1)
    await ask(host, "eat", "170")
    await events.seen("memory")
    await events.seen("started", 2)
    assert await pid_of(host) != old
    assert not waiting.done()
    release.touch()
    assert await waiting == str(old)
    await until(lambda: not runs(old))
    assert events.counts["exited"] == 0
    assert host.snapshot().restarts == 0
    assert "replaced" in events.told[1][1]


async def test_far_too_large_child_is_killed(hosts: Hosts) -> None:
    """Far over its limit a child is killed at once and started again."""
    limit = await grown(hosts) + 50
    host, events = await hosts.started(
        timing=QUICK._replace(memory_kill=1.01, short=0.0), memory_limit=f"{limit}MiB"
    )
    old = await pid_of(host)
    waiting = asyncio.create_task(ask(host, "sleep", "60", seconds=90.0))
    await until(lambda: host.snapshot().workers[0].calls == 1)
    with contextlib.suppress(TransientError):  # it may be over before the answer
        await ask(host, "eat", "400")
    with pytest.raises(TransientError):
        await waiting
    await events.seen("started", 2)
    assert not runs(old)
    assert ("exited", "worker 0: SIGKILL") in events.told
    assert "killed" in next(detail for kind, detail in events.told if kind == "memory")


async def test_large_child_without_a_follower_is_killed(hosts: Hosts) -> None:
    """When the replacement does not come up, the large child is killed all the same."""
    limit = await grown(hosts) + 150
    host, events = await hosts.started(timing=QUICK._replace(short=0.0), memory_limit=f"{limit}MiB")
    old = await pid_of(host)
    hosts.switch.write_text("exit")
    await ask(host, "eat", "170")
    await events.seen("exited", within=60)
    await until(lambda: not runs(old))
    hosts.switch.unlink()
    assert await pid_of(host, seconds=60.0) != old


async def test_limit_that_none_can_keep(hosts: Hosts) -> None:
    """A limit below what a fresh child needs ends in a crash loop that names it, not in a spin."""
    limit = await grown(hosts) * 9 // 10
    timing = QUICK._replace(short=30.0, first_wait=0.3, longest_wait=0.3)
    host, events = await hosts.started(timing=timing, memory_limit=f"{limit}MiB")
    await events.seen("crash_loop", within=90)
    state = host.snapshot()
    assert state.status is HostStatus.CRASH_LOOP
    assert f"memory_limit {limit} MiB" in state.error
    assert await pid_of(host)


async def test_memory_of_the_whole_tree_counts(hosts: Hosts) -> None:
    """What a child's children hold counts as its own, in whichever session they are."""
    host, _ = await hosts.started()
    pid = await pid_of(host)
    sizes = Sizes(0.0)
    alone = await sizes.of(pid)
    await ask(host, "fork")
    forked = await sizes.of(pid)
    assert forked > alone * 1.2
    detached = int(await ask(host, "spawn", "detached"))
    try:
        await until(lambda: runs(detached))
        assert await sizes.of(pid) > forked
    finally:
        kill(detached)
    assert await sizes.of(max(own_children()) + 100_000) == 0
