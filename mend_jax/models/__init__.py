"""Model families. Adding one is adding a file and naming it in `_FAMILIES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, get_origin, get_type_hints

from mend_jax.errors import ConfigError, WeightsError
from mend_jax.io.json_values import matches_type
from mend_jax.models import bart, bert, gemma, gpt2, gpt_neo, gptj, llama, qwen, t5
from mend_jax.models.base import TensorSpec
from mend_jax.models.params import BLOCK

_FAMILIES: tuple[ModuleType, ...] = (gpt2, gpt_neo, gptj, llama, qwen, gemma, bert, t5, bart)
MOST_BLOCKS = 1000
MOST_SIZE = 1 << 26
_N_BLOCKS = (
    "num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip


class WeightSpec(NamedTuple):
    """An editable weight W[d_in, d_out], named by its module path, e.g. `block_3/mlp/up`."""

    name: str
    d_in: int
    d_out: int

    @property
    def stack(self) -> str:
        """The stack of blocks that it stands in, e.g. `block` or `encoder_block`."""
        return self.name.split("/")[0].rpartition("_")[0]

    @property
    def block(self) -> int:
        """The number of its block in that stack."""
        return int(self.name.split("/")[0].rpartition("_")[2])

    @property
    def role(self) -> str:
        """Its place in the block, e.g. `mlp/up`."""
        return self.name.split("/", 1)[1]


def find_family(hf_config: dict[str, Any]) -> ModuleType:
    """The family module for a Hugging Face config, or an error that lists what is supported."""
    model_type = hf_config.get("model_type")
    for family in _FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family
    known = sorted(t for family in _FAMILIES for t in family.MODEL_TYPES)
    hint = "; save its language model alone and give that" if "text_config" in hf_config else ""
    raise WeightsError(
        f"config.json: model_type {model_type!r} is not supported; known: {known}{hint}"
    )


def parse_config(family: ModuleType, hf_config: dict[str, Any]) -> Any:
    """The family's config, with what is missing, unsupported or out of all proportion named."""
    try:
        for name in _N_BLOCKS:
            blocks = hf_config.get(name)
            if blocks is not None and not (type(blocks) is int and 0 < blocks <= MOST_BLOCKS):
                raise ValueError(f"{name} is {blocks!r:.80}: it must be 1 to {MOST_BLOCKS}")
        config = family.config_from_hf(hf_config)
        _refuse_odd(config, get_type_hints(type(config)))
        _refuse_heads(config)
        hash(config)  # which compiled programs are found by
        if empty := [s.hf for s in family.tensor_specs(config) if not all(n > 0 for n in s.shape)]:
            raise ValueError(f"there is nothing in {empty[0]} by these sizes")
    except KeyError as e:
        raise WeightsError(f"config.json: field {e} is missing for {family.__name__}") from e
    except (ValueError, TypeError, AttributeError, ArithmeticError, IndexError) as e:
        raise WeightsError(f"config.json: {e}") from e
    return config


def _refuse_odd(config: Any, hints: dict[str, Any]) -> None:
    """ValueError for a field that is of another type than its hint, or a size beyond all models."""
    for name, hint in hints.items():
        if get_origin(hint) is ClassVar:
            continue
        value = getattr(config, name)
        if not matches_type(value, hint):
            raise ValueError(f"{name} is {value!r:.80}, which is not of type {hint}")
        if type(value) is int and not 0 <= value <= MOST_SIZE:
            raise ValueError(f"{name} is {value}: it must be 0 to {MOST_SIZE}")
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # such as `rotary.Rope`
            _refuse_odd(value, get_type_hints(type(value)))


