"""A job's log comes in pages, and its CPU and memory as Prometheus tells them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from flyteidl.admin import agent_pb2
from flyteidl.core import types_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from connector_service.connectors.duckdb.log import log_pages
from connector_service.connectors.duckdb.usage import METRICS, Sample, metric_results
from connector_service.errors import InvalidRequestError

pytest.importorskip("duckdb")

TABLE = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())


def lines(responses: list[agent_pb2.GetTaskLogsResponse]) -> list[str]:
    return [
        line.message.removesuffix("\n")
        for response in responses
        for line in response.body.structured_lines
    ]


def test_the_log_tells_what_the_job_did(bench: Any) -> None:
    """Start, each statement with its time, the error as the user's, the end; each with its time."""
    began = dt.datetime.now(dt.UTC)
    meta = bench.create("SELECT 1; SELECT nope")
    bench.finish(meta)
    responses = list(bench.connector.get_logs(meta, lines=0, token=""))
    assert all(response.HasField("body") for response in responses)
    found = [line for response in responses for line in response.body.structured_lines]
    said = "\n".join(lines(responses))
    for part in ("started", "DuckDB ", "statement 1 of 2 (SELECT) took", "ended after", "FAILED"):
        assert part in said
    error = next(line for line in found if line.message.startswith("Binder Error"))
    assert error.originator == agent_pb2.USER
    assert found[0].originator == agent_pb2.SYSTEM
    times = [line.timestamp.ToDatetime(tzinfo=dt.UTC) for line in found]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= dt.datetime.now(dt.UTC)


def test_the_log_comes_in_pages(bench: Any) -> None:
    """Bodies first, then one header with the next token, none on the last page."""
    meta = bench.create("; ".join(f"SELECT {number}" for number in range(30)))
    bench.finish(meta)
    whole = lines(list(bench.connector.get_logs(meta, lines=0, token="")))
    token, pages = "", []
    while True:
        *bodies, last = bench.connector.get_logs(meta, lines=7, token=token)
        assert all(response.HasField("body") for response in bodies)
        if not last.HasField("header"):
            pages.append([*bodies, last])
            break
        pages.append(bodies)
        token = last.header.token
    assert [line for page in pages for line in lines(page)] == whole
    assert {len(lines(page)) for page in pages[:-1]} == {7}
    for wrong in ("x", "-1", "99999999", "1" * 30):
        with pytest.raises(InvalidRequestError, match="The log token"):
            list(bench.connector.get_logs(meta, lines=0, token=wrong))


def test_a_hostile_log_stays_small(tmp_path: Any) -> None:
    """However long its lines, or without any: chunks are bounded, and so is a page."""
    path = tmp_path / "log"
    assert list(log_pages(path, 0, "")) == []
    path.write_bytes(b"")
    assert list(log_pages(path, 0, "")) == []
    path.write_bytes(
        b"x" * (3 << 20) + b"\n2020-99-99T00:00:00+00:00 U \xff\xfe\n" + b"\n" * 30_000
    )
    *bodies, header = log_pages(path, 1 << 60, "")
    assert max(body.ByteSize() for body in bodies) < 400 << 10
    assert len(lines(bodies)) == 10_000
    assert header.header.token
    assert "\N{REPLACEMENT CHARACTER}" * 2 in lines(bodies)


def test_metrics_of_a_job(bench: Any) -> None:
    """CPU in cores and memory in bytes, as a range query's matrix, for an ended job too."""
    meta = bench.create("SELECT sum(hash(i) % 7)::BIGINT AS a FROM range(100000000) t(i)")
    bench.finish(meta)
    response = bench.connector.get_metrics(
        meta, queries=[], start_time=Timestamp(), end_time=Timestamp(), step=Duration()
    )
    assert [result.metric for result in response.results] == list(METRICS)
    for result in response.results:
        data = MessageToDict(result.data)
        assert data["resultType"] == "matrix"
        (series,) = data["result"]
        assert series["metric"] == {"__name__": result.metric, "job_id": meta.job_id}
        assert all(isinstance(at, float) and isinstance(text, str) for at, text in series["values"])
        most = max(float(text) for _, text in series["values"])
        assert (0.1 < most < 3) if result.metric == METRICS[0] else (10 << 20 < most < 1 << 30)
    (only,) = bench.connector.get_metrics(meta, queries=[METRICS[1]]).results
    assert only.metric == METRICS[1]
    with pytest.raises(InvalidRequestError, match="No metric is called nope; known: EXECUTION_"):
        bench.connector.get_metrics(meta, queries=["nope"])


TAKEN = [Sample(1000 + second, second * 0.5, 100 * second) for second in range(11)]


@pytest.mark.parametrize(
    ("window", "cpu", "memory"),
    [
        ({"step": Duration(seconds=5)}, {1005: 0.5, 1010: 0.5}, {1000: 0, 1005: 300, 1010: 800}),
        (
            {"start_time": Timestamp(seconds=1004), "end_time": Timestamp(seconds=1005)},
            {1004: 0.5, 1005: 0.5},
            {1004: 400, 1005: 500},
        ),
        ({"start_time": dt.datetime.fromtimestamp(2000, dt.UTC)}, {}, {}),
        ({"end_time": Timestamp(seconds=10)}, {}, {}),
    ],
)
def test_windows_and_steps(window: Any, cpu: dict[int, float], memory: dict[int, float]) -> None:
    """A value is the average of the step that ends at its time; outside the job there is none."""
    results = metric_results(TAKEN, [], labels={}, **window)
    for result, wanted in zip(results, (cpu, memory), strict=True):
        data = MessageToDict(result.data)
        found = {at: float(text) for series in data["result"] for at, text in series["values"]}
        assert found == wanted


def test_no_window_asks_for_too_much() -> None:
    """A tiny step over a long job gives as many points as Prometheus would, no more."""
    taken = [Sample(second * 1000, second, second) for second in range(100)]
    for result in metric_results(taken, [], labels={}, step=Duration(nanos=1)):
        assert len(MessageToDict(result.data)["result"][0]["values"]) <= 11_002
    assert all(
        not MessageToDict(result.data)["result"] for result in metric_results([], [], labels={})
    )
