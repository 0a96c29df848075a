"""The floating point operations that a training step requires, by formula, from shapes alone.

Required are the matrix products of the algorithm, 2 operations per multiplication: the frozen trunk
forward once; the top forward, and backward to the lowest edited weight; the editor network with the
gradient of its parameters; the head at scored positions. Avoidable work is not counted, so
recomputation and dense weight gradients appear as lost time.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.workload import Workload
from mend_jax.models import WeightSpec
from mend_jax.models.abstract_model import AbstractModel

_BLOCK = re.compile(r"block_(\d+)/(.*)/kernel")
_BELOW = ("attn/", "mlp/gate", "mlp/up")  # of the lowest edited block: no gradient below them
_ALL_ROWS = ("attn/k", "attn/v", "attn/qkv")  # of the last block: keys and values of all tokens


class Texts(NamedTuple):
    """`n` texts that pass together, each with `length` tokens, of which `scored` are scored."""

    n: int
    length: int
    scored: int

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.n * self.length

    @property
    def positions(self) -> int:
        """All scored positions."""
        return self.n * self.scored


class Sizes(NamedTuple):
    """The sizes of a decoder.

    Attributes:
      trunk: multiplications per token in the matrices of all trunk blocks.
      top: for each top block, the multiplications per token of each matrix by its name.
      n_trunk: trunk blocks.
      width: of attention, heads x head size.
      head: multiplications per scored position.
      weights: the edited weights.
    """

    trunk: int
    top: list[dict[str, int]]
    n_trunk: int
    width: int
    head: int
    weights: tuple[WeightSpec, ...]


def decoder_sizes(model: AbstractModel) -> Sizes:
    """Return the sizes of a model of one stack."""
    trunk = 0
    top: dict[int, dict[str, int]] = {}
    for path, shape in model.shapes().items():
        if path.startswith("trunk/") and path.endswith("/kernel"):
            trunk += math.prod(shape)
        elif found := _BLOCK.fullmatch(path):
            top.setdefault(int(found[1]), {})[found[2]] = math.prod(shape)
    c, (stack,) = model.config, model.module.stacks
    width = next(
        s[-2] for p, s in model.shapes().items() if p.endswith("attn/out/kernel")
    )  # fmt: skip
    blocks = [top[i] for i in sorted(top)]
    return Sizes(trunk, blocks, stack.n_trunk, width, c.d_model * c.vocab_size, model.weights)


def trunk_pass(s: Sizes, texts: Texts) -> int:
    """Return the operations of the trunk, forward."""
    scores = 2 * s.n_trunk * texts.tokens * texts.length * s.width
    return 2 * (s.trunk * texts.tokens + scores)


def _block(s: Sizes, number: int, texts: Texts, below: bool = True) -> tuple[int, int]:
    """Return a top block's multiplications forward: in matrices, and in attention's two products.

    Args:
      below: False: only the matrices above the edited ones.
    """
    last = number == len(s.top) - 1
    matrices = 0
    for name, size in s.top[number].items():
        whole = not last or name.startswith(_ALL_ROWS)
        if below or not name.startswith(_BELOW):
            matrices += size * (texts.tokens if whole else texts.positions)
    queries = texts.positions if last else texts.tokens
    return matrices, 2 * queries * texts.length * s.width if below else 0


def top_forward(s: Sizes, texts: Texts) -> int:
    """Return the operations of the top, forward; the last block has only scored queries."""
    return 2 * sum(sum(_block(s, i, texts)) for i in range(len(s.top)))


def top_backward(s: Sizes, texts: Texts) -> int:
    """Return the operations from the last states' gradient to the edited weights' outputs.

    Matrices cost as much as forward, attention twice as much (keys and values have gradients too).
    """
    total = 0
    for i in range(len(s.top)):
        matrices, scores = _block(s, i, texts, below=i > 0)
        total += matrices + 2 * scores
    return 2 * total


def rows_of(s: Sizes, w: WeightSpec, edit: Texts) -> int:
    """Return the number of rows of an edited weight's factors."""
    block, role = w.name.split("/", 1)
    last = block == f"block_{s.n_trunk + len(s.top) - 1}"
    return edit.positions if last and not role.startswith(_ALL_ROWS) else edit.tokens


