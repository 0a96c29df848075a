"""Choose a mesh: among those that fit the chips, the one that moves the fewest bytes.

The axis `data` splits the edits of a step and moves the editor's gradients; `tensor` moves
activations; `fsdp` gathers base weights in every step, so it is the last resort. All numbers are
estimates from shapes; `compile_steps.compile_for` reports the compiler's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from mend_jax.errors import ConfigError
from mend_jax.parallel.mesh import AXES
from mend_jax.parallel.sharding import Rule, key_path_name, partition_spec
from mend_jax.tpu.abstract_run import AbstractRun
from mend_jax.tpu.slices import GIB

USABLE = 0.9
"""The share of a chip's memory that a plan may fill; programs and fragmentation use the rest."""


class StepNeeds(NamedTuple):
    """The sizes of a training step.

    Attributes:
      base, state: trees of ShapeDtypeStructs.
      heads: number of attention heads, or of those of keys and values where there are fewer;
        `tensor` must divide it.
      edits: number of independent edits in a step; `data` x `fsdp` must divide it.
      tokens: number of tokens in the texts of one edit.
      scored: number of scored positions in the texts of one edit.
      width, inner, vocab: sizes of the model.
      blocks, top: number of blocks, and of those that are differentiated.
      item: bytes of one activation.
      base_rules: sharding rules of the base.
      editor_rules: sharding rules of the editor's state.
    """

    base: Any
    state: Any
    heads: int
    edits: int
    tokens: int
    scored: int
    width: int
    inner: int
    vocab: int
    blocks: int
    top: int
    item: int
    base_rules: Sequence[Rule]
    editor_rules: Sequence[Rule]


class MeshPlan(NamedTuple):
    """A mesh and its estimated costs.

    Attributes:
      sizes: size of each axis.
      base, editor, work: bytes a chip holds of base weights; of the editor's parameters, gradients
        and optimizer state; of activations and logits.
      moved: bytes that a chip sends in a training step.
      why: the reason for the choice, in one sentence.
    """

    sizes: Mapping[str, int]
    base: int
    editor: int
    work: int
    moved: int
    why: str

    @property
    def total(self) -> int:
        """Bytes that a chip holds."""
        return self.base + self.editor + self.work


def step_needs(run: AbstractRun) -> StepNeeds:
    """Return the sizes of a run's training step."""
    c, model = run.config, run.model.config
    batch = run.batch(1, training=True)
    sizes = [math.prod(t.tokens.shape) for t in batch.values()]
    sizes += [math.prod(t.source.shape) for t in batch.values() if t.source is not None]
    scored = sum(math.prod(t.score_pos.shape) for t in batch.values())
    stacks = run.model.module.stacks
    vocab = 2 if run.model.module.kind == "classifier" else model.vocab_size
    return StepNeeds(
        run.base, run.state, getattr(model, "n_kv_heads", model.n_heads),
        c.train.edits_per_step * (2 if c.train.edit_from_paraphrase else 1),
        sum(sizes), scored, model.d_model,
        max(max(w.d_in, w.d_out) for w in run.model.weights), vocab,
        sum(s.n_layer for s in stacks), sum(s.n_top for s in stacks),
        jax.tree.leaves(run.base)[0].dtype.itemsize,
        run.model.family.sharding_rules, run.editor.sharding_rules,
    )  # fmt: skip


def bytes_per_chip_of(tree: Any, rules: Sequence[Rule], sizes: Mapping[str, int]) -> int:
    """Return the bytes that one chip holds of a tree of shapes, sharded by the rules."""
    mesh = AbstractMesh(tuple(sizes[a] for a in AXES), AXES)
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        axes = [a for a in partition_spec(key_path_name(keys), leaf.shape, rules, mesh) if a]
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // math.prod(sizes[a] for a in axes)
    return total


