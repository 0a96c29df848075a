"""Results that were written under older key names, read as if written today.

Values do not change. Each table maps the path of an old key to its name of today. A path is in
today's names, from the root of the file, and comes after those of its parents; `*` stands for any
key of a mapping and any item of a list.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

Renames = Mapping[str, str]

_SEQUENTIAL: Renames = {
    "*.*.rephrase_exact": "paraphrase_exact",
    "*.relative_norm_of": "relative_norm_by_weight",
}
EVALUATION: Renames = {
    "rephrase": "paraphrase",
    "rephrase_seen": "paraphrase_seen",
    "rephrase_unseen": "paraphrase_unseen",
    "more_rephrases": "more_paraphrases",
    "by_relation.*.rephrase": "paraphrase",
    "faults.rephrase": "paraphrase",
    "sweep": "threshold_tuning",
    "threshold_tuning.tried": "candidates",
    "ability.n_known": "n_recalled_before",
    "ability.pool": "n_pool_facts",
    "ability.recall_of_pool": "pool_recall",
    **{f"sequential.{path}": name for path, name in _SEQUENTIAL.items()},
}
"""Of one evaluation in results.json."""
_EVALUATIONS = ("eval", "extra_data_sets.*", "baselines.*")

RESULTS: Renames = {
    "also": "extra_data_sets",
    "data.also": "extra_data_sets",
    "eval.test_rephrase": "test_paraphrase",  # of a fact checker
    **{f"{at}.{path}": name for at in _EVALUATIONS for path, name in EVALUATION.items()},
}
"""Of results.json."""
EXAMPLES: Renames = {
    "*.rephrase": "paraphrase",
    "*.rephrase_before": "paraphrase_before",
    "*.rephrase_after": "paraphrase_after",
    "*.nll_rephrase": "nll_paraphrase",
}
"""Of examples.json."""
GRID: Renames = {
    "rows.*.start": "init_from",
    "rows.*.sweep": "threshold_tuning",
    "rows.*.threshold_tuning.tried": "candidates",
    "rows.*.scores.drawdown": "accuracy_drawdown",
    "rows.*.scores.argmax_kept": "argmax_agreement",
    "rows.*.scores.argmax_kept_far": "argmax_agreement_far",
    "rows.*.scores.before": "edit_before",
    **{f"rows.*.sequential.{path}": name for path, name in _SEQUENTIAL.items()},
}
"""Of grid.json."""


FAULTS: Renames = {"rephrase": "paraphrase"}
"""Values of `fault` and `faults` in examples.json."""


def migrate_results(results: Any) -> Any:
    """Return the content of results.json under today's names."""
    return renamed(results, RESULTS)


def migrate_grid(grid: Any) -> Any:
    """Return the content of grid.json under today's names."""
    return renamed(grid, GRID)


def migrate_examples(examples: Any) -> Any:
    """Return the content of examples.json under today's names."""
    examples = renamed(examples, EXAMPLES)
    for card in _mappings_at(examples, ["*"]):
        if isinstance(card.get("fault"), str):
            card["fault"] = FAULTS.get(card["fault"], card["fault"])
        if isinstance(card.get("faults"), list):
            card["faults"] = [FAULTS.get(str(fault), fault) for fault in card["faults"]]
    return examples


def renamed(value: Any, renames: Renames) -> Any:
    """Return a copy in which each old key has its new name, unless that is there already."""
    value = copy.deepcopy(value)
    for path, new in renames.items():
        *parents, old = path.split(".")
        for mapping in _mappings_at(value, parents):
            if old in mapping and new not in mapping:
                items = [(new if key == old else key, item) for key, item in mapping.items()]
                mapping.clear()
                mapping.update(items)
    return value


def _mappings_at(value: Any, path: Sequence[str]) -> list[dict[str, Any]]:
    found = [value]
    for key in path:
        found = [child for parent in found for child in _children(parent, key)]
    return [item for item in found if isinstance(item, dict)]


def _children(parent: Any, key: str) -> list[Any]:
    if isinstance(parent, list):
        return parent if key == "*" else []
    if not isinstance(parent, dict):
        return []
    return list(parent.values()) if key == "*" else [parent[key]] if key in parent else []
