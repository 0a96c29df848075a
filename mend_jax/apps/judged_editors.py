"""The shipped editor and its rivals, judged under three protocols; configs/judge_smollm2.py.

Nothing is trained: the rivals need no training, and the shipped editor has had its own. The facts
are test facts of `world_facts/wordings`, which comes with the package; others by
--config.settings="('data.name=counterfact','data.dir=DATA')".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mend_jax.apps.grid import cell, new_grid
from mend_jax.apps.paper_tables import UNDER_THE_SCOPE, method_cells
from mend_jax.training.initial_state import SHIPPED

_BASES = {"": "quickstart.py", "smoke": "quickstart.py:smoke"}
RIVALS = (
    "fine_tune", "fine_tune_m", "fine_tune_lora", "rome", "memit", "ultraedit", "in_context",
    "cache",
)  # fmt: skip
"""Cells of `paper_tables.method_cells` that need no training."""
RIVALS_BY_EDITOR = (
    "fine_tune", "fine_tune_lora", "rome", "memit", "ultraedit", "in_context", "cache",
)  # fmt: skip
"""The editors of these cells."""
SCOPED_RIVALS = ("fine_tune_lora",)
"""Rivals that are judged under the shipped scope too."""
_JUDGED: dict[str, Any] = {
    "data.name": "world_facts/wordings", "data.max_target": 6, "eval.max_new_tokens": 7,
    "eval.edits": 48, "eval.hard_edits": 0, "eval.hard_neighbours": 4, "eval.baselines": {},
    "scope.file": "", "train.steps": 0, "train.c_after": 0.0, "train.doctor": False,
}  # fmt: skip
_SMOKE: dict[str, Any] = _JUDGED | {
    "eval.edits": 8, "eval.hard_neighbours": 2, "eval.continuation_tokens": 8,
}  # fmt: skip
_OF_A_SMOKE = ("in_context",)
"""The rivals of the smoke variant, which is to take two minutes."""


def judged_editors(variant: str = "") -> ConfigDict:
    """Return the grid of the shipped editor, scoped and plain, and of rivals without training.

    Args:
      variant: "" or "smoke".
    """
    base, judged = _BASES[variant], _SMOKE if variant else _JUDGED
    shipped = judged | {"editor.init_from": SHIPPED}
    cells = {"shipped_scoped": cell(base, "shipped editor, scoped", shipped | UNDER_THE_SCOPE)}
    if not variant:
        cells["shipped_plain"] = cell(base, "shipped editor, plain", shipped)

    def rivals(names: Iterable[str], more: Mapping[str, Any]) -> dict[str, ConfigDict]:
        found = method_cells(variant, RIVALS_BY_EDITOR, judged | dict(more), config=base)
        return {name: found[name] for name in names}

    cells |= rivals(_OF_A_SMOKE if variant else RIVALS, {})
    for name, one in rivals(() if variant else SCOPED_RIVALS, UNDER_THE_SCOPE).items():
        one.method = f"{one.method}, scoped"
        cells[f"{name}_scoped"] = one
    return new_grid("Editors judged under three protocols", cells)
