"""What every model has in common: its inputs, its split into trunk and top, its logits."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mend_jax.models.attention import Cache, Context
from mend_jax.models.blocks import Stack
from mend_jax.models.layers import float32_product


@flax.struct.dataclass
class Inputs:
    """What a model reads.

    Attributes:
      tokens: the text, or the decoder's input; outputs are aligned with it.
      mask: True on real tokens; padding may be on either side.
      source: what an encoder reads, or None for models of one stack.
      source_mask: True on the source's real tokens.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    source: Int[Array, "B M"] | None = None
    source_mask: Bool[Array, "B M"] | None = None


def make_inputs(*arrays: Any) -> Inputs:
    """Return `Inputs` of numpy arrays, which a jitted function accepts like JAX arrays."""
    return Inputs(*arrays)


class ModelConfig(Protocol):
    """What the config of every family has; each is a frozen dataclass."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""

    @property
    def n_positions(self) -> int:
        """The most positions that the model is made for."""

    @property
    def d_model(self) -> int:
        """The width D of the states."""

    @property
    def n_heads(self) -> int:
        """The number of query heads."""


class EditableModel(nn.Module):
    """A model split below its first editable block.

    The trunk is frozen and runs once; the top carries taps and edits and starts from its states.
    Every model is run as `head(run_top(run_trunk(inputs), inputs, rows))`.

    Attributes:
      config: the family's frozen config, a `ModelConfig`.
      n_top: how many of the last blocks are unrolled and editable; an encoder-decoder has a pair.
      dtype: of activations and matmuls; the parameters keep their own dtype.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      text_chunk: how many texts of an edit pass at once; 0: all of them.
      logits_chunk: for how many positions of a text the logits exist at once, where a loss needs
        them only as an intermediate; 0: all.
      trunk_dtype: of the products of the trunk, whose sums are float32; None: `dtype`.
      question: the stack and the block whose input a gate reads too; None: no gate does. See
        `gate_site`.
    """

    config: Any
    n_top: Any
    dtype: Any = jnp.float32
    remat: bool = False
    text_chunk: int = 0
    logits_chunk: int = 0
    trunk_dtype: Any = None
    question: tuple[str, int] | None = None

    kind: ClassVar[str]  # "causal", "seq2seq" or "classifier"
    block_class: ClassVar[Any]  # of the family, a `Block`

    @staticmethod
    def stack_sizes(config: Any) -> dict[str, int]:
        """Return how many blocks each stack has, by its name."""
        return {"block": config.n_layer}

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Every stack with its split into trunk and top."""
        sizes = self.stack_sizes(self.config)
        tops = (self.n_top,) if isinstance(self.n_top, int) else self.n_top
        return tuple(Stack(*size, top) for size, top in zip(sizes.items(), tops, strict=True))

    def setup_family(self) -> None:
        """Add a family's own submodules and parameters; the last step of `setup`."""

    def question_block(self, stack: str) -> int | None:
        """Return the block of a stack whose input a gate reads too; None if there is none."""
        return self.question[1] if self.question and self.question[0] == stack else None

    def layers(self, stack: str) -> dict[str, np.ndarray]:
        """Return constants that differ from block to block of a stack, each [n_layer, ...]."""
        del stack
        return {}

    def run_trunk(self, inputs: Inputs) -> Any:
        """Return the states that the top starts from, a pytree with leading axis B."""
        raise NotImplementedError

    def run_top(
        self, state: Any, inputs: Inputs, rows: Int[Array, "B R"] | None = None
    ) -> Float[Array, "B R D"]:
        """Return the last states at the wanted rows (None: all)."""
        raise NotImplementedError

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        """Return the float32 logits of last states."""
        raise NotImplementedError

    def last_states(self, state: Any, inputs: Inputs) -> Float[Array, "B T D"]:
        """Return Hugging Face's `last_hidden_state` from trunk states.

        For an encoder-decoder it is that of the encoder, [B, M, D].
        """
        return self.run_top(state, inputs)

    def __call__(self, inputs: Inputs) -> Float[Array, "B T V"]:
        """Return the logits of a whole pass (for parity tests and small texts)."""
        return self.head(self.run_top(self.run_trunk(inputs), inputs))

    def look_up(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return token embeddings in the table's dtype."""
        return jnp.asarray(self.embedding)[tokens]

    def unembed(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        """Return float32 logits of states by the tied or separate vocabulary matrix."""
        if self.config.tie_embeddings:
            weight, axis = self.embedding, 1
        else:
            weight, axis = self.unembedding, 0
        return float32_product(h, weight.astype(self.dtype), axis)

    def add_embedding(self) -> None:
        """Add the token embedding and, unless tied, the vocabulary matrix; for `setup`."""
        c, init = self.config, nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        if not c.tie_embeddings:
            self.unembedding = self.param("unembedding", init, (c.d_model, c.vocab_size))

    def open_cache(self, inputs: Inputs, slots: int) -> Cache:
        """Return an empty key/value cache of `slots` positions; an encoder runs here."""
        raise NotImplementedError

    def extend(
        self, tokens: Int[Array, "B T"], context: Context, cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Return the last states of new tokens, and the cache with them."""
        raise NotImplementedError


def empty_block_cache(batch: int, slots: int, n_heads: int, head_dim: int, dtype: Any) -> Cache:
    """Return an empty self-attention cache of one block."""
    shape = (batch, slots, n_heads, head_dim)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
