"""The parts that a config names: editor, optimiser, model, the state that training starts from."""

from __future__ import annotations

import functools
from typing import Any

import jax
import ml_collections
import optax

from mend_jax.core.transform import with_strength
from mend_jax.data.encoded_rows import Lengths
from mend_jax.editors import EditTransform, make_editor
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.models.abstract_model import AbstractModel
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import (
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
    success_weight,
)


def text_lengths(config: ml_collections.ConfigDict) -> Lengths:
    c = config.data
    return Lengths(c.max_len, c.max_target, c.far_len, c.append_eos, c.template)


def build_editor(config: ml_collections.ConfigDict) -> EditTransform:
    editor = make_editor(config.editor.name, config.editor.options.to_dict())
    return with_strength(editor, config.editor.strength)


def build_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    c = config.train
    return make_optimizer(
        lr=c.lr,
        step_size_lr=c.step_size_lr,
        clip=c.clip,
        accumulate=c.accumulate,
        warmup=c.warmup,
        steps=-(-c.steps // c.accumulate),  # the schedule counts updates
        decay=c.decay,
        step_sizes=build_editor(config).step_sizes,
    )


def build_model(config: ml_collections.ConfigDict, mesh: Any = None) -> LanguageModel:
    c = config.model
    return load_model(
        c.spec,
        last_n_blocks=c.last_n_blocks,
        edit_roles=c.edit_roles,
        dtype=c.dtype,
        remat=c.remat,
        text_chunk=c.text_chunk,
        logits_chunk=c.logits_chunk,
        mesh=mesh,
    )


def build_train_step(
    config, editor, tx, model: LanguageModel | AbstractModel, shardings: Any = None
) -> TrainStep:
    """The training step of a config; see `make_train_step`."""
    c = config.train
    return make_train_step(
        editor, tx, model=model.module, weights=model.weights, c_loc=c.c_loc,
        near_share=c.near_share, edit_from_paraphrase=c.edit_from_paraphrase,
        max_non_finite_steps=c.max_non_finite_steps,
        c_edit=success_weight(c.c_edit_start, c.c_edit, c.steps), shardings=shardings,
    )  # fmt: skip


def new_state(config, editor, tx, weights) -> TrainState:
    """The state that training starts from; also tells a checkpoint's structure."""
    return init_state(editor, weights, tx, config.seed)


def abstract_state(config, editor, tx, weights) -> TrainState:
    """Shapes and dtypes of `new_state`, nothing computed."""
    return jax.eval_shape(functools.partial(new_state, config, editor, tx, weights))
