"""Check that a config makes sense beyond types and ranges, and that its edited weights exist."""

from __future__ import annotations

from ml_collections import ConfigDict

from mend_jax import hub
from mend_jax.apps.doctor.check_result import CheckResult, problems_result
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError, WeightsError
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.models.abstract_model import AbstractModel, abstract_model
from mend_jax.training.assembly import build_editor
from mend_jax.training.config_check import check_editing_config

_PASS_OPTIONS = ("editor", "edits", "edits_per_step", "sequential")
"""Options of a baseline's evaluation, not of its editor."""


def check_config(config: ConfigDict) -> CheckResult:
    """Check keys, the options of every editor, and the schedule.

    Raises:
      ConfigError: keys or options that cannot be used.
    """
    check_editing_config(config)
    editor = build_editor(config)
    for name, options in config.eval.baselines.items():
        editor_options = {k: v for k, v in options.to_dict().items() if k not in _PASS_OPTIONS}
        make_editor(options.get("editor", name), editor_options)
    problems = schedule_problems(config) if editor.trainable else []
    if config.editor.strength == 0:
        problems.append("editor.strength is 0, so that every edit is zero: set it above 0")
    c = config.train
    return problems_result(
        "config", problems,
        f"{c.steps} steps of {c.edits_per_step} edits, validation every {c.val_every}, checkpoint "
        f"every {c.checkpoint_every}",
        "a schedule that trains, validates and saves", "change the keys named",
    )  # fmt: skip


def schedule_problems(config: ConfigDict) -> list[str]:
    """Return the problems of a schedule whose keys are in range."""
    c = config.train
    if c.steps == 0:
        return []
    updates = c.steps // c.accumulate
    problems = {
        f"train.accumulate is {c.accumulate}, more than the {c.steps} steps: nothing is learned": (
            c.accumulate > c.steps
        ),
        f"train.warmup is {c.warmup} of {updates} updates: the rate never reaches train.lr": (
            c.warmup and c.warmup >= updates
        ),
        f"train.log_every is {c.log_every} of {c.steps} steps: no line is logged": (
            c.log_every > c.steps
        ),
        f"train.val_every is {c.val_every} of {c.steps} steps: no checkpoint can be the best": (
            c.keep_checkpoint == "best" and c.val_every > c.steps
        ),
        f"train.patience is {c.patience}, less than train.val_every {c.val_every}: training "
        "stops at the first validation without improvement": 0 < c.patience < c.val_every,
    }
    return [text for text, applies in problems.items() if applies]


def abstract_base(config: ConfigDict) -> AbstractModel:
    """Return the base without its weights.

    Raises:
      WeightsError: the base cannot be found or read.
      ConfigError: it lacks the blocks or roles to edit.
    """
    c = config.model
    published = PUBLISHED.get(c.spec)
    hf_config = published if published is not None else hub.read_model_config(hub.resolve(c.spec))
    return abstract_model(
        hf_config,
        c.last_n_blocks,
        c.edit_roles,
        c.dtype,
        c.remat,
        c.text_chunk,
        c.logits_chunk,
        c.trunk_products,
    )


def check_weights(config: ConfigDict) -> CheckResult:
    """Check the edited weights against the base's own config.

    Raises:
      ConfigError: there is no such block or role.
      WeightsError: the base cannot be found or read.
    """
    base, c = abstract_base(config), config.model
    shapes, weights = base.shapes(), base.weights
    problems = []
    for w in weights:
        shape = shapes.get(f"{w.name}/kernel")
        if shape != (w.d_in, w.d_out):
            problems.append(f"{w.name} has shape {shape}, not {(w.d_in, w.d_out)}")
    for stack in sorted({w.stack for w in weights}):
        n_blocks = len({w.block for w in weights if w.stack == stack})
        if n_blocks != c.last_n_blocks:
            problems.append(
                f"{n_blocks} blocks of {stack} are edited, model.last_n_blocks is {c.last_n_blocks}"
            )
    roles = ", ".join(sorted({w.role for w in weights}))
    return problems_result(
        "weights", problems,
        f"{len(weights)} weights, {weights[0].name} to {weights[-1].name}: {roles}",
        f"the last {c.last_n_blocks} blocks of each stack, in the shapes of the base",
        "set model.last_n_blocks and model.edit_roles to what the base has",
    )  # fmt: skip


def failed_check_name(error: Exception) -> str:
    """Return the name of the check that an error while loading belongs to."""
    if isinstance(error, ConfigError):
        return "config"
    return "base" if isinstance(error, WeightsError) else "data"
