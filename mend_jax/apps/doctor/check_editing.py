"""Check that an editor can work and can learn: factors, meta-gradients, a few steps, an edit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from mend_jax.apps.doctor.check_machine import check_memory
from mend_jax.apps.doctor.check_result import (
    CheckResult,
    any_failed,
    make_result,
    problems_result,
    skipped,
)
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.forward import scored_logits
from mend_jax.core.gated_bank import deltas_of_edits
from mend_jax.core.losses import masked_mean, token_nll
from mend_jax.core.meta_loss import token_batches
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.batches import iterate_batches
from mend_jax.evaluation.evaluate_split import make_scorer
from mend_jax.io import checksums
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import gather
from mend_jax.parallel.mesh import local_edit_numbers, shard_batch
from mend_jax.training.assembly import Experiment, build_train_step
from mend_jax.training.guards import GROUP_NORM
from mend_jax.training.step import Batch, TrainState, TrainStep

MIN_UPDATES = 4  # on one batch; the network behind a zero matrix has a gradient at 3
MAX_UPDATES = 16  # if it has not learned by then
_MIN_FALL = 1e-5  # relative; sums of float32 over a batch are accurate to 1e-6
_OBJECTIVE = "objective"


class FactorSizes(TypedDict):
    """The largest |u| and |delta| of the rows in the mask, and the number of these rows."""

    u: Float[Array, ""]
    delta: Float[Array, ""]
    rows: Int[Array, ""]


class EditMeasurements(TypedDict):
    """The measurements of E edits.

    `before`, `after`: mean nll of the targets; `deltas`: squared norms by weight, `factors`:
    their sizes by weight.
    """

    before: Float[Array, " E"]
    after: Float[Array, " E"]
    deltas: dict[str, Float[Array, " E"]]
    factors: dict[str, FactorSizes]


@functools.partial(jax.jit, static_argnames=("editor", "model", "weights"))
def _edit_and_measure(
    params: EditorParams,
    state: EditorState,
    base: Params,
    facts: TokenBatch,
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
) -> EditMeasurements:
    """Make E edits, and measure their factors and their effect on the targets."""
    problem = make_problem(model, base, weights, facts)
    edit, _ = editor.edit(params, state, problem, False)

    def nll(logits: Float[Array, "E n S V"]) -> Float[Array, " E"]:
        return masked_mean(token_nll(logits, facts.target), facts.score_mask, axes=(1, 2))

    before = nll(scored_logits(model, base, problem.trunk_states, facts))
    if editor.predictor is not None:
        after = nll(editor.predictor.logits(params, problem, facts, problem.trunk_states))
        return {"before": before, "after": after, "deltas": {}, "factors": {}}
    return {
        "before": before,
        "after": nll(scored_logits(model, base, problem.trunk_states, facts, edit)),
        "deltas": {name: delta.squared_norm() for name, delta in deltas_of_edits(edit).items()},
        "factors": {
            name: {
                "u": jnp.abs(f.u * f.mask[..., None].astype(f.u.dtype)).max(),
                "delta": jnp.abs(f.delta * f.mask[..., None].astype(f.u.dtype)).max(),
                "rows": f.mask.sum(),
            }
            for name, f in problem.factors().items()
        },
    }


def check_editor(experiment: Experiment, start: TrainState) -> Iterator[CheckResult]:
    """Check `memory`, `factors`, `gradients`, `learning` and `edit`, with the run's own programs.

    A failure ends the sequence: the later checks would fail for the same reason.

    Args:
      start: the state that training begins with; it is not modified.
    """
    c, editor, model = experiment.config, experiment.editor, experiment.model
    checksums_before = checksums.array_checksums(model.params)
    trains = editor.trainable and c.train.steps > 0 and bool(jax.tree.leaves(start.params))
    if trains:
        step, batch = jitted_train_step(experiment, start), longest_batch(experiment)
        lowered = step.lower(start, model.params, batch, np.int32(1))
    else:
        batch = next(experiment.eval_batches(experiment.validation, c.eval.edits_per_step))
        batch = token_batches(shard_batch(experiment.mesh, batch))
        scorer = cast(jax.stages.Wrapped, make_scorer(editor, model))
        lowered = scorer.lower(start.params, start.editor_state, model.params, batch)
    measure = functools.partial(
        _edit_and_measure, editor=editor, model=model.module, weights=model.weights
    )

    memory = check_memory("a training step" if trains else "an evaluation step", lowered)
    yield memory
    if any_failed([memory]):
        return
    measured = gather(measure(start.params, start.editor_state, model.params, batch["edit"]))
    factors = check_factors(measured["factors"], editor)
    yield factors
    if not trains:
        reason = "train.steps is 0" if editor.trainable else f"{c.editor.name} is not trained"
        yield skipped("gradients", reason)
        yield skipped("learning", reason)
    if any_failed([factors]):
        return
    if trains:
        state, metrics = train_on_one_batch(experiment, step, start, batch)
        for check in (check_gradients, check_learning):
            result = check(metrics)
            yield result
            if any_failed([result]):
                return
        measured = gather(measure(state.params, state.editor_state, model.params, batch["edit"]))
    unchanged = checksums.array_checksums(model.params) == checksums_before
    yield check_edit(measured, editor, unchanged)


def jitted_train_step(experiment: Experiment, state: TrainState) -> jax.stages.Wrapped:
    """Return the run's training step; the run reuses its compilation."""
    step = build_train_step(
        experiment.config, experiment.editor, experiment.tx, experiment.model,
        jax.tree.map(lambda leaf: leaf.sharding, state),
    )  # fmt: skip
    return cast(jax.stages.Wrapped, step)


