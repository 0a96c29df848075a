"""From a config to the things a run is made of: model, editor, optimiser, mesh, encoded data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from mend_jax import config as configs
from mend_jax import data
from mend_jax.data.encode import thin
from mend_jax.data.forms import form_of, positions_needed
from mend_jax.data.pipeline import EncodedRows, Lengths, batches, encode_rows
from mend_jax.editors import EditTransform, make_editor
from mend_jax.editors.base import with_strength
from mend_jax.errors import ConfigError
from mend_jax.language_model import LanguageModel, load_model
from mend_jax.mesh import batch_axis_size, local_edits, make_mesh
from mend_jax.optimizer import make_optimizer
from mend_jax.schema import check
from mend_jax.sharding import EDITOR_RULES, place
from mend_jax.train import TrainState, init_state

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """Some rows of a split and their tokens."""

    rows: Sequence[Row]
    encoded: EncodedRows

    def __len__(self) -> int:
        return len(self.encoded)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run needs and that does not change while it runs."""

    config: ml_collections.ConfigDict
    model: LanguageModel
    editor: EditTransform
    tx: optax.GradientTransformation
    mesh: Any
    dataset: data.DataSet
    train: Split
    validation: Split
    test: Split

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        return {
            **base_identity(self.model),
            "data": self.dataset.fingerprint,
            "config": configs.plain(self.config),
        }

    def fresh_state(self) -> TrainState:
        return place(
            self.mesh,
            new_state(self.config, self.editor, self.tx, self.model.weights),
            EDITOR_RULES,
        )

    def subset(self, split: Split, count: int) -> Split:
        """`count` edits of a split (0: all), chosen by a fixed shuffle."""
        keep = choose_rows([split.rows[int(i)] for i in split.encoded.index], count)
        encoded = encode_rows(
            keep, self.model.tokenizer, lengths_of(self.config), form_of(self.model.module)
        )
        return Split(keep, encoded)

    def train_batches(self) -> Any:
        """An endless, shuffled, resumable iterator over this process's part of each step."""
        c = self.config
        return batches(
            self.train.encoded,
            edits_per_step=c.train.edits_per_step,
            edits_per_batch=c.data.edits_per_batch,
            seed=c.seed,
            mine=local_edits(self.mesh, c.train.edits_per_step),
        )

    def eval_batches(self, split: Split, edits_per_step: int) -> Any:
        """One pass over a split, in order, the last batch filled up and marked."""
        return batches(
            split.encoded,
            edits_per_step=edits_per_step,
            edits_per_batch=self.config.data.edits_per_batch,
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
            mine=local_edits(self.mesh, edits_per_step),
        )


def lengths_of(config: ml_collections.ConfigDict) -> Lengths:
    c = config.data
    return Lengths(c.max_len, c.max_target, c.far_len, c.append_eos)


def base_identity(model: LanguageModel) -> dict[str, Any]:
    """What an editor and its base must agree on."""
    return {
        "base": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "weights": [w.name for w in model.weights],
    }


def build_editor(config: ml_collections.ConfigDict) -> EditTransform:
    editor = make_editor(config.editor.name, config.editor.options.to_dict())
    return with_strength(editor, config.editor.strength)


def build_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    c = config.train
    return make_optimizer(
        lr=c.lr,
        layer_lr_lr=c.layer_lr_lr,
        clip=c.clip,
        accumulate=c.accumulate,
        warmup=c.warmup,
        steps=-(-c.steps // c.accumulate),  # the schedule counts updates
        decay=c.decay,
    )


def build_model(config: ml_collections.ConfigDict, mesh: Any = None) -> LanguageModel:
    c = config.model
    return load_model(
        c.spec,
        last_n_blocks=c.last_n_blocks,
        edit_roles=c.edit_roles,
        dtype=c.dtype,
        remat=c.remat,
        mesh=mesh,
    )


def new_state(config, editor, tx, weights) -> TrainState:
    """The state that training starts from; also tells a checkpoint's structure."""
    return init_state(editor, weights, tx, config.seed)


def abstract_state(config, editor, tx, weights) -> TrainState:
    """Shapes and dtypes of `new_state`, nothing computed."""
    return jax.eval_shape(functools.partial(new_state, config, editor, tx, weights))


def choose_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows spread over the split by a fixed shuffle (0: all), in their own order."""
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = np.sort(order[: count or len(rows)])
    return [rows[int(i)] for i in chosen]


def open_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Checks a config against itself, then loads base and data.

    Raises:
      ConfigError: before anything is loaded, for values that cannot work together.
      WeightsError, DataError: what cannot be loaded.
    """
    check(config)
    editor, tx, mesh = build_editor(config), build_optimizer(config), make_mesh(config.mesh)
    for where in ("train", "eval"):
        per_step = config[where].edits_per_step
        if per_step % batch_axis_size(mesh):
            raise ConfigError(
                f"{where}.edits_per_step is {per_step}, not a multiple of the "
                f"{batch_axis_size(mesh)} ways that the mesh splits edits (mesh.data x mesh.fsdp)"
            )
    model = build_model(config, mesh)
    dataset = data.load(config.data.name, config.data.dir or None)
    c, lengths = config.data, lengths_of(config)
    written = max(config.eval.max_new_tokens, lengths.max_target)
    needed = max(positions_needed(model.module, lengths.max_len, written), lengths.far_len)
    if needed > model.config.n_positions:
        raise ConfigError(
            f"data.max_len {c.max_len} with eval.max_new_tokens {config.eval.max_new_tokens}, or "
            f"data.far_len {c.far_len}, is more than the model's context of "
            f"{model.config.n_positions} tokens"
        )

    def split(name: str, count: int) -> Split:
        rows = choose_rows(dataset.split(name), count)
        return Split(rows, encode_rows(rows, model.tokenizer, lengths, form_of(model.module)))

    train = split("train", config.data.train_edits)
    thinned = thin(train.encoded.texts["far"], config.train.far_scored)
    texts = {**train.encoded.texts, "far": thinned}
    train = Split(train.rows, dataclasses.replace(train.encoded, texts=texts))
    return Experiment(
        config, model, editor, tx, mesh, dataset,
        train=train,
        validation=split("validation", config.train.val_edits),
        test=split("test", config.eval.edits),
    )  # fmt: skip
