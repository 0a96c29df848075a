"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side, partial rotary positions."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from mend_jax.models import gpt2
from mend_jax.models.attention import Cache, Context, Layer, SelfAttention
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import LayerNorm, broadcast_last
from mend_jax.models.rotary import inverse_frequencies, rotate_pairs
from mend_jax.models.single_stack import DecoderLM
from mend_jax.models.tensor_spec import TensorSpec, norm_specs
from mend_jax.parallel.layout import keep_last_axis_whole
from mend_jax.parallel.sharding import Rule


@dataclasses.dataclass(frozen=True)
class GPTJConfig(gpt2.GPT2Config):
    """Sizes of a GPT-J model.

    Attributes:
      rotary_dim: how many dimensions of each head are rotated.
    """

    tie_embeddings: bool = False
    rotary_dim: int = 64


def config_from_hf(hf: HFConfig) -> GPTJConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    if hf.get("tie_word_embeddings", False):
        raise ValueError("tie_word_embeddings is not supported")
    head_dim = hf["n_embd"] // hf["n_head"]
    rotary_dim = hf.get("rotary_dim", 64)
    if rotary_dim is None or rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim is {rotary_dim}; it must be even, from 2 to {head_dim}")
    return gpt2.common_config(hf, GPTJConfig, gpt2.NAMES, rotary_dim=rotary_dim)


class GPTJBlock(gpt2.GPT2Block):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None, layer: Layer
    ) -> tuple[Float[Array, "B R D"], Cache | None]:
        normed_BxTxD = self.norm("norm_1")(x)
        attended, cache = self.attention("attn")(normed_BxTxD, context, cache, layer)
        mlp = self.mlp("mlp")(context.keep_rows(normed_BxTxD), context.match_at_rows())
        return keep_last_axis_whole(context.keep_rows(x) + attended + mlp), cache

    def attention(self, name: str) -> SelfAttention:
        c = self.config
        inverse = inverse_frequencies(c.rotary_dim, 10000.0)
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim,
            rotate=lambda x, positions, layer: rotate_pairs(x, positions, inverse),
            dtype=self.dtype, name=name,
        )  # fmt: skip


class GPTJ(DecoderLM):
    """GPT-J with a frozen trunk and an editable top."""

    block_class = GPTJBlock

    def setup_family(self) -> None:
        zeros = nn.initializers.zeros
        self.unembedding_bias = self.param("unembedding_bias", zeros, (self.config.vocab_size,))

    def make_final_norm(self) -> LayerNorm:
        return LayerNorm(self.config.norm_eps, self.dtype)

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        logits = super().head(h)
        return logits + broadcast_last(self.unembedding_bias, logits).astype(logits.dtype)


def tensor_specs(c: GPTJConfig) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F, V = c.d_model, c.d_inner, c.vocab_size
    linears = (
        ("attn/q", "attn.q_proj", D, D, False),
        ("attn/k", "attn.k_proj", D, D, False),
        ("attn/v", "attn.v_proj", D, D, False),
        ("attn/out", "attn.out_proj", D, D, False),
        ("mlp/up", "mlp.fc_in", D, F, True),
        ("mlp/down", "mlp.fc_out", F, D, True),
    )
    return [
        TensorSpec("embedding", (V, D), "transformer.wte.weight"),
        *norm_specs("final_norm", "transformer.ln_f", D, bias=True),
        TensorSpec("unembedding", (D, V), "lm_head.weight", True),
        TensorSpec("unembedding_bias", (V,), "lm_head.bias"),
        *gpt2.block_specs(c, linears, n_norms=1),
    ]


FAMILY = Family(
    model_class=GPTJ,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    ignore=(r"h\.\d+\.attn\.(masked_)?bias",),
    own_sharding_rules=(Rule("unembedding_bias", ("tensor",)),),
)
