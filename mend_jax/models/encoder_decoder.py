"""The skeleton of every encoder-decoder: an encoder's output is the memory of each decoder block.

Shape letters: B texts, M positions of the source, T of the decoder, D width, H heads, K head width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax

from mend_jax.models.attention import Context, full_context
from mend_jax.models.base import EditableModel, Inputs, empty_heads
from mend_jax.models.blocks import Block

ENCODER, DECODER = "encoder", "decoder"


class EncoderDecoder(EditableModel):
    """An encoder-decoder (Vaswani et al. 2017); a family names its block, embeddings and norms.

    `n_top` is a pair (encoder, decoder). The trunk is all that lies below every editable block:
    where the encoder has no top, its output and the decoder's lower blocks are of the trunk; where
    it has one, these lower blocks depend on the edit by cross-attention and run with the top.

    The config must have n_encoder, n_decoder, d_model, vocab_size, n_positions, tie_embeddings;
    cache_heads and head_dim, the number and width of the decoder's heads; decoder_start, the token
    that the decoder's input begins with, and decoder_prompt, all that stands there before a text.
    """

    kind: ClassVar[str] = "seq2seq"
    block_class: ClassVar[type[Block]]

    @staticmethod
    def stack_sizes(config: Any) -> dict[str, int]:
        return {f"{ENCODER}_block": config.n_encoder, f"{DECODER}_block": config.n_decoder}

    def setup(self):
        self.add_embedding()
        for side, stack in zip((ENCODER, DECODER), self.stacks, strict=True):
            stack.build(self, self.block_class, self.block_config(side))
        self.setup_family()

    def setup_family(self):
        """A family's own submodules and parameters."""

    def block_config(self, side: str) -> Any:
        """What the blocks of one side are built from."""
        del side
        return self.config

    def embed(self, side: str, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D] of one side; families add positions here."""
        del side, positions_BxT
        return self.look_up(tokens_BxT).astype(self.dtype)

    def position_bias(self, side: str, context: Context) -> jax.Array | None:
        """What is added to the scores of self-attention: float32[B, H, T, S], or None."""
        del side, context

    def finish_encoder(self, h_BxMxD: jax.Array) -> jax.Array:
        """The memory from the encoder's last states: a final norm, where the family has one."""
        return h_BxMxD

    def run_trunk(self, inputs: Inputs) -> dict[str, jax.Array]:
        """{"encoder": states or, without an encoder top, the memory; "decoder": states}."""
        encoder, decoder = self.stacks
        context = self._source_context(inputs)
        h_BxMxD, _ = encoder.trunk(self, self._embed(ENCODER, inputs.source, context), context)
        context = self._context(inputs)
        x_BxTxD = self._embed(DECODER, inputs.tokens, context)
        if not encoder.n_top:
            h_BxMxD = self.finish_encoder(h_BxMxD)
            x_BxTxD, _ = decoder.trunk(self, x_BxTxD, context.replace(memory=h_BxMxD))
        return {ENCODER: h_BxMxD, DECODER: x_BxTxD}

    def run_top(
        self, state: dict[str, jax.Array], inputs: Inputs, rows: jax.Array | None = None
    ) -> jax.Array:
        encoder, decoder = self.stacks
        memory_BxMxD, x_BxTxD = self.last_states(state, inputs), state[DECODER]
        context = self._context(inputs)
        if encoder.n_top:
            x_BxTxD, _ = decoder.trunk(self, x_BxTxD, context.replace(memory=memory_BxMxD))
        return decoder.top(self, x_BxTxD, context.replace(memory=memory_BxMxD, rows=rows))[0]

    def last_states(self, state: dict[str, jax.Array], inputs: Inputs) -> jax.Array:
        """The memory."""
        encoder, h_BxMxD = self.stacks[0], state[ENCODER]
        if not encoder.n_top:
            return h_BxMxD  # of the trunk, and finished
        return self.finish_encoder(encoder.top(self, h_BxMxD, self._source_context(inputs))[0])

    def open_cache(self, inputs: Inputs, slots: int) -> dict[str, Any]:
        """An empty cache of `slots` decoder positions, with the memory for the first `extend`."""
        c, (B, M), decoder = self.config, inputs.source.shape, self.stacks[1]
        one = empty_heads(B, slots, c.cache_heads, c.head_dim, self.dtype)
        memory = empty_heads(B, M, c.cache_heads, c.head_dim, self.dtype)
        one |= {f"memory_{name}": empty for name, empty in memory.items()}
        return {
            "memory": self._encode(inputs),
            "memory_attend": inputs.source_mask[:, None, :],
            "blocks": decoder.empty_cache(one),
        }

    def extend(self, tokens_BxT: jax.Array, context: Context, cache: dict[str, Any]):
        """Last states of new tokens, and the cache with them.

        The first call turns the memory into the keys and values of every block's cross-attention,
        and the cache that it returns has no "memory" any more.
        """
        decoder, blocks = self.stacks[1], cache["blocks"]
        attend = cache["memory_attend"]
        context = self._biased(DECODER, context)
        context = context.replace(memory=cache.get("memory"), memory_attend=attend)
        h = self._embed(DECODER, tokens_BxT, context)
        h, trunk = decoder.trunk(self, h, context, blocks["trunk"])
        h, top = decoder.top(self, h, context, blocks["top"])
        return h, {"memory_attend": attend, "blocks": {"trunk": trunk, "top": top}}

    def _encode(self, inputs: Inputs) -> jax.Array:
        """The memory [B, M, D], by the whole encoder."""
        encoder, context = self.stacks[0], self._source_context(inputs)
        h_BxMxD, _ = encoder.trunk(self, self._embed(ENCODER, inputs.source, context), context)
        return self.finish_encoder(encoder.top(self, h_BxMxD, context)[0])

    def _source_context(self, inputs: Inputs) -> Context:
        return self._biased(ENCODER, full_context(inputs.source_mask, causal=False))

    def _context(self, inputs: Inputs) -> Context:
        """The decoder's, without the memory itself."""
        context = self._biased(DECODER, full_context(inputs.mask))
        return context.replace(memory_attend=inputs.source_mask[:, None, :])

    def _biased(self, side: str, context: Context) -> Context:
        return context.replace(bias=self.position_bias(side, context))

    def _embed(self, side: str, tokens_BxT: jax.Array, context: Context) -> jax.Array:
        return self.embed(side, tokens_BxT, context.positions)
