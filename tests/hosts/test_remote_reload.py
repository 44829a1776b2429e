"""Remote hosts over real ports: a reload, a close and the calls that are out meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from hosts.remotes import GET1, Remotes, agent, agents, call, got
from peers import LISTS, answering, peer, refusing

from connector_service.errors import HostError, TransientError
from connector_service.hosts.outer import HostStatus
from connector_service.sdk.method import Operation


async def test_a_reload_loses_no_call(host: Remotes) -> None:
    """Calls on the old connection end there, new ones take the new; the old is closed then."""
    peers: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def get(_request: bytes, context: Any) -> bytes:
        peers.append(context.peer())
        if len(peers) == 1:
            begun.set()
            await go.wait()
        return got(f"call {len(peers)}")

    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: get}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        old = remote._open()
        first = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.wait_for(begun.wait(), 10)
        await remote.reload()
        assert remote._open() is not old
        await remote.run(call(Operation.GET, "spark"))
        assert not first.done()
        assert peers[0] != peers[1]  # another connection, not the old one under a new name
        (leaving,) = remote._leaving.values()
        go.set()
        assert (await first).message == "call 2"
        await asyncio.wait_for(leaving, 10)
        assert old.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_reload_under_load_fails_nothing(host: Remotes) -> None:
    """Five reloads under four busy callers: every call is answered."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        stop, answered = asyncio.Event(), []

        async def caller() -> None:
            while not stop.is_set() and len(answered) < 20_000:
                answered.append((await remote.run(call(Operation.GET, "spark"))).message)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(caller())
            for _ in range(5):
                before = len(answered)
                await remote.reload()
                async with asyncio.timeout(10):
                    while len(answered) < before + 20:  # noqa: ASYNC110
                        await asyncio.sleep(0)
            stop.set()
    assert set(answered) == {"m"}


async def test_a_reload_that_finds_nobody_keeps_what_was(host: Remotes) -> None:
    """The new connection is used only when the peer answered on it; the sentence says so."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer(answers) as other:
        remote = await host(other.endpoint, every=3_600)
        old = remote._open()
        other.answers[LISTS["flyteidl"]] = refusing(StatusCode.UNAVAILABLE, "no")
        with pytest.raises(HostError, match=r"UNAVAILABLE: no\).*stays in use\."):
            await remote.reload()
        assert remote._open() is old
        assert (await remote.run(call(Operation.GET, "spark"))).message == "m"
        assert remote.snapshot().status is HostStatus.UP


async def test_its_ups_and_downs_are_events(host: Remotes) -> None:
    """Whoever counts hears of each change once, and of reloads, taken or refused."""
    events: list[str] = []
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark")))}
    async with peer(answers) as other:
        remote = await host(
            other.endpoint, every=3_600, on_event=lambda kind, _detail: events.append(kind)
        )
        await remote.reload()
        await remote._ask(remote._open(), 5)
        other.answers.clear()
        for _ in range(2):
            await remote._ask(remote._open(), 5)
        with pytest.raises(HostError):
            await remote.reload()
    assert events == ["up", "reloaded", "down", "reload_refused"]


async def test_closing_gives_calls_their_grace_and_then_ends_them(host: Remotes) -> None:
    """A call that outlives the grace fails as transient; closing again is fine."""
    begun = asyncio.Event()

    async def get(_request: bytes, _context: Any) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: get}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        task = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.wait_for(begun.wait(), 10)
        await remote.reload()  # the call is on a connection that is being left
        async with asyncio.timeout(8):
            await remote.close(0.2)
        with pytest.raises(TransientError):
            await task
        await remote.close(0.2)
        with pytest.raises(TransientError):
            await remote.run(call(Operation.GET, "spark"))
