"""How many floating point operations a training step needs, by formula, from shapes alone.

Needed are the matrix products of the algorithm, 2 operations a multiplication: the frozen trunk
forward once; the top forward, and backward to the lowest edited weight and not below; the editor
network with the gradient of its parameters; the head at scored positions. Nothing is counted that
could be left out, so recomputation and dense weight gradients would show as lost time. Shape
letters: N tokens, S scored positions, R rows of factors, r rank.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.workload import Workload
from mend_jax.models import WeightSpec
from mend_jax.models.abstract_model import AbstractModel

_BLOCK = re.compile(r"block_(\d+)/(.*)/kernel")
_BELOW = ("attn/", "mlp/gate", "mlp/up")  # of the lowest edited block: nothing is asked below them
_ALL_ROWS = ("attn/k", "attn/v", "attn/qkv")  # of the last block: keys and values of all tokens


class Texts(NamedTuple):
    """Texts that pass together: how many, of how many tokens, of which so many are scored."""

    n: int
    length: int
    scored: int

    @property
    def tokens(self) -> int:
        return self.n * self.length

    @property
    def places(self) -> int:
        return self.n * self.scored


class Sizes(NamedTuple):
    """What the formulas need of a decoder.

    Attributes:
      trunk: multiplications a token in the matrices of all trunk blocks.
      top: for each top block, the multiplications a token of each matrix by its name.
      n_trunk: blocks.
      width: of attention, heads x head size.
      head: multiplications a scored position.
      weights: the edited ones.
    """

    trunk: int
    top: list[dict[str, int]]
    n_trunk: int
    width: int
    head: int
    weights: tuple[WeightSpec, ...]


def decoder_sizes(model: AbstractModel) -> Sizes:
    """The sizes of a model of one stack."""
    trunk, top = 0, {}
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
    """The trunk, forward."""
    scores = 2 * s.n_trunk * texts.tokens * texts.length * s.width
    return 2 * (s.trunk * texts.tokens + scores)


def _block(s: Sizes, number: int, texts: Texts, below: bool = True) -> tuple[int, int]:
    """Multiplications of a top block forward: of its matrices, and of attention's two products.

    Args:
      below: with False only of the matrices that stand above the edited ones.
    """
    last = number == len(s.top) - 1
    matrices = 0
    for name, size in s.top[number].items():
        whole = not last or name.startswith(_ALL_ROWS)
        if below or not name.startswith(_BELOW):
            matrices += size * (texts.tokens if whole else texts.places)
    queries = texts.places if last else texts.tokens
    return matrices, 2 * queries * texts.length * s.width if below else 0


def top_forward(s: Sizes, texts: Texts) -> int:
    """The top blocks, forward; in the last one queries and MLP of scored positions alone."""
    return 2 * sum(sum(_block(s, i, texts)) for i in range(len(s.top)))


def top_backward(s: Sizes, texts: Texts) -> int:
    """From the gradient of the last states to the outputs of every edited weight.

    Matrices cost as much as forward, attention twice as much (keys and values count as well).
    """
    total = 0
    for i in range(len(s.top)):
        matrices, scores = _block(s, i, texts, below=i > 0)
        total += matrices + 2 * scores
    return 2 * total


def rows_of(s: Sizes, w: WeightSpec, edit: Texts) -> int:
    """Rows of factors of an edited weight."""
    block, role = w.name.split("/", 1)
    last = block == f"block_{s.n_trunk + len(s.top) - 1}"
    return edit.places if last and not role.startswith(_ALL_ROWS) else edit.tokens


def editor_network(s: Sizes, edit: Texts, rank: int, n_hidden: int) -> tuple[int, int]:
    """MEND's shared networks forward, and backward to their parameters.

    A layer is two products of R rows; backward each has two, but nothing is asked below the first.
    """
    unit = 0
    for w in s.weights:
        width = w.d_in + w.d_out
        unit += 2 * rows_of(s, w, edit) * min(rank, width) * width
    layers = n_hidden + 1
    return 2 * layers * unit, (4 * layers - 1) * unit


def edited_products(s: Sizes, edit: Texts, texts: Texts) -> tuple[int, int]:
    """What an edit adds to a pass of `texts`, forward and backward to its low-rank pair.

    The pair is applied as it is, (x a^T) b, or formed, a^T b, whichever multiplies less.
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
    """The facts of an edit, what it is asked with, and what must stay."""
    return (
        Texts(w.edits, w.length, w.scored),
        Texts(w.n_paraphrases, w.length, w.scored),
        Texts(w.far, w.far_length, w.far_length - 1),
    )


def training_step(w: Workload, model: AbstractModel) -> dict[str, int]:
    """Operations of one training step by part; their sum is what is required_flops."""
    s = decoder_sizes(model)
    edit, asked, far = step_texts(w)
    network = editor_network(s, edit, w.rank, n_hidden=1)
    parts = {
        "trunk": sum(trunk_pass(s, t) for t in (edit, asked, far)),
        "factors": top_forward(s, edit) + top_backward(s, edit) + 4 * s.head * edit.places,
        "editor": sum(network),
        "success": _differentiated(s, edit, asked),
        "base on far": top_forward(s, far) + 2 * s.head * far.places,
        "silence": _differentiated(s, edit, far),
    }
    return {name: w.independent * n for name, n in parts.items()}


def _differentiated(s: Sizes, edit: Texts, texts: Texts) -> int:
    """The edited top and head on `texts`, forward and backward to the edit."""
    passes = top_forward(s, texts) + top_backward(s, texts)
    return passes + 4 * s.head * texts.places + sum(edited_products(s, edit, texts))


def edit_alone(w: Workload, model: AbstractModel) -> int:
    """Operations of making the edits, from tokens."""
    s, (edit, *_) = decoder_sizes(model), step_texts(w)
    own = trunk_pass(s, edit) + top_forward(s, edit) + top_backward(s, edit)
    return w.independent * (
        own + 4 * s.head * edit.places + editor_network(s, edit, w.rank, n_hidden=1)[0]
    )


def forward(w: Workload, model: AbstractModel) -> int:
    """Operations of the unedited model on all texts of a step, once."""
    s, total = decoder_sizes(model), 0
    for texts in step_texts(w):
        total += trunk_pass(s, texts) + top_forward(s, texts) + 2 * s.head * texts.places
    return w.independent * total
