"""The editor protocol, in the manner of Optax: pairs of pure functions, and chains of links.

An *editor* turns E requested corrections (a `Problem`) into E independent edits. A *link* is one
step of a factor editor: it maps a signal to a signal. The first signal is the factors of the inner
loss by weight name, the last an `Edit`. Learned parameters and running state (statistics) are
arguments and results. Every leaf of a signal may have leading axes (E), so no editor needs a vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.forward import TextsWithStates, TrunkStates
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.models import WeightSpec
from mend_jax.parallel.sharding import OPTIMIZER_RULES, Rule

Weights = tuple[WeightSpec, ...]
EditorParams = Any
"""An editor's learned parameters, a pytree; of a chain, a dict by link name."""
EditorState = Any
"""An editor's running statistics, a pytree; of a chain, a dict by link name."""
Signal = Any
"""What links pass on: dicts by weight name (`Factors` first), and at the end an `Edit`."""


class LinkContext(NamedTuple):
    """The static facts of one application of a link.

    Attributes:
      weights: the edited weights, in edit order (a dict's order is lost under jit).
      train: whether running statistics are updated.
      rows_counted: whether the statistics already include these rows.
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
      name: key of its parameters and state in those of the chain.
      init: (key, weights) -> (params, state); both may be empty dicts.
      apply: (params, state, signal, context) -> (signal, state); the state changes only if
        `context.train`.
      sharding: rules for its parameters and state, by key paths within them. Scalars need none.
      step_sizes: which of its parameters are step sizes.
    """

    name: str
    init: Callable[[jax.Array, Weights], tuple[EditorParams, EditorState]]
    apply: Callable[[EditorParams, EditorState, Signal, LinkContext], tuple[Signal, EditorState]]
    sharding: tuple[Rule, ...] = ()
    step_sizes: tuple[StepSizes, ...] = ()


class SequentialTraining(NamedTuple):
    """How to train an editor on sequential edits; see `sequential_loss`.

    Attributes:
      depth: how many corrections, the newest and those before it, the loss of an edit includes.
      decay: factor of a correction's weight in that loss, per edit made since.
      reg: weight of the squared norm of each edit.
    """

    depth: int
    decay: float
    reg: float


class ThresholdTuning(NamedTuple):
    """How an editor without training chooses open options on validation rows.

    Attributes:
      observe: (params, problem, texts) -> arrays [E, n, ...] to choose by; texts are the sets of
        a batch by name, each with its trunk states.
      choose: (params, state, observed) -> (params, state), on the host, from the observations of
        all rows [N, ...].
      summary: (params, state) -> the entry of results.json.
    """

    observe: Callable[[EditorParams, Problem, Mapping[str, TextsWithStates]], Any]
    choose: Callable[[EditorParams, EditorState, Any], tuple[EditorParams, EditorState]]
    summary: Callable[[EditorParams, EditorState], dict[str, Any]]


class Predictor(NamedTuple):
    """How a baseline without weight edits predicts texts, with the corrections beside the base.

    Attributes:
      logits: (params, problem, texts, trunk states of texts) -> [E, n, S, V] at the scored
        positions of texts [E, n], each given the corrections of its edit.
      generate: (params, problem, texts, max_new, eos_id) -> int32[E, n, max_new], free greedy
        continuations of the prompts of texts [E, n] (the tokens before the first scored one).
    """

    logits: Callable[[EditorParams, Problem, TokenBatch, TrunkStates], Float[Array, "E n S V"]]
    generate: Callable[[EditorParams, Problem, TokenBatch, int, int], Int[Array, "E n max_new"]]


