"""Which axes a mesh should have: what fits the chips and moves the fewest bytes, and why.

Splitting over `data` needs several edits a step and moves the editor's gradients; over `tensor` it
moves activations; over `fsdp` base weights are gathered in every step, so it is the last resort.
All numbers are estimates from shapes; `compile_for` has the compiler's own.
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
from mend_jax.tpu.blueprint import Blueprint
from mend_jax.tpu.slices import GIB

USABLE = 0.9
"""The share of a chip's memory that a plan fills; programs and fragmentation take the rest."""


class Needs(NamedTuple):
    """What a step is made of.

    Attributes:
      base, state: trees of ShapeDtypeStructs.
      heads: attention heads of the model; `tensor` must divide them.
      edits: independent edits a step; `data` x `fsdp` must divide them.
      tokens: that one edit's texts have together.
      scored: positions of one edit's texts that the vocabulary is computed for.
      width, inner, vocab, blocks: of the model; `top` blocks of them are differentiated.
      item: bytes of an activation.
      base_rules: the sharding rules of the base.
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


class Plan(NamedTuple):
    """A mesh and what it costs.

    Attributes:
      sizes: axis -> size.
      base, editor, work: estimated bytes a chip: weights; the editor's parameters with gradients
        and optimiser state; activations and logits.
      moved: estimated bytes that a chip sends in a training step.
      why: the choice in a sentence.
    """

    sizes: Mapping[str, int]
    base: int
    editor: int
    work: int
    moved: int
    why: str

    @property
    def total(self) -> int:
        return self.base + self.editor + self.work


def needs_of(blueprint: Blueprint) -> Needs:
    """The needs of a config's training step."""
    c, sketch = blueprint.config, blueprint.abstract_model
    model = sketch.config
    batch = blueprint.batch(1, training=True)
    sizes = [math.prod(t.tokens.shape) for t in batch.values()]
    sizes += [math.prod(t.source.shape) for t in batch.values() if t.source is not None]
    scored = sum(math.prod(t.score_pos.shape) for t in batch.values())
    stacks = sketch.module.stacks
    vocab = 2 if sketch.module.kind == "classifier" else model.vocab_size
    return Needs(
        blueprint.base, blueprint.state, model.n_heads,
        c.train.edits_per_step * (2 if c.train.edit_from_paraphrase else 1),
        sum(sizes), scored, model.d_model,
        max(max(w.d_in, w.d_out) for w in sketch.weights), vocab,
        sum(s.n_layer for s in stacks), sum(s.n_top for s in stacks),
        jax.tree.leaves(blueprint.base)[0].dtype.itemsize,
        sketch.family.sharding_rules, blueprint.editor.sharding_rules,
    )  # fmt: skip


def bytes_a_chip(tree: Any, rules: Sequence[Rule], sizes: Mapping[str, int]) -> int:
    """What one chip holds of a tree of shapes that lies on a mesh as the rules say."""
    mesh = AbstractMesh(tuple(sizes[a] for a in AXES), AXES)
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        axes = [a for a in partition_spec(key_path_name(keys), leaf.shape, rules, mesh) if a]
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // math.prod(sizes[a] for a in axes)
    return total


def cost(needs: Needs, sizes: Mapping[str, int]) -> Plan:
    """What a mesh costs, as a plan without its reason."""
    data, fsdp, tensor = (sizes[a] for a in AXES)
    ways = data * fsdp
    base = bytes_a_chip(needs.base, needs.base_rules, sizes)
    grads = bytes_a_chip(needs.state.params, needs.editor_rules, sizes)
    editor = bytes_a_chip(needs.state, needs.editor_rules, sizes) + grads
    edits = -(-needs.edits // ways)
    tokens, scored = edits * needs.tokens, edits * needs.scored
    # Forward only: a few copies of the states and one inner layer. Top: every block's are kept.
    one_block = tokens * (8 * needs.width + 3 * needs.inner // tensor) * needs.item
    logits = 4 * 4 * scored * needs.vocab // tensor
    work = one_block * (1 + needs.top) + logits
    if fsdp > 1:  # one block's weights at a time are whole over `fsdp`
        work += base * (fsdp - 1) // needs.blocks
    passes = needs.blocks + 3 * needs.top  # forwards; then two forwards and backwards of the top
    moved = 0
    if tensor > 1:  # two all-reduces of the states a block
        moved += 2 * 2 * passes * tokens * needs.width * needs.item * (tensor - 1) // tensor
    if ways > 1:  # the editor's gradients
        moved += 2 * grads * (ways - 1) // ways
    if fsdp > 1:
        moved += base * (fsdp - 1)
    return Plan(dict(sizes), base, editor, work, moved, "")


def plans(needs: Needs, n_chips: int) -> list[Plan]:
    """Every mesh of `n_chips` that the edits and the heads can be split over."""
    found = []
    for tensor in _divisors(n_chips):
        for fsdp in _divisors(n_chips // tensor):
            data = n_chips // tensor // fsdp
            if needs.heads % tensor == 0 and needs.edits % (data * fsdp) == 0:
                found.append(cost(needs, dict(data=data, fsdp=fsdp, tensor=tensor)))
    return found


def choose(needs: Needs, n_chips: int, hbm_bytes: int | None, what: str = "") -> Plan:
    """The mesh that fits and moves the fewest bytes; of equals, the one that takes least memory.

    Args:
      n_chips: how many chips there are; the mesh uses all.
      hbm_bytes: memory of a chip; None where it is not known (everything then fits).
      what: names the model and the slice in the explanation.

    Raises:
      ConfigError: no mesh splits the step over that many chips, or none fits; names the mend.
    """
    possible = plans(needs, n_chips)
    if not possible:
        step = next(
            e for e in range(needs.edits, needs.edits + n_chips + 1)
            if plans(needs._replace(edits=e), n_chips)
        )  # fmt: skip
        raise ConfigError(
            f"{what}: a step of {needs.edits} edits cannot be split over {n_chips} chips (the "
            f"model's {needs.heads} heads go over `tensor`, the edits over `data` x `fsdp`): set "
            f"train.edits_per_step to {step}, and train.accumulate accordingly"
        )
    room = math.inf if hbm_bytes is None else USABLE * hbm_bytes
    fitting = [p for p in possible if p.total <= room]
    if not fitting:
        least = min(possible, key=lambda p: p.total)
        raise ConfigError(
            f"{what}: does not fit; with {words(least.sizes)} a chip would hold about "
            f"{least.total / GIB:.1f} GiB of {room / GIB:.1f} ({_parts(least)}): use a larger "
            "slice, fewer edits a chip (train.edits_per_step), or a lower editor.options.rank"
        )
    best = min(fitting, key=lambda p: (p.moved, p.total, p.sizes["tensor"]))
    return best._replace(why=_why(best, possible, room, what))


def _why(best: Plan, possible: Sequence[Plan], room: float, what: str) -> str:
    text = f"{what}: {words(best.sizes)}, {best.total / GIB:.1f} GiB a chip ({_parts(best)})"
    text += f", about {best.moved / 1e6:.0f} MB sent a step and chip"
    easier = [p for p in possible if p.total > room and p.moved < best.moved]
    if easier:
        other = min(easier, key=lambda p: p.moved)
        text += f"; {words(other.sizes)} would send {other.moved / 1e6:.0f} MB but take "
        text += f"{other.total / GIB:.1f} GiB"
    return text


def _parts(plan: Plan) -> str:
    return (
        f"base {plan.base / GIB:.1f}, editor {plan.editor / GIB:.1f}, "
        f"work {plan.work / GIB:.1f}"
    )  # fmt: skip


def words(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "one chip"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