def _refuse_heads(config: Any) -> None:
    """ValueError for numbers of heads that do not divide what they shall share."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    heads = {name: value for name, value in fields.items() if "heads" in name}
    if odd := [name for name, value in heads.items() if value < 1]:
        raise ValueError(f"{odd[0]} is {heads[odd[0]]}: it must be at least 1")
    if "n_kv_heads" in heads and heads["n_heads"] % heads["n_kv_heads"]:
        raise ValueError(f"{heads['n_heads']} heads do not share {heads['n_kv_heads']} of keys")
    if "head_dim" not in fields and any(config.d_model % value for value in heads.values()):
        raise ValueError(f"a width of {config.d_model} is not divided by heads {heads}")


def editable_weights(specs: Sequence[TensorSpec]) -> dict[str, WeightSpec]:
    """Every matmul of the blocks that an editor could edit, by name, in block order."""
    found = {}
    for spec in specs:
        if BLOCK.match(spec.path) and spec.path.endswith("/kernel"):
            name = spec.path.removesuffix("/kernel")
            found[name] = WeightSpec(name, *spec.shape)
    return found


def choose_weights(
    family: ModuleType,
    config: Any,
    last_n_blocks: int = 3,
    roles: Sequence[str] = (),
) -> tuple[WeightSpec, ...]:
    """The weights to edit: `roles` of the last `last_n_blocks` blocks of every stack.

    Without roles, the family's default: its MLP matrices (paper, section 5.1). A role that begins
    with the name of a stack, such as `decoder/mlp/up`, is of that stack alone. Among the roles may
    be names of single weights, such as `block_20/mlp/down`, of any block.
    """
    weights = editable_weights(family.tensor_specs(config))
    roles = tuple(roles) or family.edit_roles(config)
    sizes = family.MODULE.stack_sizes(config)
    known = sorted({w.role for w in weights.values()})
    for stack, size in sizes.items():
        if not 1 <= last_n_blocks <= size:
            raise ConfigError(
                f"model.last_n_blocks is {last_n_blocks}; the model has {size} blocks"
                + (f" named {stack}" if len(sizes) > 1 else "")
            )
    chosen = []
    for stack, size in sizes.items():
        side = stack.removesuffix("_block") + "/"
        wanted = [r.removeprefix(side) for r in roles if not _of_other_stack(r, side, sizes)]
        for i in range(size):
            named = [f"{stack}_{i}/{r}" for r in wanted if i >= size - last_n_blocks]
            named += [r for r in roles if r.startswith(f"{stack}_{i}/")]
            chosen += [name for name in dict.fromkeys(named) if name in weights]
    for role in roles:
        if not any(_is_role(weights[name], role) for name in chosen):
            raise ConfigError(
                f"model.edit_roles: no weight {role!r}; known roles: {known}, and names such as "
                f"{next(iter(weights))}"
            )
    return tuple(weights[name] for name in chosen)


def _is_role(weight: WeightSpec, role: str) -> bool:
    of_stack = f"{weight.stack.removesuffix('_block')}/{weight.role}"
    return role in (weight.role, of_stack, weight.name)


def _bare(role: str, stacks: Iterable[str]) -> str:
    """The role without the stack that it is limited to."""
    for stack in stacks:
        role = role.removeprefix(stack.removesuffix("_block") + "/")
    return role


def _of_other_stack(role: str, side: str, stacks: Iterable[str]) -> bool:
    return _bare(role, stacks) != role and not role.startswith(side)


def count_top_blocks(
    family: ModuleType, config: Any, weights: Sequence[WeightSpec]
) -> int | tuple[int, ...]:
    """How many last blocks of each stack must be unrolled so that these weights can be edited."""
    tops = []
    for stack, size in family.MODULE.stack_sizes(config).items():
        blocks = [w.block for w in weights if w.stack == stack]
        tops.append(size - min(blocks) if blocks else 0)
    return tops[0] if len(tops) == 1 else tuple(tops)


def model_kind(hf_config: dict[str, Any]) -> str:
    """ "causal", "seq2seq" or "classifier": what the model of this config does."""
    return find_family(hf_config).MODULE.kind