class EditTransform(NamedTuple):
    """A whole editor.

    Attributes:
      init: (key, weights) -> (params, state).
      edit: (params, state, problem, train) -> (Edit with leading axis E, state).
      trainable: whether training steps learn `params` (or gather `state`).
      calibrate: (params, state, problem) -> state, or None. An editor that needs ordinary texts
        first (for covariances, for what to keep) receives training texts before it edits, as the
        corrections of a Problem in which every token is scored. Never in a training step.
      finish_calibration: (params, state) -> state, once after the last of those texts, or None.
      calibrate_on: which texts of training rows those are; "edit" are other corrections.
      penalty: (params, edits with axis E, locality_kl) -> scalar, or None: an additional term of
        the meta-loss. locality_kl(edits with axis E) is the locality KL of any edits of the batch.
      lifelong_edit: (params, state, problem) -> (Edit, state), or None. For lifelong editors, whose
        state accumulates the corrections of sequential edits: the edit of `edit` outside of
        training, and the state after it.
      sequential_training: training steps make sequential edits of one model; None: independent
        edits.
      predictor: how a baseline that changes no weight (its Edit has no deltas) predicts texts;
        None: the base model under the Edit does.
      tuning: how options are chosen on validation rows before editing; None: nothing to choose.
      at_subject: whether it edits at the last token of a fact's subject, and so needs one.
      sharding, step_sizes: as of `Link`, for the whole editor.
    """

    init: Callable[[jax.Array, Weights], tuple[EditorParams, EditorState]]
    edit: Callable[[EditorParams, EditorState, Problem, bool], tuple[Edit, EditorState]]
    trainable: bool = True
    calibrate: Callable[[EditorParams, EditorState, Problem], EditorState] | None = None
    finish_calibration: Callable[[EditorParams, EditorState], EditorState] | None = None
    calibrate_on: Literal["far", "edit"] = "far"
    penalty: (
        Callable[[EditorParams, Edit, Callable[[Edit], Float[Array, ""]]], Float[Array, ""]] | None
    ) = None
    lifelong_edit: (
        Callable[[EditorParams, EditorState, Problem], tuple[Edit, EditorState]] | None
    ) = None
    sequential_training: SequentialTraining | None = None
    predictor: Predictor | None = None
    tuning: ThresholdTuning | None = None
    at_subject: bool = False
    sharding: tuple[Rule, ...] = ()
    step_sizes: tuple[StepSizes, ...] = ()

    @property
    def sharding_rules(self) -> tuple[Rule, ...]:
        """Rules for parameters, state and the optimiser state, wherever a tree holds them."""
        return (*(rule.under("(.*/)?") for rule in self.sharding), *OPTIMIZER_RULES)


@functools.cache
def with_strength(editor: EditTransform, strength: float) -> EditTransform:
    """Return the editor with the edits of a trained editor scaled by `strength`.

    Training uses the whole edit. A strength below 1 trades success for locality, one above 1 the
    reverse: the balance can be chosen after training.
    """
    lifelong = editor.lifelong_edit

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        whole, state = editor.edit(params, state, problem, train)
        return (whole if train or strength == 1.0 else whole.scale(strength)), state

    if lifelong is None:
        return editor._replace(edit=edit)

    def lifelong_edit(
        params: EditorParams, state: EditorState, problem: Problem
    ) -> tuple[Edit, EditorState]:
        whole, state = lifelong(params, state, problem)
        return whole.scale(strength), state

    return editor._replace(edit=edit, lifelong_edit=lifelong_edit)


def stateless(name: str, apply: Callable[[Signal], Signal]) -> Link:
    """Return a link without parameters or state."""
    return Link(
        name, lambda key, weights: ({}, {}), lambda p, s, signal, context: (apply(signal), s)
    )


def chain(*links: Link) -> Link:
    """Return one link that applies the links in order; params and state are dicts by link name."""
    names = [link.name for link in links]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"links of a chain need different names; repeated: {repeated}")

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        keys = jax.random.split(key, max(len(links), 1))
        pairs = {link.name: link.init(k, weights) for link, k in zip(links, keys, strict=True)}
        params = {name: p for name, (p, _) in pairs.items()}
        return params, {name: s for name, (_, s) in pairs.items()}

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
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
    """Return an editor from a link (usually a chain) that maps factors to an Edit.

    `rows`: which tokens' factors it receives; see `Problem.factors`.
    """

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        context = LinkContext(problem.weights, train)
        return link.apply(params, state, problem.factors(rows=rows), context)

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
    """Return one group per weight shape (paper, section 3.1), or per weight if not `shared`.

    Two weights of one shape but different roles (Llama's gate and up) share a group, as in the
    original code.
    """
    members: dict[str, list[WeightSpec]] = {}
    for w in weights:
        members.setdefault(f"{w.d_in}x{w.d_out}" if shared else w.name, []).append(w)
    return tuple(WeightGroup(key, tuple(ws)) for key, ws in members.items())
