"""BART (Lewis et al. 2020): post-norm blocks, learned positions, norms of the embeddings."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mend_jax.models.attention import CrossAttention, SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs
from mend_jax.models.blocks import Block
from mend_jax.models.encoder_decoder import DECODER, ENCODER, EncoderDecoder
from mend_jax.models.layers import MLP, LayerNorm, activation, along_last

MODEL_TYPES = ("bart",)
TIED = {
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
    "lm_head.weight": "model.shared.weight",
}
IGNORE = (r"model\.(encoder|decoder)\.version",)

POSITION_OFFSET = 2  # the first two rows of a table of positions are not used
NORM_EPS = 1e-5  # no field of the config


class Side(NamedTuple):
    """Sizes of the encoder or the decoder."""

    n_layer: int
    n_heads: int
    d_inner: int
    head_dim: int
    act: str


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """Sizes of a BART model.

    Attributes:
      encoder, decoder: their own sizes.
      scale_embedding: multiply token embeddings by d_model^1/2.
      decoder_start, bos: every text begins with `bos`, so the decoder reads these two before it
        writes.
    """

    vocab_size: int
    n_positions: int
    d_model: int
    encoder: Side
    decoder: Side
    scale_embedding: bool = False
    decoder_start: int = 2
    bos: int = 0
    tie_embeddings: bool = True

    @property
    def decoder_prompt(self) -> tuple[int, ...]:
        return (self.decoder_start, self.bos)

    @property
    def n_heads(self) -> int:
        """Of both sides together: what divides it divides the heads of each."""
        return math.gcd(self.encoder.n_heads, self.decoder.n_heads)

    @property
    def n_encoder(self) -> int:
        return self.encoder.n_layer

    @property
    def n_decoder(self) -> int:
        return self.decoder.n_layer

    @property
    def cache_heads(self) -> int:
        return self.decoder.n_heads

    @property
    def head_dim(self) -> int:
        return self.decoder.head_dim


# What older files may say, and the only value that this architecture has.
_FIXED = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
    "extra_pos_embeddings": POSITION_OFFSET,
    "tie_word_embeddings": True,
}


def config_from_hf(hf: dict[str, Any]) -> BartConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    for field, value in _FIXED.items():
        if hf.get(field, value) != value:
            raise ValueError(f"{field} {hf[field]!r} is not supported, only {value!r}")
    act = hf.get("activation_function", "gelu")
    activation(act)

    def side(name):
        heads = hf[f"{name}_attention_heads"]
        if hf["d_model"] % heads:
            raise ValueError(f"d_model {hf['d_model']} is not divided by {heads} heads")
        sizes = hf[f"{name}_layers"], heads, hf[f"{name}_ffn_dim"]
        return Side(*sizes, head_dim=hf["d_model"] // heads, act=act)

    return BartConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        d_model=hf["d_model"],
        encoder=side(ENCODER),
        decoder=side(DECODER),
        scale_embedding=hf.get("scale_embedding", False),
        decoder_start=hf.get("decoder_start_token_id", 2),
        bos=hf.get("bos_token_id", 0),
    )


class BartBlock(Block):
    """Built from a `Side`."""

    pre_norm = False

    def attention(self, name):
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, qkv_bias=True, out_bias=True,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def cross(self, name):
        c = self.config
        return CrossAttention(c.n_heads, c.head_dim, use_bias=True, dtype=self.dtype, name=name)

    def mlp(self, name):
        c = self.config
        return MLP(c.d_inner, activation(c.act), dtype=self.dtype, name=name)

    def norm(self, name):
        return LayerNorm(NORM_EPS, self.dtype, name=name)


class Bart(EncoderDecoder):
    """BART with an untouched trunk and editable tops of encoder and decoder."""

    block_class = BartBlock

    def setup_family(self):
        c, init = self.config, nn.initializers.normal(0.02)
        shape = (c.n_positions + POSITION_OFFSET, c.d_model)
        self.encoder_position = self.param("encoder_position", init, shape)
        self.decoder_position = self.param("decoder_position", init, shape)
        self.encoder_embedding_norm = LayerNorm(NORM_EPS, self.dtype)
        self.decoder_embedding_norm = LayerNorm(NORM_EPS, self.dtype)
        self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (1, c.vocab_size))

    def block_config(self, side: str) -> Side:
        return getattr(self.config, side)

    def embed(self, side: str, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
        x_BxTxD = self.look_up(tokens_BxT)
        if self.config.scale_embedding:
            x_BxTxD = x_BxTxD * self.config.d_model**0.5
        table = jnp.asarray(getattr(self, f"{side}_position"))
        x_BxTxD = x_BxTxD + table[positions_BxT + POSITION_OFFSET]
        return getattr(self, f"{side}_embedding_norm")(x_BxTxD)

    def head(self, h: jax.Array) -> jax.Array:
        logits = self.unembed(h)
        return logits + along_last(self.logits_bias[0], logits).astype(jnp.float32)


MODULE = Bart


def edit_roles(c: BartConfig) -> tuple[str, ...]:
    """The MLP matrices (paper, section 5.1)."""
    del c
    return ("mlp/up", "mlp/down")


def tensor_specs(c: BartConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D = c.d_model
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), "model.shared.weight"),
        TensorSpec("logits_bias", (1, c.vocab_size), "final_logits_bias", optional=True),
    ]
    table = (c.n_positions + POSITION_OFFSET, D)
    for name in (ENCODER, DECODER):
        theirs, side = f"model.{name}", getattr(c, name)
        norm = f"{theirs}.layernorm_embedding"
        specs.append(TensorSpec(f"{name}_position", table, f"{theirs}.embed_positions.weight"))
        specs += norm_specs(f"{name}_embedding_norm", norm, D, bias=True)
        for i in range(side.n_layer):
            ours = f"{name}_block_{i}"
            specs += block_specs(D, side, ours, f"{theirs}.layers.{i}", name == DECODER)
    return specs


def block_specs(D: int, side: Side, ours: str, theirs: str, has_cross: bool) -> list[TensorSpec]:
    """Tensors of one block."""
    linear = functools.partial(linear_specs, bias=True)
    parts = [("attn", "norm_1", "self_attn")]
    if has_cross:
        parts.append(("cross", "norm_cross", "encoder_attn"))
    specs = norm_specs(f"{ours}/norm_2", f"{theirs}.final_layer_norm", D, bias=True)
    for part, norm, name in parts:
        specs += norm_specs(f"{ours}/{norm}", f"{theirs}.{name}_layer_norm", D, bias=True)
        for role in ("q", "k", "v", "out"):
            specs += linear(f"{ours}/{part}/{role}", f"{theirs}.{name}.{role}_proj", D, D)
    return [
        *specs,
        *linear(f"{ours}/mlp/up", f"{theirs}.fc1", D, side.d_inner),
        *linear(f"{ours}/mlp/down", f"{theirs}.fc2", side.d_inner, D),
    ]
