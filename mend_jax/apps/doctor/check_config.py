"""Whether a config makes sense beyond its types and ranges, and the weights that it asks for."""

from __future__ import annotations

import ml_collections

from mend_jax import hub
from mend_jax.apps.doctor.findings import Finding, judged
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError, WeightsError
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.models.abstract_model import AbstractModel, abstract_model
from mend_jax.training.assembly import build_editor
from mend_jax.training.config_schema import check

_OF_PASSES = ("editor", "edits", "edits_per_step", "sequential")  # options that no editor takes


def check_config(config: ml_collections.ConfigDict) -> Finding:
    """The keys by `schema.check`, every editor by its options, and the schedule.

    Raises:
      ConfigError: keys or options that cannot be used.
    """
    check(config)
    editor = build_editor(config)
    for name, options in config.eval.baselines.items():
        known = {k: v for k, v in options.to_dict().items() if k not in _OF_PASSES}
        make_editor(options.get("editor", name), known)
    problems = schedule_problems(config) if editor.trainable else []
    if config.editor.strength == 0:
        problems.append("editor.strength is 0, so that every edit is nothing: give it more than 0")
    c = config.train
    measured = (
        f"{c.steps} steps of {c.edits_per_step} edits, validation every {c.val_every}, checkpoint "
        f"every {c.checkpoint_every}"
    )
    return judged(
        "config", not problems, "; ".join(problems) or measured,
        "a schedule under which training moves, is judged and is saved", "change the keys named",
    )  # fmt: skip


def schedule_problems(config: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with the schedule of a config whose keys are in range."""
    c, problems = config.train, []
    if c.steps == 0:
        return []
    if c.accumulate > c.steps:
        problems.append(
            f"train.accumulate is {c.accumulate}, more than the {c.steps} steps: nothing is learned"
        )
    updates = c.steps // c.accumulate
    if c.warmup and c.warmup >= updates:
        problems.append(
            f"train.warmup is {c.warmup} of {updates} updates: the rate never reaches train.lr"
        )
    if c.log_every > c.steps:
        problems.append(f"train.log_every is {c.log_every} of {c.steps} steps: no line is logged")
    if c.keep_checkpoint == "best" and c.val_every > c.steps:
        problems.append(
            f"train.val_every is {c.val_every} of {c.steps} steps: there is no best of one"
        )
    if 0 < c.patience < c.val_every:
        problems.append(
            f"train.patience is {c.patience}, less than train.val_every {c.val_every}: training "
            "stops at the first validation that is no better"
        )
    return problems


def sketch(config: ml_collections.ConfigDict) -> AbstractModel:
    """The base without its weights.

    Raises:
      WeightsError: it cannot be found or read.
      ConfigError: it lacks the blocks or roles that are to be edited.
    """
    c = config.model
    published = PUBLISHED.get(c.spec)
    hf_config = published if published is not None else hub.read_config(hub.resolve(c.spec))
    return abstract_model(
        hf_config, c.last_n_blocks, c.edit_roles, c.dtype, c.remat, c.text_chunk, c.logits_chunk
    )


def check_weights(config: ml_collections.ConfigDict) -> Finding:
    """The edited weights, by the base's own config.

    Raises:
      ConfigError: there is no such block or role.
      WeightsError: the base cannot be found or read.
    """
    found = sketch(config)
    shapes, c = found.shapes(), config.model
    problems = []
    for w in found.weights:
        shape = shapes.get(f"{w.name}/kernel")
        if shape != (w.d_in, w.d_out):
            problems.append(f"{w.name} has shape {shape}, not {(w.d_in, w.d_out)}")
    per_stack = {stack: {w.block for w in found.weights if w.stack == stack}
                 for stack in {w.stack for w in found.weights}}  # fmt: skip
    problems += [
        f"{len(blocks)} blocks of {stack} are edited, model.last_n_blocks is {c.last_n_blocks}"
        for stack, blocks in per_stack.items() if len(blocks) != c.last_n_blocks
    ]  # fmt: skip
    roles = sorted({w.role for w in found.weights})
    first, last = found.weights[0].name, found.weights[-1].name
    measured = f"{len(found.weights)} weights, {first} to {last}: {', '.join(roles)}"
    return judged(
        "weights", not problems, "; ".join(problems) or measured,
        f"the last {c.last_n_blocks} blocks of each stack, in the shapes of the base",
        "set model.last_n_blocks and model.edit_roles to what the base has",
    )  # fmt: skip


def check_of(error: ConfigError | WeightsError | Exception) -> str:
    """The check that an error in loading belongs to."""
    if isinstance(error, ConfigError):
        return "config"
    return "base" if isinstance(error, WeightsError) else "data"
