"""What every model family has in common: the tensors it is made of, its inputs, its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.models.attention import Context
from mend_jax.models.blocks import Stack
from mend_jax.models.layers import float32_product


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One base tensor: where it lives with us, in a Hugging Face file and in a GGUF file.

    Attributes:
      path: our flat name, `/`-joined, one entry per block, e.g. `block_3/mlp/up/kernel`.
      shape: our shape; a matmul kernel is always [d_in, d_out].
      hf: Hugging Face tensor name, e.g. `model.layers.3.mlp.up_proj.weight`.
      transpose: True where Hugging Face stores the kernel as [d_out, d_in].
      gguf: GGUF tensor name, e.g. `blk.3.ffn_up.weight`, or None if the family has no GGUF map.
      gguf_rope_heads: > 0 for the queries and keys of families whose GGUF rows are reordered
        for interleaved rotary pairs; the number of heads in this tensor.
      optional: made up where the file lacks it, the same each time: drawn from N(0, std^2).
      std: of such a tensor; 0 makes zeros.
      lacking: what to tell a user whose file lacks it.
    """

    path: str
    shape: tuple[int, ...]
    hf: str
    transpose: bool = False
    gguf: str | None = None
    gguf_rope_heads: int = 0
    optional: bool = False
    std: float = 0.0
    lacking: str = ""


@flax.struct.dataclass
class Inputs:
    """What a model reads.

    Attributes:
      tokens: int32[B, T], what outputs stand at: the text, or the decoder's input.
      mask: bool[B, T], True on real tokens; padding may stand on either side.
      source: int32[B, M], what an encoder reads, or None for models of one stack.
      source_mask: bool[B, M].
    """

    tokens: jax.Array
    mask: jax.Array
    source: jax.Array | None = None
    source_mask: jax.Array | None = None


