"""Learns the scope of a base: which texts have a fact's question and its subject.

The trunk runs once over the texts (`scope_states`); then two projections are trained on stored
states (`scope.Scope`). To the question belong all facts of a relation in all wordings, against
other relations and other questions about the same subject. To the subject belong a fact's wordings
and other questions about it, against the same question about other subjects.

Then three thresholds are chosen from validation facts: of the question, of the subject, and a lower
one of the subject for texts that mention it. The weight of a mention is the difference of the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mend_jax.core.contrastive_loss import ScopePositions, contrastive_loss
from mend_jax.core.factors import moments_of_rows
from mend_jax.core.match_threshold import MatchThreshold
from mend_jax.core.scope import (
    HEADS,
    Projection,
    Scope,
    first_site,
    init_projection,
    raw_projection,
)
from mend_jax.core.scope_file import LearnedScope
from mend_jax.data.keyed_random import key_rng
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.training.scope_batches import HostPositions, question_batch, subject_batch
from mend_jax.training.scope_options import ScopeData, ScopeOptions, spread_over_relations
from mend_jax.training.scope_states import FactStates, StateReader, fact_states
from mend_jax.training.scope_thresholds import (
    Thresholds,
    choose_thresholds,
    join_scores,
    match_rates,
    validation_scores,
)


def learn_scope(
    model: LanguageModel,
    data: Sequence[ScopeData],
    options: ScopeOptions = ScopeOptions(),  # noqa: B008 (frozen)
) -> LearnedScope:
    """Return a scope learned on training rows, with thresholds from validation rows.

    Args:
      model: the base, loaded with the blocks that editors change; the scope reads the states below.
      data: of one or several data sets; every step is of one of them, in turn.

    Raises:
      DataError: too few facts in two wordings, or no neighbour among the validation rows.
    """
    site = first_site(model.module)
    states = []
    for one in data:
        chosen = spread_over_relations(one.train, options.facts, options.seed)
        reader = StateReader(model, site, one.lengths)
        states.append(
            fact_states(reader, chosen, one.train, options.wordings, one.plain_texts, options.seed)
        )
    heads, losses = train_heads(states, options)
    scope = Scope(**heads, site=site, base=model.fingerprint)
    scores = join_scores(
        validation_scores(StateReader(model, site, one.lengths), scope, one, options)
        for one in data
    )
    thresholds = choose_thresholds(scores, options)
    cosines = thresholds.subject.threshold, thresholds.question.threshold
    description = _description(options, losses, thresholds, match_rates(scores, thresholds))
    return LearnedScope(scope, cosines, thresholds.mention, description)


def _description(
    options: ScopeOptions,
    losses: Mapping[str, Sequence[float]],
    thresholds: Thresholds,
    rates: Mapping[str, float],
) -> dict[str, Any]:
    def described(found: MatchThreshold | None) -> dict[str, Any] | None:
        if found is None:
            return None
        values = found._asdict()
        return values | {"found": None if found.found != found.found else found.found}  # no nan

    return {
        "options": vars(options),
        "loss": {head: [*values[:1], *values[-1:]] for head, values in losses.items()},
        "matches": dict(rates),
        "thresholds": {
            name: described(getattr(thresholds, name))
            for name in ("question", "subject", "mentioned")
        },
    }


def train_heads(
    data: Sequence[FactStates], options: ScopeOptions
) -> tuple[dict[str, Projection], dict[str, list[float]]]:
    """Return the projections trained with the contrastive loss, and the losses of all steps."""
    heads, losses = {}, {}
    for half, (head, batch) in enumerate(zip(HEADS, (subject_batch, question_batch), strict=True)):
        heads[head], losses[head] = _train(data, options, head, half, batch)
    return heads, losses


def _train(
    data: Sequence[FactStates],
    options: ScopeOptions,
    head: str,
    half: int,
    batch: Callable[..., HostPositions],
) -> tuple[Projection, list[float]]:
    """Return a projection of one half of the states."""
    width = data[0].z.shape[-1] // 2
    part = slice(half * width, (half + 1) * width)
    scored = np.concatenate([states.z[states.mask][:, part] for states in data])
    moments = moments_of_rows(jnp.asarray(scored), jnp.ones(len(scored), bool))
    if not options.steps:
        return raw_projection(moments), []
    f = init_projection(jax.random.key(options.seed), width, moments=moments)
    schedule = optax.cosine_decay_schedule(options.lr, options.steps)
    tx = optax.adamw(schedule, weight_decay=options.weight_decay)

    @jax.jit
    def step(
        f: Projection, opt_state: Any, positions: ScopePositions
    ) -> tuple[Projection, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(contrastive_loss)(f, positions, options.temperature)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32
            updates, opt_state = tx.update(gradient, opt_state, f)
        trained: Projection = optax.apply_updates(f, updates)
        # They are no parameters: weight decay would shrink them.
        return dataclasses.replace(trained, center=f.center, spread=f.spread), opt_state, loss

    opt_state, losses = tx.init(f), []
    progress, rng = Progress(f"scope, {head}", options.steps), key_rng("scope", head, options.seed)
    for number in range(options.steps):
        found = batch(data[number % len(data)], options, rng)
        positions = ScopePositions(
            jnp.asarray(found.z[:, part]), jnp.asarray(found.fact), jnp.asarray(found.place),
            jnp.asarray(found.mask),
        )  # fmt: skip
        f, opt_state, loss = step(f, opt_state, positions)
        losses.append(float(loss))
        progress.update(number + 1, f"loss {np.mean(losses[-50:]):.3f}")
    progress.update(options.steps, f"loss {np.mean(losses[-50:]):.3f}", force=True)
    return f, losses
