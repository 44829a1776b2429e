"""Sums a run up: every figure as a ratio to its base, and whether it is what is promised."""

from __future__ import annotations

import statistics
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.cases import CASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.rounds import Row, Turn

__all__ = ["Verdict", "sum_up", "targets"]

_MB = 1024 * 1024  # as du counts


class Verdict(NamedTuple):
    """One figure of one server; ``target`` is ours to meet, and names its row of targets.toml.

    ``calm`` is another figure of the same, which neighbours on the machine disturb less: the
    inverse of the processor time for a rate, for instance. Only where both miss is it ours.
    """

    measure: str
    case: str
    peer: str
    value: float  # in the measure's own unit
    ratio: float  # to the base, or the value itself where the target is no ratio
    target: str
    calm: float | None = None

    def far_off(self, target: dict[str, Any], tolerance: float) -> bool:
        """Tell whether it misses its target by more than ``tolerance``, calm or not."""
        figures = (self.ratio, self.ratio if self.calm is None else self.calm)
        if "at_least" in target:
            return bool(max(figures) < target["at_least"] * tolerance)
        return bool(min(figures) > target["at_most"] / tolerance)

    def met(self, target: dict[str, Any]) -> bool:
        """Tell whether the figure itself is as promised."""
        return self._replace(calm=None).far_off(target, 1.0) is False


def targets() -> dict[str, dict[str, Any]]:
    """Read the table of what is promised."""
    known: dict[str, dict[str, Any]] = tomllib.loads(
        Path(__file__).with_name("targets.toml").read_text(encoding="utf-8")
    )
    return known


def sum_up(rounds: Sequence[Sequence[Row]], result: dict[str, Any]) -> list[Verdict]:
    """Sum up the calls of ``rounds``, and what else ``result`` has."""
    return [*_calls(rounds), *_whole(result)]


def _calls(rounds: Sequence[Sequence[Row]]) -> Iterable[Verdict]:
    """Sum up calls: for each the median over turns of its ratio to the floor's turn beside it."""
    keys = dict.fromkeys((row.case, row.peer, row.in_flight) for rows in rounds for row in rows)
    turns: dict[tuple[str, str, int], list[Turn]] = {key: [] for key in keys}
    for rows in rounds:
        for row in rows:
            turns[row.case, row.peer, row.in_flight] += row.turns

    def figures(case: str, peer: str, in_flight: int, what: str) -> tuple[float, float]:
        own = [getattr(turn, what) for turn in turns[case, peer, in_flight]]
        floor = [getattr(turn, what) for turn in turns.get((case, "floor", in_flight), ())]
        ratios = [one / other for one, other in zip(own, floor or own, strict=True)]
        return statistics.median(own), statistics.median(ratios)

    for case, peer, in_flight in keys:
        if in_flight == 1:
            _, calm = figures(case, peer, in_flight, "p50")
            p99 = figures(case, peer, in_flight, "p99")
            yield Verdict("p99 alone, s", case, peer, *p99, "alone", calm)
            continue
        cost, times = figures(case, peer, in_flight, "cpu")
        rate = figures(case, peer, in_flight, "rate")
        yield Verdict("calls/s", case, peer, *rate, CASES[case].target, 1 / times)
        target = "cpu" if CASES[case].target == "get" else ""
        yield Verdict("CPU s per 10,000", case, peer, cost * 10_000, times, target)


def _whole(result: dict[str, Any]) -> Iterable[Verdict]:
    begun = [start for seen in result["rounds"] for start in seen.get("starts", ())]
    peers = list(dict.fromkeys(start["peer"] for start in begun))

    def value(peer: str, what: str) -> float:
        values: list[float] = [start[what] for start in begun if start["peer"] == peer]
        return statistics.median(values)

    for peer in peers:
        if "floor" in peers:
            took, calm = (value(peer, what) / value("floor", what) for what in ("seconds", "cpu"))
            shown = value(peer, "seconds")
            yield Verdict("start to SERVING, s", "", peer, shown, took, "start", calm)
    for peer in peers:
        if "floor-uvloop" in peers:
            size = value(peer, "resident")
            times = size / value("floor-uvloop", "resident")
            yield Verdict("resident when idle, bytes", "", peer, size, times, "memory")
    for peer, size in result.get("installed", {}).items():
        yield Verdict("installed, bytes", "", peer, size, size / _MB, "installed")
    beside = [row for seen in result["rounds"] for row in seen.get("blocked", ())]
    for peer in dict.fromkeys(row["peer"] for row in beside):
        busy = [row["busy"] for row in beside if row["peer"] == peer]
        beyond = [row["busy"] / row["idle"] for row in beside if row["peer"] == peer]
        typical = statistics.median(busy)
        yield Verdict(
            "p99 beside 200 blocking calls, to idle, s",
            "",
            peer,
            typical,
            statistics.median(beyond),
            "blocked",
            min(beyond),
        )
        yield Verdict(
            "p99 beside 200 blocking calls, s",
            "",
            peer,
            typical,
            typical * 1e3,
            "blocked_ms",
            min(busy) * 1e3,
        )
    counted = {
        (row["case"], row["peer"]): row["instructions"] for row in result.get("instructions", ())
    }
    for (case, peer), number in counted.items():
        if (case, "floor") in counted:
            target = "instructions" if CASES[case].target == "get" else ""
            times = number / counted[case, "floor"]
            yield Verdict("instructions per call", case, peer, number, times, target)
