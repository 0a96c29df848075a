"""BERT (Devlin et al. 2019) with the paper's fact-checking head: one score of the pooled text.

Only files with today's names (`LayerNorm.weight`) are read, not those of 2018 (`LayerNorm.gamma`).
Files of the encoder alone have no `bert.` before their names and no head (`CLASSIFIER_HEAD`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs
from mend_jax.models.blocks import Block
from mend_jax.models.classifier import NO_HEAD, TextClassifier
from mend_jax.models.layers import MLP, LayerNorm, activation

MODEL_TYPES = ("bert",)
TIED: dict[str, str] = {}
IGNORE = (r"bert\.embeddings\.position_ids",)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT classifier.

    Attributes:
      n_types: how many kinds of segment the file has an embedding of; every text is of kind 0.
    """

    vocab_size: int
    n_positions: int
    n_layer: int
    d_model: int
    n_heads: int
    d_inner: int
    n_types: int = 2
    act: str = "gelu"
    norm_eps: float = 1e-12

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


def config_from_hf(hf: dict[str, Any]) -> BertConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack.

    A config that says nothing of labels is taken to have the one that we score.
    """
    for flag in ("is_decoder", "add_cross_attention"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    if hf.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {hf['position_embedding_type']!r}: not absolute")
    if (n_labels := _count_labels(hf)) != 1:
        raise ValueError(f"{n_labels} labels; a classifier must have one: set num_labels to 1")
    activation(hf.get("hidden_act", "gelu"))
    return BertConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        n_layer=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        n_heads=hf["num_attention_heads"],
        d_inner=hf["intermediate_size"],
        n_types=hf.get("type_vocab_size", 2),
        act=hf.get("hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
    )


def _count_labels(hf: dict[str, Any]) -> int:
    """From `num_labels`, or else from the names in `id2label`, which is what files carry."""
    if hf.get("num_labels") is not None:
        return hf["num_labels"]
    return 1 if hf.get("id2label") is None else len(hf["id2label"])


class BertBlock(Block):
    pre_norm = False

    def attention(self, name):
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, qkv_bias=True, out_bias=True,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def mlp(self, name):
        return MLP(self.config.d_inner, activation(self.config.act), dtype=self.dtype, name=name)

    def norm(self, name):
        return LayerNorm(self.config.norm_eps, self.dtype, name=name)


class Bert(TextClassifier):
    """BERT with an untouched trunk and an editable top."""

    block_class = BertBlock

    def setup_family(self):
        c, init = self.config, nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        self.position = self.param("position", init, (c.n_positions, c.d_model))
        self.segment = self.param("segment", init, (c.n_types, c.d_model))
        self.embedding_norm = LayerNorm(c.norm_eps, self.dtype)

    def embed(self, tokens_BxT, positions_BxT):
        position_BxTxD = jnp.asarray(self.position)[positions_BxT]
        segment_1x1xD = jnp.asarray(self.segment)[:1, None]
        return self.embedding_norm(self.look_up(tokens_BxT) + position_BxTxD + segment_1x1xD)


MODULE = Bert


def edit_roles(c: BertConfig) -> tuple[str, ...]:
    """The MLP matrices (paper, section 5.1)."""
    del c
    return ("mlp/up", "mlp/down")


def tensor_specs(c: BertConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F = c.d_model, c.d_inner
    embeddings = "bert.embeddings"
    kernel, bias = linear_specs("classifier", "classifier", D, 1, bias=True)
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), f"{embeddings}.word_embeddings.weight"),
        TensorSpec("position", (c.n_positions, D), f"{embeddings}.position_embeddings.weight"),
        TensorSpec("segment", (c.n_types, D), f"{embeddings}.token_type_embeddings.weight"),
        *norm_specs("embedding_norm", f"{embeddings}.LayerNorm", D, bias=True),
        *linear_specs("pooler", "bert.pooler.dense", D, D, bias=True),
        dataclasses.replace(kernel, lacking=NO_HEAD),
        bias,
    ]
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"bert.encoder.layer.{i}"
        specs += [
            *norm_specs(f"{ours}/norm_1", f"{theirs}.attention.output.LayerNorm", D, bias=True),
            *norm_specs(f"{ours}/norm_2", f"{theirs}.output.LayerNorm", D, bias=True),
        ]
        for role, name, d_in, d_out in (
            ("attn/q", "attention.self.query", D, D),
            ("attn/k", "attention.self.key", D, D),
            ("attn/v", "attention.self.value", D, D),
            ("attn/out", "attention.output.dense", D, D),
            ("mlp/up", "intermediate.dense", D, F),
            ("mlp/down", "output.dense", F, D),
        ):
            specs += linear_specs(f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=True)
    return specs
