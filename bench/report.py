"""Writes what a run has seen: a table for people, JSON for programs, and a plot."""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import TYPE_CHECKING, Any

from bench import environments
from bench.cases import CASES
from bench.summary import Verdict, targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["failures", "plot", "table", "write"]

_PROTOCOLS = {"flyteidl": "Flyte 1", "flyteidl2": "Flyte 2"}


def failures(result: dict[str, Any], tolerance: float) -> list[str]:
    """Say which of our figures miss their targets by more than ``tolerance`` allows."""
    known = targets()
    found = []
    for entry in result["summary"]:
        verdict = Verdict(**entry)
        if verdict.peer != "ours" or not verdict.target:
            continue
        target = known[verdict.target]
        if verdict.far_off(target, tolerance):
            found.append(
                f"{target['title']}{_of(verdict)}: {verdict.ratio:.2f}, promised {_promise(target)}"
            )
    return found


def table(result: dict[str, Any]) -> str:
    """Return the summary in Markdown: a row for each figure, a column for each server."""
    known = targets()
    verdicts = [Verdict(**entry) for entry in result["summary"]]
    peers = list(dict.fromkeys(verdict.peer for verdict in verdicts))
    rows = dict.fromkeys((verdict.measure, verdict.case, verdict.target) for verdict in verdicts)
    cells = {(one.measure, one.case, one.target, one.peer): one for one in verdicts}
    lines = [
        "| | " + " | ".join(peers) + " | promised | |",
        "|---|" + "---|" * (len(peers) + 2),
    ]
    for measure, case, target in rows:
        ours = cells.get((measure, case, target, "ours"))
        promise = known.get(target, {})
        shown = [_cell(cells.get((measure, case, target, peer)), promise) for peer in peers]
        verdict = ""
        if ours is not None and promise:
            verdict = "met" if ours.met(promise) else "missed"
        title = f"{_title(case)}, {measure}" if case else measure
        lines.append(f"| {title} | {' | '.join(shown)} | {_promise(promise)} | {verdict} |")
    return "\n".join([*lines, "", *_notes(result)])


def write(result: dict[str, Any], folder: Path) -> None:
    """Write ``results.json`` and ``results.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(table(result) + "\n", encoding="utf-8")


def plot(folder: Path) -> None:
    """Draw ``results.svg`` of ``results.json``, in the environment that has matplotlib."""
    python = environments.make("plot")
    command = [python, environments.ROOT / "bench" / "plot.py", folder]
    subprocess.run(command, check=True)  # noqa: S603


def _title(case: str) -> str:
    kind = CASES[case]
    return f"{kind.title} ({_PROTOCOLS[kind.protocol]})"


def _of(verdict: Verdict) -> str:
    return f" ({_PROTOCOLS[CASES[verdict.case].protocol]})" if verdict.case else ""


def _promise(target: dict[str, Any]) -> str:
    if not target:
        return ""
    sign, bound = (">=", "at_least") if "at_least" in target else ("<=", "at_most")
    return f"{sign} {target[bound]:g} {target.get('unit', 'x')}"


def _cell(verdict: Verdict | None, promise: dict[str, Any]) -> str:
    if verdict is None:
        return "-"
    if "unit" in promise:
        return f"{verdict.ratio:,.1f} {promise['unit']}"
    value, measure = verdict.value, verdict.measure
    if measure.endswith("bytes"):
        shown = f"{value / 2**20:,.0f} MB"
    elif measure.endswith(", s"):
        shown = f"{value * 1e3:,.2f} ms"
    else:
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return f"{verdict.ratio:.2f}x ({shown})"


def _notes(result: dict[str, Any]) -> Sequence[str]:
    where = result["environment"]
    rows = [row for seen in result["rounds"] for row in seen["rows"]]
    busy, busiest, server = max(
        (statistics.median(turn["client"] for turn in row["turns"]), row["case"], row["peer"])
        for row in rows
    )
    fastest = max(statistics.median(turn["rate"] for turn in row["turns"]) for row in rows)
    load = where["load_average"][0]
    notes = [
        f"Measured at {where['at']}, revision {where['revision']}, {where['cores']} cores of"
        f" {where['cpu']}, Linux {where['kernel']}, load average {load:.2f} at the start,"
        f" {len(result['rounds'])} rounds.",
        f"The client used {busy:.0%} of its core at most ({busiest} of {server}).",
    ]
    native = next((one for one in result.get("capacity", ()) if one["case"] == "get-1"), None)
    if native:
        notes.append(
            f"On a native server (nghttpd) it reached {native['rate']:,.0f} calls/s,"
            f" {native['rate'] / fastest:.0f} times the fastest server that was measured."
        )
    if where["shared_core"]:
        notes.append("One core only: server and client shared it, and ratios say little.")
    return [*notes, *result["missing"]]
