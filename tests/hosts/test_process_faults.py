"""Whatever ends or hangs a child: it alone is started again, and its calls wait or are told."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time

import pytest
from process_hosts import (
    FAULTY,
    QUICK,
    Hosts,
    ask,
    descriptors,
    get,
    kill,
    logs,
    own_children,
    pid_of,
    runs,
    until,
)

from connector_service.errors import (
    ConnectorFault,
    DeadlineError,
    TransientError,
    UnavailableError,
)
from connector_service.hosts.outer import HostStatus


async def test_end_under_a_call(hosts: Hosts) -> None:
    """A call whose process ends under it is transient and says so; the next one waits."""
    host, events = await hosts.started()
    with pytest.raises(TransientError, match="process of host faulty ended while the call ran"):
        await host.run(get("exit", "7"))
    assert await pid_of(host)
    assert host.snapshot().restarts == 1
    assert ("exited", "worker 0: code 7") in events.told


async def test_stream_whose_process_ends(hosts: Hosts) -> None:
    """A stream whose process is killed ends with a transient error after what was sent."""
    host, _ = await hosts.started()
    pid = await pid_of(host)
    got: list[object] = []

    async def send(message: object) -> None:
        got.append(message)
        if len(got) == 3:
            kill(pid)

    with pytest.raises(TransientError):
        await host.stream(logs(1000), send)
    assert len(got) >= 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_signals_from_outside(hosts: Hosts, number: signal.Signals) -> None:
    """A child that somebody ends by a signal is replaced, and its types stay listed meanwhile."""
    host, events = await hosts.started()
    first = await pid_of(host)
    kill(first, number)
    await events.seen("exited")
    assert FAULTY in host.categories()
    assert host.agents()
    second = await pid_of(host)
    assert second != first
    expected = "code 0" if number == signal.SIGTERM else number.name
    assert ("exited", f"worker 0: {expected}") in events.told


async def test_sys_exit_ends_only_the_call(hosts: Hosts) -> None:
    """sys.exit() in a call ends that call as an error; the process lives on."""
    host, events = await hosts.started()
    pid = await pid_of(host)
    with pytest.raises(ConnectorFault, match="SystemExit"):
        await host.run(get("sys_exit", "3"))
    assert await pid_of(host) == pid
    assert not events.counts["exited"]


@pytest.mark.parametrize("fault", ["SIGSTOP", "hold_lock"])
async def test_hang(hosts: Hosts, fault: str) -> None:
    """A child that answers no heartbeat is killed and replaced, its calls told."""
    host, events = await hosts.started(heartbeat_timeout=1.5)
    pid = await pid_of(host)
    running = asyncio.create_task(
        host.run(get("sleep", "60") if fault == "SIGSTOP" else get("hold_lock", "600"))
    )
    await until(lambda: host.snapshot().workers[0].calls == 1)
    if fault == "SIGSTOP":
        kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TransientError):
        await running
    assert time.monotonic() - began < 5
    assert not runs(pid)
    assert await pid_of(host) != pid
    assert events.counts["hung"] == 1
    assert not host.snapshot().error


async def test_busy_child_is_no_hanging_one(hosts: Hosts) -> None:
    """A child that computes on many threads is slow to answer and is let live."""
    host, events = await hosts.started(heartbeat_timeout=4.0)
    pid = await pid_of(host)
    await host.run(get("burn", "3"))
    assert await pid_of(host) == pid
    assert events.told == [("started", "worker 0")]


async def test_stall_of_ours_convicts_nobody(hosts: Hosts) -> None:
    """A parent that was itself stopped for longer than the heartbeat's limit kills no child."""
    host, events = await hosts.started(heartbeat_timeout=0.5)
    pid = await pid_of(host)
    for _ in range(3):
        time.sleep(0.8)  # noqa: ASYNC251 - blocking is the point
        await asyncio.sleep(0.3)
    assert await pid_of(host) == pid
    assert events.told == [("started", "worker 0")]


async def test_calls_wait_for_a_child(hosts: Hosts) -> None:
    """Calls that come while no child runs wait for one and are answered."""
    host, _ = await hosts.started()
    kill(await pid_of(host))
    await until(lambda: host.snapshot().status is HostStatus.DOWN)
    pids = await asyncio.gather(*(pid_of(host) for _ in range(20)))
    assert len(set(pids)) == 1


