"""Models of one stack of blocks: decoder-only language models and text classifiers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.models.attention import Cache, Context, full_context
from mend_jax.models.editable_model import EditableModel, Inputs, empty_block_cache
from mend_jax.models.layers import EditableDense

CLASSIFIER_HEAD = ("classifier/kernel", "classifier/bias")
"""The parameters that the files of a plain encoder lack."""
NO_HEAD = (
    "these are the weights of an encoder without a head that scores claims; train one with the "
    "fine-tuning job (--config=fever_finetune.py) and give the folder that it writes"
)


class SingleStack(EditableModel):
    """One stack of blocks over input embeddings; its config has `n_layer`."""

    causal: ClassVar[bool]

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Return the input embeddings; families add positions here."""
        del positions
        return self.look_up(tokens).astype(self.dtype)

    def run_trunk(self, inputs: Inputs) -> Float[Array, "B T D"]:
        context = full_context(inputs.tokens, inputs.mask, self.causal)
        h = self.embed(inputs.tokens, context.positions)
        return self.stacks[0].trunk(self, h, context)[0]

    def run_top(
        self, state: Float[Array, "B T D"], inputs: Inputs, rows: Int[Array, "B R"] | None = None
    ) -> Float[Array, "B R D"]:
        context = full_context(inputs.tokens, inputs.mask, self.causal)
        context = dataclasses.replace(context, rows=rows)
        return self.stacks[0].top(self, state, context).h


class DecoderLM(SingleStack):
    """A decoder-only language model; a family names its block, embedding and final norm.

    The config must have n_layer, d_model, vocab_size, n_positions, n_kv_heads, head_dim and
    tie_embeddings.
    """

    kind: ClassVar[str] = "causal"
    causal: ClassVar[bool] = True

    def setup(self) -> None:
        self.add_embedding()
        self.stacks[0].build(self, self.block_class, self.config)
        self.final_norm = self.make_final_norm()
        self.setup_family()

    def make_final_norm(self) -> nn.Module:
        """Make the norm of the last states."""
        raise NotImplementedError

    def last_states(self, state: Float[Array, "B T D"], inputs: Inputs) -> Float[Array, "B T D"]:
        return self.final_norm(self.run_top(state, inputs))

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        return self.unembed(self.final_norm(h))

    def open_cache(self, inputs: Inputs, slots: int) -> Cache:
        c, batch = self.config, inputs.tokens.shape[0]
        block = empty_block_cache(batch, slots, c.n_kv_heads, c.head_dim, self.dtype)
        return self.stacks[0].empty_cache(block)

    def extend(
        self, tokens: Int[Array, "B T"], context: Context, cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        h = self.embed(tokens, context.positions)
        h, trunk = self.stacks[0].trunk(self, h, context, cache["trunk"])
        top = self.stacks[0].top(self, h, context, cache["top"])
        return top.h, {"trunk": trunk, "top": top.caches}


class TextClassifier(SingleStack):
    """A bidirectional encoder that scores how true a text is (paper, sections 4 and 5: FEVER).

    The last state h of a text's first real token, its one scored position, gives one score
    z = w . tanh(W h + b) + c, and the text is true with probability sigmoid(z). The logits are the
    pair (0, z): its softmax is exactly that Bernoulli distribution, so the losses of language
    models (nll, KL, arg max) apply, with target 1 for a true text and 0 for a false one.

    The config must have n_layer and d_model. A family names its block and gives `setup_family` and
    `embed`.
    """

    kind: ClassVar[str] = "classifier"
    causal: ClassVar[bool] = False

    def setup(self) -> None:
        self.stacks[0].build(self, self.block_class, self.config)
        self.pooler = EditableDense(self.config.d_model, use_bias=True, dtype=self.dtype)
        self.classifier = EditableDense(1, use_bias=True, dtype=jnp.float32)
        self.setup_family()

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead 2"]:
        """Return the float32 logits (0, z) of the states of first tokens."""
        z = self.classifier(nn.tanh(self.pooler(h)))
        return jnp.concatenate([jnp.zeros_like(z), z], axis=-1)

    def __call__(self, inputs: Inputs) -> Float[Array, "B 1 2"]:
        """Return the logits of each text's first real token."""
        first_Bx1 = jnp.argmax(inputs.mask, axis=-1, keepdims=True)
        return self.head(self.run_top(self.run_trunk(inputs), inputs, first_Bx1))

    def open_cache(self, inputs: Inputs, slots: int) -> NoReturn:
        self._refuse_to_generate()

    def extend(self, tokens: jax.Array, context: Context, cache: Cache) -> NoReturn:
        self._refuse_to_generate()

    def _refuse_to_generate(self) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} is a classifier: it scores texts and cannot generate them"
        )
