"""From a config to the parts of a run: editor, optimiser, model, mesh, encoded data, states.

The `build_...` functions that take no data load no weights (but `build_model`), so that a step can
be compiled, and a checkpoint's structure known, from a config alone. `open_experiment` loads all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mend_jax import data
from mend_jax.core.editor_protocol import EditTransform, Weights, with_strength
from mend_jax.core.gated_bank import check_site
from mend_jax.core.meta_loss import AFTER, CHAT, HOPS
from mend_jax.core.scope import reading
from mend_jax.core.scope_file import LearnedScope
from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import EncodedRows, Lengths, encode_rows, rows_needed
from mend_jax.data.far_texts import add_far_texts
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.length_buckets import split_by_length
from mend_jax.data.more_training_rows import more_training_rows
from mend_jax.data.reference_texts import ReferenceTexts
from mend_jax.data.rows import Row, unseen_rows
from mend_jax.data.sequential_rows import choose_sequential_rows
from mend_jax.data.true_answers import with_true_answers
from mend_jax.editors import make_editor
from mend_jax.editors.scoped import ScopeGate, with_scope
from mend_jax.errors import CheckpointError, ConfigError, DataError
from mend_jax.evaluation.general_ability import AbilityTexts, load_ability_texts
from mend_jax.hub.input_formats import input_format, positions_needed
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.hub.text_encoding import limit_scored_positions
from mend_jax.models.abstract_model import AbstractModel
from mend_jax.parallel.mesh import batch_axis_size, local_edit_numbers, make_mesh, round_up_edits
from mend_jax.parallel.sharding import place
from mend_jax.training import config as configs
from mend_jax.training import pretrained_scopes
from mend_jax.training.config_check import check_editing_config, longest_sequence
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import (
    BatchIterator,
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
    success_weight,
)

_MOST_ROWS = 20_000
"""Rows of each split that are searched for facts about the targets of edits."""


def text_lengths(config: ConfigDict) -> Lengths:
    """Return the lengths that texts are encoded to."""
    c = config.data
    return Lengths(c.max_len, c.max_target, c.far_len, c.append_eos, c.template)


def build_editor(config: ConfigDict) -> EditTransform:
    """Return the config's editor, its edits scaled by `editor.strength`."""
    editor = make_editor(config.editor.name, config.editor.options.to_dict())
    return with_strength(editor, config.editor.strength)


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimiser of the editor's parameters."""
    c = config.train
    return make_optimizer(
        lr=c.lr, step_size_lr=c.step_size_lr, clip=c.clip, accumulate=c.accumulate,
        warmup=c.warmup, steps=-(-c.steps // c.accumulate),  # the schedule counts updates
        decay=c.decay, step_sizes=build_editor(config).step_sizes,
    )  # fmt: skip


def build_model(config: ConfigDict, mesh: Mesh | None = None) -> LanguageModel:
    """Load the base model, onto a mesh if one is given."""
    c = config.model
    return load_model(
        c.spec, last_n_blocks=c.last_n_blocks, edit_roles=c.edit_roles, dtype=c.dtype,
        remat=c.remat, text_chunk=c.text_chunk, logits_chunk=c.logits_chunk,
        trunk_products=c.trunk_products, mesh=mesh,
    )  # fmt: skip


def build_train_step(
    config: ConfigDict,
    editor: EditTransform,
    tx: optax.GradientTransformation,
    model: LanguageModel | AbstractModel,
    shardings: Any = None,
) -> TrainStep:
    """Return the training step of a config; see `make_train_step`."""
    c = config.train
    return make_train_step(
        editor, tx, model=model.module, weights=model.weights, c_loc=c.c_loc,
        c_after=c.c_after, c_chat=c.c_chat, c_hops=c.c_hops, near_share=c.near_share,
        edit_from_paraphrase=c.edit_from_paraphrase, max_non_finite_steps=c.max_non_finite_steps,
        c_edit=success_weight(c.c_edit_start, c.c_edit, c.steps), shardings=shardings,
    )  # fmt: skip


def new_state(
    config: ConfigDict, editor: EditTransform, tx: optax.GradientTransformation, weights: Weights
) -> TrainState:
    """Return a fresh training state; its structure is that of a checkpoint."""
    return init_state(editor, weights, tx, config.seed)


def abstract_state(
    config: ConfigDict, editor: EditTransform, tx: optax.GradientTransformation, weights: Weights
) -> TrainState:
    """Return shapes and dtypes of `new_state`; computes nothing."""
    return jax.eval_shape(functools.partial(new_state, config, editor, tx, weights))


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of a split and their tokens; `encoded.index` numbers the rows that fit."""

    rows: Sequence[Row]
    encoded: EncodedRows

    def __len__(self) -> int:
        return len(self.encoded)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run that do not change while it runs.

    Attributes:
      extra_test_sets: the test splits of `extra_data_sets`, by name.
      sequential_rows: the facts of sequences of edits.
      scope: under whose gate the editor's edits are made; None: they are plain.
      more_train: whose training rows are added to those of `dataset`.
    """

    config: ConfigDict
    model: LanguageModel
    editor: EditTransform
    tx: optax.GradientTransformation
    mesh: Mesh
    dataset: data.DataSet
    far: data.DataSet | None
    train: Split
    validation: Split
    test: Split
    extra_test_sets: Mapping[str, Split]
    extra_data_sets: Mapping[str, data.DataSet]
    sequential_rows: Split | None
    ability_texts: AbilityTexts | None
    scope: LearnedScope | None = None
    more_train: Sequence[data.DataSet] = ()

    @property
    def data_sets(self) -> list[data.DataSet]:
        """The data sets whose rows and unrelated texts the run uses."""
        return [self.dataset, *self.more_train, *([self.far] if self.far is not None else [])]

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with."""
        return {
            **base_identity(self.model),
            "data": "+".join(d.fingerprint for d in self.data_sets),
            "config": configs.to_json_dict(self.config),
        }

    def fresh_state(self) -> TrainState:
        """Return the state before any training, on the mesh."""
        state = new_state(self.config, self.editor, self.tx, self.model.weights)
        return place(self.mesh, state, self.editor.sharding_rules)

    def subset(self, split: Split, count: int) -> Split:
        """Return `count` edits of a split (0: all), chosen by a fixed shuffle."""
        rows = choose_rows([split.rows[int(i)] for i in split.encoded.index], count)
        return encode_split(self.config, self.model, rows, for_evaluation=True)

    @functools.cached_property
    def train_parts(self) -> list[EncodedRows]:
        """The training rows by length bucket, far texts cut to `train.far_scored_tokens`."""
        c = self.config
        least = c.train.edits_per_step * c.data.edits_per_batch
        parts = split_by_length(self.train.encoded, c.data.length_buckets, least)
        return [_limit_far_texts(part, c.train.far_scored_tokens) for part in parts]

    def train_batches(self) -> BatchIterator:
        """Return an endless, shuffled, resumable iterator of this process's part of each batch."""
        c = self.config
        return iterate_batches(
            self.train_parts,
            edits_per_step=c.train.edits_per_step,
            edits_per_batch=c.data.edits_per_batch,
            seed=c.seed,
            edit_numbers=local_edit_numbers(self.mesh, c.train.edits_per_step),
        )

    def eval_batches(self, split: Split, edits_per_step: int) -> BatchIterator:
        """Return an iterator of one pass over a split, in order; the last batch is padded.

        A batch has `edits_per_step` edits, rounded up to what the mesh can split.
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
    """Return what an editor and its base must agree on."""
    return {
        "base": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "weights": [w.name for w in model.weights],
    }


def open_experiment(
    config: ConfigDict,
    mesh_sizes: Mapping[str, int] | None = None,
    scope: Callable[[LanguageModel], LearnedScope | None] | None = None,
) -> Experiment:
    """Check a config, then load base and data.

    Args:
      mesh_sizes: devices along each axis of the mesh; None: those of `config.mesh`.
      scope: gives the learned scope of the base, under whose gate edits are made; by default that
        of `config.scope.file`, if there is one.

    Raises:
      ConfigError: values that cannot work together; most are found before anything is loaded.
      WeightsError, DataError: what cannot be loaded.
    """
    check_editing_config(config)
    editor, tx = build_editor(config), build_optimizer(config)
    mesh = make_mesh(mesh_sizes or dict(config.mesh))
    _check_editor_and_mesh(config, editor, mesh)
    model = build_model(config, mesh)
    _check_context(config, model)
    learned = _scope_of(config, model, scope)
    if learned is not None:
        gate = ScopeGate.of(learned, model.tokenizer.token_texts)
        editor = with_scope(editor, gate, config.scope.plain_in_training)
        module = reading(model.module, learned.scope.site)
        model = dataclasses.replace(model, module=module)
    dataset, far = _load_data(config, config.data.name, model), _load_far_source(config)
    more = [_load_data(config, name, model) for name in config.data.more_train]
    splits = _Splits(config, model, dataset, far, more)
    train = splits.split("train", config.data.train_edits, also=more_training_sets(config))
    extra = {name: _load_data(config, name, model) for name in config.eval.extra_data_sets}
    return Experiment(
        config, model, editor, tx, mesh, dataset, far,
        train=train,
        validation=splits.split("validation", config.train.val_edits),
        test=splits.split("test", config.eval.edits, for_evaluation=True),
        extra_test_sets={name: splits.unseen_test_split(d, train) for name, d in extra.items()},
        extra_data_sets=extra,
        sequential_rows=splits.sequential_rows(),
        ability_texts=_ability_texts(config, model),
        scope=learned,
        more_train=more,
    )  # fmt: skip


def _scope_of(
    config: ConfigDict,
    model: LanguageModel,
    scope: Callable[[LanguageModel], LearnedScope | None] | None,
) -> LearnedScope | None:
    """Return the learned scope of a run, checked against its base."""
    if scope is None and not config.scope.file:
        return None
    given = functools.partial(pretrained_scopes.load, config.scope.file)
    learned = (scope or given)(model)
    if learned is None:
        return None
    if learned.scope.base != model.fingerprint:
        raise CheckpointError(
            f"scope.file {config.scope.file} was learned on base {learned.scope.base}, the base is "
            f"{model.fingerprint}: learn one with `mend-jax learn-scope`"
        )
    check_site(learned.scope.site, model.weights)
    return learned


def scores_after(config: ConfigDict) -> bool:
    """Return whether training scores what follows the answer, if model and data allow it."""
    always_scoped = uses_scope(config) and not config.scope.plain_in_training
    return bool(config.train.c_after) and not (config.data.append_eos or always_scoped)


def more_training_sets(config: ConfigDict) -> tuple[str, ...]:
    """Return the sets of texts that training scores besides those of every run."""
    sets = {
        AFTER: scores_after(config),
        CHAT: bool(config.train.c_chat),
        HOPS: bool(config.train.c_hops),
    }
    return tuple(name for name, is_scored in sets.items() if is_scored)


def uses_scope(config: ConfigDict) -> bool:
    """Return whether a run's edits are scoped."""
    return bool(config.scope.learn or config.scope.file)


def _check_editor_and_mesh(config: ConfigDict, editor: EditTransform, mesh: Mesh) -> None:
    if editor.sequential_training is not None and config.train.edit_from_paraphrase:
        raise ConfigError(
            f"editor {config.editor.name!r} is trained on sequences of edits: set "
            "train.edit_from_paraphrase to False"
        )
    if config.train.edits_per_step % batch_axis_size(mesh):
        raise ConfigError(
            f"train.edits_per_step is {config.train.edits_per_step}, not a multiple of the "
            f"{batch_axis_size(mesh)} ways that the mesh splits edits (mesh.data x mesh.fsdp)"
        )


def _check_context(config: ConfigDict, model: LanguageModel) -> None:
    lengths, limit = text_lengths(config), model.config.n_positions
    c = config.eval
    generated = max(c.max_new_tokens, c.continuation_tokens, lengths.max_target)
    needed = max(positions_needed(model.module, lengths.max_len, generated), lengths.far_len)
    if needed > limit:
        raise ConfigError(
            f"data.max_len {lengths.max_len} with eval.max_new_tokens {c.max_new_tokens} or "
            f"eval.continuation_tokens {c.continuation_tokens}, or data.far_len {lengths.far_len}, "
            f"is more than the model's context of {limit} tokens"
        )


def _load_data(config: ConfigDict, name: str, model: LanguageModel) -> data.DataSet:
    dataset = data.load(name, config.data.dir or None, model=model)
    return with_true_answers(dataset) if config.data.true_targets else dataset


def _load_far_source(config: ConfigDict) -> data.DataSet | None:
    c = config.data
    return data.load(c.far_source, c.dir or None) if c.far_source else None


def _ability_texts(config: ConfigDict, model: LanguageModel) -> AbilityTexts | None:
    c = config.eval
    if not c.ability_edits and not (c.sequential_ability and longest_sequence(config)):
        return None
    return load_ability_texts(
        config.data.dir or None, model.tokenizer, model.module,
        n_texts=c.ability_texts, n_facts=c.ability_pool, n_choices=c.ability_choices,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Splits:
    """Chooses and encodes the rows of a run."""

    config: ConfigDict
    model: LanguageModel
    dataset: data.DataSet
    far: data.DataSet | None
    more_train: Sequence[data.DataSet] = ()

    def split(
        self, name: str, count: int, for_evaluation: bool = False, also: Collection[str] = ()
    ) -> Split:
        """Return `count` rows of a split that fit the lengths (0: all), or all that fit."""
        rows = self.dataset.split(name)
        if name == "train" and self.more_train:
            others = [dataset.split("train") for dataset in self.more_train]
            more = more_training_rows(self.dataset.splits, others, self.far is None)
            rows = [*rows, *more]
        return self._choose(self.dataset, rows, count, name, for_evaluation, also)

    def unseen_test_split(self, dataset: data.DataSet, train: Split) -> Split:
        """Return the test split of another data set, without the facts of training."""
        rows = unseen_rows(train.rows, dataset.split("test"))
        return self._choose(dataset, rows, self.config.eval.edits, "test", for_evaluation=True)

    def sequential_rows(self) -> Split | None:
        """Return the facts of the longest sequence of edits; None without sequences."""
        needed = longest_sequence(self.config) * self.config.data.edits_per_batch
        if not needed:
            return None
        spare = needed // 4 + 16  # some do not fit
        order = self.config.eval.sequential_order
        rows = choose_sequential_rows(self.dataset.split("test"), needed + spare, order)
        others = self.dataset.split("validation")  # neighbours are of facts that no edit changes
        hard = self._add_hard_texts(rows, others, self.dataset)
        split = self._encode(hard, "test", for_evaluation=hard is not rows)
        if len(split) < needed:
            raise ConfigError(
                f"eval.sequential (or a baseline's) needs {needed} facts for a sequence of edits, "
                f"and the test split of {self.dataset.name} has {len(split)} with different scopes "
                "that fit data.max_len: lower it"
            )
        return split

    def _choose(
        self, dataset: data.DataSet, rows: Sequence[Row], count: int, name: str,
        for_evaluation: bool, also: Collection[str] = (),
    ) -> Split:  # fmt: skip
        together = self.config.data.edits_per_batch > 1  # facts of one edit must not conflict
        choose = choose_sequential_rows if together else choose_rows
        in_order = choose_sequential_rows if together else shuffled_rows
        form, lengths = input_format(self.model.module), text_lengths(self.config)
        taken = len(rows)
        for most in (2 * count + 64, len(rows)) if count else ():
            first = self._add_far_texts(in_order(rows, most), name)
            taken = rows_needed(first, count, self.model.tokenizer, lengths, form)
            if taken < len(first):
                break
        chosen = choose(rows, taken)
        if for_evaluation:
            chosen = self._add_hard_texts(chosen, rows, dataset)
            chosen = self._add_references(chosen, dataset)
        return self._encode(chosen, name, for_evaluation, also)

    def _encode(
        self, rows: Sequence[Row], name: str, for_evaluation: bool, also: Collection[str] = ()
    ) -> Split:
        rows = self._add_far_texts(rows, name)
        return encode_split(self.config, self.model, rows, for_evaluation, also)

    def _add_hard_texts(
        self, rows: list[Row], split: Sequence[Row], dataset: data.DataSet
    ) -> list[Row]:
        """Return rows of a split with their hard texts, if the config and the data have any."""
        count = self.config.eval.hard_neighbours
        if not count or dataset.task != "qa":
            return rows
        every = (itertools.islice(part, _MOST_ROWS) for part in dataset.splits.values())
        one_to_one = dataset.notes.get("one_to_one", ())
        maker = HardTextMaker(list(split), [*itertools.chain(*every)], count, one_to_one)
        return maker.add_to(rows)

    def _add_references(self, rows: list[Row], dataset: data.DataSet) -> list[Row]:
        """Return rows with the texts of which their new answers are true, if there is a file."""
        file = self.config.eval.references
        if not file:
            return rows
        found = ReferenceTexts.read(Path(file)).add_to(rows)
        if dataset is self.dataset and not any(row["references"] for row in found):
            raise DataError(
                f"eval.references: {file} has no text for any new answer of {dataset.name}, such "
                f"as {rows[0]['target']!r} of relation {rows[0]['relation']!r}: give a file of "
                "this data set, or leave it empty"
            )
        return found

    def _add_far_texts(self, rows: Sequence[Row], name: str) -> Sequence[Row]:
        return rows if self.far is None else add_far_texts(rows, list(self.far.split(name)))


def choose_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` rows chosen by a fixed shuffle (0: all), in their own order."""
    chosen = np.sort(_shuffle(len(rows))[: count or len(rows)])
    return [rows[int(i)] for i in chosen]


def shuffled_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return the rows that `choose_rows` chooses, in the order of the shuffle."""
    return [rows[int(i)] for i in _shuffle(len(rows))[:count]]


def _shuffle(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)


def encode_split(
    config: ConfigDict,
    model: LanguageModel,
    rows: Sequence[Row],
    for_evaluation: bool,
    also: Collection[str] = (),
) -> Split:
    """Return rows with their tokens.

    Args:
      for_evaluation: also the sets that only evaluation uses.
      also: see `encode_rows`.
    """
    form = input_format(model.module)
    encoded = encode_rows(
        rows, model.tokenizer, text_lengths(config), form, for_evaluation,
        with_names=uses_scope(config), also=also,
    )  # fmt: skip
    return Split(rows, encoded)


def _limit_far_texts(encoded: EncodedRows, most: int) -> EncodedRows:
    if "far" not in encoded.texts:
        return encoded
    texts = {**encoded.texts, "far": limit_scored_positions(encoded.texts["far"], most)}
    return dataclasses.replace(encoded, texts=texts)
