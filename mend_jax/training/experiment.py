"""From a config to the things a run is made of: model, editor, optimiser, mesh, encoded data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import optax

from mend_jax import data
from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import EncodedRows, encode_rows, rows_needed
from mend_jax.data.far_texts import add_far_texts
from mend_jax.data.length_buckets import split_by_length
from mend_jax.data.rows import unseen_rows
from mend_jax.data.sequential_rows import choose_sequential_rows
from mend_jax.editors import EditTransform
from mend_jax.errors import ConfigError
from mend_jax.evaluation.general_ability import AbilityTexts, load_ability_texts
from mend_jax.hub.input_formats import input_format, positions_needed
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import limit_scored_positions
from mend_jax.parallel.mesh import batch_axis_size, local_edit_numbers, make_mesh, round_up_edits
from mend_jax.parallel.sharding import place
from mend_jax.training import config as configs
from mend_jax.training.build import (
    build_editor,
    build_model,
    build_optimizer,
    new_state,
    text_lengths,
)
from mend_jax.training.config_schema import check, longest_sequence
from mend_jax.training.step import TrainState

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
    far: data.DataSet | None
    train: Split
    validation: Split
    test: Split
    extra_test_sets: Mapping[str, Split]
    extra_data_sets: Mapping[str, data.DataSet]  # what `extra_test_sets` are the test splits of
    sequential_rows: Split | None  # of edits that follow one another
    ability_texts: AbilityTexts | None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        return {
            **base_identity(self.model),
            "data": "+".join(d.fingerprint for d in (self.dataset, self.far) if d is not None),
            "config": configs.to_json_dict(self.config),
        }

    def fresh_state(self) -> TrainState:
        return place(
            self.mesh,
            new_state(self.config, self.editor, self.tx, self.model.weights),
            self.editor.sharding_rules,
        )

    def subset(self, split: Split, count: int) -> Split:
        """`count` edits of a split (0: all), chosen by a fixed shuffle."""
        keep = choose_rows([split.rows[int(i)] for i in split.encoded.index], count)
        return encode_split(self.config, self.model, keep, more=True)

    @functools.cached_property
    def train_parts(self) -> list[EncodedRows]:
        """The training rows by length, as a step takes them."""
        c = self.config
        least = c.train.edits_per_step * c.data.edits_per_batch
        parts = split_by_length(self.train.encoded, c.data.length_buckets, least)
        return [_thinned(part, c.train.far_scored_tokens) for part in parts]

    def train_batches(self) -> Any:
        """An endless, shuffled, resumable iterator over this process's part of each step."""
        c = self.config
        return iterate_batches(
            self.train_parts,
            edits_per_step=c.train.edits_per_step,
            edits_per_batch=c.data.edits_per_batch,
            seed=c.seed,
            edit_numbers=local_edit_numbers(self.mesh, c.train.edits_per_step),
        )

    def eval_batches(self, split: Split, edits_per_step: int) -> Any:
        """One pass over a split, in order, the last batch filled up and marked.

        A batch has `edits_per_step` edits, or the next number that the mesh can split.
        """
        edits_per_step = round_up_edits(self.mesh, edits_per_step)
        return iterate_batches(
            split.encoded,
            edits_per_step=edits_per_step,
            edits_per_batch=self.config.data.edits_per_batch,
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
            edit_numbers=local_edit_numbers(self.mesh, edits_per_step),
        )


def base_identity(model: LanguageModel) -> dict[str, Any]:
    """What an editor and its base must agree on."""
    return {
        "base": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "weights": [w.name for w in model.weights],
    }


def choose_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows spread over the split by a fixed shuffle (0: all), in their own order."""
    chosen = np.sort(_shuffle(len(rows))[: count or len(rows)])
    return [rows[int(i)] for i in chosen]


def shuffled_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows that `choose_rows` takes, in the order in which it takes them."""
    return [rows[int(i)] for i in _shuffle(len(rows))[:count]]


def _shuffle(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)


def encode_split(
    config: ml_collections.ConfigDict, model: LanguageModel, rows: Sequence[Row], more: bool
) -> Split:
    """Rows with their tokens; `more`: also of the sets that evaluation alone judges."""
    form = input_format(model.module)
    return Split(rows, encode_rows(rows, model.tokenizer, text_lengths(config), form, more))


def _thinned(encoded: EncodedRows, keep: int) -> EncodedRows:
    """Rows whose far texts have at most `keep` scored positions."""
    if "far" not in encoded.texts:
        return encoded
    texts = {**encoded.texts, "far": limit_scored_positions(encoded.texts["far"], keep)}
    return dataclasses.replace(encoded, texts=texts)


