"""Why edits in sequence destroy each other: the same hundred facts, one cause changed at a time.

The variant "causes" of configs/paper_table5.py. Seven causes are suspected; this grid decides those
that need runs, `benchmarks.sequential_keys` those that are read from keys and gradients:

    1 statistics of a trained editor are frozen, the model drifts    *_turns_1, malmen_lifelong
    2 keys of different facts are almost parallel                    benchmarks.sequential_keys
    3 one fact a turn is solved without the others                   *_turns_1, _10, _100
    4 steps are too large to leave each other alone                  ultraedit_step_*
    5 false answers are judged as a whole, not true ones by token    ultraedit_true
    6 there are more rows than a key has dimensions                  benchmarks.sequential_keys
    7 statistics from a warm-up adapt too slowly                     ultraedit_empty
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mend_jax.apps.grid import new_grid
from mend_jax.apps.paper_tables import IN_SEQUENCE, method_cells, with_one_seed

FACTS = 100
PER_TURN = (1, 10, 100)
STEPS = {"tenth": 2e-4, "third": 7e-4}
"""UltraEdit's lr, by suffix; that of its other cells is 2e-3."""


def collapse_causes(variant: str = "") -> ConfigDict:
    """Return the grid; variant "smoke" has four facts."""
    facts, per_turn = (4, (1, 4)) if variant else (FACTS, PER_TURN)
    cells: dict[str, ConfigDict] = {}

    def add(
        name: str, method: str, editor: str, n: int, *, more: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None, start: str = "",
    ) -> None:  # fmt: skip
        settings = _in_turns(facts, n) | dict(more or {})
        found = method_cells(variant, [editor], settings, start, options)[editor]
        found.method = method
        cells[name] = with_one_seed(found)

    for editor, label in (("malmen", "MALMEN"), ("ultraedit", "UltraEdit")):
        start = ""
        for n in per_turn:
            add(f"{editor}_turns_{n}", f"{label}, {n} a turn", editor, n, start=start,
                more={"train.steps": 0} if start else None)  # fmt: skip
            start = f"{editor}_turns_{per_turn[0]}" if editor == "malmen" else ""
    lifelong = IN_SEQUENCE["lifelong"][1]
    add("malmen_lifelong", "MALMEN, 1 a turn, lifelong statistics", "malmen", 1,
        more=lifelong | {"train.steps": 0}, start="malmen_turns_1")  # fmt: skip
    middle = per_turn[-2]
    for suffix, lr in STEPS.items():
        add(f"ultraedit_step_{suffix}", f"UltraEdit, {middle} a turn, step {lr:g}", "ultraedit",
            middle, options={"lr": lr})  # fmt: skip
    add("ultraedit_true", f"UltraEdit, {middle} a turn, true answers", "ultraedit", middle,
        more={"data.true_targets": True})  # fmt: skip
    add("ultraedit_empty", f"UltraEdit, {middle} a turn, statistics from nothing", "ultraedit",
        middle, options={"warm_up": False})  # fmt: skip
    return new_grid("Why edits in sequence destroy each other", cells)


def _in_turns(facts: int, n: int) -> dict[str, Any]:
    """Return the settings of a sequence of these facts, n a turn."""
    return {
        "data.edits_per_batch": n, "eval.sequential": (facts // n,), "eval.edits": n,
        "eval.edits_per_step": 1, "data.length_buckets": (),
    }  # fmt: skip
