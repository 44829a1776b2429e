"""What is cut, dropped, refused or warned about, and what passes untouched."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from flyteidl.admin.agent_pb2 import Resource as ResourceMessage
from flyteidl.core.execution_pb2 import TaskExecution, TaskLog
from flyteidl2.connector import connector_pb2

from connector_service.errors import AuthorError
from connector_service.runtime.sizes import MAX_MESSAGE, MAX_REPLY, MetaWatch, bound
from connector_service.sdk.resource import TaskCategory

FAKE, OTHER = TaskCategory("fake"), TaskCategory("other")
BOTH = pytest.mark.parametrize("kind", [ResourceMessage, connector_pb2.Resource])


@BOTH
def test_what_fits_passes_untouched(kind: Any) -> None:
    """A resource within every limit is the same bytes afterwards."""
    resource = kind(
        phase=TaskExecution.RUNNING,
        message="m" * MAX_MESSAGE,
        log_links=[{"uri": f"http://log/{n}", "name": "é" * 50} for n in range(64)],
        custom_info={"a": "x" * 60_000},
    )
    before = resource.SerializeToString(deterministic=True)
    assert bound(resource) is resource
    assert resource.SerializeToString(deterministic=True) == before


@BOTH
def test_a_long_message_loses_its_middle(kind: Any) -> None:
    """4 KiB of UTF-8 remain: how it began, how it ended, and how much is missing."""
    resource = bound(kind(message="BEGIN" + "ü" * 50_000 + "END"))
    assert len(resource.message.encode()) <= MAX_MESSAGE
    assert resource.message.startswith("BEGIN")
    assert resource.message.endswith("END")
    assert "bytes cut" in resource.message


@BOTH
def test_the_connectors_own_message_stays_as_it_is(kind: Any) -> None:
    """A connector may answer with one message again and again: cutting is done in a copy."""
    resource = kind(message="x" * 50_000, custom_info={"a": "x" * 70_000})
    before = resource.SerializeToString(deterministic=True)
    assert bound(resource) is not resource
    assert resource.SerializeToString(deterministic=True) == before


@BOTH
def test_log_links_are_bounded(kind: Any) -> None:
    """The first 64 stay in order; a link whose URI is endless goes, its name is cut."""
    links: list[Any] = [{"uri": "http://" + "x" * 9000}]
    links += [{"uri": f"http://log/{n}", "name": "n" * 5000} for n in range(100)]
    resource = bound(kind(log_links=links))
    assert [link.uri for link in resource.log_links] == [f"http://log/{n}" for n in range(64)]
    assert all(len(link.name) <= 1024 for link in resource.log_links)
    assert TaskLog().DESCRIPTOR.name == type(resource.log_links[0]).DESCRIPTOR.name


@BOTH
def test_large_custom_info_gives_way_to_a_note(kind: Any) -> None:
    """What nobody could store is replaced by a sentence with its size."""
    resource = bound(kind(custom_info={"a": "x" * 70_000}))
    assert list(resource.custom_info) == ["note"]
    assert "at most 65536 are passed on" in resource.custom_info["note"]


@BOTH
def test_a_reply_that_the_client_would_drop_is_refused_here(kind: Any) -> None:
    """The author reads how large it is, what is allowed and what to do instead."""
    resource = kind(phase=TaskExecution.SUCCEEDED)
    if kind is ResourceMessage:
        resource.outputs.literals["x"].scalar.primitive.string_value = "x" * MAX_REPLY
    else:
        literal = resource.outputs.literals.add(name="x")
        literal.value.scalar.primitive.string_value = "x" * MAX_REPLY
    with pytest.raises(AuthorError, match=r"has 4193\d{3} bytes .*/outputs\.pb"):
        bound(resource)


def warned(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, Any]]:
    return [
        (record.getMessage(), vars(record)["task_type"], vars(record).get("field"))
        for record in caplog.records
    ]


def test_a_large_meta_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each connector, with the size; 16 KiB themselves are fine."""
    watch = MetaWatch()
    watch.inspect(FAKE, b"x" * 16 * 1024)
    assert not caplog.records
    for category in (FAKE, FAKE, OTHER):
        watch.inspect(category, b"x" * (16 * 1024 + 1))
    assert warned(caplog) == [
        ("resource meta is large", "fake", None),
        ("resource meta is large", "other", None),
    ]


@pytest.mark.parametrize(
    "field", ["auth_token", "password", "clientSecret", "api_key", "aws_secret_access_key", "token"]
)
def test_a_secret_in_the_meta_is_named_once_and_never_shown(
    caplog: pytest.LogCaptureFixture, field: str
) -> None:
    """The field's name is logged once for each connector; its value nowhere."""
    watch = MetaWatch()
    with caplog.at_level(logging.DEBUG):
        for number in range(3):
            watch.inspect(FAKE, json.dumps({"job": "1", field: f"hunter2-{number}"}).encode())
    assert warned(caplog) == [("resource meta seems to hold a secret", "fake", field)]
    assert not any("hunter2" in str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    "meta",
    [
        {"job": "1", "url": "https://x/?token=abc"},
        {"idempotency_key": "k", "primary_key": "id", "max_tokens": 5},
        {"next_page_token": "p", "secret_name": "db", "tokens": 3},
        {"auth_token": None, "password": "", "secrets": [], "is_secret": True},
    ],
    ids=str,
)
def test_innocent_metas_are_not_suspected(
    caplog: pytest.LogCaptureFixture, meta: dict[str, Any]
) -> None:
    """Keys of other kinds, names of secrets and fields without a value pass."""
    MetaWatch().inspect(FAKE, json.dumps(meta).encode())
    assert not caplog.records


def test_metas_of_any_bytes_pass() -> None:
    """A meta need not be JSON, and one full of keys does not fill the memory."""
    watch = MetaWatch()
    watch.inspect(FAKE, bytes(range(256)) * 100)
    for number in range(2000):
        watch.inspect(FAKE, json.dumps({f"token_{number}x": "v"}).encode())
    assert len(watch._said) == 1000
