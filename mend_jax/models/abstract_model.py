"""A model without its weights: family, sizes, module, and what can be edited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from mend_jax.errors import ConfigError
from mend_jax.models.editable_model import EditableModel, ModelConfig
from mend_jax.models.editable_weights import WeightSpec, choose_weights, count_top_blocks
from mend_jax.models.family import Family, HFConfig, find_family, parse_config
from mend_jax.models.params import stacked_paths
from mend_jax.parallel import processor

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class AbstractModel(NamedTuple):
    """A model without its weights: see the attributes of `LanguageModel`."""

    family: Family
    config: ModelConfig
    module: EditableModel
    weights: tuple[WeightSpec, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every base parameter by its nested path, the trunk stacked."""
        flat = {spec.path: spec.shape for spec in self.family.tensor_specs(self.config)}
        return {
            path: flat[s] if isinstance(s, str) else (len(s), *flat[s[0]])
            for path, s in stacked_paths(flat, self.module.stacks).items()
        }


def abstract_model(
    hf_config: HFConfig,
    last_n_blocks: int = 3,
    edit_roles: Sequence[str] = (),
    dtype: str = "float32",
    remat: bool = False,
    text_chunk: int = 0,
    logits_chunk: int = 0,
    trunk_products: str = "float32",
) -> AbstractModel:
    """Return the model of a Hugging Face config; see `load_model` for the arguments.

    Raises:
      ConfigError: an unknown dtype, kind of products or role, or more blocks than there are.
      WeightsError: an unsupported architecture.
    """
    products = processor.trunk_products(trunk_products)
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}; known: {sorted(DTYPES)}")
    family = find_family(hf_config)
    config = parse_config(family, hf_config)
    weights = choose_weights(family, config, last_n_blocks, edit_roles)
    n_top = count_top_blocks(family, config, weights)
    trunk_dtype = DTYPES[products] if dtype != products == "bfloat16" else None
    module = family.model_class(
        config, n_top, DTYPES[dtype], remat, text_chunk, logits_chunk, trunk_dtype
    )
    return AbstractModel(family, config, module, weights)
