"""BERT (Devlin et al. 2019) with the paper's fact-checking head: one score of the pooled text.

Only files with today's names (`LayerNorm.weight`) are supported, not those of 2018
(`LayerNorm.gamma`). Files of the encoder alone have no `bert.` before their names and no head, see
`CLASSIFIER_HEAD`.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.models.blocks import BiasedBlock
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import LayerNorm, activation
from mend_jax.models.single_stack import NO_HEAD, TextClassifier
from mend_jax.models.tensor_spec import TensorSpec, linear_specs, linears_specs, norm_specs
from mend_jax.parallel.sharding import Rule


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT classifier.

    Attributes:
      n_types: the number of segment embeddings in the file; every text uses the first.
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
        """The width K of a head."""
        return self.d_model // self.n_heads


def config_from_hf(hf: HFConfig) -> BertConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field.

    Without labels in the config, the single label that we score is assumed.
    """
    for flag in ("is_decoder", "add_cross_attention"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    if hf.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {hf['position_embedding_type']!r}: not absolute")
    if (n_labels := _count_labels(hf)) != 1:
        raise ValueError(
            f"{n_labels} labels; a classifier must have one (num_labels 1). A head of two labels "
            "becomes one by `python -m mend_jax.hub convert SRC DST --true_label=NAME`"
        )
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


def _count_labels(hf: HFConfig) -> int:
    """Count labels by `num_labels`, or else by the names in `id2label`, which files have."""
    if hf.get("num_labels") is not None:
        return hf["num_labels"]
    return 1 if hf.get("id2label") is None else len(hf["id2label"])


class BertBlock(BiasedBlock):
    """A post-norm block."""

    pre_norm = False


class Bert(TextClassifier):
    """BERT with a frozen trunk and an editable top."""

    block_class = BertBlock

    def setup_family(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.d_model))
        self.position = self.param("position", init, (c.n_positions, c.d_model))
        self.segment = self.param("segment", init, (c.n_types, c.d_model))
        self.embedding_norm = LayerNorm(c.norm_eps, self.dtype)

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        position_BxTxD = jnp.asarray(self.position)[positions]
        segment_1x1xD = jnp.asarray(self.segment)[:1, None]
        return self.embedding_norm(self.look_up(tokens) + position_BxTxD + segment_1x1xD)


def tensor_specs(c: BertConfig) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F = c.d_model, c.d_inner
    embeddings = "bert.embeddings"
    kernel, bias = linear_specs("classifier", "classifier", D, 1, bias=True)
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), f"{embeddings}.word_embeddings.weight"),
        TensorSpec("position", (c.n_positions, D), f"{embeddings}.position_embeddings.weight"),
        TensorSpec("segment", (c.n_types, D), f"{embeddings}.token_type_embeddings.weight"),
        *norm_specs("embedding_norm", f"{embeddings}.LayerNorm", D, bias=True),
        *linear_specs("pooler", "bert.pooler.dense", D, D, bias=True),
        dataclasses.replace(kernel, missing_hint=NO_HEAD),
        bias,
    ]
    linears = (
        ("attn/q", "attention.self.query", D, D, True),
        ("attn/k", "attention.self.key", D, D, True),
        ("attn/v", "attention.self.value", D, D, True),
        ("attn/out", "attention.output.dense", D, D, True),
        ("mlp/up", "intermediate.dense", D, F, True),
        ("mlp/down", "output.dense", F, D, True),
    )
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"bert.encoder.layer.{i}"
        specs += norm_specs(f"{ours}/norm_1", f"{theirs}.attention.output.LayerNorm", D, bias=True)
        specs += norm_specs(f"{ours}/norm_2", f"{theirs}.output.LayerNorm", D, bias=True)
        specs += linears_specs(ours, theirs, linears)
    return specs


FAMILY = Family(
    model_class=Bert,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    ignore=(r"bert\.embeddings\.position_ids",),
    own_sharding_rules=(Rule("segment", (None, "fsdp")), Rule("(pooler|classifier)/(kernel|bias)")),
)
