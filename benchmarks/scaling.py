"""Measure how time and memory of a training step grow with edits, depth and rank.

    python -m benchmarks.scaling [--model=distilgpt2] [--out=FOLDER]

One quantity changes at a time, the others stay as in `BASE`. Every row runs in a separate process,
so that peak memory is that row's. Writes scaling.json, row by row (a second start measures only the
missing rows), and scaling.png. The picture compares the measured seconds with those of the required
operations at the machine's own rate, scaled to the first row: while the measured line does not rise
above the other, time grows no faster than the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.step import measure_in_subprocess
from benchmarks.workload import MODELS
from mend_jax.evaluation.reports import plot_style
from mend_jax.io.files import write_bytes, write_json
from mend_jax.io.progress import Progress

BASE = {"edits": 8, "layers": 0, "rank": 256, "length": 12, "scored": 4}
SWEEPS = {
    "edits": (1, 8, 64, 250, 1000),
    "layers": (6, 12, 24, 48),
    "rank": (64, 256, 768, 1920),
}
CHUNKED = 64  # texts per chunk; edits of this many facts or more are chunked
NAMES = {"edits": "facts of an edit", "layers": "blocks of the model", "rank": "rank of the editor"}


def row_settings(sweep: str, value: int) -> dict[str, int]:
    """Return the flags of a row."""
    row = {**BASE, sweep: value}
    if row["edits"] >= CHUNKED:
        row["text_chunk"] = CHUNKED
    return row


def measure_rows(model: str, folder: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Return all rows by sweep; only those missing in FOLDER/scaling.json are measured."""
    path = folder / "scaling.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    measured = {name: list(stored.get(name, [])) for name in SWEEPS}
    progress = Progress("scaling", sum(map(len, SWEEPS.values())))
    for name, values in SWEEPS.items():
        present = {row["settings"][name] for row in measured[name]}
        for value in values:
            if value not in present:
                flags = row_settings(name, value)
                command = [f"--{k}={v}" for k, v in flags.items()]
                command.append(f"--repeats={1 if flags['edits'] >= CHUNKED else repeats}")
                figures = measure_in_subprocess([f"--model={model}", "--brief", *command])
                measured[name].append({"settings": flags, **figures})
                write_json(path, measured)
            progress.update(sum(map(len, measured.values())), force=True)
    return measured


def points(sweep: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Return x, seconds, seconds by arithmetic (at the first row's rate), and gigabytes."""
    by_value = sorted(sweep, key=lambda row: row["settings"][name])
    seconds = [row["seconds"]["training step"] for row in by_value]
    operations = [row["operations"]["training step"] for row in by_value]
    return {
        "x": [row["settings"][name] for row in by_value],
        "seconds": seconds,
        "arithmetic": [n * (seconds[0] / operations[0]) for n in operations],
        "gigabytes": [row["peak_memory_bytes"] / 1e9 for row in by_value],
    }


def _panel(p: Mapping[str, list[float]], name: str, memory: bool) -> plot_style.DrawPanel:
    """Return the panel of seconds, or gigabytes, against one quantity."""

    def draw(ax: Axes) -> None:
        what = ("Memory", "peak of the process, GB") if memory else ("Time", "seconds a step")
        plot_style.style_axes(ax, what, NAMES[name])
        if memory:
            ax.plot(p["x"], p["gigabytes"], "o-", color=plot_style.EDITOR)
            ax.set_ylim(0, 1.15 * max(p["gigabytes"]))
        else:
            ax.plot(p["x"], p["arithmetic"], "--", color=plot_style.MUTED, label="by arithmetic")
            ax.plot(p["x"], p["seconds"], "o-", color=plot_style.EDITOR, label="measured")
            plot_style.legend(ax, loc="upper left")
            ax.set_ylim(0, 1.15 * max(p["seconds"] + p["arithmetic"]))
        if name == "edits":
            ax.set_xscale("log")
            plot_style.log_axis(ax.xaxis, min(p["x"]), max(p["x"]))
        if name == "edits" and not memory:
            ax.set_yscale("log")
            ax.set_ylim(0.7 * min(p["seconds"]), 1.6 * max(p["seconds"]))
            plot_style.log_axis(ax.yaxis, min(p["seconds"]), max(p["seconds"]))

    return draw


def picture(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Return the plots of time and memory of each sweep as a PNG."""
    panels = [
        _panel(points(rows[name], name), name, memory)
        for memory in (False, True)
        for name in SWEEPS
    ]
    return plot_style.panels_png(panels, 15, 8.6, rows=2) or b""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="distilgpt2")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    args.out.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out / "scaling.png", picture(measure_rows(args.model, args.out, args.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
