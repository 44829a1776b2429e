"""A task's connection: keywords for a connector in any shape, secrets that stay secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crossing_values import (
    BARE,
    CONNECTION,
    META,
    refusal,
    template,
)
from flyte_clients import Meta, make_connector
from flyteidl2.core.security_pb2 import Connection
from grpc import StatusCode

from connector_service import (
    Phase,
    Resource,
)
from connector_service.testing import serve


async def test_a_connection_arrives_as_keywords_and_a_secret_wins(crossed: Any, reach: Any) -> None:
    """Create, get and delete of either shape take any key; a secret beats a config of its name."""
    seen: list[dict[str, str]] = []
    ours = {"task_template", "output_prefix", "inputs", "task_execution_metadata", "resource_meta"}
    ours.add("idempotency_key")

    def note(result: Any) -> Callable[..., Any]:
        def method(self: Any, **kwargs: Any) -> Any:
            seen.append({key: value for key, value in kwargs.items() if key not in ours})
            return result

        return method

    connector = crossed(
        create=note(Meta("1")), get=note(Resource(Phase.RUNNING)), delete=note(None)
    )
    async with serve(connector) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template(), connection=CONNECTION)
        await flyte.get(META, connection=CONNECTION)
        await flyte.delete(META, connection=CONNECTION)
    assert seen == [{"token": "s3cr3t-value", "both": "the-secret", "region": "eu"}] * 3


async def test_a_method_gets_only_the_keys_it_can_take(crossed: Any, reach: Any) -> None:
    """A key that no parameter names is left out, never a TypeError."""
    seen: list[Any] = []

    def create(self: Any, task_template: Any, region: str = "none", zone: str = "none") -> Any:
        seen.append((region, zone))
        return Meta("1")

    async with serve(crossed(create=create), policy=BARE) as served:
        flyte = reach("flyteidl2", served.endpoint)
        await flyte.create(template(), connection=CONNECTION)
        assert (await flyte.get(META, connection=CONNECTION)).phase == Phase.SUCCEEDED
        await flyte.create(template())
        await reach("flyteidl", served.endpoint).create(template())
    assert seen == [("eu", "none"), ("none", "none"), ("none", "none")]


@pytest.mark.parametrize(
    ("call", "key"),
    [
        ("create", "inputs"),
        ("create", "task_template"),
        ("get", "resource_meta"),
        ("get", "output_prefix"),
        ("delete", "resource_meta"),
    ],
)
@pytest.mark.parametrize("where", ["secrets", "configs"])
async def test_a_key_that_collides_with_a_parameter_is_refused_in_a_sentence(
    crossed: Any, reach: Any, call: str, key: str, where: str
) -> None:
    """A key called like one of our arguments could only shadow it; the user must rename it."""
    async with serve(crossed()) as served:
        flyte = reach("flyteidl2", served.endpoint)
        subject = template() if call == "create" else META
        connection = Connection(**{where: {key: "value-of-it"}})
        code, details = await refusal(getattr(flyte, call)(subject, connection=connection))
    assert code is StatusCode.INVALID_ARGUMENT
    assert details == (
        f"The task's connection has the key {key!r}, which is a parameter of {call} itself;"
        f" rename it in custom.secrets or custom.configs."
    )


async def test_a_key_that_a_method_cannot_do_without_is_asked_for(flyte: Any) -> None:
    """Flyte 1 sends no connection and Flyte 2 may lack a key: either way the sentence names it."""
    seen: list[str] = []

    def create(self: Any, task_template: Any, *, token: str) -> Any:
        seen.append(token)
        return Meta("1")

    async with serve(make_connector("connector", create=create)) as served:
        client = flyte(served)
        code, details = await refusal(client.create(template()))
        if not client.is_first:
            await client.create(template(), connection=CONNECTION)
            assert seen == ["s3cr3t-value"]
    assert code is StatusCode.INVALID_ARGUMENT
    assert details == (
        "Crossed.create needs token from the task's connection; set it in custom.secrets or"
        " custom.configs."
    )


LEAKY = """
import logging
from dataclasses import dataclass
from connector_service import AsyncConnector, ConnectorRegistry, ResourceMeta
from connector_service.errors import PermanentError

class Leaky(AsyncConnector):
    task_type_name = "leaky"
    metadata_type = ResourceMeta

    def create(self, task_template, output_prefix, *, passphrase_of_the_day, **kwargs):
        logging.getLogger("leaky").warning("opening with %s", passphrase_of_the_day)
        raise PermanentError(f"refused: {passphrase_of_the_day} is no good")

    def get(self, resource_meta):
        raise ValueError("never")

    delete = get

ConnectorRegistry.register(Leaky())
"""


@pytest.mark.parametrize("guarantees", [True, False])
async def test_a_secret_of_a_connection_is_masked_wherever_it_is_said(
    daemon: Any, reach: Any, tmp_path: Path, guarantees: bool
) -> None:
    """What came as a secret leaves in no status, no failed job and no line of the log."""
    secret = "correct-horse-battery"
    settings = f"[connectors.leaky]\nguarantees = {str(guarantees).lower()}\n"
    (tmp_path / "connector-service.toml").write_text(settings)
    service = daemon(LEAKY)
    flyte = reach("flyteidl2", service.endpoint)
    connection = Connection(secrets={"passphrase_of_the_day": secret})
    creating = flyte.create(template("leaky"), connection=connection)
    if guarantees:
        meta = await creating
        got = await flyte.get(meta, "leaky")
        assert (got.phase, got.message) == (Phase.FAILED, "refused: *** is no good")
        assert secret.encode() not in meta
    else:
        code, details = await refusal(creating)
        assert (code, details) == (StatusCode.FAILED_PRECONDITION, "refused: *** is no good")
    service.kill()
    assert "opening with ***" in service.log
    assert secret not in service.log
