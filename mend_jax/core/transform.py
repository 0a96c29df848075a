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

from mend_jax.core.problem import Problem, Rows
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.models import WeightSpec
from mend_jax.parallel.sharding import OPTIMIZER_RULES, Rule

Weights = tuple[WeightSpec, ...]


class LinkContext(NamedTuple):
    """What a link is told about one application, all static.

    Attributes:
      weights: the edited weights, in edit order (a dict's order is lost under jit).
      train: whether running statistics are updated.
      rows_counted: whether they have taken in these rows already.
    """

    weights: Weights
    train: bool
    rows_counted: bool = False


class StepSizes(NamedTuple):
    """Learned parameters that have their own learning rate in training (`train.step_size_lr`).

    Attributes:
      log: whether the parameters are logarithms.
      scales_edit: whether they multiply the edit, unlike the strength of a regulariser.
      path: key path within the parameters; "" for all of them.
    """

    log: bool
    scales_edit: bool = True
    path: str = ""

    def includes(self, path: str) -> bool:
        """Return whether the parameter of this key path, `a/b/c`, is one of them."""
        return not self.path or path == self.path or path.startswith(f"{self.path}/")


class Link(NamedTuple):
    """One step of a factor editor.

    Attributes:
      name: key of its parameters and state in the chain's.
      init: (key, weights) -> (params, state); both may be empty dicts.
      apply: (params, state, signal, context) -> (signal, state); the state changes only if
        `context.train`.
      sharding: rules for its parameters and state, by key paths within them. Scalars need none.
      step_sizes: which of its parameters are step sizes.
    """

    name: str
    init: Callable[[jax.Array, Weights], tuple[Any, Any]]
    apply: Callable[[Any, Any, Any, LinkContext], tuple[Any, Any]]
    sharding: tuple[Rule, ...] = ()
    step_sizes: tuple[StepSizes, ...] = ()


class SequentialTraining(NamedTuple):
    """How an editor is trained on edits that follow one another; see `sequential_loss`.

    Attributes:
      depth: how many corrections, the newest and those before it, each edit is judged by.
      decay: how much less each counts than the one after it.
      reg: weight of the squared norm of each edit.
    """

    depth: int
    decay: float
    reg: float


class ThresholdTuning(NamedTuple):
    """How an editor without training chooses what its options leave open, by validation rows.

    Attributes:
      observe: (params, problem, texts) -> arrays [E, n, ...] to choose by; texts are the sets of
        a batch by name, each with its trunk states.
      choose: (params, state, seen) -> (params, state) from what was seen of all rows [N, ...], on
        the host.
      summary: (params, state) -> what results.json says of it.
    """

    observe: Callable[[Any, Problem, Mapping[str, tuple[TokenBatch, Any]]], Any]
    choose: Callable[[Any, Any, Any], tuple[Any, Any]]
    summary: Callable[[Any, Any], dict[str, Any]]


class EditTransform(NamedTuple):
    """A whole editor.

    Attributes:
      init: (key, weights) -> (params, state).
      edit: (params, state, problem, train) -> (Edit with leading axis E, state).
      trainable: whether `params` are learned (or `state` gathered) by training steps.
      calibrate: (params, state, problem) -> state, or None. An editor that needs ordinary texts
        first (for covariances, for what to keep) receives training texts before it edits, as the
        corrections of a Problem whose every token is scored. Never in a training step.
      calibrate_on: which texts of training rows those are; "edit" are other corrections.
      penalty: (params, edits with axis E, locality_kl) -> scalar, or None: the editor's additional
        term of the meta-loss. locality_kl(edits with axis E) is the locality KL of any edits of
        the batch.
      lifelong_edit: (params, state, problem) -> (Edit, state), or None. For lifelong editors, whose
        state accumulates the corrections of sequential edits: the edit of `edit` outside of
        training, and the state after it.
      sequential_training: the edits of a training step are sequential edits of one model; None:
        they are independent.
      reader: how the baselines that change no weight (their Edit has no deltas) predict texts;
        None: by the base model under the Edit.
      tuning: how options are chosen on validation rows before editing; None: nothing to choose.
      sharding, step_sizes: as of `Link`, for the whole editor.
    """

    init: Callable[[jax.Array, Weights], tuple[Any, Any]]
    edit: Callable[[Any, Any, Problem, bool], tuple[Edit, Any]]
    trainable: bool = True
    calibrate: Callable[[Any, Any, Problem], Any] | None = None
    calibrate_on: Literal["far", "edit"] = "far"
    penalty: Callable[[Any, Edit, Callable[[Edit], jax.Array]], jax.Array] | None = None
    lifelong_edit: Callable[[Any, Any, Problem], tuple[Edit, Any]] | None = None
    sequential_training: SequentialTraining | None = None
    reader: Reader | None = None
    tuning: ThresholdTuning | None = None
    sharding: tuple[Rule, ...] = ()
    step_sizes: tuple[StepSizes, ...] = ()

    @property
    def sharding_rules(self) -> tuple[Rule, ...]:
        """Rules for parameters, state and the optimiser state, wherever a tree holds them."""
        return (*(rule.under("(.*/)?") for rule in self.sharding), *OPTIMIZER_RULES)


