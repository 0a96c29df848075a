"""Model families, and the registry that finds one by `model_type`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, get_origin, get_type_hints

from mend_jax.errors import WeightsError, did_you_mean
from mend_jax.io.json_values import matches_type
from mend_jax.io.registry import Registry
from mend_jax.models.editable_model import EditableModel, ModelConfig
from mend_jax.models.tensor_spec import TensorSpec
from mend_jax.parallel.sharding import BASE_RULES, Rule

HFConfig = Mapping[str, Any]
"""A config.json of Hugging Face, parsed."""

MAX_BLOCKS = 1000
MAX_SIZE = 1 << 26
_BLOCK_COUNTS = (
    "num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip


def mlp_roles(config: ModelConfig) -> tuple[str, ...]:
    """Return the MLP matrices, the default weights to edit (paper, section 5.1)."""
    del config
    return ("mlp/up", "mlp/down")


@dataclasses.dataclass(frozen=True)
class Family:
    """The parts of a model family.

    Attributes:
      model_class: the linen module.
      config_from_hf: makes the family's frozen config from a config.json; raises KeyError for a
        missing field and ValueError for an unsupported value.
      tensor_specs: lists every tensor of the model of a config.
      edit_roles: the roles that are edited by default, for a config.
      tied: Hugging Face name of a copy -> name of its original.
      ignore: regular expressions of whole Hugging Face names that are harmless buffers.
      own_sharding_rules: for tensors that the general `BASE_RULES` do not cover.
    """

    model_class: type[EditableModel]
    config_from_hf: Callable[[HFConfig], Any]
    tensor_specs: Callable[[Any], list[TensorSpec]]
    edit_roles: Callable[[Any], tuple[str, ...]] = mlp_roles
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore: Sequence[str] = ()
    own_sharding_rules: Sequence[Rule] = ()

    @property
    def sharding_rules(self) -> tuple[Rule, ...]:
        """The rules for every tensor of the family's models."""
        return (*BASE_RULES, *self.own_sharding_rules)


FAMILIES: Registry[Family] = Registry(
    "model_type",
    group="mend_jax.models",
    entries={
        "gpt2": "mend_jax.models.gpt2:FAMILY",
        "gpt_neo": "mend_jax.models.gpt_neo:FAMILY",
        "gptj": "mend_jax.models.gptj:FAMILY",
        "llama": "mend_jax.models.llama:FAMILY",
        "mistral": "mend_jax.models.llama:FAMILY",
        "qwen2": "mend_jax.models.qwen:FAMILY",
        "qwen3": "mend_jax.models.qwen:FAMILY",
        "gemma2": "mend_jax.models.gemma:FAMILY",
        "gemma3_text": "mend_jax.models.gemma:FAMILY",
        "bert": "mend_jax.models.bert:FAMILY",
        "t5": "mend_jax.models.t5:FAMILY",
        "bart": "mend_jax.models.bart:FAMILY",
    },
)
"""The family of each `model_type`: a new one is a file here and a line in this table.

Another package adds one with `register_family`, or by an entry point of the group
"mend_jax.models" whose name is the `model_type` and whose value is a `Family`.
"""


def register_family(model_type: str, family: Family | str) -> None:
    """Add a family, or its "module:attribute", for configs with this `model_type`.

    Raises:
      ConfigError: the `model_type` is registered already.
    """
    FAMILIES.register(model_type, family)


def find_family(hf_config: HFConfig) -> Family:
    """Return the family of a Hugging Face config.

    Raises:
      WeightsError: the `model_type` is not supported.
    """
    model_type = hf_config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    hint = "; save its language model alone and give that" if "text_config" in hf_config else ""
    close = did_you_mean(model_type, list(FAMILIES)) if isinstance(model_type, str) else ""
    raise WeightsError(
        f"config.json: model_type {model_type!r} is not supported{close}; known: "
        f"{sorted(FAMILIES)}{hint}"
    )


def model_kind(hf_config: HFConfig) -> str:
    """Return "causal", "seq2seq" or "classifier": what the model of this config does."""
    return find_family(hf_config).model_class.kind


def parse_config(family: Family, hf_config: HFConfig) -> Any:
    """Return the family's config.

    Raises:
      WeightsError: naming the field that is missing, unsupported or implausibly large.
    """
    try:
        for name in _BLOCK_COUNTS:
            count = hf_config.get(name)
            if count is not None and not (type(count) is int and 0 < count <= MAX_BLOCKS):
                raise ValueError(f"{name} is {count!r:.80}: it must be 1 to {MAX_BLOCKS}")
        config = family.config_from_hf(hf_config)
        _check_fields(config, get_type_hints(type(config)))
        _check_heads(config)
        hash(config)  # compiled programs are looked up by it
        if empty := [s.hf for s in family.tensor_specs(config) if not all(n > 0 for n in s.shape)]:
            raise ValueError(f"by these sizes {empty[0]} is empty")
    except KeyError as e:
        raise WeightsError(
            f"config.json: field {e} is missing for model_type {hf_config.get('model_type')!r}"
        ) from e
    except (ValueError, TypeError, AttributeError, ArithmeticError, IndexError) as e:
        raise WeightsError(f"config.json: {e}") from e
    return config


def _check_fields(config: Any, hints: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of another type than its hint, or an implausible size."""
    for name, hint in hints.items():
        if get_origin(hint) is ClassVar:
            continue
        value = getattr(config, name)
        if not matches_type(value, hint):
            raise ValueError(f"{name} is {value!r:.80}, which is not of type {hint}")
        if type(value) is int and not 0 <= value <= MAX_SIZE:
            raise ValueError(f"{name} is {value}: it must be 0 to {MAX_SIZE}")
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # such as `rotary.Rope`
            _check_fields(value, get_type_hints(type(value)))


def _check_heads(config: Any) -> None:
    """Raise ValueError for numbers of heads that do not divide the sizes they split."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    heads = {name: value for name, value in fields.items() if "heads" in name}
    if bad := [name for name, value in heads.items() if value < 1]:
        raise ValueError(f"{bad[0]} is {heads[bad[0]]}: it must be at least 1")
    if "n_kv_heads" in heads and heads["n_heads"] % heads["n_kv_heads"]:
        raise ValueError(
            f"{heads['n_heads']} query heads are not a multiple of {heads['n_kv_heads']} key heads"
        )
    if "head_dim" not in fields and any(config.d_model % value for value in heads.values()):
        raise ValueError(f"the width {config.d_model} is not a multiple of the heads {heads}")
