"""The skeleton of every decoder-only model: embed, trunk, top, head.

The *trunk* is every block below the first edited one: frozen, stacked, one `lax.scan`, never
differentiated. The *top* holds the remaining blocks, unrolled, so that they can carry taps and
edits. A family is a subclass that names its block, embedding and final norm.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mend_jax.models.layers import Context, full_context

Cache = dict[str, Any]


class DecoderLM(nn.Module):
    """A decoder-only language model split at the first editable block.

    Attributes:
      config: the family's frozen config; must have n_layer, d_model, vocab_size, n_positions,
        n_kv_heads, head_dim and tie_embeddings.
      n_top: how many of the last blocks are unrolled and editable.
      dtype: of activations and matmuls; the parameters keep their own dtype.
    """

    config: Any
    n_top: int
    dtype: Any = jnp.float32

    block_class: ClassVar[type[nn.Module]]

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        if not c.tie_embeddings:
            self.unembedding = self.param("unembedding", init, (c.d_model, c.vocab_size))
        if self.n_trunk:
            scanned = nn.scan(
                self.block_class,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0),
                out_axes=0,
                length=self.n_trunk,
            )
            self.trunk_blocks = scanned(c, self.dtype, name="trunk")
        for i in range(self.n_trunk, c.n_layer):
            setattr(self, f"block_{i}", self.block_class(c, self.dtype))
        self.final_norm = self.make_final_norm()
        self.setup_family()

    def setup_family(self):
        """A family's own submodules and parameters."""

    def make_final_norm(self) -> nn.Module:
        raise NotImplementedError

    def embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D]; families add positions here."""
        del positions_BxT
        return jnp.asarray(self.embedding)[tokens_BxT].astype(self.dtype)

    @property
    def n_trunk(self) -> int:
        return self.config.n_layer - self.n_top

    def run_trunk(
        self, tokens_BxT: jax.Array, context: Context, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Embedding and frozen blocks; h_BxTxD is the input of the first editable block."""
        h_BxTxD = self.embed(tokens_BxT, context.positions)
        if self.n_trunk:
            h_BxTxD, cache = self.trunk_blocks(h_BxTxD, context, cache)
        return h_BxTxD, cache

    def run_top(
        self, h_BxTxD: jax.Array, context: Context, caches: list[Cache] | None = None
    ) -> tuple[jax.Array, list[Cache] | None]:
        """The editable blocks; h_BxTxD afterwards is what `head` takes."""
        filled = []
        for i in range(self.n_trunk, self.config.n_layer):
            cache = None if caches is None else caches[i - self.n_trunk]
            h_BxTxD, cache = getattr(self, f"block_{i}")(h_BxTxD, context, cache)
            filled.append(cache)
        return h_BxTxD, (None if caches is None else filled)

    def head(self, h: jax.Array) -> jax.Array:
        """Final norm and vocabulary projection: [..., D] -> float32 logits [..., V]."""
        h = self.final_norm(h)
        if self.config.tie_embeddings:
            weight, dims = self.embedding, (((h.ndim - 1,), (1,)), ((), ()))
        else:
            weight, dims = self.unembedding, (((h.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(
            h, weight.astype(self.dtype), dims, preferred_element_type=jnp.float32
        )

    def __call__(self, tokens_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
        """Logits [B, T, V] of a whole pass (for parity tests and small texts)."""
        context = full_context(mask_BxT)
        h_BxTxD, _ = self.run_trunk(tokens_BxT, context)
        h_BxTxD, _ = self.run_top(h_BxTxD, context)
        return self.head(h_BxTxD)

    def init_cache(self, batch: int, slots: int) -> dict[str, Any]:
        """An empty key/value cache of `slots` positions for `batch` rows."""
        c = self.config

        def empty(*lead):
            shape = (*lead, batch, slots, c.n_kv_heads, c.head_dim)
            return {"k": jnp.zeros(shape, self.dtype), "v": jnp.zeros(shape, self.dtype)}

        return {
            "trunk": empty(self.n_trunk) if self.n_trunk else None,
            "top": [empty() for _ in range(self.n_top)],
        }
