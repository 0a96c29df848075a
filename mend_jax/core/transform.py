"""The editor protocol, in the manner of Optax: pairs of pure functions, and chains of links.

An *editor* turns E requested corrections (a `Problem`) into E independent edits. A *link* is one
step of a factor editor: it maps a signal to a signal, the first signal being the factors of the
inner loss by weight name, the last an `Edit`. Learned parameters and running state (statistics) are
passed in and out. Every leaf of a signal may have leading axes (E), so no editor needs a vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

from mend_jax.core.forward import Problem, Rows
from mend_jax.core.token_batch import Sequences
from mend_jax.core.weight_edit import Edit
from mend_jax.models import WeightSpec

Weights = tuple[WeightSpec, ...]


class Run(NamedTuple):
    """What a link is told about one application, all static.

    Attributes:
      weights: the edited weights, in edit order (a dict's order is lost under jit).
      train: whether running statistics are updated.
      counted: whether they have taken in these rows already.
    """

    weights: Weights
    train: bool
    counted: bool = False


class Link(NamedTuple):
    """One step of a factor editor.

    Attributes:
      name: key of its parameters and state in the chain's.
      init: (key, weights) -> (params, state); both may be empty dicts.
      apply: (params, state, signal, run) -> (signal, state); state changes only if `run.train`.
    """

    name: str
    init: Callable[[jax.Array, Weights], tuple[Any, Any]]
    apply: Callable[[Any, Any, Any, Run], tuple[Any, Any]]


class Stream(NamedTuple):
    """How an editor is trained on edits that follow one another; see `stream.stream_loss`.

    Attributes:
      depth: how many corrections, the newest and those before it, each edit is judged by.
      decay: how much less each counts than the one after it.
      reg: weight of the squared norm of each edit.
    """

    depth: int
    decay: float
    reg: float


class Sweep(NamedTuple):
    """How an editor without training chooses what its options leave open, by validation rows.

    Attributes:
      see: (params, problem, texts) -> arrays [E, n, ...], what it takes note of; texts are the sets
        of a batch by name, each with its trunk states.
      choose: (params, state, seen) -> (params, state) from what was seen of all rows [N, ...], on
        the host.
      told: (params, state) -> what results.json says of it.
    """

    see: Callable[[Any, Problem, Mapping[str, tuple[Sequences, Any]]], Any]
    choose: Callable[[Any, Any, Any], tuple[Any, Any]]
    told: Callable[[Any, Any], dict[str, Any]]


class EditTransform(NamedTuple):
    """A whole editor.

    Attributes:
      init: (key, weights) -> (params, state).
      edit: (params, state, problem, train) -> (Edit with leading axis E, state).
      trainable: whether `params` are learned (or `state` gathered) by training steps.
      survey: (params, state, problem) -> state, or None. An editor that has to see ordinary texts
        first (for covariances, for what to keep) is shown training texts before it edits, as
        "corrections" of a Problem whose every token is scored. Never in a training step.
      survey_of: which texts of training rows those are; "edit" are other corrections.
      penalty: (params, edits with axis E, silence) -> scalar, or None. A term of an editor's own in
        the meta-loss; silence(edits with axis E) is the locality KL of any edits of the batch.
      in_turn: (params, state, problem) -> (Edit, state), or None. Of a lifelong editor, which also
        takes in the corrections that it is asked for where edits follow one another (`sequential`):
        the edit of `edit` outside of training, and the state after it.
      stream: the edits of a training step follow one another on one model, as said there; None:
        they are independent.
      reader: how texts are read with a correction at hand, for baselines that change no weight
        (their Edit has no deltas); None: by the base under the Edit.
      sweep: what it chooses by validation rows before it edits; None: nothing.
    """

    init: Callable[[jax.Array, Weights], tuple[Any, Any]]
    edit: Callable[[Any, Any, Problem, bool], tuple[Edit, Any]]
    trainable: bool = True
    survey: Callable[[Any, Any, Problem], Any] | None = None
    survey_of: Literal["far", "edit"] = "far"
    penalty: Callable[[Any, Edit, Callable[[Edit], jax.Array]], jax.Array] | None = None
    in_turn: Callable[[Any, Any, Problem], tuple[Edit, Any]] | None = None
    stream: Stream | None = None
    reader: Reader | None = None
    sweep: Sweep | None = None


class Reader(NamedTuple):
    """How a baseline without weight edits answers: from the corrections, beside the base.

    Attributes:
      logits: (params, problem, texts, h) -> [E, n, S, V] at the scored positions of texts [E, n]
        with trunk states h, each with the corrections of its edit at hand.
      write: (params, problem, texts, max_new, eos_id) -> int32[E, n, max_new], free greedy
        continuations of the prompts of texts [E, n] (what stands before the first scored token).
    """

    logits: Callable[[Any, Problem, Sequences, Any], jax.Array]
    write: Callable[[Any, Problem, Sequences, int, int], jax.Array]


@functools.cache
def with_strength(editor: EditTransform, strength: float) -> EditTransform:
    """The editor whose edits are scaled by `strength` once it is trained.

    Training sees the whole edit. Less than 1 gives up some success for locality, and back: the
    balance can be chosen after training.
    """

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        found, state = editor.edit(params, state, problem, train)
        return (found if train or strength == 1.0 else found.scale(strength)), state

    def in_turn(params: Any, state: Any, problem: Problem) -> tuple[Edit, Any]:
        found, state = editor.in_turn(params, state, problem)
        return found.scale(strength), state

    return editor._replace(edit=edit, in_turn=editor.in_turn and in_turn)


def stateless(name: str, apply: Callable[[Any], Any]) -> Link:
    """A link without parameters or state."""
    return Link(name, lambda key, weights: ({}, {}), lambda p, s, signal, run: (apply(signal), s))


def chain(*links: Link) -> Link:
    """The links one after the other; parameters and state are dicts by link name."""
    names = [link.name for link in links]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"links of a chain need different names; repeated: {repeated}")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        keys = jax.random.split(key, max(len(links), 1))
        made = {link.name: link.init(k, weights) for link, k in zip(links, keys, strict=True)}
        params = {name: p for name, (p, _) in made.items()}
        return params, {name: s for name, (_, s) in made.items()}

    def apply(params: Any, state: Any, signal: Any, run: Run) -> tuple[Any, Any]:
        new_state = {}
        for link in links:
            signal, new_state[link.name] = link.apply(
                params[link.name], state[link.name], signal, run
            )
        return signal, new_state

    return Link("chain", init, apply)


def factor_editor(link: Link, rows: Rows = "all") -> EditTransform:
    """An editor from a link (usually a chain) that maps factors to an Edit.

    `rows`: which tokens' factors count; see `Problem.factors`.
    """

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        return link.apply(params, state, problem.factors(rows=rows), Run(problem.weights, train))

    return EditTransform(link.init, edit)


class Group(NamedTuple):
    """Weights that share one network and one set of statistics.

    Attributes:
      key: `{d_in}x{d_out}` when shared by shape, else the weight's name.
      members: the weights, in edit order; a weight's index is its `mode` (FiLM row).
    """

    key: str
    members: tuple[WeightSpec, ...]

    @property
    def d_in(self) -> int:
        return self.members[0].d_in

    @property
    def d_out(self) -> int:
        return self.members[0].d_out


def group_weights(weights: Sequence[WeightSpec], shared: bool) -> tuple[Group, ...]:
    """One group a weight shape (paper, section 3.1: parameters shared across layers), or a weight.

    Two weights of one shape but different roles (Llama's gate and up) share a group, as in the
    original code.
    """
    members: dict[str, list[WeightSpec]] = {}
    for w in weights:
        members.setdefault(f"{w.d_in}x{w.d_out}" if shared else w.name, []).append(w)
    return tuple(Group(key, tuple(ws)) for key, ws in members.items())