def longest_batch(experiment: Experiment) -> Batch:
    """Return a training step's texts in the longest bucket, which needs most memory."""
    c = experiment.config
    longest = max(experiment.train_parts, key=lambda part: part.texts["edit"].tokens.shape[-1])
    batches = iterate_batches(
        [longest], edits_per_step=c.train.edits_per_step, edits_per_batch=c.data.edits_per_batch,
        seed=c.seed, edit_numbers=local_edit_numbers(experiment.mesh, c.train.edits_per_step),
    )  # fmt: skip
    return shard_batch(experiment.mesh, token_batches(next(batches)))


def train_on_one_batch(
    experiment: Experiment, step: TrainStep | jax.stages.Wrapped, start: TrainState, batch: Batch
) -> tuple[TrainState, list[dict[str, float]]]:
    """Train on one batch until the loss has fallen, for `MIN_UPDATES` to `MAX_UPDATES` updates.

    Running statistics are reset before each step, so that the loss depends on the parameters
    alone. A step that is not finite ends the training.

    Returns:
      The state, and the metrics of each step with its `objective`.
    """
    accumulate = experiment.config.train.accumulate
    history: list[dict[str, float]] = []
    state = jax.tree.map(jnp.copy, start)  # a step donates its arguments
    for number in range(1, MAX_UPDATES * accumulate + 2):
        statistics = jax.tree.map(jnp.copy, start.editor_state)
        state, metrics = step(
            state.replace(editor_state=statistics), experiment.model.params, batch,
            np.int32(int(start.step) + number),
        )  # fmt: skip
        values = {name: float(value) for name, value in gather(metrics).items()}
        history.append(values | {_OBJECTIVE: objective(values, experiment.config.train)})
        if not values["finite"] or (number > MIN_UPDATES * accumulate and _loss_fell(history)):
            break
    return state, history


def objective(metrics: Mapping[str, float], train_config: ConfigDict) -> float:
    """Return a step's meta-loss with the weights of the first step; training changes them."""
    chat = train_config.c_chat * metrics.get("nll_chat", 0.0)
    hops = train_config.c_hops * metrics.get("nll_hops", 0.0)
    success = train_config.c_edit_start * (metrics["nll_rephrase"] + chat + hops)
    after = train_config.c_after * metrics.get("kl_after", 0.0)
    return success + train_config.c_loc * metrics["kl"] + after + metrics.get("penalty", 0.0)


def _loss_fell(history: Sequence[Mapping[str, float]]) -> bool:
    first, last = history[0][_OBJECTIVE], history[-1][_OBJECTIVE]
    return first - last > _MIN_FALL * abs(first)


