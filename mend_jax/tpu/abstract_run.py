"""A run as shapes: everything that its programs take, with nothing downloaded or computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from mend_jax import hub
from mend_jax.data.encoded_rows import AFTER_TOKENS, TRAINING_SETS
from mend_jax.editors import EditTransform
from mend_jax.hub.input_formats import CAUSAL, input_format
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.hub.text_encoding import encode_after, limit_scored_positions, stack_batches
from mend_jax.models.abstract_model import DTYPES, AbstractModel, abstract_model
from mend_jax.models.params import nest
from mend_jax.training.assembly import (
    abstract_state,
    build_editor,
    build_optimizer,
    scores_after,
    text_lengths,
)
from mend_jax.training.config_check import check_editing_config
from mend_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """The arguments of a run's programs, as shapes.

    Attributes:
      config: the checked config.
      model: the base model without its weights.
      editor, tx: the editor and the meta-optimizer of the config.
      base: nested base parameters, ShapeDtypeStructs.
      state: the training state, ShapeDtypeStructs.
    """

    config: ml_collections.ConfigDict
    model: AbstractModel
    editor: EditTransform
    tx: optax.GradientTransformation
    base: Any
    state: TrainState

    def batch(self, edits: int, training: bool) -> dict[str, Any]:
        """Return the texts of a step of E edits: ShapeDtypeStructs with leading axes [E, n].

        Args:
          edits: E.
          training: limit the scored positions of far texts, as training does.
        """
        c, lengths = self.config.data, text_lengths(self.config)
        form, words = input_format(self.model.module), _Words(self.model.module.kind)
        qa = form.fact(words, "a", "b", lengths.max_len, lengths.max_target, append_eos=False)
        near = form.near(words, "a", "b", lengths.max_len, lengths.max_target)
        far = stack_batches([form.text(words, "a b c", lengths.far_len)])
        far = limit_scored_positions(far, self.config.train.far_scored_tokens) if training else far
        kinds = dict(edit=qa, rephrase=qa, near=near, far=jax.tree.map(lambda a: a[0], far))
        if training and scores_after(self.config) and form is CAUSAL:
            after = encode_after(words, "a", "b", " c", lengths.max_len, AFTER_TOKENS)
            kinds["after"] = after
        lead = (edits, c.edits_per_batch)
        return {
            name: jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((*lead, *np.shape(a)), np.asarray(a).dtype),
                kinds[name],
            )
            for name in TRAINING_SETS
            if name in kinds
        }


class _Words:
    """A tokenizer that gives each word the id 0, with the boundary tokens of a kind of model."""

    eos_id = pad_id = 0

    def __init__(self, kind: str) -> None:
        self.boundary_tokens = {"causal": ([], []), "seq2seq": ([], [0]), "classifier": ([0], [0])}[
            kind
        ]

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())


def abstract_run(config: ml_collections.ConfigDict) -> AbstractRun:
    """Return the run of a config, as shapes.

    The sizes of the models in configs/ are stored in the package; others are read from the
    model's config.json.

    Raises:
      ConfigError, WeightsError: a bad key, or a base model whose config cannot be read.
    """
    check_editing_config(config)
    c = config.model
    published = PUBLISHED.get(c.spec)
    hf_config = published if published is not None else hub.read_model_config(hub.resolve(c.spec))
    model = abstract_model(
        hf_config,
        c.last_n_blocks,
        c.edit_roles,
        c.dtype,
        c.remat,
        c.text_chunk,
        c.logits_chunk,
        c.trunk_products,
    )
    dtype = DTYPES[c.dtype]
    base = nest({p: jax.ShapeDtypeStruct(s, dtype) for p, s in model.shapes().items()})
    editor, tx = build_editor(config), build_optimizer(config)
    state = abstract_state(config, editor, tx, model.weights)
    return AbstractRun(config, model, editor, tx, base, state)
