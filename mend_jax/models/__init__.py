"""Language models in Flax: families of architectures, and which of their weights can be edited."""

from mend_jax.models.editable_weights import (
    WeightSpec,
    choose_weights,
    count_top_blocks,
    editable_weights,
)
from mend_jax.models.family import (
    FAMILIES,
    Family,
    find_family,
    model_kind,
    parse_config,
    register_family,
)

__all__ = [
    "FAMILIES", "Family", "WeightSpec", "choose_weights", "count_top_blocks", "editable_weights",
    "find_family", "model_kind", "parse_config", "register_family",
]  # fmt: skip
