"""Draws a run's calls per second as ratios to the floor; run by its path, with matplotlib alone."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

_COLOURS = {
    "ours": "#2a6f97",
    "floor-uvloop": "#b7b7a4",
    "flytekit": "#e07a5f",
    "flyte": "#f2cc8f",
}


def main(folder: Path) -> None:
    """Draw ``results.svg`` beside ``results.json``."""
    summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))["summary"]
    known = tomllib.loads(Path(__file__).with_name("targets.toml").read_text(encoding="utf-8"))
    rows = [row for row in summary if row["measure"] == "calls/s" and row["peer"] != "floor"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    peers = [peer for peer in _COLOURS if any(row["peer"] == peer for row in rows)]
    ratios = {(row["case"], row["peer"]): row["ratio"] for row in rows}
    wanted = {row["case"]: known[row["target"]]["at_least"] for row in rows}
    mpl.rcParams["svg.hashsalt"] = "bench"
    mpl.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(cases) + 1.2), layout="constrained")
    height = 0.8 / len(peers)
    for place, peer in enumerate(peers):
        axes.barh(
            [index + place * height for index in range(len(cases))],
            [ratios.get((case, peer), 0.0) for case in cases],
            height=height,
            color=_COLOURS[peer],
            label=peer,
        )
    for index, case in enumerate(cases):
        low, high = index - height / 2, index + 0.8 - height / 2
        label = "promised" if index == 0 else None
        axes.plot([wanted[case]] * 2, [low, high], color="black", linewidth=1.5, label=label)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.set_xlabel("calls per second, 16 in flight; 1 is the floor: a bare grpc.aio server")
    axes.legend(loc="lower right", fontsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(folder / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
