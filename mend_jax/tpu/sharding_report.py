"""Report how every array of a config is sharded on a slice; tests compare these reports.

`python -m mend_jax.tpu.sharding_report DIR` writes DIR/NAME.json for every config that leaves its
mesh open; without DIR it prints the chosen meshes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from mend_jax.errors import ConfigError
from mend_jax.io.command import command
from mend_jax.io.files import write_json
from mend_jax.parallel.mesh import AXES
from mend_jax.parallel.sharding import key_path_name, partition_spec
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.mesh_plan import choose_plan, step_needs
from mend_jax.tpu.slices import Slice, parse_slice
from mend_jax.training.config import config_names, load_config

SLICES = ("v4-8", "v5e-8", "v5e-16", "v5p-8", "v6e-8", "v5e-256")


def sharding_report(config: ml_collections.ConfigDict, where: Slice) -> dict[str, Any]:
    """Return the recommended mesh of a config on a slice, and the sharding of every array.

    The report has the mesh, the reason for it, the estimated bytes a chip, and for `base` and
    `editor` the paths of the arrays by sharding, such as "fsdp,tensor" (of the last axes; ""
    means replicated).
    """
    run = abstract_run(config)
    name = config.model.spec
    plan = choose_plan(
        step_needs(run), where.n_devices, where.chip.hbm_bytes, f"{name} on {where.name}"
    )
    return {
        "mesh": dict(plan.sizes),
        "why": plan.why,
        "bytes": {"base": plan.base, "editor": plan.editor, "work": plan.work},
        "base": paths_by_sharding(run.base, run.model.family.sharding_rules, plan.sizes),
        "editor": paths_by_sharding(run.state.params, run.editor.sharding_rules, plan.sizes),
    }


def paths_by_sharding(tree: Any, rules: Any, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the paths of a tree's arrays by their sharding."""
    mesh = jax.sharding.AbstractMesh(tuple(sizes[a] for a in AXES), AXES)
    found: dict[str, list[str]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = key_path_name(keys)
        axes = [a or "-" for a in partition_spec(path, leaf.shape, rules, mesh)]
        found.setdefault(",".join(axes), []).append(path)
    return {how: sorted(paths) for how, paths in sorted(found.items())}


def with_one_edit_per_chip(
    config: ml_collections.ConfigDict, where: Slice
) -> ml_collections.ConfigDict:
    """Return the config with one edit a chip in each step, and no accumulation."""
    config = config.copy_and_resolve_references()
    config.train.edits_per_step, config.train.accumulate = where.n_devices, 1
    return config


def all_reports(name: str) -> dict[str, Any]:
    """Return the report of a config on each of `SLICES`, with one edit a chip, or the refusal."""
    found: dict[str, Any] = {}
    for text in SLICES:
        where = parse_slice(text)
        try:
            found[text] = sharding_report(with_one_edit_per_chip(load_config(name), where), where)
        except ConfigError as e:
            found[text] = {"refused": str(e)}
    return found


def configs_without_mesh() -> list[str]:
    """Return the file names of the configs that leave axes of their mesh open."""
    found = {name: load_config(name) for name in config_names()}
    return [name for name, config in found.items() if 0 in config.get("mesh", {}).values()]


@command
def main(argv: Sequence[str]) -> None:
    """Run the command: write the reports, or print the chosen meshes."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.tpu.sharding_report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", nargs="?", default="", metavar="DIR")
    folder = parser.parse_args(argv).folder
    for name in configs_without_mesh():
        reports = all_reports(name)
        if folder:
            write_json(Path(folder) / f"{Path(name).stem}.json", reports)
        for report in reports.values():
            print(report.get("why") or report["refused"])


if __name__ == "__main__":
    main(sys.argv[1:])
