"""Polls that fail, poll too often, come together, or tell what nobody understands."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import msgspec
import pytest
from flyteidl.admin.agent_pb2 import GetTaskRequest
from flyteidl.admin.agent_pb2 import Resource as ResourceMessage
from flyteidl.core.execution_pb2 import ExecutionError, TaskExecution
from flyteidl2.connector import connector_pb2

from connector_service.config import ConnectorSection
from connector_service.errors import (
    DeadlineError,
    GoneError,
    InvalidInputError,
    InvalidMetaError,
    PermanentError,
    TransientError,
    UnavailableError,
    UnsupportedOperationError,
)
from connector_service.runtime.absorb import PollEvent, Polls, Source
from connector_service.runtime.call import Call
from connector_service.runtime.limits import Bulkhead
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory, convert_to_flyte_phase

FAKE = TaskCategory("fake")
RUNNING, SUCCEEDED, FAILED, QUEUED, RETRYABLE = (
    TaskExecution.RUNNING,
    TaskExecution.SUCCEEDED,
    TaskExecution.FAILED,
    TaskExecution.QUEUED,
    TaskExecution.RETRYABLE_FAILED,
)
MIDNIGHT = 1_767_225_600.0  # 2026-01-01T00:00:00Z
HOUR = 3600.0


class Scene:
    """A service's polls, one backend whose answer is set, and a clock set by hand."""

    def __init__(self, **policy: Any) -> None:
        self.now = 50.0
        self.events: Counter[str] = Counter()
        self.answer: Any = ResourceMessage(phase=RUNNING)
        self.fetches = 0
        self.deletes = 0
        self.delete_raises: Exception | None = None
        self.permanent: tuple[type[Exception], ...] = ()
        self.policy = ConnectorSection(**policy)
        self.bulkhead = Bulkhead("fake", 100, 0, clock=lambda: self.now)
        self.polls = Polls(
            lambda event, _category: self.events.update([event]),
            clock=lambda: self.now,
            wall=lambda: MIDNIGHT + self.now,
        )

    async def fetch(self, _call: Call, deadline: float) -> Any:
        self.fetches += 1
        assert deadline == self.now + self.policy.get_timeout
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def delete(self, _call: Call) -> None:
        self.deletes += 1
        if self.delete_raises is not None:
            raise self.delete_raises

    async def poll(self, job: str = "1", *, after: float = 0.0, **changes: Any) -> Any:
        self.now += after
        request = GetTaskRequest(resource_meta=job.encode(), output_prefix="mem://out")
        call = Call("flyteidl", Operation.GET, FAKE, request)
        call = msgspec.structs.replace(call, **changes)
        source = Source(self.policy, self.bulkhead, self.fetch, self.delete, self.permanent)
        return await self.polls.poll(source, call)

    async def poll_for(self, seconds: float, every: float = 30.0) -> Any:
        """Poll as the client does until a time has passed or the job has ended."""
        until = self.now + seconds
        resource = await self.poll()
        while self.now < until and resource.phase == RUNNING:
            resource = await self.poll(after=every)
        return resource


TRANSIENT = TransientError("The warehouse restarts.")


