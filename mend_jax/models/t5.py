"""T5 (Raffel et al. 2020): v1.0, and v1.1 and FLAN (Shazeer 2020's gated MLP, untied output).

Relative positions are a bias of the scores, one table for all encoder blocks and one for all
decoder blocks. RMSNorm, no biases, unscaled scores.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mend_jax.models.attention import Context, CrossAttention, SelfAttention
from mend_jax.models.blocks import Block
from mend_jax.models.encoder_decoder import DECODER, ENCODER, EncoderDecoder
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import MLP, GatedMLP, RMSNorm, activation
from mend_jax.models.tensor_spec import TensorSpec, linears_specs, norm_specs
from mend_jax.parallel.sharding import Rule


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 model.

    Attributes:
      n_positions: the length that it was trained at; relative positions have no limit.
      n_buckets, max_distance: of relative positions, see `bucket_table`.
      tie_embeddings: v1.0. Its last states are scaled by d_model^-1/2 before the tied matrix.
    """

    vocab_size: int
    n_positions: int
    n_encoder: int
    n_decoder: int
    d_model: int
    n_heads: int
    head_dim: int
    d_inner: int
    act: str = "relu"
    gated: bool = False
    n_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    decoder_start: int = 0

    @property
    def cache_heads(self) -> int:
        """The number of the decoder's heads."""
        return self.n_heads

    @property
    def decoder_prompt(self) -> tuple[int, ...]:
        """The decoder's tokens before a text."""
        return (self.decoder_start,)


def config_from_hf(hf: HFConfig) -> T5Config:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    act, gated = parse_feed_forward(hf.get("feed_forward_proj", "relu"))
    if hf.get("dense_act_fn", act) != act:
        raise ValueError(f"dense_act_fn {hf['dense_act_fn']!r} is not {act!r}, feed_forward_proj's")
    start = hf.get("decoder_start_token_id")
    # transformers 5 always writes tie_word_embeddings true; the scaling holds the original value.
    tied = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings") is not False)
    n_decoder = hf.get("num_decoder_layers")
    return T5Config(
        vocab_size=hf["vocab_size"],
        n_positions=hf.get("n_positions", 512),
        n_encoder=hf["num_layers"],
        n_decoder=hf["num_layers"] if n_decoder is None else n_decoder,
        d_model=hf["d_model"],
        n_heads=hf["num_heads"],
        head_dim=hf["d_kv"],
        d_inner=hf["d_ff"],
        act=act,
        gated=gated,
        n_buckets=hf.get("relative_attention_num_buckets", 32),
        max_distance=hf.get("relative_attention_max_distance", 128),
        norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        tie_embeddings=tied,
        decoder_start=hf.get("pad_token_id", 0) if start is None else start,
    )


def parse_feed_forward(name: str) -> tuple[str, bool]:
    """Return (activation, gated) of `feed_forward_proj`; raise ValueError if unsupported.

    "gated-gelu" means the tanh form there, "gelu" alone the exact one.
    """
    act, gated = name.removeprefix("gated-"), name.startswith("gated-")
    act = "gelu_new" if gated and act == "gelu" else act
    activation(act)
    return act, gated


