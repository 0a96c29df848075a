"""The timed workload: a random model of a published size, and a step's texts without padding.

Speed does not depend on weights and tokens, so nothing is downloaded. Shape letters as in
`mend_jax.core.forward`: E independent edits of n facts, T tokens, S scored positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mend_jax.core.token_batch import TokenBatch
from mend_jax.editors import EditTransform, make_editor
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.models.abstract_model import DTYPES, AbstractModel, abstract_model
from mend_jax.models.params import Params, nest
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import TrainState, init_state

MODELS = {
    "distilgpt2": "distilbert/distilgpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-xl": "openai-community/gpt2-xl",
    "gpt-j": "EleutherAI/gpt-j-6b",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
}
"""Short names of sizes in `hub.published_configs`."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """One training step and the edit in it.

    Attributes:
      model: one of `MODELS`.
      edits: n, facts per edit.
      independent: E, edits per step, each of n facts.
      paraphrases: texts that score an edit; 0: n, and 4 for a single fact.
      length, scored: tokens of an edit text and of a paraphrase; how many of the last are scored.
      far, far_length: far texts, and their tokens, which are all scored.
      rank: of the editor.
      dtype: of the base.
      remat: see `model.remat`.
      text_chunk, logits_chunk: see those of `model`.
      layers: blocks of the model; 0: as published.
    """

    model: str = "smollm2"
    edits: int = 1
    independent: int = 1
    paraphrases: int = 0
    length: int = 32
    scored: int = 10
    far: int = 8
    far_length: int = 64
    rank: int = 1920
    dtype: str = "float32"
    remat: bool = False
    text_chunk: int = 0
    logits_chunk: int = 0
    layers: int = 0

    @property
    def n_paraphrases(self) -> int:
        return self.paraphrases or (self.edits if self.edits > 1 else 4)


ACCELERATOR = tuple(
    Workload(model, independent=n, dtype="bfloat16", logits_chunk=21)
    for model, n in (("gpt2-xl", 64), ("gpt-j", 32), ("llama3-8b", 32))
)
"""Sizes that fill one accelerator of 80 GB; far logits are computed in thirds."""


@dataclasses.dataclass(frozen=True)
class Built:
    """The arguments of the timed functions."""

    workload: Workload
    model: AbstractModel
    base: Params
    editor: EditTransform
    tx: optax.GradientTransformation
    state: TrainState
    batch: dict[str, Any]


def random_base(model: AbstractModel, dtype: str, seed: int = 0) -> Params:
    """Return nested parameters N(0, 0.02), made on the device; the scales of norms are one."""

    def leaf(path: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        if "scale" in path:
            return jnp.ones(shape, DTYPES[dtype])
        return 0.02 * jax.random.normal(key, shape, DTYPES[dtype])

    shapes = model.shapes()
    # The hardware's generator needs no memory beside the array itself, which may be gigabytes.
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), len(shapes))
    return nest({p: leaf(p, s, k) for (p, s), k in zip(shapes.items(), keys, strict=True)})


def full_texts(
    rng: np.random.Generator, lead: tuple[int, int], length: int, scored: int, vocab: int
) -> TokenBatch:
    """Return random texts [E, n, length] without padding; the last `scored` tokens are scored."""
    tokens = rng.integers(0, vocab, (*lead, length)).astype(np.int32)
    at = np.arange(length - 1 - scored, length - 1)
    place = np.broadcast_to(at, (*lead, scored)).astype(np.int32)
    return TokenBatch(
        tokens, np.ones(tokens.shape, bool), place, tokens[..., at + 1], np.ones(place.shape, bool)
    )


def _with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the config.json with another number of blocks."""
    name = next(key for key in ("n_layer", "num_hidden_layers") if key in config)
    return {**config, name: layers or config[name]}


def build(w: Workload, shapes_only: bool = False) -> Built:
    """Build model, editor, optimiser and one batch; with `shapes_only`, only their shapes."""
    published = _with_layers(PUBLISHED[MODELS[w.model]], w.layers)
    model = abstract_model(
        published, dtype=w.dtype, remat=w.remat, text_chunk=w.text_chunk,
        logits_chunk=w.logits_chunk,
    )  # fmt: skip
    editor = make_editor("mend", dict(rank=w.rank))
    tx = make_optimizer(
        lr=1e-6, step_size_lr=1e-4, clip=100.0, accumulate=1, warmup=0, steps=1, decay=False,
        step_sizes=editor.step_sizes,
    )  # fmt: skip

    def arrays() -> tuple[Params, TrainState, dict[str, TokenBatch]]:
        rng, vocab, E = np.random.default_rng(0), model.config.vocab_size, w.independent
        batch = {
            "edit": full_texts(rng, (E, w.edits), w.length, w.scored, vocab),
            "rephrase": full_texts(rng, (E, w.n_paraphrases), w.length, w.scored, vocab),
            "far": full_texts(rng, (E, w.far), w.far_length, w.far_length - 1, vocab),
        }
        state = init_state(editor, model.weights, tx, seed=0)
        return random_base(model, w.dtype), state, jax.device_put(batch)

    base, state, batch = jax.eval_shape(arrays) if shapes_only else arrays()
    return Built(w, model, base, editor, tx, state, batch)