class EditableModel(nn.Module):
    """A model split below its first editable block.

    The trunk is frozen and runs once; the top carries taps and edits and starts from its states.
    Every model is run as `head(run_top(run_trunk(inputs), inputs, rows))`.

    Attributes:
      config: the family's frozen config.
      n_top: how many of the last blocks are unrolled and editable; an encoder-decoder has a pair.
      dtype: of activations and matmuls; the parameters keep their own dtype.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      text_chunk: how many texts of an edit pass at once; 0: all of them.
      logits_chunk: of how many positions a text the logits are there at once, where they are not
        themselves asked for; 0: of all.
    """

    config: Any
    n_top: Any
    dtype: Any = jnp.float32
    remat: bool = False
    text_chunk: int = 0
    logits_chunk: int = 0

    kind: ClassVar[str]  # "causal", "seq2seq" or "classifier"

    @staticmethod
    def stack_sizes(config: Any) -> dict[str, int]:
        """How many blocks each stack has, by its name."""
        return {"block": config.n_layer}

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Every stack with its split into trunk and top."""
        sizes = self.stack_sizes(self.config)
        tops = (self.n_top,) if isinstance(self.n_top, int) else self.n_top
        return tuple(Stack(*size, top) for size, top in zip(sizes.items(), tops, strict=True))

    def layers(self, stack: str) -> dict[str, np.ndarray]:
        """Constants that differ from block to block of a stack, each [n_layer, ...]."""
        del stack
        return {}

    def run_trunk(self, inputs: Inputs) -> Any:
        """States that the top starts from, a pytree with leading axis B."""
        raise NotImplementedError

    def run_top(self, state: Any, inputs: Inputs, rows: jax.Array | None = None) -> jax.Array:
        """Last states [B, R, D] at the wanted rows int32[B, R] (None: all)."""
        raise NotImplementedError

    def head(self, h: jax.Array) -> jax.Array:
        """Last states [..., D] -> float32 logits [..., V]."""
        raise NotImplementedError

    def last_states(self, state: Any, inputs: Inputs) -> jax.Array:
        """What the model makes of all that it reads, from trunk states: [B, T, D], or [B, M, D].

        The last states as Hugging Face's `last_hidden_state` has them, of an encoder-decoder those
        of its encoder.
        """
        return self.run_top(state, inputs)

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Logits [B, T, V] of a whole pass (for parity tests and small texts)."""
        return self.head(self.run_top(self.run_trunk(inputs), inputs))

    def look_up(self, tokens_BxT: jax.Array) -> jax.Array:
        """Token embeddings [B, T, D] in the table's dtype."""
        return jnp.asarray(self.embedding)[tokens_BxT]

    def unembed(self, h: jax.Array) -> jax.Array:
        """Float32 logits of states [..., D] by the tied or own vocabulary matrix."""
        if self.config.tie_embeddings:
            weight, axis = self.embedding, 1
        else:
            weight, axis = self.unembedding, 0
        return float32_product(h, weight.astype(self.dtype), axis)

    def add_embedding(self) -> None:
        """The token embedding and, unless tied, the vocabulary matrix; for `setup`."""
        c, init = self.config, nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        if not c.tie_embeddings:
            self.unembedding = self.param("unembedding", init, (c.d_model, c.vocab_size))

    def open_cache(self, inputs: Inputs, slots: int) -> dict[str, Any]:
        """An empty key/value cache of `slots` positions; an encoder runs here."""
        raise NotImplementedError

    def extend(
        self, tokens_BxT: jax.Array, context: Context, cache: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Last states [B, T, D] of new tokens, and the cache with them."""
        raise NotImplementedError


def empty_heads(batch: int, slots: int, heads: int, width: int, dtype: Any) -> dict[str, Any]:
    """An empty self-attention cache of one block."""
    shape = (batch, slots, heads, width)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


NO_WINDOW = np.iinfo(np.int32).max


def window_layers(windows: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The layer constant `window` from one window a block (0: looks back without limit)."""
    if not any(windows):
        return {}
    return {"window": np.asarray([w or NO_WINDOW for w in windows], np.int32)}


def windows_by_type(types: Sequence[str], window: int | None, n_layer: int) -> tuple[int, ...]:
    """How far back each block looks, by its entry in a config's `layer_types`.

    Raises:
      ValueError: a kind of layer that is not known, too many or too few of them, or layers with a
        window in a config without one.
    """
    sizes = {"full_attention": 0, "sliding_attention": window}
    unknown = sorted(set(types) - set(sizes))
    if unknown:
        raise ValueError(f"layer_types {unknown} are not supported; known: {sorted(sizes)}")
    if len(types) != n_layer:
        raise ValueError(f"there are {len(types)} layer_types for {n_layer} layers")
    if "sliding_attention" in types and not window:
        raise ValueError(f"layer_types has sliding_attention, but the sliding window is {window}")
    return tuple(sizes[kind] for kind in types)


def require(hf: Mapping[str, Any], *names: str) -> None:
    """KeyError for the first of these fields that a config lacks."""
    for name in names:
        if name not in hf:
            raise KeyError(name)


def without_gguf(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors of a family whose GGUF files are not read, from those of one that it extends."""
    return [dataclasses.replace(spec, gguf=None, gguf_rope_heads=0) for spec in specs]


def linear_specs(
    ours: str,
    theirs: str,
    d_in: int,
    d_out: int,
    *,
    bias: bool = False,
    transpose: bool = True,
    gguf: str | None = None,
    gguf_rope_heads: int = 0,
) -> list[TensorSpec]:
    """A matmul `ours/kernel` (and `ours/bias`); torch Linear files hold [d_out, d_in]."""
    name = gguf and f"{gguf}.weight"
    shape = (d_in, d_out)
    specs = [
        TensorSpec(f"{ours}/kernel", shape, f"{theirs}.weight", transpose, name, gguf_rope_heads)
    ]
    if bias:
        name = gguf and f"{gguf}.bias"
        specs.append(
            TensorSpec(
                f"{ours}/bias", (d_out,), f"{theirs}.bias", False, name, gguf_rope_heads
            )
        )  # fmt: skip
    return specs


def norm_specs(
    ours: str, theirs: str, width: int, *, bias: bool = False, gguf: str | None = None
) -> list[TensorSpec]:
    """A norm's `ours/scale` (and `ours/bias`)."""
    name = gguf and f"{gguf}.weight"
    specs = [TensorSpec(f"{ours}/scale", (width,), f"{theirs}.weight", gguf=name)]
    if bias:
        specs.append(TensorSpec(f"{ours}/bias", (width,), f"{theirs}.bias"))
    return specs
