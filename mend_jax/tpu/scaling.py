"""Scaling on paper: what a chip computes, holds and sends in a training step, by number of chips.

`python -m mend_jax.tpu.scaling gptj.py` prints two tables, of one number of edits a step for all
slices, and of one edit a chip. Operations are counted from the traced step, the rest estimated by
`plan`; times are those of the chip's published peaks, so no step can be shorter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from mend_jax.tpu.blueprint import draw
from mend_jax.tpu.flops import matmul_flops
from mend_jax.tpu.plan import Plan, choose, needs_of, words
from mend_jax.tpu.slices import GIB, slices_of
from mend_jax.training.assembly import build_train_step
from mend_jax.training.config import load_config

LINK_BYTES = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9}
"""Bytes a second between a chip and its neighbours, all links together (Google's figures)."""


class Row(NamedTuple):
    """One slice: its plan and the least times of a step, in seconds."""

    chips: int
    edits: int
    plan: Plan
    flops: float
    computing: float
    sending: float


def flops_an_edit(name: str) -> int:
    """Operations of a training step of one edit; a step of E edits has E times as many."""
    config = load_config(name)
    config.train.edits_per_step, config.train.accumulate = 1, 1
    b = draw(config)
    step = build_train_step(config, b.editor, b.tx, b.abstract_model)
    number = jax.ShapeDtypeStruct((), np.int32)
    return matmul_flops(step.trace(b.state, b.base, b.batch(1, True), number).jaxpr)


def rows(name: str, generation: str, edits: int | None, least: int = 8) -> Iterator[Row]:
    """The slices of a generation with at least 8 chips, with `edits` a step (None: one a chip)."""
    each = flops_an_edit(name)
    for where in slices_of(generation):
        if where.n_chips < least:
            continue
        config = load_config(name)
        config.train.edits_per_step, config.train.accumulate = edits or where.n_chips, 1
        plan = choose(needs_of(draw(config)), where.n_chips, where.chip.hbm_bytes, name)
        flops = each * (edits or where.n_chips) / where.n_chips
        yield Row(
            where.n_chips, edits or where.n_chips, plan, flops, flops / where.chip.peak_flops,
            plan.moved / LINK_BYTES[generation],
        )  # fmt: skip


def table(found: Iterator[Row]) -> str:
    lines = [
        "| chips | edits a step | mesh | GFLOP a chip | GiB a chip | MB sent a chip | "
        "computing, ms | sending, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {r.chips} | {r.edits} | {words(r.plan.sizes)} | {r.flops / 1e9:.0f} | "
            f"{r.plan.total / GIB:.1f} | {r.plan.moved / 1e6:.0f} | {r.computing * 1e3:.1f} | "
            f"{r.sending * 1e3:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    name, generation = (argv + ["gptj.py", "v5e"][len(argv) :])[:2]
    for edits in (64, None):
        print(f"\n{name} on {generation}, {edits or 'as many'} edits a step\n")
        print(table(rows(name, generation, edits)))


if __name__ == "__main__":
    main(sys.argv[1:])
