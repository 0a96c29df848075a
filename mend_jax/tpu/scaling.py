"""Estimate what a chip computes, holds and sends in a training step, by number of chips.

`python -m mend_jax.tpu.scaling gptj.py` prints two tables: with 64 edits a step on every slice, and
with one edit a chip. Operations are counted in the traced step, the rest is estimated by
`mesh_plan`. Times assume the chip's published peak rates, so they are lower bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mend_jax.io.command import command
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.flops import matmul_flops
from mend_jax.tpu.mesh_plan import MeshPlan, choose_plan, mesh_text, step_needs
from mend_jax.tpu.slices import CHIPS, GIB, slices_of_generation
from mend_jax.training.assembly import build_train_step
from mend_jax.training.config import load_config

LINK_BYTES = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9, "tpu7x": 600e9}
"""Bytes per second between a device and its neighbours, over all links (published by Google)."""


class ScalingRow(NamedTuple):
    """A slice, its plan, FLOPs a chip, and lower bounds of compute and send times in seconds."""

    chips: int
    edits: int
    plan: MeshPlan
    flops: float
    computing: float
    sending: float


def flops_per_edit(name: str) -> int:
    """Return the FLOPs of a training step with one edit; a step of E edits has E times as many."""
    config = load_config(name)
    config.train.edits_per_step, config.train.accumulate = 1, 1
    b = abstract_run(config)
    step = build_train_step(config, b.editor, b.tx, b.model)
    number = jax.ShapeDtypeStruct((), np.int32)
    return matmul_flops(step.trace(b.state, b.base, b.batch(1, True), number).jaxpr)


def scaling_rows(
    name: str, generation: str, edits: int | None, least: int = 8
) -> Iterator[ScalingRow]:
    """Yield a row for each slice of a generation with at least `least` chips.

    Args:
      edits: number of edits in a step; None: one a chip.
    """
    each = flops_per_edit(name)
    for where in slices_of_generation(generation):
        if where.n_devices < least:
            continue
        config = load_config(name)
        config.train.edits_per_step, config.train.accumulate = edits or where.n_devices, 1
        plan = choose_plan(
            step_needs(abstract_run(config)), where.n_devices, where.chip.hbm_bytes, name
        )
        flops = each * (edits or where.n_devices) / where.n_devices
        yield ScalingRow(
            where.n_devices, edits or where.n_devices, plan, flops, flops / where.chip.peak_flops,
            plan.moved / LINK_BYTES[generation],
        )  # fmt: skip


def table(found: Iterator[ScalingRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| chips | edits a step | mesh | GFLOP a chip | GiB a chip | MB sent a chip | "
        "computing, ms | sending, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {r.chips} | {r.edits} | {mesh_text(r.plan.sizes)} | {r.flops / 1e9:.0f} | "
            f"{r.plan.total / GIB:.1f} | {r.plan.moved / 1e6:.0f} | {r.computing * 1e3:.1f} | "
            f"{r.sending * 1e3:.1f} |"
        )
    return "\n".join(lines)


@command
def main(argv: Sequence[str]) -> None:
    """Run the command: print both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.tpu.scaling", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("config", nargs="?", default="gptj.py", metavar="NAME.py")
    parser.add_argument("generation", nargs="?", default="v5e", choices=CHIPS)
    args = parser.parse_args(argv)
    name, generation = args.config, args.generation
    for edits in (64, None):
        step = f"{edits} edits a step" if edits else "one edit a chip"
        print(f"\n{name} on {generation}, {step}\n")
        print(table(scaling_rows(name, generation, edits)))


if __name__ == "__main__":
    main(sys.argv[1:])