async def test_calls_wait_no_longer_than_their_deadline(hosts: Hosts) -> None:
    """A call is UNAVAILABLE just before its deadline when no child came up, with the reason."""
    host, _ = await hosts.started()
    hosts.switch.write_text("hang")
    kill(await pid_of(host))
    await until(lambda: host.snapshot().status is HostStatus.DOWN)
    began = time.monotonic()
    with pytest.raises(UnavailableError) as refused:
        await host.run(get("answer", seconds=1.0))
    assert 0.7 < time.monotonic() - began < 1.0
    assert "has no process now (down)" in str(refused.value)
    assert "SIGKILL (out of memory, unless somebody sent it)" in str(refused.value)
    assert refused.value.retry_after
    assert refused.value.retry_after >= 1.0


async def test_patience_without_a_deadline(hosts: Hosts) -> None:
    """A call without a deadline does not wait for ever."""
    host, _ = await hosts.started(timing=QUICK._replace(patience=0.5))
    hosts.switch.write_text("hang")
    kill(await pid_of(host))
    await until(lambda: host.snapshot().status is HostStatus.DOWN)
    with pytest.raises(UnavailableError):
        await host.run(get("answer", seconds=None))


async def test_nobody_waits_in_vain(hosts: Hosts) -> None:
    """When the next try comes after a call's deadline, the call is refused at once."""
    timing = QUICK._replace(first_wait=30.0, longest_wait=30.0)
    host, events = await hosts.started(timing=timing)
    kill(await pid_of(host))
    await events.seen("exited")
    began = time.monotonic()
    with pytest.raises(UnavailableError) as refused:
        await host.run(get("answer", seconds=10.0))
    assert time.monotonic() - began < 1
    assert refused.value.retry_after is not None
    assert 10 < refused.value.retry_after <= 30


async def test_what_a_child_started_ends_with_it(hosts: Hosts) -> None:
    """When a child ends, its own children end: in its group, and in others of its session."""
    host, events = await hosts.started()
    pids = [int(await ask(host, "spawn", how)) for how in ("", "group")]
    pids.append(int(await ask(host, "fork")))
    kill(await pid_of(host))
    await events.seen("exited")
    await until(lambda: not any(runs(pid) for pid in pids), within=2)


async def test_detached_process_keeps_nobody(hosts: Hosts) -> None:
    """A process that left the session with our pipes in hand delays no restart."""
    host, events = await hosts.started()
    pid = int(await ask(host, "spawn", "detached"))
    try:
        began = time.monotonic()
        kill(await pid_of(host))
        await events.seen("exited")
        assert time.monotonic() - began < 3
        assert await pid_of(host)
    finally:
        kill(pid)


async def test_crash_loop_and_recovery(hosts: Hosts) -> None:
    """A child that ends soon again and again makes a crash loop, until one lives long enough."""
    host, events = await hosts.started()
    hosts.switch.write_text("exit")
    kill(await pid_of(host))
    await events.seen("crash_loop")
    state = host.snapshot()
    assert state.status is HostStatus.CRASH_LOOP
    assert "exited with code 1" in state.error
    assert FAULTY in host.categories()
    hosts.switch.unlink()
    await pid_of(host)
    assert host.snapshot().status is HostStatus.CRASH_LOOP  # not yet believed
    await until(lambda: host.snapshot().status is HostStatus.UP, within=15)
    assert host.snapshot().error == ""
    assert events.counts["crash_loop"] == 1


async def test_backoff_grows(hosts: Hosts) -> None:
    """The waits between restarts double up to the longest."""
    timing = QUICK._replace(first_wait=0.1, longest_wait=0.8, short=0.2)
    host, events = hosts.make(timing=timing, program="programs/leaves.py")
    times = []
    host._on_event = lambda kind, detail: (times.append(time.monotonic()), events(kind, detail))
    await host.start()
    await events.seen("exited", 6)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    gaps = [gap for gap in gaps if gap > 0.01]  # the crash loop's own event
    assert gaps[0] < gaps[-1] < 2.0
    assert gaps[-1] >= 0.4  # half of the longest is the least of it


async def test_backoff_is_forgotten_after_a_long_life(hosts: Hosts) -> None:
    """A child that lived long is followed as soon as the first one was."""
    timing = QUICK._replace(first_wait=0.05, longest_wait=30.0, steady=1.0, short=0.2)
    host, events = await hosts.started(timing=timing)
    (worker,) = host._workers
    for number in range(4):
        kill(await pid_of(host))
        await events.seen("started", 2 + number)
    await until(lambda: worker.state().uptime_seconds >= 1.2)
    asked = time.monotonic()
    kill(await pid_of(host))
    await until(lambda: worker.current is None)
    assert worker.next_try - asked < 0.35  # the fifth of a row waits 0.4 s at least


