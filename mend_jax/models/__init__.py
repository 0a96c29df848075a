"""Model families. Adding one is adding a file and naming it in `_FAMILIES`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from mend_jax.errors import ConfigError, WeightsError
from mend_jax.models import gpt2, llama
from mend_jax.models.base import TensorSpec

_FAMILIES: tuple[ModuleType, ...] = (gpt2, llama)


class WeightSpec(NamedTuple):
    """An editable weight W[d_in, d_out], named by its module path, e.g. `block_3/mlp/up`."""

    name: str
    d_in: int
    d_out: int

    @property
    def block(self) -> int:
        return int(self.name.split("/")[0].removeprefix("block_"))


def family_of(hf_config: dict[str, Any]) -> ModuleType:
    """The family module for a Hugging Face config, or an error that lists what is supported."""
    model_type = hf_config.get("model_type")
    for family in _FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family
    known = sorted(t for family in _FAMILIES for t in family.MODEL_TYPES)
    raise WeightsError(f"config.json: model_type {model_type!r} is not supported; known: {known}")


def parse_config(family: ModuleType, hf_config: dict[str, Any]) -> Any:
    """The family's config, with what is missing or unsupported named."""
    try:
        return family.config_from_hf(hf_config)
    except KeyError as e:
        raise WeightsError(f"config.json: field {e} is missing for {family.__name__}") from e
    except ValueError as e:
        raise WeightsError(f"config.json: {e}") from e


def editable_weights(specs: Sequence[TensorSpec]) -> dict[str, WeightSpec]:
    """Every matmul of the blocks that an editor could edit, by name, in block order."""
    found = {}
    for spec in specs:
        if spec.path.startswith("block_") and spec.path.endswith("/kernel"):
            name = spec.path.removesuffix("/kernel")
            found[name] = WeightSpec(name, *spec.shape)
    return found


def choose_weights(
    family: ModuleType,
    config: Any,
    last_n_blocks: int = 3,
    roles: Sequence[str] = (),
) -> tuple[WeightSpec, ...]:
    """The weights to edit: `roles` of the last `last_n_blocks` blocks (paper, section 5.1).

    Without roles, the family's default: its MLP matrices.
    """
    weights = editable_weights(family.tensor_specs(config))
    roles = tuple(roles) or family.EDIT_ROLES
    if not 1 <= last_n_blocks <= config.n_layer:
        raise ConfigError(
            f"model.last_n_blocks is {last_n_blocks}; the model has {config.n_layer} blocks"
        )
    known = sorted({name.split("/", 1)[1] for name in weights})
    for role in roles:
        if role not in known:
            raise ConfigError(f"model.edit_roles: no weight {role!r} in a block; known: {known}")
    blocks = range(config.n_layer - last_n_blocks, config.n_layer)
    return tuple(weights[f"block_{i}/{role}"] for i in blocks for role in roles)