def bucket_table(n_buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of each distance 0 ... max_distance: int32[max_distance + 1].

    Half of the buckets hold one distance each, the others ranges of equal width in log distance;
    the last holds all from max_distance on (Raffel et al. 2020, section 2.1). Computed in float32,
    as in the original program: bounds that are not powers of two are rounded.
    """
    n_exact = n_buckets // 2
    distance = np.arange(max_distance + 1, dtype=np.int32)
    ratio = np.maximum(distance, n_exact).astype(np.float32) / np.float32(n_exact)
    share = np.log(ratio) / np.float32(math.log(max_distance / n_exact))
    wide = n_exact + (share * np.float32(n_buckets - n_exact)).astype(np.int32)
    return np.where(distance < n_exact, distance, np.minimum(wide, n_buckets - 1)).astype(np.int32)


def relative_buckets(
    back: Int[Array, "*lead"], n_buckets: int, max_distance: int, bidirectional: bool
) -> Int[Array, "*lead"]:
    """Return the buckets of distances `back`, query position minus key position.

    A decoder has none for later keys, which it never attends to; in an encoder those have the upper
    half of the buckets.
    """
    if not bidirectional:
        table = jnp.asarray(bucket_table(n_buckets, max_distance))
        return table[jnp.clip(back, 0, max_distance)]
    table = jnp.asarray(bucket_table(n_buckets // 2, max_distance))
    return table[jnp.minimum(jnp.abs(back), max_distance)] + jnp.where(back < 0, n_buckets // 2, 0)


class T5Block(Block):
    """A pre-norm block without biases and without scaled scores."""

    def attention(self, name: str) -> SelfAttention:
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, scale=1.0, dtype=self.dtype, name=name
        )

    def cross(self, name: str) -> CrossAttention:
        c = self.config
        return CrossAttention(c.n_heads, c.head_dim, scale=1.0, dtype=self.dtype, name=name)

    def mlp(self, name: str) -> MLP | GatedMLP:
        c = self.config
        if c.gated:
            return GatedMLP(c.d_inner, activation(c.act), self.dtype, name=name)
        return MLP(c.d_inner, activation(c.act), use_bias=False, dtype=self.dtype, name=name)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.norm_eps, self.dtype, name=name)


class T5(EncoderDecoder):
    """T5 with a frozen trunk and editable tops of encoder and decoder."""

    block_class = T5Block

    def setup_family(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        shape = (c.n_buckets, c.n_heads)
        self.encoder_position_bias = self.param("encoder_position_bias", init, shape)
        self.decoder_position_bias = self.param("decoder_position_bias", init, shape)
        self.encoder_final_norm = RMSNorm(c.norm_eps, self.dtype)
        self.decoder_final_norm = RMSNorm(c.norm_eps, self.dtype)

    def position_bias(self, side: str, context: Context) -> Float[Array, "B H T S"]:
        c = self.config
        back_BxTxS = context.positions[..., None] - context.key_positions[:, None, :]
        table = {ENCODER: self.encoder_position_bias, DECODER: self.decoder_position_bias}[side]
        buckets_BxTxS = relative_buckets(back_BxTxS, c.n_buckets, c.max_distance, side == ENCODER)
        bias_BxTxSxH = jnp.asarray(table, jnp.float32)[buckets_BxTxS]
        return jnp.moveaxis(bias_BxTxSxH, -1, 1)

    def finish_encoder(self, h: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
        return self.encoder_final_norm(h)

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        h = self.decoder_final_norm(h)
        return self.unembed(h * self.config.d_model**-0.5 if self.config.tie_embeddings else h)


def edit_roles(c: T5Config) -> tuple[str, ...]:
    """Return the MLP matrices (paper, section 5.1); of a gated MLP not `up`, as in its code."""
    return ("mlp/gate" if c.gated else "mlp/up", "mlp/down")


def tensor_specs(c: T5Config) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] and tables in block 0."""
    D = c.d_model
    specs = [TensorSpec("embedding", (c.vocab_size, D), "shared.weight")]
    if not c.tie_embeddings:
        specs.append(TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True))
    for side, n_layer in ((ENCODER, c.n_encoder), (DECODER, c.n_decoder)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        specs.append(TensorSpec(f"{side}_position_bias", (c.n_buckets, c.n_heads), table))
        specs += norm_specs(f"{side}_final_norm", f"{side}.final_layer_norm", D)
        for i in range(n_layer):
            specs += block_specs(c, f"{side}_block_{i}", f"{side}.block.{i}", side == DECODER)
    return specs


def block_specs(c: T5Config, ours: str, theirs: str, has_cross: bool) -> list[TensorSpec]:
    """Return the tensors of one block: self-attention, cross-attention if any, and MLP."""
    D, F, width = c.d_model, c.d_inner, c.n_heads * c.head_dim
    specs = []
    parts = [("attn", "norm_1", "SelfAttention")]
    if has_cross:
        parts.append(("cross", "norm_cross", "EncDecAttention"))
    for n, (part, norm, name) in enumerate(parts):
        specs += norm_specs(f"{ours}/{norm}", f"{theirs}.layer.{n}.layer_norm", D)
        inner = [(side, side, D, width, False) for side in ("q", "k", "v")]
        linears = [*inner, ("out", "o", width, D, False)]
        specs += linears_specs(f"{ours}/{part}", f"{theirs}.layer.{n}.{name}", linears)
    last = f"{theirs}.layer.{len(parts)}"
    specs += norm_specs(f"{ours}/norm_2", f"{last}.layer_norm", D)
    ups = {"gate": "wi_0", "up": "wi_1"} if c.gated else {"up": "wi"}
    linears = [(role, name, D, F, False) for role, name in ups.items()]
    linears.append(("down", "wo", F, D, False))
    return specs + linears_specs(f"{ours}/mlp", f"{last}.DenseReluDense", linears)


FAMILY = Family(
    model_class=T5,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    edit_roles=edit_roles,
    tied={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    # Some released files hold a table that no cross-attention ever used.
    ignore=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    own_sharding_rules=(Rule(r"\w+_position_bias"),),
)
