"""A model without its weights: family, sizes, module, and what can be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp

from mend_jax import models
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.models.base import EditableModel
from mend_jax.models.params import stacked_paths

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class AbstractModel(NamedTuple):
    """A model without its weights: see the attributes of `LanguageModel`."""

    family: ModuleType
    config: Any
    module: EditableModel
    weights: tuple[WeightSpec, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every base parameter by its nested path, the trunk stacked."""
        flat = {spec.path: spec.shape for spec in self.family.tensor_specs(self.config)}
        return {
            path: flat[s] if isinstance(s, str) else (len(s), *flat[s[0]])
            for path, s in stacked_paths(flat, self.module.stacks).items()
        }


def abstract_model(
    hf_config: Mapping[str, Any],
    last_n_blocks: int = 3,
    edit_roles: Sequence[str] = (),
    dtype: str = "float32",
    remat: bool = False,
    text_chunk: int = 0,
    logits_chunk: int = 0,
) -> AbstractModel:
    """What a Hugging Face config says of a model; arguments as those of `load_model`.

    Raises:
      ConfigError, WeightsError: a dtype, block, role or architecture that is not there.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}; known: {sorted(DTYPES)}")
    family = models.find_family(dict(hf_config))
    config = models.parse_config(family, dict(hf_config))
    weights = models.choose_weights(family, config, last_n_blocks, edit_roles)
    n_top = models.count_top_blocks(family, config, weights)
    module = family.MODULE(config, n_top, DTYPES[dtype], remat, text_chunk, logits_chunk)
    return AbstractModel(family, config, module, weights)