def ability_texts(config: ml_collections.ConfigDict, model: LanguageModel) -> AbilityTexts | None:
    """The texts and facts that general ability is measured on, where it is."""
    c = config.eval
    if not c.ability_edits:
        return None
    return load_ability_texts(
        config.data.dir or None, model.tokenizer, model.module,
        n_texts=c.ability_texts, n_facts=c.ability_pool,
    )  # fmt: skip


def open_experiment(
    config: ml_collections.ConfigDict, mesh_sizes: Mapping[str, int] | None = None
) -> Experiment:
    """Checks a config against itself, then loads base and data.

    Args:
      mesh_sizes: devices along each axis of the mesh; None: as `config.mesh` says.

    Raises:
      ConfigError: before anything is loaded, for values that cannot work together.
      WeightsError, DataError: what cannot be loaded.
    """
    check(config)
    editor, tx = build_editor(config), build_optimizer(config)
    if editor.sequential_training is not None and config.train.edit_from_paraphrase:
        raise ConfigError(
            f"editor {config.editor.name!r} is trained on edits that follow one another: set "
            "train.edit_from_paraphrase to False"
        )
    mesh = make_mesh(mesh_sizes or dict(config.mesh))
    if config.train.edits_per_step % batch_axis_size(mesh):
        raise ConfigError(
            f"train.edits_per_step is {config.train.edits_per_step}, not a multiple of the "
            f"{batch_axis_size(mesh)} ways that the mesh splits edits (mesh.data x mesh.fsdp)"
        )
    model = build_model(config, mesh)
    c, lengths = config.data, text_lengths(config)
    dataset = data.load(c.name, c.dir or None, model=model)
    far = data.load(c.far_source, c.dir or None) if c.far_source else None
    written = max(config.eval.max_new_tokens, lengths.max_target)
    needed = max(positions_needed(model.module, lengths.max_len, written), lengths.far_len)
    if needed > model.config.n_positions:
        raise ConfigError(
            f"data.max_len {c.max_len} with eval.max_new_tokens {config.eval.max_new_tokens}, or "
            f"data.far_len {c.far_len}, is more than the model's context of "
            f"{model.config.n_positions} tokens"
        )

    def beside(rows: Sequence[Row], name: str) -> Sequence[Row]:
        return rows if far is None else add_far_texts(rows, list(far.split(name)))

    def encoded(rows: Sequence[Row], name: str, more: bool = False) -> Split:
        return encode_split(config, model, beside(rows, name), more)

    def some(rows: Sequence[Row], count: int, name: str, more: bool = False) -> Split:
        """`count` of the rows that fit the lengths (0: all), or as many as there are."""
        choose, in_order = choose_rows, shuffled_rows
        if c.edits_per_batch > 1:  # none at odds
            choose = in_order = choose_sequential_rows
        taken = len(rows)
        for most in (2 * count + 64, len(rows)) if count else ():
            first = beside(in_order(rows, most), name)
            taken = rows_needed(first, count, model.tokenizer, lengths, input_format(model.module))
            if taken < len(first):
                break
        return encoded(choose(rows, taken), name, more)

    def split(name: str, count: int, more: bool = False) -> Split:
        return some(dataset.split(name), count, name, more)

    def another(dataset: data.DataSet) -> Split:
        """The test split of another data set, without the facts that training knows."""
        rows = unseen_rows(train.rows, dataset.split("test"))
        return some(rows, config.eval.edits, "test", more=True)

    def sequential_rows() -> Split | None:
        """The facts of edits that follow one another, if any are asked for."""
        if not (needed := longest_sequence(config) * c.edits_per_batch):
            return None
        rows = choose_sequential_rows(
            dataset.split("test"), needed + needed // 4 + 16
        )  # some do not fit
        found = encoded(rows, "test")
        if len(found) < needed:
            raise ConfigError(
                f"eval.sequential (or a baseline's) asks for {needed} facts one after the other, "
                f"and the test split of {dataset.name} has {len(found)} that change different "
                "things and fit data.max_len: lower it"
            )
        return found

    train = split("train", c.train_edits)
    extra_data_sets = {
        name: data.load(name, c.dir or None, model=model) for name in config.eval.extra_data_sets
    }
    return Experiment(
        config, model, editor, tx, mesh, dataset, far,
        train=train,
        validation=split("validation", config.train.val_edits),
        test=split("test", config.eval.edits, more=True),
        extra_test_sets={name: another(one) for name, one in extra_data_sets.items()},
        extra_data_sets=extra_data_sets,
        sequential_rows=sequential_rows(),
        ability_texts=ability_texts(config, model),
    )  # fmt: skip