def cost(needs: StepNeeds, sizes: Mapping[str, int]) -> MeshPlan:
    """Return the costs of a mesh, as a plan without a reason."""
    data, fsdp, tensor = (sizes[a] for a in AXES)
    ways = data * fsdp
    base = bytes_per_chip_of(needs.base, needs.base_rules, sizes)
    grads = bytes_per_chip_of(needs.state.params, needs.editor_rules, sizes)
    editor = bytes_per_chip_of(needs.state, needs.editor_rules, sizes) + grads
    edits = -(-needs.edits // ways)
    tokens, scored = edits * needs.tokens, edits * needs.scored
    # Trunk: a few copies of the states and one inner layer. Top: those of every block are kept.
    one_block = tokens * (8 * needs.width + 3 * needs.inner // tensor) * needs.item
    logits = 4 * 4 * scored * needs.vocab // tensor
    work = one_block * (1 + needs.top) + logits
    if fsdp > 1:  # one block at a time is gathered over `fsdp`
        work += base * (fsdp - 1) // needs.blocks
    passes = needs.blocks + 3 * needs.top  # forward; then twice forward and backward of the top
    moved = 0
    if tensor > 1:  # two all-reduces of the states in each block
        moved += 2 * 2 * passes * tokens * needs.width * needs.item * (tensor - 1) // tensor
    if ways > 1:  # the editor's gradients
        moved += 2 * grads * (ways - 1) // ways
    if fsdp > 1:
        moved += base * (fsdp - 1)
    return MeshPlan(dict(sizes), base, editor, work, moved, "")


def possible_plans(needs: StepNeeds, n_chips: int, slices: int = 1) -> list[MeshPlan]:
    """Return every mesh of `n_chips` devices over which edits and heads can be split.

    Args:
      slices: how many slices the devices are in; only `data` spans several.
    """
    found = []
    for tensor in _divisors(n_chips):
        for fsdp in _divisors(n_chips // tensor):
            data = n_chips // tensor // fsdp
            fits = needs.heads % tensor == 0 and needs.edits % (data * fsdp) == 0
            if fits and data % slices == 0:
                found.append(cost(needs, dict(data=data, fsdp=fsdp, tensor=tensor)))
    return found


def choose_plan(
    needs: StepNeeds, n_chips: int, hbm_bytes: int | None, what: str = "", slices: int = 1
) -> MeshPlan:
    """Return the plan that fits and moves the fewest bytes; among equals, the smallest.

    Args:
      n_chips: number of chips; the mesh uses all of them.
      hbm_bytes: memory of a chip; None if unknown (then everything fits).
      what: the model and the slice, for the explanation.
      slices: how many slices the chips are in. What `data` moves is the editor's gradients; the
        network between slices is too slow for the rest.

    Raises:
      ConfigError: no mesh splits the step over these chips, or none fits; says what to change.
    """
    possible = possible_plans(needs, n_chips, slices)
    if not possible:
        step = next(
            e for e in range(needs.edits, needs.edits + n_chips + 1)
            if possible_plans(needs._replace(edits=e), n_chips, slices)
        )  # fmt: skip
        between = f" in {slices} slices" if slices > 1 else ""
        raise ConfigError(
            f"{what}: a step of {needs.edits} edits cannot be split over {n_chips} chips{between} "
            f"(the model's {needs.heads} heads go over `tensor`, the edits over `data` x `fsdp`, "
            f"slices over `data` alone): set "
            f"train.edits_per_step to {step}, and train.accumulate accordingly"
        )
    room = math.inf if hbm_bytes is None else USABLE * hbm_bytes
    fitting = [p for p in possible if p.total <= room]
    if not fitting:
        least = min(possible, key=lambda p: p.total)
        raise ConfigError(
            f"{what}: does not fit; with {mesh_text(least.sizes)} a chip would hold about "
            f"{least.total / GIB:.1f} GiB of {room / GIB:.1f} ({_parts(least)}): use a larger "
            "slice, fewer edits a chip (train.edits_per_step), or a lower editor.options.rank"
        )
    best = min(fitting, key=lambda p: (p.moved, p.total, p.sizes["tensor"]))
    return best._replace(why=_why(best, possible, room, what))


def _why(best: MeshPlan, possible: Sequence[MeshPlan], room: float, what: str) -> str:
    text = f"{what}: {mesh_text(best.sizes)}, {best.total / GIB:.1f} GiB a chip ({_parts(best)})"
    text += f", about {best.moved / 1e6:.0f} MB sent a step and chip"
    easier = [p for p in possible if p.total > room and p.moved < best.moved]
    if easier:
        other = min(easier, key=lambda p: p.moved)
        text += f"; {mesh_text(other.sizes)} would send {other.moved / 1e6:.0f} MB but take "
        text += f"{other.total / GIB:.1f} GiB"
    return text


def _parts(plan: MeshPlan) -> str:
    return (
        f"base {plan.base / GIB:.1f}, editor {plan.editor / GIB:.1f}, "
        f"work {plan.work / GIB:.1f}"
    )  # fmt: skip


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Return the axes of a mesh as text, such as "data 4 x tensor 2"."""
    return " x ".join(f"{axis} {sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "one chip"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
