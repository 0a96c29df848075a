"""Whether an editor can work and can learn: factors, meta-gradients, a few steps, an edit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.apps.doctor.check_machine import check_memory
from mend_jax.apps.doctor.findings import Finding, any_failed, judged, skipped
from mend_jax.core.forward import scored_logits
from mend_jax.core.losses import masked_mean, token_nll
from mend_jax.core.meta_loss import token_batches
from mend_jax.core.problem import make_problem
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.data.batches import iterate_batches
from mend_jax.evaluation.evaluate_split import make_scorer
from mend_jax.io import checksums
from mend_jax.parallel.distributed import gather
from mend_jax.parallel.mesh import local_edit_numbers, shard_batch
from mend_jax.training.assembly import Experiment, build_train_step
from mend_jax.training.guards import GROUP_NORM
from mend_jax.training.step import TrainState

UPDATES = 4  # of the editor, on one batch; the network behind a zero matrix has a gradient at 3
MOST_UPDATES = 16  # where it has not learned by then
_FALL = 1e-5  # relative; sums of float32 over a batch are good to 1e-6


@functools.partial(jax.jit, static_argnames=("editor", "model", "weights"))
def _probe(
    params: Any, state: Any, base: Any, seqs: Any, *, editor: EditTransform, model: Any,
    weights: Weights,
) -> dict[str, Any]:  # fmt: skip
    """What the E edits of corrections are made of, and what they do to their targets.

    Returns:
      `before`, `after`: mean nll [E] of the targets; `deltas`: squared norms [E] by weight;
      `factors`: the largest |u| and |delta| of the rows that count, and how many those are.
    """
    problem = make_problem(model, base, weights, seqs)
    edit, _ = editor.edit(params, state, problem, False)

    def nll(logits: jax.Array) -> jax.Array:
        return masked_mean(token_nll(logits, seqs.target), seqs.score_mask, axes=(1, 2))

    found = {"before": nll(scored_logits(model, base, problem.trunk_states, seqs))}
    if editor.predictor is not None:
        after = editor.predictor.logits(params, problem, seqs, problem.trunk_states)
        return found | {"after": nll(after), "deltas": {}, "factors": {}}
    found["after"] = nll(scored_logits(model, base, problem.trunk_states, seqs, edit))
    found["deltas"] = {name: delta.squared_norm() for name, delta in edit.deltas.items()}
    found["factors"] = {
        name: {
            "u": jnp.abs(f.u * f.mask[..., None].astype(f.u.dtype)).max(),
            "delta": jnp.abs(f.delta * f.mask[..., None].astype(f.u.dtype)).max(),
            "rows": f.mask.sum(),
        }
        for name, f in problem.factors().items()
    }
    return found


def check_editor(experiment: Experiment, start: TrainState) -> Iterator[Finding]:
    """`memory`, `factors`, `gradients`, `learning` and `edit`, by the run's own programs.

    Checks behind one that failed are left out: they would fail of the same.

    Args:
      start: the state that training begins with; it stays as it is.
    """
    c, editor, model = experiment.config, experiment.editor, experiment.model
    before = checksums.array_checksums(model.params)
    step = None
    if editor.trainable and c.train.steps > 0 and jax.tree.leaves(start.params):
        step, batch = train_step_of(experiment, start), longest_batch(experiment)
        lowered = step.lower(start, model.params, batch, np.int32(1))
    else:
        batch = next(experiment.eval_batches(experiment.validation, c.eval.edits_per_step))
        batch = token_batches(shard_batch(experiment.mesh, batch))
        scorer = make_scorer(editor, model)
        lowered = scorer.lower(start.params, start.editor_state, model.params, batch)

    def probe(state: TrainState) -> dict[str, Any]:
        same = dict(editor=editor, model=model.module, weights=model.weights)
        return gather(_probe(state.params, state.editor_state, model.params, batch["edit"], **same))

    memory = check_memory("a training step" if step else "an evaluation step", lowered)
    yield memory
    if any_failed([memory]):
        return
    found = probe(start)
    factors = check_factors(found["factors"], editor)
    yield factors
    if step is None:
        why = "train.steps is 0" if editor.trainable else f"{c.editor.name} is not trained"
        yield skipped("gradients", why)
        yield skipped("learning", why)
    if any_failed([factors]):
        return
    if step is not None:
        state, seen = few_steps(experiment, step, start, batch)
        gradients = check_gradients(seen)
        yield gradients
        if any_failed([gradients]):
            return
        learning = check_learning(seen)
        yield learning
        if any_failed([learning]):
            return
        found = probe(state)
    yield check_edit(found, editor, checksums.array_checksums(model.params) == before)


def train_step_of(experiment: Experiment, state: TrainState) -> Any:
    """The run's training step, compiled once for both."""
    return build_train_step(
        experiment.config, experiment.editor, experiment.tx, experiment.model,
        jax.tree.map(lambda leaf: leaf.sharding, state),
    )  # fmt: skip


