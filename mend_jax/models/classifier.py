"""The skeleton of a binary text classifier: embed, trunk, top, pool the first token, score."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp

from mend_jax.models.attention import Context, full_context
from mend_jax.models.base import EditableModel, Inputs
from mend_jax.models.blocks import Block
from mend_jax.models.layers import EditableDense

CLASSIFIER_HEAD = ("classifier/kernel", "classifier/bias")
"""What the files of a plain encoder lack."""
NO_HEAD = (
    "these are the weights of an encoder without a head that judges claims; train one with the "
    "fine-tuning job (--config=fever_finetune.py) and give the folder that it writes"
)


class TextClassifier(EditableModel):
    """A bidirectional encoder that says how true a text is (paper, sections 4 and 5: FEVER).

    The first real token's last state h gives one score, z = w . tanh(W h + b) + c, and the text is
    true with probability sigmoid(z). The logits are the pair (0, z): its softmax is that Bernoulli
    exactly, so that the losses of language models (nll, KL, arg max) are the Bernoulli's own, with
    target 1 for a true text and 0 for a false one.

    The one scored position of a text is its first real token. The config must have n_layer and
    d_model. A family names its block and gives `setup_family` and `embed`.
    """

    kind: ClassVar[str] = "classifier"
    block_class: ClassVar[type[Block]]

    def setup(self):
        self.stacks[0].build(self, self.block_class, self.config)
        self.pooler = EditableDense(self.config.d_model, use_bias=True, dtype=self.dtype)
        self.classifier = EditableDense(1, use_bias=True, dtype=jnp.float32)
        self.setup_family()

    def setup_family(self):
        """A family's own submodules and parameters."""

    def embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D]."""
        raise NotImplementedError

    def run_trunk(self, inputs: Inputs) -> jax.Array:
        context = full_context(inputs.mask, causal=False)
        h_BxTxD = self.embed(inputs.tokens, context.positions)
        return self.stacks[0].trunk(self, h_BxTxD, context)[0]

    def run_top(self, state: jax.Array, inputs: Inputs, rows: jax.Array | None = None) -> jax.Array:
        context = full_context(inputs.mask, causal=False).replace(rows=rows)
        return self.stacks[0].top(self, state, context)[0]

    def head(self, h: jax.Array) -> jax.Array:
        """States [..., D] of first tokens -> float32 logits [..., 2] = (0, z)."""
        z = self.classifier(nn.tanh(self.pooler(h)))
        return jnp.concatenate([jnp.zeros_like(z), z], axis=-1)

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Logits [B, 1, 2] of each text's first real token."""
        first_Bx1 = jnp.argmax(inputs.mask, axis=-1, keepdims=True)
        return self.head(self.run_top(self.run_trunk(inputs), inputs, first_Bx1))

    def open_cache(self, inputs: Inputs, slots: int) -> NoReturn:
        self._refuse_to_write()

    def extend(self, tokens_BxT: jax.Array, context: Context, cache: dict[str, Any]) -> NoReturn:
        self._refuse_to_write()

    def _refuse_to_write(self) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} is a classifier: it scores texts and cannot generate them"
        )
