"""BART (Lewis et al. 2020): post-norm blocks, learned positions, norms of the embeddings."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.models.blocks import BiasedBlock
from mend_jax.models.encoder_decoder import DECODER, ENCODER, EncoderDecoder
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import LayerNorm, activation, broadcast_last
from mend_jax.models.tensor_spec import TensorSpec, linears_specs, norm_specs
from mend_jax.parallel.sharding import Rule

POSITION_OFFSET = 2  # the first two rows of a table of positions are unused
NORM_EPS = 1e-5  # not a field of the config


class Side(NamedTuple):
    """Sizes of the encoder or the decoder."""

    n_layer: int
    n_heads: int
    d_inner: int
    head_dim: int
    act: str
    norm_eps: float = NORM_EPS


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """Sizes of a BART model.

    Attributes:
      encoder, decoder: the sizes of each.
      scale_embedding: multiply token embeddings by d_model^1/2.
      decoder_start, bos: the decoder's first two tokens; every text begins with `bos`.
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
        """The decoder's tokens before a text."""
        return (self.decoder_start, self.bos)

    @property
    def n_heads(self) -> int:
        """The largest number that divides the heads of both sides."""
        return math.gcd(self.encoder.n_heads, self.decoder.n_heads)

    @property
    def n_encoder(self) -> int:
        """The number of encoder blocks."""
        return self.encoder.n_layer

    @property
    def n_decoder(self) -> int:
        """The number of decoder blocks."""
        return self.decoder.n_layer

    @property
    def cache_heads(self) -> int:
        """The number of the decoder's heads."""
        return self.decoder.n_heads

    @property
    def head_dim(self) -> int:
        """The width of the decoder's heads."""
        return self.decoder.head_dim


# Fields of older files, and the only value that this architecture has.
_FIXED = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
    "extra_pos_embeddings": POSITION_OFFSET,
    "tie_word_embeddings": True,
}


def config_from_hf(hf: HFConfig) -> BartConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    for field, value in _FIXED.items():
        if hf.get(field, value) != value:
            raise ValueError(f"{field} {hf[field]!r} is not supported, only {value!r}")
    act = hf.get("activation_function", "gelu")
    activation(act)

    def side(name: str) -> Side:
        heads = hf[f"{name}_attention_heads"]
        if hf["d_model"] % heads:
            raise ValueError(f"d_model {hf['d_model']} is not a multiple of {heads} heads")
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


class BartBlock(BiasedBlock):
    """A post-norm block, built from a `Side`."""

    pre_norm = False


class Bart(EncoderDecoder):
    """BART with a frozen trunk and editable tops of encoder and decoder."""

    block_class = BartBlock

    def setup_family(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        shape = (c.n_positions + POSITION_OFFSET, c.d_model)
        self.encoder_position = self.param("encoder_position", init, shape)
        self.decoder_position = self.param("decoder_position", init, shape)
        self.encoder_embedding_norm = LayerNorm(NORM_EPS, self.dtype)
        self.decoder_embedding_norm = LayerNorm(NORM_EPS, self.dtype)
        self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (1, c.vocab_size))

    def block_config(self, side: str) -> Side:
        return getattr(self.config, side)

    def embed(
        self, side: str, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        x_BxTxD = self.look_up(tokens)
        if self.config.scale_embedding:
            x_BxTxD = x_BxTxD * self.config.d_model**0.5
        table = jnp.asarray(getattr(self, f"{side}_position"))
        x_BxTxD = x_BxTxD + table[positions + POSITION_OFFSET]
        return getattr(self, f"{side}_embedding_norm")(x_BxTxD)

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        logits = self.unembed(h)
        return logits + broadcast_last(self.logits_bias[0], logits).astype(jnp.float32)


def tensor_specs(c: BartConfig) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] (torch Linear)."""
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
    """Return the tensors of one block."""
    F = side.d_inner
    parts = [("attn", "norm_1", "self_attn")]
    if has_cross:
        parts.append(("cross", "norm_cross", "encoder_attn"))
    specs = norm_specs(f"{ours}/norm_2", f"{theirs}.final_layer_norm", D, bias=True)
    for part, norm, name in parts:
        specs += norm_specs(f"{ours}/{norm}", f"{theirs}.{name}_layer_norm", D, bias=True)
        linears = [(role, f"{role}_proj", D, D, True) for role in ("q", "k", "v", "out")]
        specs += linears_specs(f"{ours}/{part}", f"{theirs}.{name}", linears)
    return specs + linears_specs(
        ours, theirs, [("mlp/up", "fc1", D, F, True), ("mlp/down", "fc2", F, D, True)]
    )


FAMILY = Family(
    model_class=Bart,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    tied={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    ignore=(r"model\.(encoder|decoder)\.version",),
    own_sharding_rules=(Rule("logits_bias", ("tensor",)),),
)