def longest_batch(experiment: Experiment) -> dict[str, Any]:
    """Return a training step's texts in the longest bucket, which takes most memory."""
    c = experiment.config
    parts = experiment.train_parts
    longest = max(parts, key=lambda part: part.texts["edit"].tokens.shape[-1])
    found = iterate_batches(
        [longest], edits_per_step=c.train.edits_per_step, edits_per_batch=c.data.edits_per_batch,
        seed=c.seed, edit_numbers=local_edit_numbers(experiment.mesh, c.train.edits_per_step),
    )  # fmt: skip
    return shard_batch(experiment.mesh, token_batches(next(found)))


def few_steps(
    experiment: Experiment, step: Any, start: TrainState, batch: Any
) -> tuple[TrainState, list[dict[str, float]]]:
    """Trains on one batch until the loss has fallen, for `UPDATES` to `MOST_UPDATES` updates.

    Running statistics begin anew at each step, so that the loss is a function of the parameters
    alone. Training that a batch cannot bear ends it, too.

    Returns:
      The state, and the metrics of each step, with the `objective` as "asked".
    """
    each = experiment.config.train.accumulate
    seen: list[dict[str, float]] = []
    state = jax.tree.map(jnp.copy, start)  # a step takes over the arrays that it is given
    for done in range(1, MOST_UPDATES * each + 2):
        fresh = jax.tree.map(jnp.copy, start.editor_state)
        state, metrics = step(
            state.replace(editor_state=fresh), experiment.model.params, batch,
            np.int32(int(start.step) + done),
        )  # fmt: skip
        found = {name: float(value) for name, value in gather(metrics).items()}
        seen.append(found | {"asked": objective(found, experiment.config.train)})
        if not seen[-1]["finite"] or (done > UPDATES * each and _fell(seen)):
            break
    return state, seen


def objective(metrics: Mapping[str, float], config: Any) -> float:
    """The meta-loss of a step with the weights of the first, which change along training."""
    success = config.c_edit_start * metrics["nll_rephrase"]
    return success + config.c_loc * metrics["kl"] + metrics.get("penalty", 0.0)


def _fell(seen: list[dict[str, float]]) -> bool:
    first, last = seen[0]["asked"], seen[-1]["asked"]
    return first - last > _FALL * abs(first)


def check_factors(factors: Mapping[str, Any], editor: EditTransform) -> Finding:
    """Whether the inner loss reaches every edited weight."""
    if editor.predictor is not None:
        return skipped("factors", "the editor changes no weight")
    problems = []
    for name, sizes in factors.items():
        u, delta, rows = (float(sizes[k]) for k in ("u", "delta", "rows"))
        if not (math.isfinite(u) and math.isfinite(delta)):
            problems.append(f"{name} has |u| {u:g}, |delta| {delta:g}")
        elif not rows:
            problems.append(f"{name} has no row with both u and delta")
    least = {k: min((float(f[k]) for f in factors.values()), default=0.0) for k in ("u", "delta")}
    measured = (
        f"of {len(factors)} weights the largest |u| is at least {least['u']:.3g}, the largest "
        f"|delta| {least['delta']:.3g}"
    )
    return judged(
        "factors", bool(factors) and not problems, "; ".join(problems) or measured,
        "non-zero and finite for every edited weight",
        "the loss of a correction does not depend on that weight, or the base is damaged: leave "
        "it out of model.edit_roles, or see `base`",
    )  # fmt: skip


