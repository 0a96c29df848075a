"""Compile the steps of a config for a TPU slice on any machine; report memory and collectives.

The package `libtpu` contains the TPU compiler and runs on any Linux machine. The compiler reports
memory, collectives and operations for each chip, but no times.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mend_jax.errors import ConfigError
from mend_jax.evaluation.scoring import edit_and_score, make_edit
from mend_jax.models.params import flatten
from mend_jax.parallel.mesh import (
    arrange_devices,
    batch_sharding,
    mesh_over,
    round_up_edits,
    use_mesh,
)
from mend_jax.parallel.sharding import abstract_arrays, make_shardings
from mend_jax.tpu import hlo
from mend_jax.tpu.abstract_run import AbstractRun, abstract_run
from mend_jax.tpu.flops import matmul_flops
from mend_jax.tpu.memory import program_bytes
from mend_jax.tpu.mesh_plan import MeshPlan, choose_plan, cost, step_needs
from mend_jax.tpu.slices import GIB, Slice
from mend_jax.training.assembly import build_train_step

STEPS = ("train", "edit", "eval")
_NO_TPU = {  # there is no TPU to query, and libtpu should not warn about that
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile at once
}  # fmt: skip
Report = dict[str, Any]
Traced = Callable[[], Any]


def compile_for(
    config: ml_collections.ConfigDict, where: Slice, say: Callable[[str], None] = print,
    steps: tuple[str, ...] = STEPS,
) -> Report:  # fmt: skip
    """Compile the steps of a config for a slice; return the content of compile_<topology>.json.

    `train` is one training step, `edit` makes one edit, `eval` edits and scores one batch of the
    evaluation. `bytes_per_chip` is the sum of arguments, temporaries, outputs that are not
    donated, and the program. `flops` counts matmuls, divided evenly over the chips (the compiler's
    own count takes the body of a loop once). Collectives in a loop of unknown length count once;
    `loops_of_unknown_length` says how many such loops there are. `between_slices` is what one
    device sends over the network between slices. The mesh is the config's, or,
    where that leaves axes open (0), the one that `mesh_plan.choose_plan` recommends.

    Args:
      say: called with a line after each step; compiling takes minutes.

    Raises:
      ConfigError: no libtpu, or a mesh that does not fit the slice or the step.
    """
    run = abstract_run(config)
    plan = plan_of_run(run, where)
    say(plan.why)
    mesh = topology_mesh(where, plan)
    report: Report = {
        "slice": where.name, "topology": where.topology, "slices": where.n_slices,
        "chips": where.n_chips, "devices": where.n_devices,
        "model": config.model.spec, "mesh": dict(plan.sizes), "advice": plan.why,
        "edits_per_step": config.train.edits_per_step,
    }  # fmt: skip
    with use_mesh(mesh):
        traced = step_tracers(run, mesh)
        for name in steps:
            report[name] = compile_step(traced[name], run, where)
            say(f"{name}: {step_summary(report[name])}")
    report["verdict"] = verdict(report, where, steps)
    say(report["verdict"])
    return report


def plan_of_run(run: AbstractRun, where: Slice) -> MeshPlan:
    """Return the mesh of the config if it fits this slice, else the recommended one.

    Raises:
      ConfigError: the config's mesh has another number of chips, or cannot split the edits.
    """
    needs, sizes = step_needs(run), dict(run.config.mesh)
    what = f"{run.config.model.spec} on {where.name}"
    if min(sizes.values()) == 0 or math.prod(sizes.values()) == 1:
        return choose_plan(needs, where.n_devices, where.chip.hbm_bytes, what, where.n_slices)
    if sizes["data"] == -1:
        sizes["data"] = where.n_devices // (sizes["fsdp"] * sizes["tensor"])
    if math.prod(sizes.values()) != where.n_devices:
        raise ConfigError(
            f"mesh {sizes} does not have the {where.n_devices} devices of {where.name}: give sizes "
            f"with the product {where.n_devices}, or set them to 0 to have them chosen"
        )
    if sizes["data"] % where.n_slices:
        raise ConfigError(
            f"mesh.data is {sizes['data']}, not a multiple of the {where.n_slices} slices of "
            f"{where.name}, which only `data` may span"
        )
    ways = sizes["data"] * sizes["fsdp"]
    if run.config.train.edits_per_step % ways:
        raise ConfigError(
            f"train.edits_per_step is {run.config.train.edits_per_step}, not a multiple of "
            f"the {ways} ways that mesh {sizes} splits edits"
        )
    return cost(needs, sizes)._replace(why=f"{what}: the mesh of the config, {sizes}")


def topology_mesh(where: Slice, plan: MeshPlan) -> Mesh:
    """Return a mesh over the chips of a slice, described by libtpu alone.

    Raises:
      ConfigError: libtpu is not installed, or does not know the slice.
    """
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    one_host = {"chips_per_host_bounds": (1, 1, 1)} if where.n_chips == 1 else {}
    joined = where.chip.cores > where.chip.devices  # two cores are one device
    mega = {"chip_config_name": "megacore"} if joined else {}
    several = {"num_slices": where.n_slices} if where.n_slices > 1 else {}
    try:
        topology = topologies.get_topology_desc(
            topology_name=where.topology, platform="tpu", **one_host, **mega, **several
        )
    except Exception as e:  # jax and libtpu raise several types
        first = str(e).strip().splitlines()[:1]
        raise ConfigError(
            f"cannot describe {where.topology} ({type(e).__name__}: {first}): compiling for TPUs "
            "needs the package libtpu (`pip install libtpu`, Linux on x86-64) and a topology that "
            "it knows"
        ) from e
    return mesh_over(arrange_devices(topology.devices, plan.sizes))


def step_tracers(run: AbstractRun, mesh: Mesh) -> dict[str, Traced]:
    """Return a function for each of `STEPS` that traces it with sharded abstract arguments."""
    c, model = run.config, run.model
    whole = NamedSharding(mesh, P())

    def batch(edits: int, training: bool) -> Any:
        texts = run.batch(edits, training)
        return abstract_arrays(texts, jax.tree.map(lambda _: batch_sharding(mesh), texts))

    rules = model.family.sharding_rules
    base = abstract_arrays(run.base, make_shardings(mesh, run.base, rules))
    rules = run.editor.sharding_rules
    state = abstract_arrays(run.state, make_shardings(mesh, run.state, rules))
    same: dict[str, Any] = dict(editor=run.editor, model=model.module, weights=model.weights)

    def train() -> Any:
        step = build_train_step(
            c, run.editor, run.tx, model, jax.tree.map(lambda x: x.sharding, state)
        )
        number = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
        return step.trace(state, base, batch(c.train.edits_per_step, True), number)

    def edit() -> Any:
        texts = run.batch(1, False)["edit"]
        texts = abstract_arrays(texts, jax.tree.map(lambda _: whole, texts))
        arguments = (run.editor, model.module, model.weights)
        return make_edit.trace(*arguments, state.params, state.editor_state, base, texts)

    def evaluate() -> Any:
        edits = round_up_edits(mesh, c.eval.edits_per_step)
        score = jax.jit(functools.partial(edit_and_score, **same))
        return score.trace(state.params, state.editor_state, base, batch(edits, False))

    return {"train": train, "edit": edit, "eval": evaluate}


def compile_step(trace: Traced, run: AbstractRun, where: Slice) -> Report:
    """Trace and compile one step; return its entry of the report."""
    hbm = where.chip.hbm_bytes
    began = time.monotonic()
    traced = trace()
    entry: Report = {"hbm_bytes": hbm, "flops": matmul_flops(traced.jaxpr) // where.n_devices}
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        size = bytes_in_error(str(e))
        if size is None:
            raise
        return entry | {
            "bytes_per_chip": size, "fits": False, "collectives": {},
            "compile_seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
    parts = program_bytes(compiled)
    total = sum(parts.values())
    text = compiled.as_text()
    found = hlo.collectives(text)
    return entry | {
        "bytes_per_chip": total,
        "bytes": parts,
        "fits": total <= hbm,
        "collectives": hlo.by_kind(found),
        "between_slices": hlo.by_kind(hlo.sent_between_slices(text)),
        "gathered_weights": gathered_weights(found, run.base),
        "loops_of_unknown_length": hlo.loops(text).count(None),
        "compile_seconds": round(time.monotonic() - began, 1),
    }


def bytes_in_error(message: str) -> int | None:
    """Return the bytes that a program needs, from the compiler's out-of-memory message, or None.

    The compiler gives up in one of two places, each with its own message.
    """
    found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))


def gathered_weights(found: list[hlo.Collective], base: Any) -> list[str]:
    """Return the base matrices, of a block or of the vocabulary, that an all-gather assembles."""
    whole: dict[tuple[int, ...], str] = {}
    for path, leaf in flatten(base).items():
        stacked = "trunk/" in path
        shape = leaf.shape[1:] if stacked else leaf.shape
        if len(shape) == 2:
            whole[tuple(sorted(shape))] = path
    shapes = {
        tuple(sorted(n for n in dims if n > 1))
        for one in found if one.kind == "all-gather" for _, dims in one.shapes
    }  # fmt: skip
    return sorted(whole[s] for s in shapes if s in whole)


def step_summary(entry: Report) -> str:
    """Describe the entry of one step in a line."""
    moved = sum(kind["bytes"] for kind in entry["collectives"].values())
    text = f"{entry['bytes_per_chip'] / GIB:.2f} of {entry['hbm_bytes'] / GIB:.0f} GiB a chip"
    text += f", {'fits' if entry['fits'] else 'DOES NOT FIT'}"
    text += f"; {entry['flops'] / 1e9:.0f} GFLOP and {moved / 1e6:.0f} MB of collectives a chip"
    return f"{text}; compiled in {entry['compile_seconds']:.0f} s"


def verdict(report: Report, where: Slice, steps: tuple[str, ...] = STEPS) -> str:
    """Say whether all steps fit, and what to change if one does not."""
    over = [name for name in steps if not report[name]["fits"]]
    if not over:
        return f"{report['model']} fits {where.name}"
    worst = max(report[name]["bytes_per_chip"] for name in over)
    return (
        f"{report['model']} does not fit {where.name}: {', '.join(over)} take up to "
        f"{worst / GIB:.1f} GiB of {where.chip.hbm_bytes / GIB:.0f} a chip; split more "
        "(mesh.tensor, then mesh.fsdp), use fewer edits a chip (train.edits_per_step, "
        "eval.edits_per_step), model.remat, or a larger slice"
    )
