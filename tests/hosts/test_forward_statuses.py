"""Forwarding over real ports: what a peer's status and sizes mean here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from hosts.forwards import KINDS, READINGS, Makes, ask, call, fails
from peers import JOBS, SYNC, answering, peer, refusing

from connector_service.errors import (
    InvalidMetaError,
    InvalidRequestError,
    TransientError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.hosts.statuses import ERROR_KEY, REMOTE, PeerError
from connector_service.runtime.faults import Fault, judge
from connector_service.sdk.method import Operation
from connector_service.sdk.secrets import redact
from connector_service.wire.status import classify

SECRET = "Traceback (most recent call last): password=hunter2secret"
GET, LOGS, CREATE = Operation.GET, Operation.GET_METRICS, Operation.CREATE
# flavour, operation, the peer's status -> what it is here, and how it is judged.
STATUSES: list[tuple[str, Operation, StatusCode, type[Exception], Fault]] = [
    *(
        (flavour, operation, code, kind, fault)
        for flavour in READINGS
        for operation in (GET, CREATE)
        for code, kind, fault in (
            (StatusCode.UNAVAILABLE, TransientError, Fault.TRANSIENT),
            (StatusCode.NOT_FOUND, TransientError, Fault.TRANSIENT),
            (StatusCode.CANCELLED, TransientError, Fault.TRANSIENT),
            (StatusCode.DEADLINE_EXCEEDED, PeerError, Fault.TRANSIENT),
            (StatusCode.RESOURCE_EXHAUSTED, PeerError, Fault.TRANSIENT),
            (StatusCode.INTERNAL, PeerError, Fault.TROUBLED),
            (StatusCode.UNKNOWN, PeerError, Fault.TROUBLED),
            (StatusCode.PERMISSION_DENIED, PeerError, Fault.TROUBLED),
        )
    ),
    ("child", GET, StatusCode.INVALID_ARGUMENT, InvalidMetaError, Fault.REFUSED),
    ("child", CREATE, StatusCode.INVALID_ARGUMENT, InvalidRequestError, Fault.REFUSED),
    ("child", GET, StatusCode.FAILED_PRECONDITION, WrongKindError, Fault.REFUSED),
    ("child", LOGS, StatusCode.UNIMPLEMENTED, UnsupportedOperationError, Fault.REFUSED),
    ("child", GET, StatusCode.UNAUTHENTICATED, TransientError, Fault.TRANSIENT),
    ("remote", GET, StatusCode.INVALID_ARGUMENT, PeerError, Fault.BUG),
    ("remote", GET, StatusCode.UNAUTHENTICATED, PeerError, Fault.TROUBLED),
    ("remote", LOGS, StatusCode.UNIMPLEMENTED, UnsupportedOperationError, Fault.REFUSED),
    ("remote", GET, StatusCode.UNIMPLEMENTED, TransientError, Fault.TRANSIENT),
]
METHODS = {GET: "GetTask", LOGS: "GetTaskMetrics", CREATE: "CreateTask"}


@pytest.mark.parametrize(("flavour", "operation", "code", "kind", "fault"), STATUSES)
async def test_a_status_means_what_its_table_says(
    forward: Makes,
    flavour: str,
    operation: Operation,
    code: StatusCode,
    kind: type[Exception],
    fault: Fault,
) -> None:
    """Each status becomes one exception, judged so; what a stranger wrote goes to the log alone."""
    answers = {f"{JOBS['flyteidl']}/{METHODS[operation]}": refusing(code, SECRET)}
    async with peer(answers) as other:
        forwarder = forward(other.endpoint, readings=READINGS[flavour])
        asked = call(operation)
        error = await fails(forwarder.run(asked))
    assert type(error) is kind
    assert judge(error).fault is fault
    told = classify(error, asked).details
    assert "hunter2secret" not in told
    assert flavour == "child" or "Traceback" not in told
    logged = f"{error} {getattr(error, '__notes__', '')}"
    assert "Traceback" in redact(logged)


async def test_what_a_child_s_connector_raised_is_raised_here(forward: Makes) -> None:
    """A child's description becomes the exception, on every kind of call; a remote's does not."""
    facts = json.dumps(
        {
            "mro": ["connector_service.errors.TransientError", "builtins.Exception"],
            "text": "busy",
            "attrs": {"retry_after": 4, "code": "Busy", "origin": "system"},
        }
    ).encode()
    refuse = refusing(StatusCode.UNKNOWN, "TransientError", (ERROR_KEY, facts))

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await refuse(request, context)

    service = JOBS["flyteidl"]
    answers = {f"{service}/GetTask": refuse, f"{service}/GetTaskLogs": stream, SYNC: stream}
    async with peer(answers) as other:
        for operation in KINDS:
            error = await fails(ask(forward(other.endpoint), call(operation)), TransientError)
            assert (str(error), error.retry_after, error.code) == ("busy", 4, "Busy")
            forwarder = forward(other.endpoint, readings=REMOTE)
            await fails(ask(forwarder, call(operation)), PeerError)


async def test_the_largest_description_passes(forward: Makes) -> None:
    """6,000 bytes of a description arrive whole, and a long traceback in details as well."""
    facts = json.dumps({"mro": ["a.B", "builtins.Exception"], "text": "x" * 5_900}).encode()
    refuse = refusing(StatusCode.UNKNOWN, "y" * 40_000, (ERROR_KEY, facts))
    async with peer({f"{JOBS['flyteidl']}/GetTask": refuse}) as other:
        error = await fails(forward(other.endpoint).run(call(GET)))
        assert (type(error).__name__, len(str(error))) == ("B", 5_900)
        error = await fails(forward(other.endpoint, readings=REMOTE).run(call(GET)), PeerError)
        assert error.code() is StatusCode.UNKNOWN


async def test_a_peer_s_wish_to_be_left_alone_is_kept(forward: Makes) -> None:
    """What a busy service of ours says in its metadata is when the call is tried again."""
    refuse = refusing(StatusCode.UNAVAILABLE, "busy", ("grpc-retry-pushback-ms", "2500"))
    async with peer({f"{JOBS['flyteidl']}/GetTask": refuse}) as other:
        error = await fails(forward(other.endpoint, readings=REMOTE).run(call(GET)))
    assert judge(error).retry_after == 2.5


async def test_a_request_too_large_for_the_peer_is_not_tried_again(forward: Makes) -> None:
    """A service with gRPC's 4 MiB refuses a larger create for good: the caller is told so."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")

    class Handlers(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answering(b""))

    server.add_generic_rpc_handlers((Handlers(),))
    await server.start()
    asked = call(CREATE, inputs_data=b"\x0a" * 5_000_000)
    try:
        error = await fails(forward(f"127.0.0.1:{port}", readings=REMOTE).run(asked))
    finally:
        await server.stop(None)
    assert isinstance(error, InvalidRequestError)
    assert "raise its limit" in str(error)