def check_gradients(seen: list[dict[str, float]]) -> Finding:
    """Whether the meta-loss moves every part of the editor within a few updates.

    What stands behind a matrix that begins at zero, as V and the scales do, has its first gradient
    once that has moved; so all of them are asked after `UPDATES` updates.
    """
    by_step = [
        {k.removeprefix(GROUP_NORM): v for k, v in one.items() if k.startswith(GROUP_NORM)}
        for one in seen
    ]
    last = seen[-1]
    if not last["finite"]:
        bad = sorted(name for name, norm in by_step[-1].items() if not math.isfinite(norm))
        return judged(
            "gradients", False,
            f"step {len(seen)}: loss {last['loss']:.4g}, gradient norm {last['grad_norm']:.4g}; "
            f"not finite: {', '.join(bad) or 'the loss alone'}",
            "finite",
            "lower the step size that edits start with (editor.options.step_size), train.lr and "
            "train.step_size_lr",
        )  # fmt: skip
    most = {name: max(one[name] for one in by_step) for name in by_step[0]}
    dead = sorted(name for name, norm in most.items() if not norm)
    least = min(most, key=most.__getitem__)
    return judged(
        "gradients", not dead,
        f"{len(dead)} of {len(most)} parts have none: {', '.join(dead)}" if dead else
        f"norm {seen[0]['grad_norm']:.4g}; of {len(most)} parts the least has {least} "
        f"({most[least]:.3g})",
        "finite and non-zero for every part of the editor",
        "what stands behind a ReLU whose input is exactly 0 never moves: take "
        "`low_rank_mlp.relu_one_at_zero`, or begin off zero; leave out parameters that are not "
        "used",
    )  # fmt: skip


def check_learning(seen: list[dict[str, float]]) -> Finding:
    """Whether a few updates lower the meta-loss of one batch."""
    first, last = seen[0]["asked"], seen[-1]["asked"]
    return judged(
        "learning", _fell(seen),
        f"meta-loss {first:.4g} to {last:.4g} in {len(seen) - 1} steps on one batch",
        "a loss that falls",
        "raise train.lr and train.step_size_lr where it stands still, lower them where it rises; "
        "an editor whose edits are next to nothing needs a larger editor.options.step_size",
    )  # fmt: skip


def check_edit(found: Mapping[str, Any], editor: EditTransform, unchanged: bool) -> Finding:
    """Whether edits change the model, towards their targets, and leave the base as it was."""
    before, after = (np.asarray(found[name], np.float64) for name in ("before", "after"))
    n, moved = len(before), int((after != before).sum())
    problems = []
    if not np.isfinite(after).all():
        problems.append(f"{n - int(np.isfinite(after).sum())} edited models answer NaN")
    elif editor.predictor is None and not any(np.any(d) for d in found["deltas"].values()):
        problems.append("edits change no weight")
    elif not moved:
        problems.append(f"all {n} edited models answer as the base does")
    elif not after.mean() < before.mean():
        problems.append(
            f"edits make their targets less likely: nll {before.mean():.4g} to {after.mean():.4g}"
        )
    if not unchanged:
        problems.append("the base itself was changed")
    measured = (
        f"nll of the target {before.mean():.4g} to {after.mean():.4g} nats, likelier in "
        f"{int((after < before).sum())} of {n} edits; the base is bit for bit as it was"
    )
    return judged(
        "edit", not problems, "; ".join(problems) or measured,
        "edited models that find their targets likelier, and an unchanged base",
        "an edit has to be subtracted along the gradient (compat 'paper', a step size above 0), "
        "of weights that the model uses, with editor.strength above 0",
    )  # fmt: skip