@pytest.mark.parametrize(
    "error",
    [TRANSIENT, TimeoutError(), ConnectionResetError(), UnavailableError("Full."), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
async def test_a_fault_keeps_the_last_phase(error: Exception) -> None:
    """A failed poll answers OK with the last phase; without one, RUNNING."""
    scene = Scene()
    scene.answer = error
    assert (await scene.poll("new")).phase == RUNNING
    scene.answer = ResourceMessage(phase=QUEUED, message="3rd in line")
    await scene.poll("old")
    scene.answer = error
    assert (await scene.poll("old")).phase == QUEUED
    assert scene.events == {PollEvent.ABSORBED: 2}


async def test_the_message_says_since_when_and_what_was_known() -> None:
    """The user reads since when the status is unknown, why, and the last good message."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=QUEUED, message="3rd in line")
    await scene.poll()
    scene.answer = TRANSIENT
    await scene.poll(after=30)
    resource = await scene.poll(after=30)
    assert resource.message == (
        "Status unknown since 2026-01-01T00:01:20Z: The warehouse restarts."
        " Last known at 2026-01-01T00:00:50Z: QUEUED, 3rd in line"
    )


async def test_a_strangers_text_stays_here() -> None:
    """Only the type of an error that was not written for the caller is told."""
    scene = Scene()
    scene.answer = ConnectionRefusedError("postgres://admin:hunter2@db")
    assert (await scene.poll()).message == (
        "Status unknown since 2026-01-01T00:00:50Z: the connector's get failed with"
        " ConnectionRefusedError."
    )


async def test_patience_with_transient_faults_is_long() -> None:
    """Six hours less a poll change nothing; then the job is deleted and RETRYABLE_FAILED."""
    scene = Scene()
    scene.answer = TRANSIENT
    assert (await scene.poll_for(6 * HOUR - 30)).phase == RUNNING
    assert scene.deletes == 0
    resource = await scene.poll(after=30)
    assert resource.phase == RETRYABLE
    assert resource.message.endswith("It was deleted, so that a retry does not run beside it.")
    assert resource.agent_error.code == "Transient"
    assert scene.deletes == 1


async def test_an_answer_in_between_renews_patience() -> None:
    """The client never counts back; we do: one good poll and the grace is whole again."""
    scene = Scene(unknown_status_grace=100.0)
    for _ in range(10):
        scene.answer = TRANSIENT
        assert (await scene.poll_for(60)).phase == RUNNING
        scene.answer = ResourceMessage(phase=RUNNING)
        await scene.poll(after=30)
    assert scene.deletes == 0


async def test_patience_with_a_bug_is_short(caplog: pytest.LogCaptureFixture) -> None:
    """Ten minutes of a bug end the job; one traceback is logged, and the user has its id."""
    scene = Scene()
    scene.answer = KeyError("status")
    with caplog.at_level(logging.ERROR):
        resource = await scene.poll_for(570)
        assert resource.phase == RUNNING
        (record,) = caplog.records
        assert record.exc_info
        assert record.exc_info[1] is scene.answer
        incident = vars(record)["incident"]
        assert f"(incident {incident})" in resource.message
        assert (await scene.poll(after=30)).phase == RETRYABLE
    assert [record.getMessage() for record in caplog.records][-1] == "gave a job up"


async def test_a_bug_after_an_outage_has_its_own_patience() -> None:
    """An hour of outage does not count against the ten minutes of a bug."""
    scene = Scene()
    scene.answer = TRANSIENT
    await scene.poll_for(HOUR)
    scene.answer = KeyError("x")
    assert (await scene.poll_for(540)).phase == RUNNING
    assert (await scene.poll_for(120)).phase == RETRYABLE


async def test_time_in_which_nobody_asked_does_not_count() -> None:
    """A client that was away for a day does not lose its jobs with its first poll."""
    scene = Scene()
    scene.answer = TRANSIENT
    await scene.poll()
    assert (await scene.poll(after=12 * HOUR)).phase == RUNNING
    assert scene.deletes == 0


async def test_an_outage_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand jobs of one type that fail together are one warning, and one more later."""
    scene = Scene()
    scene.answer = TRANSIENT
    for job in range(1000):
        await scene.poll(str(job))
    assert len(caplog.records) == 1
    await scene.poll(after=60)
    assert len(caplog.records) == 2


async def test_a_job_that_cannot_be_deleted_is_given_up_all_the_same() -> None:
    """The answer says that the job may still run; the event is counted."""
    scene = Scene(unknown_status_grace=0.0)
    scene.answer = scene.delete_raises = TRANSIENT
    resource = await scene.poll()
    assert resource.phase == RETRYABLE
    assert resource.message.endswith("It could not be deleted and may still be running.")
    assert scene.events == {PollEvent.GAVE_UP: 1, PollEvent.ORPHANED: 1}


async def test_giving_up_is_remembered() -> None:
    """The same end is answered again, without the connector and without a second delete."""
    scene = Scene(unknown_status_grace=0.0)
    scene.answer = TRANSIENT
    first = await scene.poll()
    scene.answer = ResourceMessage(phase=RUNNING)
    assert await scene.poll(after=599) == first
    assert (scene.fetches, scene.deletes) == (1, 1)


async def test_a_job_that_is_gone_is_retryable_at_once() -> None:
    """GoneError ends the job without patience and without a delete."""
    scene = Scene()
    scene.answer = GoneError("The cluster was reclaimed.", code="SpotReclaimed")
    resource = await scene.poll()
    assert (resource.phase, resource.message) == (
        RETRYABLE,
        "The job is gone: The cluster was reclaimed",
    )
    assert resource.agent_error.code == "SpotReclaimed"
    assert scene.deletes == 0


@pytest.mark.parametrize("error", [PermanentError("No."), InvalidInputError("No.")])
async def test_what_is_permanent_has_failed(error: Exception) -> None:
    """A get that says "never" is FAILED, not six failed polls; nothing is left running."""
    scene = Scene()
    scene.answer = error
    resource = await scene.poll()
    assert (resource.phase, resource.message) == (FAILED, "No.")
    assert resource.agent_error.origin == ExecutionError.USER
    assert scene.deletes == 1


async def test_listed_exceptions_are_permanent_in_get_too() -> None:
    """A class in the connector's ``permanent_errors`` counts as PermanentError."""
    scene = Scene()
    scene.permanent = (LookupError,)
    scene.answer = KeyError("relation x")
    assert (await scene.poll()).phase == FAILED


@pytest.mark.parametrize(
    "error", [InvalidMetaError("Not a Meta."), UnsupportedOperationError("No get.")]
)
async def test_a_call_that_cannot_be_answered_is_refused(error: Exception) -> None:
    """The caller's and the operator's mistakes are errors, as ever."""
    scene = Scene()
    scene.answer = error
    with pytest.raises(type(error)) as caught:
        await scene.poll()
    assert caught.value is error


@pytest.mark.parametrize("phase", [TaskExecution.UNDEFINED, 99])
async def test_a_phase_nobody_knows_is_running(phase: Any) -> None:
    """UNDEFINED burns an attempt and an unknown number the workflow: both become RUNNING."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=phase, message="hm")
    resource = await scene.poll()
    assert (resource.phase, resource.message) == (RUNNING, "hm")
    assert scene.events == {PollEvent.UNMAPPED: 1}


async def test_flyte_1s_deprecated_state_still_speaks() -> None:
    """A connector that sets ``state`` and no phase is understood as its client would."""
    scene = Scene()
    scene.answer = ResourceMessage(state=4)  # type: ignore[arg-type]
    assert (await scene.poll()).phase == SUCCEEDED


async def test_an_unmapped_word_is_running_for_ever() -> None:
    """A backend's new word for a state is no bug of the job's: no patience is spent on it."""
    scene = Scene()
    with pytest.raises(ValueError, match="LUNCH") as caught:
        convert_to_flyte_phase("LUNCH")
    scene.answer = caught.value
    assert (await scene.poll_for(HOUR)).phase == RUNNING
    assert scene.events == {PollEvent.UNMAPPED: 121}


async def test_polls_come_no_faster_than_the_backend_allows() -> None:
    """Within min_poll_interval the last reply is the answer, word for word."""
    scene = Scene(min_poll_interval=60.0)
    scene.answer = ResourceMessage(phase=RUNNING, message="at 3 %", log_links=[{"uri": "http://l"}])
    first = await scene.poll()
    scene.answer = ResourceMessage(phase=RUNNING, message="at 9 %")
    assert await scene.poll(after=59) == first
    assert (await scene.poll(after=1)).message == "at 9 %"
    assert (scene.fetches, scene.events) == (2, {PollEvent.REMEMBERED: 1})


async def test_a_backend_that_asks_for_peace_gets_it() -> None:
    """Retry-After keeps polls away, at most five minutes; they are answered meanwhile."""
    scene = Scene()
    scene.answer = TransientError("Quota.", retry_after=7200)
    await scene.poll()
    assert (await scene.poll(after=299)).phase == RUNNING
    assert scene.fetches == 1
    await scene.poll(after=1)
    assert scene.fetches == 2


class Held(Scene):
    """A scene whose backend answers when it is told to."""

    def __init__(self, **policy: Any) -> None:
        super().__init__(**policy)
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def fetch(self, call: Call, deadline: float) -> Any:
        self.asked.set()
        await self.go.wait()
        return await super().fetch(call, deadline)


async def test_identical_polls_share_one_call() -> None:
    """Ten polls of a job at the same time ask its backend once, and all get the answer."""
    scene = Held()
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    polls = [asyncio.create_task(scene.poll()) for _ in range(10)]
    await scene.asked.wait()
    scene.go.set()
    assert {(await poll).phase for poll in polls} == {SUCCEEDED}
    assert (scene.fetches, scene.events) == (1, {PollEvent.SHARED: 9})


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    """The caller who asks is cancelled: for the other it is asked again, and he gets the answer."""
    scene = Held()
    first, second = asyncio.create_task(scene.poll()), asyncio.create_task(scene.poll())
    await scene.asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    scene.go.set()
    assert (await second).phase == RUNNING
    assert scene.fetches == 1


async def test_each_caller_has_its_own_deadline() -> None:
    """Who has no time left gets the last phase; the answer, when it comes, is for the next."""
    scene = Held()
    resource = await scene.poll(deadline=scene.now)
    assert resource.phase == RUNNING
    assert "no answer within the deadline" in resource.message
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    patient = asyncio.create_task(scene.poll())
    await scene.asked.wait()
    scene.go.set()
    assert (await patient).phase == SUCCEEDED
    assert scene.fetches == 1


async def test_a_backend_that_hangs_does_not_hold_the_clients_pollers() -> None:
    """After a timeout polls of that type are answered within a second, until one is answered."""
    scene = Held()
    scene.answer = DeadlineError("The connector did not answer.")
    scene.go.set()
    await scene.poll("1")
    scene.go.clear()
    loop = asyncio.get_running_loop()
    before = loop.time()
    # 300 s on the scene's clock is what the caller would wait; the loop's own is real.
    waiting = asyncio.create_task(scene.poll("2", deadline=scene.now + 300))
    assert (await asyncio.wait_for(waiting, 30)).phase == RUNNING
    assert loop.time() - before < 10
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    scene.go.set()
    assert (await scene.poll("2")).phase == SUCCEEDED
    assert scene.polls._waits(Call("flyteidl", Operation.GET, FAKE, None), scene.now) is None


class UnspeakableValueError(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no")


class UnspeakableError(GoneError):
    def __str__(self) -> str:
        raise RuntimeError("no")

    @property
    def code(self) -> str:
        raise RuntimeError("no")

    @code.setter
    def code(self, _value: str) -> None:
        pass


class UnspeakableTransientError(TransientError):
    def __str__(self) -> str:
        raise RuntimeError("no")

    @property
    def retry_after(self) -> float:
        raise RuntimeError("no")

    @retry_after.setter
    def retry_after(self, _value: object) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (UnspeakableValueError(), RUNNING),
        (UnspeakableTransientError("x"), RUNNING),
        (UnspeakableError("x"), RETRYABLE),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_exception_that_fails_when_looked_at_is_absorbed_too(
    error: Exception, phase: int
) -> None:
    """Not even an error whose text or code raises becomes a failed poll."""
    scene = Scene()
    scene.answer = error
    resource = await scene.poll()
    assert resource.phase == phase
    assert type(error).__name__ in resource.message


async def test_closing_answers_who_waits() -> None:
    """A service that stops leaves no poll hanging that goes on alone, and no task behind."""
    scene = Held()
    await scene.poll(deadline=scene.now)
    waiting = asyncio.create_task(scene.poll())
    await scene.asked.wait()
    await scene.polls.close()
    assert (await waiting).phase == RUNNING
    assert scene.polls._asking == {}


async def test_ends_are_remembered_for_a_while() -> None:
    """A terminal reply is answered from memory until its retention ends."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=SUCCEEDED, outputs={}, message="done")
    first = await scene.poll()
    scene.answer = TRANSIENT
    assert await scene.poll(after=599) == first
    await scene.poll(after=1)
    assert scene.fetches == 2


async def test_an_end_is_not_remembered_longer_than_its_own_retention() -> None:
    """Another type's longer retention, remembered earlier, does not stretch it; ends are swept."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    short, long = scene.policy, ConnectorSection(terminal_retention=6000.0)
    scene.policy = long
    await scene.poll("long")
    scene.policy = short
    await scene.poll("short")
    await scene.poll("short", after=600)
    assert scene.fetches == 3
    scene.answer = ResourceMessage(phase=RUNNING)
    for _ in range(2):
        await scene.poll("live", after=6000)
    assert len(scene.polls._ends) == 0


async def test_replies_are_kept_only_where_they_are_needed() -> None:
    """Without min_poll_interval a running job costs its phase and message, not its reply."""
    scene = Scene()
    await scene.poll()
    assert [job.reply for job, _ in scene.polls._jobs._values.values()] == [None]


async def test_a_job_that_was_gone_already_is_no_orphan() -> None:
    """Giving up a job whose delete says that it is gone leaves nothing behind."""
    scene = Scene(unknown_status_grace=0.0)
    scene.answer = TRANSIENT
    scene.delete_raises = GoneError("No such job.")
    assert "It was deleted" in (await scene.poll()).message
    assert scene.events == {PollEvent.GAVE_UP: 1}


async def test_large_ends_are_not_kept() -> None:
    """A reply over 64 KiB is asked for again; it is neither kept nor shortened."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    scene.answer.outputs.literals["x"].scalar.primitive.string_value = "x" * 70_000
    assert await scene.poll() == await scene.poll() == scene.answer
    assert scene.fetches == 2


async def test_a_reply_that_cannot_pass_is_a_failure_with_a_sentence() -> None:
    """Over 4 MiB the client would drop the reply, six times, and hang: FAILED says why."""
    scene = Scene()
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    scene.answer.outputs.literals["x"].scalar.primitive.string_value = "x" * (5 << 20)
    resource = await scene.poll()
    assert (resource.phase, resource.agent_error.code) == (FAILED, "ReplyTooLarge")
    assert "outputs.pb" in resource.message


async def test_jobs_are_told_apart_by_all_that_their_connector_sees() -> None:
    """Meta, category, output prefix, protocol and connection make a job; none alone does."""
    scene = Scene(min_poll_interval=60.0)

    v1 = GetTaskRequest(resource_meta=b"1", output_prefix="mem://other")
    different: list[dict[str, Any]] = [
        {},
        {"job": "2"},
        {"category": TaskCategory("fake", 1)},
        {"message": v1},
    ]
    for changes in different * 2:
        await scene.poll(**changes)
    assert scene.fetches == len(different)
    scene.answer = connector_pb2.Resource(phase=RUNNING)
    for secret in "ab":
        request = connector_pb2.GetTaskRequest(resource_meta=b"1", output_prefix="mem://out")
        request.connection.secrets["k"] = secret
        await scene.poll(protocol="flyteidl2", message=request)
    assert scene.fetches == len(different) + 2


async def test_memory_is_bounded() -> None:
    """However many jobs there are, so many are remembered; the oldest go first."""
    scene = Scene(min_poll_interval=60.0)
    scene.polls = Polls(clock=lambda: scene.now, most_jobs=100)
    for job in range(1000):
        await scene.poll(str(job))
    assert len(scene.polls._jobs) == 100
    await scene.poll("999")
    assert scene.fetches == 1000
    scene.answer = ResourceMessage(phase=SUCCEEDED)
    for job in range(1000):
        await scene.poll(f"ended {job}")
    assert len(scene.polls._ends) == 100


async def test_idle_jobs_are_forgotten() -> None:
    """Jobs that nobody asked about for a day make room while others are polled."""
    scene = Scene()
    for job in range(10):
        await scene.poll(str(job))
    for _ in range(10):
        await scene.poll("live", after=86_401)
    assert len(scene.polls._jobs) == 1
