"""Every kind of exception that a connector may raise, and what it is judged to be."""

from __future__ import annotations

import errno
import socket
import ssl
import urllib.error
from email.message import Message
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from connector_service import errors
from connector_service.runtime.faults import (
    HTTP_CODES,
    Fault,
    Judgement,
    backend_code,
    is_unmapped_state,
    judge,
)
from connector_service.sdk.resource import convert_to_flyte_phase

NOW = 1_000_000.0


def strange(qualified: str, *bases: type[Exception], **attributes: Any) -> Exception:
    """Make an error of a class as a library that is not installed would define it."""
    module, _, name = qualified.rpartition(".")
    error = type(name, bases or (Exception,), {"__module__": module})("private")
    vars(error).update(attributes)
    return error


def aio(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="x")


def httpx_like(status: int, **headers: str) -> Exception:
    response = SimpleNamespace(status_code=status, headers=headers)
    return strange("httpx.HTTPStatusError", response=response)


def boto(status: int, **headers: str) -> Exception:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return strange("botocore.exceptions.ClientError", response={"ResponseMetadata": meta})


class SpitefulError(Exception):
    """An error whose attributes raise when they are read."""

    @property
    def response(self) -> Any:
        raise RuntimeError("no")

    @property
    def reason(self) -> Any:
        raise RuntimeError("no")


CASES: dict[str, tuple[BaseException, Fault]] = {
    "ours: transient": (errors.TransientError("x"), Fault.TRANSIENT),
    "ours: deadline": (errors.DeadlineError("x"), Fault.TRANSIENT),
    "ours: overload": (errors.UnavailableError("x"), Fault.TRANSIENT),
    "ours: gone": (errors.GoneError("x"), Fault.GONE),
    "ours: permanent": (errors.PermanentError("x"), Fault.PERMANENT),
    "ours: invalid input": (errors.InvalidInputError("x"), Fault.INVALID),
    "ours: meta": (errors.InvalidMetaError("x"), Fault.REFUSED),
    "ours: not found": (errors.ConnectorNotFoundError("x", []), Fault.REFUSED),
    "ours: wrong kind": (errors.WrongKindError("x"), Fault.REFUSED),
    "ours: unsupported": (errors.UnsupportedOperationError("x"), Fault.REFUSED),
    "ours: secret": (errors.SecretNotFoundError("k", "looked"), Fault.TROUBLED),
    "ours: author": (errors.AuthorError("x"), Fault.BUG),
    "ours: fault": (errors.ConnectorFault("x"), Fault.BUG),
    "connection refused": (ConnectionRefusedError(), Fault.TRANSIENT),
    "connection reset": (ConnectionResetError(), Fault.TRANSIENT),
    "broken pipe": (BrokenPipeError(), Fault.TRANSIENT),
    "timeout": (TimeoutError(), Fault.TRANSIENT),
    "no route": (OSError(errno.EHOSTUNREACH, "no route"), Fault.TRANSIENT),
    "disk full": (OSError(errno.ENOSPC, "full"), Fault.BUG),
    "name resolution": (socket.gaierror(-3, "again"), Fault.TRANSIENT),
    "tls broke off": (ssl.SSLEOFError(), Fault.TRANSIENT),
    "certificate": (ssl.SSLCertVerificationError(), Fault.BUG),
    "permission": (PermissionError(), Fault.TROUBLED),
    "urllib wraps": (urllib.error.URLError(ConnectionRefusedError()), Fault.TRANSIENT),
    "urllib 503": (urllib.error.HTTPError("u", 503, "x", Message(), None), Fault.TRANSIENT),
    "httpx timeout": (
        strange(
            "httpx.ReadTimeout", type("TimeoutException", (Exception,), {"__module__": "httpx"})
        ),
        Fault.TRANSIENT,
    ),
    "requests connection": (
        strange("requests.exceptions.ConnectionError", OSError),
        Fault.TRANSIENT,
    ),
    "requests timeout": (strange("requests.exceptions.Timeout"), Fault.TRANSIENT),
    "aiohttp": (strange("aiohttp.client_exceptions.ClientConnectionError"), Fault.TRANSIENT),
    "the same name elsewhere": (strange("acme.ConnectionError"), Fault.BUG),
    "aiohttp 503": (strange("aiohttp.ClientResponseError", status=503), Fault.TRANSIENT),
    "boto 503": (boto(503), Fault.TRANSIENT),
    "boto 400": (boto(400), Fault.BUG),
    **{f"http {status}": (httpx_like(status), Fault.TRANSIENT) for status in (408, 429, 502, 504)},
    **{f"http {status}": (httpx_like(status), Fault.TROUBLED) for status in (401, 403, 500, 529)},
    **{f"http {status}": (httpx_like(status), Fault.BUG) for status in (400, 404, 410, 418)},
    **{
        f"grpc {code.name}": (aio(code), Fault.TRANSIENT)
        for code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
    },
    "grpc UNAUTHENTICATED": (aio(grpc.StatusCode.UNAUTHENTICATED), Fault.TROUBLED),
    "grpc INTERNAL": (aio(grpc.StatusCode.INTERNAL), Fault.TROUBLED),
    "grpc NOT_FOUND": (aio(grpc.StatusCode.NOT_FOUND), Fault.BUG),
    "a group of transients": (
        ExceptionGroup("x", [TimeoutError(), errors.TransientError("x", retry_after=3)]),
        Fault.TRANSIENT,
    ),
    "a group that says two things": (
        ExceptionGroup("x", [TimeoutError(), errors.GoneError("x")]),
        Fault.BUG,
    ),
    "a mixed group": (ExceptionGroup("x", [TimeoutError(), ValueError()]), Fault.BUG),
    "value": (ValueError(), Fault.BUG),
    "not implemented": (NotImplementedError(), Fault.BUG),
    "memory": (MemoryError(), Fault.BUG),
    "exit": (SystemExit(1), Fault.BUG),
    "spiteful": (SpitefulError(), Fault.BUG),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exception_is_judged(name: str) -> None:
    """Whatever a connector raises falls into one kind of trouble, and judging never raises."""
    error, fault = CASES[name]
    assert judge(error).fault is fault


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(errors.TransientError("x", retry_after=7), 7.0, id="transient"),
        pytest.param(errors.UnavailableError("x", retry_after=2), 2.0, id="overload"),
        pytest.param(httpx_like(429, **{"retry-after": "30"}), 30.0, id="header"),
        pytest.param(httpx_like(503, **{"Retry-After": "1.5"}), 1.5, id="header spelt otherwise"),
        pytest.param(
            httpx_like(503, **{"retry-after": formatdate(NOW + 90, usegmt=True)}), 90.0, id="date"
        ),
        pytest.param(
            httpx_like(503, **{"retry-after": formatdate(NOW - 90, usegmt=True)}), 0.0, id="past"
        ),
        pytest.param(boto(429, **{"retry-after": "4"}), 4.0, id="botocore"),
        pytest.param(httpx_like(429, **{"retry-after": "1e99"}), 86_400.0, id="absurd"),
        pytest.param(httpx_like(429, **{"retry-after": "soon"}), None, id="no number"),
        pytest.param(httpx_like(429, **{"retry-after": "nan"}), None, id="nan"),
        pytest.param(httpx_like(429), None, id="absent"),
        pytest.param(TimeoutError(), None, id="timeout"),
    ],
)
def test_the_backends_wish_is_read(error: Exception, seconds: float | None) -> None:
    """Retry-After is read in seconds and as a date, wherever the library keeps it."""
    assert judge(error, wall=lambda: NOW) == Judgement(Fault.TRANSIENT, seconds)


