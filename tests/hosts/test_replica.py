"""A rebuilt exception is judged as the original: by policies, status table and log."""

from __future__ import annotations

import asyncio
import errno
import http.client
import importlib.util
import json
import logging
import socket
import ssl
import sys
import urllib.error
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from connector_service import errors
from connector_service import hosts as hosts_package
from connector_service.errors import ConnectorFault
from connector_service.hosts import replica
from connector_service.hosts.replica import Permanent, rebuild
from connector_service.runtime import faults, settle
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.telemetry.logging import TextFormatter
from connector_service.wire.status import classify

CALL = Call("flyteidl", Operation.GET, TaskCategory("t"), None)


def _describe() -> Any:
    """Load the child's own description of errors, from where the child runs it."""
    folder = Path(hosts_package.__file__).parent / "child" / "connector_host"
    spec = importlib.util.spec_from_file_location(
        "connector_host", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["connector_host"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["connector_host"])
    return importlib.import_module("connector_host.facts").describe


describe = _describe()


def kind(path: str, *bases: type, **attributes: Any) -> Any:
    """Make a class as a library has it: its module, its name, its bases."""
    module, _, name = path.rpartition(".")
    return type(name, bases or (Exception,), {"__module__": module, **attributes})


def held(error: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class Own(errors.TransientError):
    """A connector's own subclass of one of ours."""


class ListedError(Exception):
    """A class that a connector calls permanent."""


class MixedError(errors.PermanentError, TimeoutError):
    """Ours and Python's at once."""


class MoodyError(Exception):
    """Fails when anybody looks."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    @property
    def status_code(self) -> int:
        raise RuntimeError("no")


HTTPX = kind("httpx.HTTPError")
REQUESTS = kind("requests.exceptions.RequestException", OSError)
RPC = kind("grpc.RpcError")
BOTO = kind("botocore.exceptions.ClientError")
LATER = {"retry-after": "7"}


def botocore(status: int) -> Any:
    response = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": LATER}, "Error": {}}
    return held(BOTO("An error occurred"), response=response)


def responded(status: int, error: Any = None, **headers: str) -> Any:
    error = HTTPX("bad answer") if error is None else error
    return held(error, response=SimpleNamespace(status_code=status, headers=headers or LATER))


def http_error(code: int) -> Any:
    headers = Message()
    headers["Retry-After"] = "9"
    error = urllib.error.HTTPError("http://x", code, "no", headers, None)
    error.close()
    return error


def rpc(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, "details of it")


CASES: dict[str, BaseException] = {
    "bug": KeyError("x"),
    "value": ValueError("bad"),
    "unmapped state": ValueError("Unrecognized state: odd"),
    "no unmapped state": RuntimeError("Unrecognized state: odd"),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "empty": Exception(),
    "memory": MemoryError(),
    "not implemented": NotImplementedError("later"),
    "permission": PermissionError(errno.EACCES, "denied", "/f"),
    "connection": ConnectionError("gone"),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    "timeout": TimeoutError("slow"),
    "timeout of Python 3.10": kind("asyncio.exceptions.TimeoutError")(),
    "no route": OSError(errno.EHOSTUNREACH, "no route"),
    "no file": FileNotFoundError(errno.ENOENT, "no file", "x"),
    "plain os": OSError("plain"),
    "names": socket.gaierror(socket.EAI_AGAIN, "try again"),
    "tls end": ssl.SSLEOFError(8, "eof"),
    "tls closed": ssl.SSLZeroReturnError(6, "closed"),
    "tls certificate": ssl.SSLCertVerificationError(1, "does not verify"),
    "incomplete": http.client.IncompleteRead(b"x", 10),
    "bad line": http.client.BadStatusLine("x"),
    "url": urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
    "url text": urllib.error.URLError("unknown url type"),
    "url certificate": urllib.error.URLError(ssl.SSLCertVerificationError(1, "bad")),
    "urllib 503": http_error(503),
    "urllib 401": http_error(401),
    "httpx timeout": kind("httpx.ConnectTimeout", kind("httpx.TimeoutException", HTTPX))("slow"),
    "httpx network": kind("httpx.ReadError", kind("httpx.NetworkError", HTTPX))(""),
    "httpx decoding": kind("httpx.DecodingError", HTTPX)("x"),
    "requests": kind("requests.exceptions.ConnectionError", REQUESTS)("max retries"),
    "requests other": kind("requests.exceptions.InvalidURL", REQUESTS, ValueError)("x"),
    "aiohttp": kind(
        "aiohttp.client_exceptions.ServerTimeoutError",
        kind("aiohttp.client_exceptions.ServerConnectionError"),
        TimeoutError,
    )("slow"),
    "aiohttp status": held(
        kind("aiohttp.client_exceptions.ClientResponseError")("x"), status=429, headers=LATER
    ),
    "urllib3 reason": held(
        kind("urllib3.exceptions.MaxRetryError", kind("urllib3.exceptions.HTTPError"))("x"),
        reason=kind("urllib3.exceptions.NewConnectionError")("y"),
    ),
    "deep reason": held(Exception("1"), reason=held(Exception("2"), reason=ConnectionError("3"))),
    "reason of no error": held(Exception("1"), reason="text"),
    **{f"response {status}": responded(status) for status in (400, 401, 403, 408, 409, 429, 500)},
    "response 503 date": responded(503, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "status beats class": responded(400, ConnectionError("x")),
    **{f"botocore {status}": botocore(status) for status in (400, 403, 429, 500, 503)},
    "google": held(kind("google.api_core.exceptions.ServiceUnavailable")("x"), code=503),
    "google enum": held(
        kind("google.api_core.exceptions.NotFound")("x"), code=http.HTTPStatus(404)
    ),
    "a code of text": held(Exception("x"), code="SomethingElse"),
    **{f"grpc {code.name}": rpc(code) for code in grpc.StatusCode if code.name != "OK"},
    "grpc without a code": RPC("x"),
    "invalid input": errors.InvalidInputError("bad SQL", code="BadSql"),
    "permanent": errors.PermanentError("quota", origin="system"),
    "transient": errors.TransientError("busy", retry_after=12.5),
    "own transient": Own("busy", retry_after=3),
    "gone": errors.GoneError("gone"),
    "mixed": MixedError("both"),
    "no secret": errors.SecretNotFoundError("key", "looked in /etc/secrets"),
    "unavailable": errors.UnavailableError("full", retry_after=2),
    "deadline": errors.DeadlineError("late"),
    "unsupported": errors.UnsupportedOperationError("none"),
    "wrong kind": errors.WrongKindError("sync"),
    "invalid meta": errors.InvalidMetaError("not mine"),
    "author": errors.AuthorError("wrong"),
    "group of transients": ExceptionGroup("g", [ConnectionError("x"), TimeoutError("y")]),
    "mixed group": ExceptionGroup("g", [ConnectionError("x"), ValueError("y")]),
    "group of groups": ExceptionGroup("g", [ExceptionGroup("h", [responded(503)])]),
    "group of wishes": ExceptionGroup("g", [responded(503), errors.TransientError("x")]),
    "moody": MoodyError(),
    "a local class": type("Läuft", (Exception,), {"__module__": "a.b"})("x"),
    "secret": RuntimeError("password=hunter2secret"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rebuilt_exception_is_judged_as_the_original(name: str) -> None:
    """Fault, wish, code, status, name and the caller's text are those of the original."""
    original = CASES[name]
    replica = rebuild(describe(original))
    if name == "timeout of Python 3.10":
        original = TimeoutError()  # as which it is judged since
    assert type(replica).__name__ == type(original).__name__
    assert faults.judge(replica, wall=lambda: 1445412470.0) == faults.judge(
        original, wall=lambda: 1445412470.0
    )
    assert faults.backend_code(replica) == faults.backend_code(original)
    assert faults.is_unmapped_state(replica) == faults.is_unmapped_state(original)
    assert faults.said(replica) == faults.said(original)
    ours, theirs = classify(replica, CALL), classify(original, CALL)
    assert (ours.code, ours.retry_after) == (theirs.code, theirs.retry_after)
    assert ours.details.replace(ours.incident or "-", "") == theirs.details.replace(
        theirs.incident or "-", ""
    )
    if settle.final_fault(original):
        assert settle.failure("flyteidl", replica) == settle.failure("flyteidl", original)


def test_the_table_of_cases_has_every_verdict() -> None:
    """The table would notice any verdict that got lost: each is among the originals'."""
    assert {faults.judge(error).fault for error in CASES.values()} == set(faults.Fault)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("g", [SystemExit(1), ValueError("x")]),
        StopIteration(5),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_end_this_process_comes_as_a_fault(error: BaseException) -> None:
    """What is no Exception, or is none inside a coroutine, is a ConnectorFault that names it."""

    async def raising() -> None:
        raise rebuild(describe(error))

    with pytest.raises(ConnectorFault, match=type(error).__name__) as caught:
        await raising()
    assert faults.judge(caught.value).fault is faults.Fault.BUG
    assert f"with {type(error).__name__};" in classify(caught.value, CALL).details


def test_a_class_that_a_connector_calls_permanent_stays_so() -> None:
    """``Permanent`` as the host's permanent error makes it final, and its text the user's."""
    for error in (ListedError("The table is full."), ConnectionError("The table is full.")):
        replica = rebuild(describe(error, (type(error),)))
        assert faults.judge(replica, (Permanent,)) == faults.judge(error, (type(error),))
        assert settle.failure("flyteidl", replica) == settle.failure("flyteidl", error)
        assert classify(replica, CALL).code == classify(error, CALL).code
    assert not isinstance(rebuild(describe(ListedError("x"))), Permanent)


def test_the_child_s_traceback_reaches_the_log_without_its_secrets() -> None:
    """A log record with the replica shows where in the child it was raised, redacted."""

    def failing() -> None:
        raise RuntimeError("failed with token=abcdef123456")

    with pytest.raises(RuntimeError) as raised:
        failing()
    facts = json.loads(describe(raised.value))
    facts["traceback"] += "\nAuthorization: Bearer abcdef123456"
    replica = rebuild(json.dumps(facts).encode())
    assert not any("abcdef123456" in note for note in replica.__notes__)
    record = logging.LogRecord(
        "x", logging.ERROR, "", 0, "call", (), (type(replica), replica, None)
    )
    text = TextFormatter().format(record)
    assert "in failing" in text
    assert "abcdef123456" not in text


def facts(**given: Any) -> bytes:
    return json.dumps({"mro": ["a.B", "builtins.Exception"], "text": "t", **given}).encode()


@pytest.mark.parametrize("name", ["InvalidInputError", "TransientError", "SecretNotFoundError"])
def test_one_of_ours_is_of_the_real_class_and_whole(name: str) -> None:
    """Our own classes come back as themselves, and no attribute is missing that was not told."""
    real = getattr(errors, name)
    error: Any = rebuild(facts(mro=[f"connector_service.errors.{name}"], text="The sentence."))
    assert type(error) is real
    assert classify(error, CALL).details
    resource = settle.failure("flyteidl", error)
    assert resource.message == error.public
    assert resource.agent_error.code == name.removesuffix("Error")


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\x00\xff{",
    "no object": b"[]",
    "too large": facts(text="x" * 100_000),
    "deep": b'{"reason":' * 5_000 + b"{}" + b"}" * 5_000,
    "no classes": facts(mro=[]),
    "classes of no name": facts(
        mro=["", ".", "a.b c", "x.1", "__import__('os')", "a." + "b" * 900]
    ),
    "keywords": facts(mro=["class.def", "a.__class__", "builtins.object"]),
    "many classes": facts(mro=[f"m.C{number}" for number in range(5_000)]),
    "one class twice": facts(mro=["a.B", "a.B", "builtins.ValueError", "builtins.ValueError"]),
    "bases that do not fit": facts(
        mro=["a.B", "builtins.OSError", "builtins.UnicodeDecodeError", "builtins.Exception"]
    ),
    "what ends a process": facts(mro=["builtins.SystemExit"]),
    "a group without members": facts(mro=["builtins.ExceptionGroup", "builtins.Exception"]),
    "members of no group": facts(group=[{"mro": ["builtins.ValueError"]}] * 100),
    "attributes of objects": facts(attrs={"code": {"a": 1}, "errno": [], "retry_after": "x" * 99}),
    "attributes of ours": facts(
        attrs={"__class__": "x", "__dict__": 1, "args": 5, "with_traceback": 1}
    ),
    "a code of no status": facts(mro=["grpc.RpcError"], grpc_code="__class__"),
    "a response of nothing": facts(response={"ResponseMetadata": 5}),
    "a response of words": facts(response={"status_code": "503", "headers": "x"}),
    "text of another kind": facts(text=5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_description_can_make_it_fail(name: str) -> None:
    """Whatever a broken child sends, there is an exception that can be raised, judged and read."""
    error = rebuild(HOSTILE[name])
    with pytest.raises(type(error)) as caught:
        raise error
    assert faults.judge(caught.value).fault in set(faults.Fault)
    assert isinstance(str(error), str)
    assert len(type(error).__name__) <= 200
    assert classify(error, CALL).code in grpc.StatusCode.__members__


def test_no_description_has_anything_imported() -> None:
    """A class of a module that could be imported is only named."""
    module = "antigravity_of_connectors"
    before = set(sys.modules)
    for name in (f"{module}.Error", "this.Error", "xmlrpc.client.Fault"):
        error = rebuild(facts(mro=[name, "builtins.Exception"]))
        assert f"{type(error).__module__}.{type(error).__name__}" == name
    assert set(sys.modules) == before


def test_the_classes_that_are_kept_are_bounded() -> None:
    """A child that makes classes up for ever does not fill this process."""
    for number in range(replica._MOST_KINDS + 100):
        rebuild(facts(mro=[f"a.B{number}", "builtins.Exception"]))
    assert len(replica._kinds) <= replica._MOST_KINDS


def test_a_class_is_made_once() -> None:
    """Two errors of one class are of one class."""
    first, second = (rebuild(facts(text=text)) for text in "ab")
    assert type(first) is type(second)
    assert (str(first), str(second)) == ("a", "b")
