"""The skeleton of every decoder-only model: embed, trunk, top, head."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from mend_jax.models.attention import Context, full_context
from mend_jax.models.base import EditableModel, Inputs, empty_heads
from mend_jax.models.blocks import Block


class DecoderLM(EditableModel):
    """A decoder-only language model; a family names its block, embedding and final norm.

    The config must have n_layer, d_model, vocab_size, n_positions, n_kv_heads, head_dim and
    tie_embeddings.
    """

    kind: ClassVar[str] = "causal"
    block_class: ClassVar[type[Block]]

    def setup(self):
        self.add_embedding()
        self.stacks[0].build(self, self.block_class, self.config)
        self.final_norm = self.make_final_norm()
        self.setup_family()

    def setup_family(self):
        """A family's own submodules and parameters."""

    def make_final_norm(self) -> nn.Module:
        raise NotImplementedError

    def embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D]; families add positions here."""
        del positions_BxT
        return self.look_up(tokens_BxT).astype(self.dtype)

    def run_trunk(self, inputs: Inputs) -> jax.Array:
        context = full_context(inputs.mask)
        h_BxTxD = self.embed(inputs.tokens, context.positions)
        return self.stacks[0].trunk(self, h_BxTxD, context)[0]

    def run_top(self, state: jax.Array, inputs: Inputs, rows: jax.Array | None = None) -> jax.Array:
        context = full_context(inputs.mask).replace(rows=rows)
        return self.stacks[0].top(self, state, context)[0]

    def last_states(self, state: jax.Array, inputs: Inputs) -> jax.Array:
        return self.final_norm(self.run_top(state, inputs))

    def head(self, h: jax.Array) -> jax.Array:
        return self.unembed(self.final_norm(h))

    def open_cache(self, inputs: Inputs, slots: int) -> dict[str, Any]:
        c, batch = self.config, inputs.tokens.shape[0]
        one = empty_heads(batch, slots, c.n_kv_heads, c.head_dim, self.dtype)
        return self.stacks[0].empty_cache(one)

    def extend(self, tokens_BxT: jax.Array, context: Context, cache: dict[str, Any]):
        h = self.embed(tokens_BxT, context.positions)
        h, trunk = self.stacks[0].trunk(self, h, context, cache["trunk"])
        h, top = self.stacks[0].top(self, h, context, cache["top"])
        return h, {"trunk": trunk, "top": top}