def test_listed_classes_are_permanent() -> None:
    """A class that the connector lists is permanent; ours keep their meaning beside it."""
    assert judge(KeyError("x"), (LookupError,)).fault is Fault.PERMANENT
    assert judge(errors.InvalidMetaError("x"), (ValueError,)).fault is Fault.REFUSED
    assert judge(errors.TransientError("x"), (Exception,)).fault is Fault.TRANSIENT
    assert judge(httpx_like(503), (Exception,)).fault is Fault.PERMANENT


def test_the_wire_answers_with_the_same_table() -> None:
    """What a backend reported has one gRPC name, wherever it is asked for."""
    assert {status: backend_code(httpx_like(status)) for status in HTTP_CODES} == HTTP_CODES
    assert backend_code(aio(grpc.StatusCode.DEADLINE_EXCEEDED)) == "UNAVAILABLE"
    assert backend_code(aio(grpc.StatusCode.NOT_FOUND)) is None
    assert backend_code(ValueError()) is None
    assert backend_code(SpitefulError()) is None


def test_an_unmapped_state_is_told_from_other_mistakes() -> None:
    """The error of ``convert_to_flyte_phase`` is recognised, and no other ValueError is."""
    with pytest.raises(ValueError, match="Unrecognized") as caught:
        convert_to_flyte_phase("QUEUED_FOR_LUNCH")
    assert is_unmapped_state(caught.value)
    assert not is_unmapped_state(ValueError("bad"))
