"""GPT-2 and distilGPT-2 (Radford et al. 2019): learned positions, pre-norm, GELU (tanh form).

GPT-Neo and GPT-J extend it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.models.blocks import BiasedBlock
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import LayerNorm
from mend_jax.models.single_stack import DecoderLM
from mend_jax.models.tensor_spec import TensorSpec, linears_specs, norm_specs


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2 model."""

    vocab_size: int
    n_positions: int
    n_layer: int
    d_model: int
    n_heads: int
    d_inner: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    act: ClassVar[str] = "gelu_new"

    @property
    def head_dim(self) -> int:
        """The width K of a head."""
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """As many as query heads."""
        return self.n_heads


C = TypeVar("C", bound=GPT2Config)


def common_config(hf: HFConfig, make: type[C], names: Iterable[str], **more: Any) -> C:
    """Return a config of this shape.

    Args:
      make: the class of the config.
      names: the config.json fields of n_positions, n_layer, d_model, n_heads and d_inner.
      more: the other fields.

    Raises:
      KeyError, ValueError: a field is missing, or has an unsupported value.
    """
    if hf.get("activation_function", make.act) != make.act:
        raise ValueError(f"activation_function {hf['activation_function']!r} is not {make.act}")
    n_positions, n_layer, d_model, n_heads, d_inner = names
    return make(
        vocab_size=hf["vocab_size"],
        n_positions=hf[n_positions],
        n_layer=hf[n_layer],
        d_model=hf[d_model],
        n_heads=hf[n_heads],
        d_inner=hf.get(d_inner) or 4 * hf[d_model],
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        **more,
    )


NAMES = ("n_positions", "n_layer", "n_embd", "n_head", "n_inner")


def config_from_hf(hf: HFConfig) -> GPT2Config:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    for flag in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    if not hf.get("scale_attn_weights", True):
        raise ValueError("scale_attn_weights false is not supported")
    tied = hf.get("tie_word_embeddings", True)
    return common_config(hf, GPT2Config, NAMES, tie_embeddings=tied)


class GPT2Block(BiasedBlock):
    """A pre-norm block with fused queries, keys and values."""

    fused = True


class GPT2(DecoderLM):
    """GPT-2 with a frozen trunk and an editable top."""

    block_class = GPT2Block

    def setup_family(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        self.position = self.param("position", init, (c.n_positions, c.d_model))

    def make_final_norm(self) -> LayerNorm:
        return LayerNorm(self.config.norm_eps, self.dtype)

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        position_BxTxD = jnp.asarray(self.position)[positions]
        return (self.look_up(tokens) + position_BxTxD).astype(self.dtype)


def tensor_specs(c: GPT2Config) -> list[TensorSpec]:
    """Return every tensor; GPT-2 files store kernels as [d_in, d_out] (Conv1D)."""
    D, F = c.d_model, c.d_inner
    linears = (
        ("attn/qkv", "attn.c_attn", D, 3 * D, True),
        ("attn/out", "attn.c_proj", D, D, True),
        ("mlp/up", "mlp.c_fc", D, F, True),
        ("mlp/down", "mlp.c_proj", F, D, True),
    )
    return outer_specs(c) + block_specs(c, linears, transpose=False)


def outer_specs(c: GPT2Config) -> list[TensorSpec]:
    """Return the tensors outside the blocks."""
    D = c.d_model
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), "transformer.wte.weight"),
        TensorSpec("position", (c.n_positions, D), "transformer.wpe.weight"),
        *norm_specs("final_norm", "transformer.ln_f", D, bias=True),
    ]
    if not c.tie_embeddings:
        specs.append(TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True))
    return specs


def block_specs(
    c: GPT2Config,
    linears: Iterable[tuple[str, str, int, int, bool]],
    *,
    n_norms: int = 2,
    transpose: bool = True,
) -> list[TensorSpec]:
    """Return the tensors of all blocks.

    Args:
      linears: the matmuls of a block, see `linears_specs`.
      n_norms: how many norms a block has.
      transpose: the file holds kernels as [d_out, d_in].
    """
    linears, specs = tuple(linears), []
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        for n in range(1, n_norms + 1):
            specs += norm_specs(f"{ours}/norm_{n}", f"{theirs}.ln_{n}", c.d_model, bias=True)
        specs += linears_specs(ours, theirs, linears, transpose=transpose)
    return specs


FAMILY = Family(
    model_class=GPT2,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignore=(r"h\.\d+\.attn\.(masked_)?bias",),
)