class Reader(NamedTuple):
    """How a baseline without weight edits answers: from the corrections, beside the base.

    Attributes:
      logits: (params, problem, texts, h) -> [E, n, S, V] at the scored positions of texts [E, n]
        with trunk states h, each with the corrections of its edit at hand.
      write: (params, problem, texts, max_new, eos_id) -> int32[E, n, max_new], free greedy
        continuations of the prompts of texts [E, n] (what stands before the first scored token).
    """

    logits: Callable[[Any, Problem, TokenBatch, Any], jax.Array]
    write: Callable[[Any, Problem, TokenBatch, int, int], jax.Array]


@functools.cache
def with_strength(editor: EditTransform, strength: float) -> EditTransform:
    """The editor whose edits are scaled by `strength` once it is trained.

    Training sees the whole edit. Less than 1 gives up some success for locality, and back: the
    balance can be chosen after training.
    """

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        found, state = editor.edit(params, state, problem, train)
        return (found if train or strength == 1.0 else found.scale(strength)), state

    def lifelong_edit(params: Any, state: Any, problem: Problem) -> tuple[Edit, Any]:
        found, state = editor.lifelong_edit(params, state, problem)
        return found.scale(strength), state

    return editor._replace(edit=edit, lifelong_edit=editor.lifelong_edit and lifelong_edit)


def stateless(name: str, apply: Callable[[Any], Any]) -> Link:
    """A link without parameters or state."""
    return Link(
        name, lambda key, weights: ({}, {}), lambda p, s, signal, context: (apply(signal), s)
    )


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

    def apply(params: Any, state: Any, signal: Any, context: LinkContext) -> tuple[Any, Any]:
        new_state = {}
        for link in links:
            signal, new_state[link.name] = link.apply(
                params[link.name], state[link.name], signal, context
            )
        return signal, new_state

    return Link(
        "chain",
        init,
        apply,
        tuple(rule.under(f"{link.name}/") for link in links for rule in link.sharding),
        tuple(
            part._replace(path=f"{link.name}/{part.path}".rstrip("/"))
            for link in links
            for part in link.step_sizes
        ),
    )


def factor_editor(link: Link, rows: Rows = "all") -> EditTransform:
    """An editor from a link (usually a chain) that maps factors to an Edit.

    `rows`: which tokens' factors count; see `Problem.factors`.
    """

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        return link.apply(
            params, state, problem.factors(rows=rows), LinkContext(problem.weights, train)
        )

    return EditTransform(link.init, edit, sharding=link.sharding, step_sizes=link.step_sizes)


class WeightGroup(NamedTuple):
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


def group_weights(weights: Sequence[WeightSpec], shared: bool) -> tuple[WeightGroup, ...]:
    """One group a weight shape (paper, section 3.1: parameters shared across layers), or a weight.

    Two weights of one shape but different roles (Llama's gate and up) share a group, as in the
    original code.
    """
    members: dict[str, list[WeightSpec]] = {}
    for w in weights:
        members.setdefault(f"{w.d_in}x{w.d_out}" if shared else w.name, []).append(w)
    return tuple(WeightGroup(key, tuple(ws)) for key, ws in members.items())
