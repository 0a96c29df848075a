"""The skeleton of every encoder-decoder: an encoder's output is the memory of each decoder block.

Shape letters: B texts, M positions of the source, T of the decoder, D width, H heads, K head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float, Int

from mend_jax.models.attention import Cache, Context, full_context
from mend_jax.models.editable_model import EditableModel, Inputs, empty_block_cache
from mend_jax.models.gate_site import Match

ENCODER, DECODER = "encoder", "decoder"
TrunkStates = dict[str, Float[Array, "B _ D"]]
"""States of both sides, by `ENCODER` and `DECODER`."""


class EncoderDecoder(EditableModel):
    """An encoder-decoder (Vaswani et al. 2017); a family names its block, embeddings and norms.

    `n_top` is a pair (encoder, decoder). The trunk is everything below every editable block: if
    the encoder has no top, its output and the decoder's lower blocks belong to the trunk; if it
    has one, these lower blocks depend on the edit by cross-attention and run with the top.

    The config must have n_encoder, n_decoder, d_model, vocab_size, n_positions, tie_embeddings;
    cache_heads and head_dim, the number and width of the decoder's heads; decoder_start, the first
    token of the decoder's input, and decoder_prompt, all of its tokens before a text.
    """

    kind: ClassVar[str] = "seq2seq"

    @staticmethod
    def stack_sizes(config: Any) -> dict[str, int]:
        return {f"{ENCODER}_block": config.n_encoder, f"{DECODER}_block": config.n_decoder}

    def setup(self) -> None:
        self.add_embedding()
        for side, stack in zip((ENCODER, DECODER), self.stacks, strict=True):
            stack.build(self, self.block_class, self.block_config(side))
        self.setup_family()

    def block_config(self, side: str) -> Any:
        """Return the config that the blocks of one side are built from."""
        del side
        return self.config

    def embed(
        self, side: str, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Return the input embeddings of one side; families add positions here."""
        del side, positions
        return self.look_up(tokens).astype(self.dtype)

    def position_bias(self, side: str, context: Context) -> Float[Array, "B H T S"] | None:
        """Return the bias of the scores of self-attention, if the family has one."""
        del side, context
        return None

    def finish_encoder(self, h: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
        """Return the memory from the encoder's last states: the final norm, if there is one."""
        return h

    def run_trunk(self, inputs: Inputs) -> TrunkStates:
        """Return {"encoder": states or, without an encoder top, the memory; "decoder": states}."""
        encoder, decoder = self.stacks
        context = self._source_context(inputs)
        h_BxMxD, _ = encoder.trunk(self, self._embed(ENCODER, inputs.source, context), context)
        context = self._context(inputs)
        x_BxTxD = self._embed(DECODER, inputs.tokens, context)
        if not encoder.n_top:
            h_BxMxD = self.finish_encoder(h_BxMxD)
            x_BxTxD, _ = decoder.trunk(self, x_BxTxD, dataclasses.replace(context, memory=h_BxMxD))
        return {ENCODER: h_BxMxD, DECODER: x_BxTxD}

    def run_top(
        self, state: TrunkStates, inputs: Inputs, rows: Int[Array, "B R"] | None = None
    ) -> Float[Array, "B R D"]:
        encoder, decoder = self.stacks
        x_BxTxD = state[DECODER]
        memory_BxMxD, match = self._finish_source(state, inputs)
        context = dataclasses.replace(
            self._context(inputs), memory=memory_BxMxD, match=match, memory_match=match
        )
        if encoder.n_top:
            x_BxTxD, _ = decoder.trunk(self, x_BxTxD, context)
        return decoder.top(self, x_BxTxD, dataclasses.replace(context, rows=rows)).h

    def last_states(self, state: TrunkStates, inputs: Inputs) -> Float[Array, "B M D"]:
        return self._finish_source(state, inputs)[0]

    def _finish_source(
        self, state: TrunkStates, inputs: Inputs
    ) -> tuple[Float[Array, "B M D"], Match | None]:
        """Return the memory, and the match of the texts if the gate reads the encoder."""
        encoder, h_BxMxD = self.stacks[0], state[ENCODER]
        if not encoder.n_top:
            return h_BxMxD, None  # the trunk has finished it
        top = encoder.top(self, h_BxMxD, self._source_context(inputs))
        return self.finish_encoder(top.h), top.match

    def open_cache(self, inputs: Inputs, slots: int) -> Cache:
        """Return an empty cache of `slots` positions, with the memory for the first `extend`."""
        assert inputs.source is not None and inputs.source_mask is not None
        c, (B, M), decoder = self.config, inputs.source.shape, self.stacks[1]
        block = empty_block_cache(B, slots, c.cache_heads, c.head_dim, self.dtype)
        memory = empty_block_cache(B, M, c.cache_heads, c.head_dim, self.dtype)
        block |= {f"memory_{name}": empty for name, empty in memory.items()}
        memory_BxMxD, match = self._encode(inputs)
        return {
            "memory": memory_BxMxD,
            "memory_attend": inputs.source_mask[:, None, :],
            "memory_match": match,
            "memory_tokens": inputs.source,
            "blocks": decoder.empty_cache(block),
        }

    def extend(
        self, tokens: Int[Array, "B T"], context: Context, cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Return the last states of new tokens, and the cache with them.

        The first call turns the memory into the keys and values of every block's cross-attention,
        and returns a cache without "memory".
        """
        decoder, blocks = self.stacks[1], cache["blocks"]
        names = ("memory_attend", "memory_match", "memory_tokens")
        source = {name: cache[name] for name in names}
        context = dataclasses.replace(
            self._biased(DECODER, context), memory=cache.get("memory"),
            match=source["memory_match"], **source,
        )  # fmt: skip
        h = self._embed(DECODER, tokens, context)
        h, trunk = decoder.trunk(self, h, context, blocks["trunk"])
        top = decoder.top(self, h, context, blocks["top"])
        return top.h, source | {"blocks": {"trunk": trunk, "top": top.caches}}

    def _encode(self, inputs: Inputs) -> tuple[Float[Array, "B M D"], Match | None]:
        """Return the memory of the whole encoder, and the match of the texts if it is read."""
        encoder, context = self.stacks[0], self._source_context(inputs)
        h_BxMxD, _ = encoder.trunk(self, self._embed(ENCODER, inputs.source, context), context)
        top = encoder.top(self, h_BxMxD, context)
        return self.finish_encoder(top.h), top.match

    def _source_context(self, inputs: Inputs) -> Context:
        assert inputs.source is not None and inputs.source_mask is not None
        context = full_context(inputs.source, inputs.source_mask, causal=False)
        return self._biased(ENCODER, context)

    def _context(self, inputs: Inputs) -> Context:
        """Return the decoder's context, without the memory itself."""
        assert inputs.source_mask is not None
        context = self._biased(DECODER, full_context(inputs.tokens, inputs.mask))
        return dataclasses.replace(
            context, memory_attend=inputs.source_mask[:, None, :], memory_tokens=inputs.source
        )

    def _biased(self, side: str, context: Context) -> Context:
        return dataclasses.replace(context, bias=self.position_bias(side, context))

    def _embed(
        self, side: str, tokens: Int[Array, "B T"] | None, context: Context
    ) -> Float[Array, "B T D"]:
        assert tokens is not None
        return self.embed(side, tokens, context.positions)
