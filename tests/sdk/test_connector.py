"""The base classes: the names, signatures and defaults that authors rely on."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from connector_service import (
    AsyncConnectorBase,
    ConnectorBase,
    ResourceMeta,
    SyncConnectorBase,
    TaskCategory,
)
from connector_service.errors import ConfigError


@dataclass
class Meta(ResourceMeta):
    job: str = ""


class Sample(AsyncConnectorBase):
    def create(self, **kwargs: Any) -> None: ...

    def get(self, **kwargs: Any) -> None: ...

    def delete(self, **kwargs: Any) -> None: ...


class Named(Sample):
    name = "Given Name"


class OfNamed(Named):
    pass


class OfSample(Sample):
    pass


class Mixin:
    name = "From A Mixin"


class Mixed(Mixin, Sample):
    pass


@pytest.mark.parametrize(
    ("connector", "name"),
    [
        (Sample, "Sample"),
        (OfSample, "OfSample"),
        (Named, "Given Name"),
        (OfNamed, "Given Name"),
        (Mixed, "From A Mixin"),
        (ConnectorBase, "Base Connector"),
    ],
)
def test_a_connector_is_called_by_its_class_unless_it_says_otherwise(
    connector: type[ConnectorBase], name: str
) -> None:
    """Two classes of which neither chose a name are never listed as one connector."""
    assert connector.name == name


def test_the_category_is_the_task_type_and_its_version() -> None:
    """The version is 0 unless given, as upstream has it."""
    assert Sample(task_type_name="t").task_category == TaskCategory("t", 0)
    assert Sample(task_type_name="t", task_type_version=3).task_category == ("t", 3)
    assert Sample(Meta, task_type_name="t").metadata_type is Meta
    assert Sample(task_type_name="t").metadata_type is ResourceMeta


def test_further_keywords_are_ignored_as_upstream_does() -> None:
    """A class moved from upstream with extra keywords still constructs."""
    assert Sample(metadata_type=Meta, task_type_name="t", asynchronous=True).name == "Sample"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            AsyncConnectorBase.create,
            "self task_template output_prefix inputs task_execution_metadata kwargs",
        ),
        (AsyncConnectorBase.get, "self resource_meta kwargs"),
        (AsyncConnectorBase.delete, "self resource_meta kwargs"),
        (AsyncConnectorBase.get_metrics, "self resource_meta kwargs"),
        (AsyncConnectorBase.get_logs, "self resource_meta kwargs"),
        (SyncConnectorBase.do, "self task_template output_prefix inputs kwargs"),
    ],
)
def test_methods_have_the_signatures_that_users_know(function: Any, parameters: str) -> None:
    """The parameters are flytekit's, by name and order."""
    assert " ".join(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize("base", [AsyncConnectorBase, SyncConnectorBase])
def test_a_class_without_its_methods_cannot_be_instantiated(base: type[ConnectorBase]) -> None:
    """Python itself names the methods that an unfinished connector lacks."""
    with pytest.raises(TypeError, match="abstract"):
        type("Unfinished", (base,), {})(task_type_name="t")


def test_options_that_nobody_reads_are_refused() -> None:
    """A connector without options says so instead of ignoring a misspelt one."""
    Sample(task_type_name="t").configure({})
    with pytest.raises(ConfigError) as caught:
        Sample(task_type_name="t").configure({"z": 1, "a": 2})
    assert str(caught.value) == "[connectors.t.options]: Sample takes no options, got a, z."