def editor_network(s: Sizes, edit: Texts, rank: int, n_hidden: int) -> tuple[int, int]:
    """Return the operations of MEND's shared networks, forward and backward to their parameters.

    A layer is two products; backward each has two, but the first needs no gradient of its input.
    """
    unit = 0
    for w in s.weights:
        width = w.d_in + w.d_out
        unit += 2 * rows_of(s, w, edit) * min(rank, width) * width
    layers = n_hidden + 1
    return 2 * layers * unit, (4 * layers - 1) * unit


def edited_products(s: Sizes, edit: Texts, texts: Texts) -> tuple[int, int]:
    """Return what an edit adds to a pass of `texts`, forward and backward to its low-rank pair.

    The pair is applied factored, (x a^T) b, or formed, a^T b, whichever multiplies less.
    """
    forward = backward = 0
    for w in s.weights:
        tokens, rows = rows_of(s, w, texts), rows_of(s, w, edit)
        factored = 2 * tokens * rows * (w.d_in + w.d_out)
        formed = 2 * rows * w.d_in * w.d_out
        gradient_of_formed = 2 * tokens * w.d_in * w.d_out
        if factored <= formed:
            forward, backward = forward + factored, backward + 2 * factored
        else:
            forward, backward = forward + formed, backward + 2 * formed + gradient_of_formed
    return forward, backward


def step_texts(w: Workload) -> tuple[Texts, Texts, Texts]:
    """Return an edit's facts, its paraphrases, and its far texts."""
    return (
        Texts(w.edits, w.length, w.scored),
        Texts(w.n_paraphrases, w.length, w.scored),
        Texts(w.far, w.far_length, w.far_length - 1),
    )


def training_step(w: Workload, model: AbstractModel) -> dict[str, int]:
    """Return the operations of one training step by part."""
    s = decoder_sizes(model)
    edit, paraphrases, far = step_texts(w)
    network = editor_network(s, edit, w.rank, n_hidden=1)
    parts = {
        "trunk": sum(trunk_pass(s, t) for t in (edit, paraphrases, far)),
        "factors": top_forward(s, edit) + top_backward(s, edit) + 4 * s.head * edit.positions,
        "editor": sum(network),
        "success": _differentiated(s, edit, paraphrases),
        "base on far": top_forward(s, far) + 2 * s.head * far.positions,
        "silence": _differentiated(s, edit, far),
    }
    return {name: w.independent * n for name, n in parts.items()}


def _differentiated(s: Sizes, edit: Texts, texts: Texts) -> int:
    """Return the operations of the edited top and head, forward and backward to the edit."""
    passes = top_forward(s, texts) + top_backward(s, texts)
    return passes + 4 * s.head * texts.positions + sum(edited_products(s, edit, texts))


def edit_alone(w: Workload, model: AbstractModel) -> int:
    """Return the operations of making the edits from tokens."""
    s, (edit, *_) = decoder_sizes(model), step_texts(w)
    own = trunk_pass(s, edit) + top_forward(s, edit) + top_backward(s, edit)
    return w.independent * (
        own + 4 * s.head * edit.positions + editor_network(s, edit, w.rank, n_hidden=1)[0]
    )


def forward(w: Workload, model: AbstractModel) -> int:
    """Return the operations of one pass of the unedited model on all texts of a step."""
    s, total = decoder_sizes(model), 0
    for texts in step_texts(w):
        total += trunk_pass(s, texts) + top_forward(s, texts) + 2 * s.head * texts.positions
    return w.independent * total