async def test_fault_of_one_plugin_after_a_restart(hosts: Hosts) -> None:
    """Types whose plugin fails after a restart stay listed, and their calls say why they wait."""
    host, events = await hosts.started(sources=("module:faulty", "module:second"))
    second = FAULTY._replace(name="second")
    assert {FAULTY, second} <= set(host.categories())
    hosts.switch.write_text("raise")
    kill(await pid_of(host, category=second))
    await events.seen("started", 2)
    assert await pid_of(host, category=second)
    assert {FAULTY, second} <= set(host.categories())
    with pytest.raises(UnavailableError, match="is up without task type 'faulty' version 0"):
        await host.run(get("answer", seconds=0.5))
    hosts.switch.unlink()
    kill(await pid_of(host, category=second))
    await events.seen("started", 3)
    assert await pid_of(host)


async def test_workers_share_the_calls(hosts: Hosts) -> None:
    """Calls go to the worker with the fewest; one that dies leaves the calls to the others."""
    host, events = await hosts.started(workers=2)
    pids = {await pid_of(host) for _ in range(8)}
    assert len(pids) == 2
    slow = [asyncio.create_task(host.run(get("sleep", "2"))) for _ in range(6)]
    await until(lambda: [worker.calls for worker in host.snapshot().workers] == [3, 3])
    await asyncio.gather(*slow)
    victim = host.snapshot().workers[0].pid
    assert victim is not None
    hosts.switch.write_text("hang")  # it does not come back
    kill(victim)
    await events.seen("exited")
    answers = {await pid_of(host) for _ in range(8)}
    assert answers == pids - {victim}
    assert host.snapshot().status is HostStatus.DEGRADED
    assert host.snapshot().workers[0].pid is None


async def test_quiet_worker_gets_no_calls(hosts: Hosts) -> None:
    """While a worker owes a heartbeat, new calls go to the other one."""
    host, _ = await hosts.started(workers=2, heartbeat_timeout=8.0)
    stopped = host.snapshot().workers[0].pid
    assert stopped is not None
    kill(stopped, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.3)
        pids = {await pid_of(host, seconds=2.0) for _ in range(6)}
    finally:
        kill(stopped, signal.SIGCONT)
    assert stopped not in pids


async def test_concurrency(hosts: Hosts) -> None:
    """No more calls than ``concurrency`` run; the others wait for their turn, streams apart."""
    host, _ = await hosts.started(concurrency=2)
    calls = [asyncio.create_task(host.run(get("sleep", "0.5"))) for _ in range(4)]
    await until(lambda: host.snapshot().workers[0].calls == 2)
    got: list[object] = []

    async def send(message: object) -> None:
        got.append(message)

    await host.stream(logs(2), send)
    assert len(got) == 2
    with pytest.raises(DeadlineError, match="Host faulty could begin"):
        await host.run(get("answer", seconds=0.1))
    await asyncio.gather(*calls)


async def test_neighbour_feels_nothing(hosts: Hosts) -> None:
    """While one host crash-loops, another's calls see no error."""
    ill, events = hosts.make("ill")
    well, _ = await hosts.started("well", env={"FAULT_FILE": "/nowhere"})
    hosts.switch.write_text("crash soon")
    await ill.start()
    slowest, calls = 0.0, 0
    while events.counts["crash_loop"] == 0 or calls < 200:
        began = time.monotonic()
        assert await pid_of(well, seconds=5.0)
        slowest = max(slowest, time.monotonic() - began)
        calls += 1
        assert calls < 20_000
        await asyncio.sleep(0.002)
    assert slowest < 2.0


async def test_restarts_leave_nothing_behind(hosts: Hosts) -> None:
    """After 20 restarts there are as many descriptors, threads, tasks and processes as before."""
    timing = QUICK._replace(first_wait=0.01, longest_wait=0.01, short=0.0, steady=0.0)
    host, events = await hosts.started(timing=timing)
    for round_ in range(3):
        kill(await pid_of(host))
        await events.seen("started", round_ + 2)
    await pid_of(host)

    def counted() -> tuple[int, int, int, int]:
        return (
            descriptors(),
            threading.active_count(),
            len(asyncio.all_tasks()),
            len(own_children()),
        )

    before = counted()
    for round_ in range(20):
        kill(await pid_of(host))
        await events.seen("started", round_ + 5)
    await pid_of(host)
    await until(lambda: counted()[0] <= before[0] + 1, within=5)
    after = counted()
    assert after[1] <= before[1] + 2  # the default executor's pool grows to a bound
    assert after[2] <= before[2]
    assert after[3] == before[3]
    assert len(list(hosts.run_dir.iterdir())) == 1
