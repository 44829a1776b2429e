"""The templates of a container's arguments come out as Flyte renders them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from flyteidl.core.literals_pb2 import Binary, Literal, LiteralMap, Scalar

from connector_service import Blob, InvalidInputError, StructuredDataset, to_literal, to_literal_map
from connector_service.codec import Schema
from connector_service.local.templates import Execution, mentions, render

EXECUTION = Execution(
    "s3://bucket/a1/0/",
    run_name="9run-x",
    action_name="a0",
    attempt=2,
    namespace="team-dev",
    started_at=dt.datetime(2025, 3, 1, 12, 30, tzinfo=dt.UTC),
)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{.input}}", "s3://bucket/a1/0/inputs.pb"),
        ("{{.inputPrefix}}", "s3://bucket/a1/0/"),
        ("{{.outputPrefix}}", "s3://bucket/a1/0/"),
        ("{{.rawOutputDataPrefix}}", "s3://bucket/a1/0/raw_output"),
        ("{{.checkpointOutputPrefix}}", "s3://bucket/a1/0/checkpoint_output"),
        ("{{.prevCheckpointPrefix}}", '""'),
        ("{{.perRetryUniqueKey}}", "arun_x_a0_2"),
        ("{{.taskTemplatePath}}", "s3://bucket/a1/0/task.pb"),
        ("{{.namespace}}", "team-dev"),
        ("{{.runName}}", "9run-x"),
        ("{{.actionName}}", "a0"),
        ("{{.runStartTime}}", "2025-03-01T12:30:00Z"),
        ("{{ .Input }}", "s3://bucket/a1/0/inputs.pb"),
        ("{{$INPUT}}", "s3://bucket/a1/0/inputs.pb"),
        ("{{ $.input }}", "{{ $.input }}"),
        ("--to={{.outputPrefix}}x/{{.namespace}}", "--to=s3://bucket/a1/0/x/team-dev"),
        ("{{ .remote_package_path }}", "{{ .remote_package_path }}"),
        ("{{input}}", "{{input}}"),
        ("plain", "plain"),
        ("{{.inputs.text}}", "{{.namespace}}"),
        ("{{ .Inputs.n }}-{{.inputs.n}}", "3-3"),
    ],
)
def test_a_template_is_rendered(template: str, rendered: str) -> None:
    """Names are found in any case, after a dot or a dollar; what is rendered stays as it is."""
    inputs = to_literal_map({"n": 3, "text": "{{.namespace}}"})
    assert render([template], EXECUTION, inputs) == [rendered]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (True, "true"),
        ("a b", "a b"),
        (3.0, "3"),
        (0.1, "0.1"),
        (1e-05, "1e-05"),
        (1e20, "100000000000000000000"),
        (1.5e21, "1.5e+21"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Inf"),
        (dt.datetime(2025, 3, 1, 1, 2, 3, tzinfo=dt.UTC), "2025-03-01T01:02:03Z"),
        (dt.datetime(2025, 3, 1, 1, 2, 3, 120_000, tzinfo=dt.UTC), "2025-03-01T01:02:03.12Z"),
        (dt.timedelta(seconds=90, microseconds=5), "seconds:90 nanos:5000"),
        ([1, 2, 3], "[1,2,3]"),
        (["a", "b"], "[a,b]"),
        ({"b": [1, None], "a": True}, "map[a:true b:[1 <nil>]]"),
        (Blob("s3://x/y.csv"), "s3://x/y.csv"),
        (Schema("s3://x/t"), "s3://x/t"),
    ],
)
def test_an_input_has_the_text_that_go_gives_it(value: Any, text: str) -> None:
    """Flyte writes inputs as Go's %v does, and whoever reads the argument expects that."""
    inputs = LiteralMap(literals={"x": to_literal(value)})
    assert render(["{{.inputs.x}}"], EXECUTION, inputs) == [text]


@pytest.mark.parametrize(
    ("literal", "said"),
    [
        (to_literal(None), "asks for inputs.x, and a none type has no text there"),
        (to_literal(StructuredDataset("s3://x")), "a structured dataset has no text there"),
        (Literal(), "a missing value has no text there"),
        (Literal(scalar=Scalar(binary=Binary(value=b"\xc1", tag="msgpack"))), "malformed"),
        (None, "asks for inputs.x; the task's inputs: y"),
    ],
)
def test_an_input_without_text_is_refused(literal: Literal | None, said: str) -> None:
    """What Flyte cannot write is an error here too, in a sentence that names the input."""
    inputs = LiteralMap(literals={"y": to_literal(1)})
    if literal is not None:
        inputs.literals["x"].CopyFrom(literal)
    with pytest.raises(InvalidInputError, match=said):
        render(["a", "{{.inputs.x}}"], EXECUTION, inputs)


def test_only_what_is_mentioned_is_written() -> None:
    """Files are written for the templates that ask for them, whatever their case."""
    assert mentions(["x", "{{ .INPUT }}"], "input", "inputPrefix")
    assert not mentions(["{{.inputs.input}}", "{{.outputPrefix}}"], "input", "inputPrefix")
