"""How every array of a config lies on a slice, as a small report that tests can compare.

`python -m mend_jax.tpu.shardings DIR` writes DIR/NAME.json for every paper config; without DIR it
prints the chosen meshes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from mend_jax.errors import ConfigError
from mend_jax.io.files import write_json
from mend_jax.parallel.mesh import AXES
from mend_jax.parallel.sharding import key_path_name, partition_spec
from mend_jax.tpu.blueprint import draw
from mend_jax.tpu.plan import choose, needs_of
from mend_jax.tpu.slices import Slice, parse_slice
from mend_jax.training.config import config_names, load_config

SLICES = ("v4-8", "v5e-8", "v5e-16", "v5p-8", "v6e-8", "v5e-256")


def sharding_report(config: ml_collections.ConfigDict, where: Slice) -> dict[str, Any]:
    """The recommended mesh of a config on a slice, and what it does to every array.

    Returns:
      mesh, why, estimated bytes a chip, and for `base` and `editor` the paths of the arrays by how
      they are split, such as "fsdp,tensor" (the last axes; "" is whole on every chip).
    """
    blueprint = draw(config)
    name = config.model.spec
    plan = choose(
        needs_of(blueprint), where.n_chips, where.chip.hbm_bytes, f"{name} on {where.name}"
    )
    return {
        "mesh": dict(plan.sizes),
        "why": plan.why,
        "bytes": {"base": plan.base, "editor": plan.editor, "work": plan.work},
        "base": split(blueprint.base, blueprint.abstract_model.family.sharding_rules, plan.sizes),
        "editor": split(blueprint.state.params, blueprint.editor.sharding_rules, plan.sizes),
    }


def split(tree: Any, rules: Any, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """How it is split -> the paths of the arrays that are split so."""
    mesh = jax.sharding.AbstractMesh(tuple(sizes[a] for a in AXES), AXES)
    found: dict[str, list[str]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = key_path_name(keys)
        axes = [a or "-" for a in partition_spec(path, leaf.shape, rules, mesh)]
        found.setdefault(",".join(axes), []).append(path)
    return {how: sorted(paths) for how, paths in sorted(found.items())}


def one_edit_a_chip(config: ml_collections.ConfigDict, where: Slice) -> ml_collections.ConfigDict:
    """The config with as many edits a step as the slice has chips, and no accumulation."""
    config = config.copy_and_resolve_references()
    config.train.edits_per_step, config.train.accumulate = where.n_chips, 1
    return config


def all_reports(name: str) -> dict[str, Any]:
    """The reports of a config on each of `SLICES`, one edit a chip; or why there is none."""
    found: dict[str, Any] = {}
    for text in SLICES:
        where = parse_slice(text)
        try:
            found[text] = sharding_report(one_edit_a_chip(load_config(name), where), where)
        except ConfigError as e:
            found[text] = {"refused": str(e)}
    return found


def paper_configs() -> list[str]:
    """The configs that leave their mesh to the slice, by file name: the paper's and today's."""
    found = {name: load_config(name) for name in config_names()}
    return [name for name, config in found.items() if 0 in config.get("mesh", {}).values()]


def main(argv: list[str]) -> None:
    for name in paper_configs():
        reports = all_reports(name)
        if argv:
            write_json(Path(argv[0]) / f"{Path(name).stem}.json", reports)
        for report in reports.values():
            print(report.get("why") or report["refused"])


if __name__ == "__main__":
    main(sys.argv[1:])