def check_factors(factors: Mapping[str, FactorSizes], editor: EditTransform) -> CheckResult:
    """Check that the inner loss reaches every edited weight."""
    if editor.predictor is not None:
        return skipped("factors", "the editor changes no weight")
    problems = [] if factors else ["there are no edited weights"]
    for name, sizes in factors.items():
        u, delta, rows = float(sizes["u"]), float(sizes["delta"]), int(sizes["rows"])
        if not (math.isfinite(u) and math.isfinite(delta)):
            problems.append(f"{name} has |u| {u:g}, |delta| {delta:g}")
        elif not rows:
            problems.append(f"{name} has no row with both u and delta")
    least_u = min((float(f["u"]) for f in factors.values()), default=0.0)
    least_delta = min((float(f["delta"]) for f in factors.values()), default=0.0)
    return problems_result(
        "factors", problems,
        f"of {len(factors)} weights the largest |u| is at least {least_u:.3g}, the largest "
        f"|delta| {least_delta:.3g}",
        "non-zero and finite for every edited weight",
        "the loss of a correction does not depend on that weight, or the base is damaged: leave "
        "the weight out of model.edit_roles, or see `base`",
    )  # fmt: skip


def check_gradients(history: Sequence[Mapping[str, float]]) -> CheckResult:
    """Check that the meta-loss moves every part of the editor within a few updates.

    A part behind a matrix that starts at zero, such as V and the scales, has no gradient until that
    matrix has moved; so the check looks at all `MIN_UPDATES` updates.
    """
    norms = [
        {k.removeprefix(GROUP_NORM): v for k, v in metrics.items() if k.startswith(GROUP_NORM)}
        for metrics in history
    ]
    last = history[-1]
    if not last["finite"]:
        parts = sorted(name for name, norm in norms[-1].items() if not math.isfinite(norm))
        return make_result(
            "gradients", False,
            f"step {len(history)}: loss {last['loss']:.4g}, gradient norm {last['grad_norm']:.4g}; "
            f"not finite: {', '.join(parts) or 'the loss alone'}",
            "finite",
            "lower the step size that edits start with (editor.options.step_size), train.lr and "
            "train.step_size_lr",
        )  # fmt: skip
    largest = {name: max(step[name] for step in norms) for name in norms[0]}
    dead = sorted(name for name, norm in largest.items() if not norm)
    least = min(largest, key=largest.__getitem__)
    return problems_result(
        "gradients",
        [f"{len(dead)} of {len(largest)} parts have none: {', '.join(dead)}"] if dead else [],
        f"norm {history[0]['grad_norm']:.4g}; the smallest of {len(largest)} parts is {least} "
        f"({largest[least]:.3g})",
        "finite and non-zero for every part of the editor",
        "parameters behind a ReLU whose input is exactly 0 never move: use "
        "`low_rank_mlp.relu_one_at_zero`, or initialise away from zero; remove unused parameters",
    )  # fmt: skip


def check_learning(history: Sequence[Mapping[str, float]]) -> CheckResult:
    """Check that a few updates lower the meta-loss of one batch."""
    first, last = history[0][_OBJECTIVE], history[-1][_OBJECTIVE]
    return make_result(
        "learning", _loss_fell(history),
        f"meta-loss {first:.4g} to {last:.4g} in {len(history) - 1} steps on one batch",
        "a falling loss",
        "raise train.lr and train.step_size_lr if it does not change, lower them if it rises; "
        "an editor whose edits are almost zero needs a larger editor.options.step_size",
    )  # fmt: skip


def check_edit(measured: EditMeasurements, editor: EditTransform, unchanged: bool) -> CheckResult:
    """Check that edits move the model toward their targets and leave the base unchanged."""
    before = np.asarray(measured["before"], np.float64)
    after = np.asarray(measured["after"], np.float64)
    n, n_finite = len(before), int(np.isfinite(after).sum())
    problems = []
    if n_finite < n:
        problems.append(f"{n - n_finite} edited models answer NaN")
    elif editor.predictor is None and not any(np.any(d) for d in measured["deltas"].values()):
        problems.append("edits change no weight")
    elif not (after != before).any():
        problems.append(f"all {n} edited models answer as the base does")
    elif not after.mean() < before.mean():
        problems.append(
            f"edits make their targets less likely: nll {before.mean():.4g} to {after.mean():.4g}"
        )
    if not unchanged:
        problems.append("the base itself was changed")
    return problems_result(
        "edit", problems,
        f"nll of the target {before.mean():.4g} to {after.mean():.4g} nats, likelier in "
        f"{int((after < before).sum())} of {n} edits; the base is bitwise unchanged",
        "edited models that find their targets likelier, and an unchanged base",
        "subtract the edit along the gradient (compat 'paper', a step size above 0), of weights "
        "that the model uses, with editor.strength above 0",
    )  # fmt: skip
