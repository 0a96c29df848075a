"""The weights of a model that can be edited, and the choice of those that an editor changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mend_jax.errors import ConfigError
from mend_jax.models.family import Family
from mend_jax.models.params import BLOCK
from mend_jax.models.tensor_spec import TensorSpec


class WeightSpec(NamedTuple):
    """An editable weight W[d_in, d_out], named by its module path, e.g. `block_3/mlp/up`."""

    name: str
    d_in: int
    d_out: int

    @property
    def stack(self) -> str:
        """The stack of blocks that it belongs to, e.g. `block` or `encoder_block`."""
        return self.name.split("/")[0].rpartition("_")[0]

    @property
    def block(self) -> int:
        """The number of its block in that stack."""
        return int(self.name.split("/")[0].rpartition("_")[2])

    @property
    def role(self) -> str:
        """Its path within the block, e.g. `mlp/up`."""
        return self.name.split("/", 1)[1]


def editable_weights(specs: Sequence[TensorSpec]) -> dict[str, WeightSpec]:
    """Return every matmul of the blocks, which an editor could edit, by name in block order."""
    weights = {}
    for spec in specs:
        if BLOCK.match(spec.path) and spec.path.endswith("/kernel"):
            name = spec.path.removesuffix("/kernel")
            weights[name] = WeightSpec(name, *spec.shape)
    return weights


def choose_weights(
    family: Family, config: Any, last_n_blocks: int = 3, roles: Sequence[str] = ()
) -> tuple[WeightSpec, ...]:
    """Return the weights to edit: `roles` of the last `last_n_blocks` blocks of every stack.

    Args:
      roles: paths within a block, such as `mlp/up`; by default those of the family. A role that
        begins with the name of a stack, such as `decoder/mlp/up`, is limited to that stack. The
        full name of a weight, such as `block_20/mlp/down`, selects it in any block.

    Raises:
      ConfigError: more blocks than the model has, or a role that selects no weight.
    """
    weights = editable_weights(family.tensor_specs(config))
    roles = tuple(roles) or family.edit_roles(config)
    sizes = family.model_class.stack_sizes(config)
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
            known = sorted({w.role for w in weights.values()})
            raise ConfigError(
                f"model.edit_roles: no weight {role!r}; known roles: {known}, and names such as "
                f"{next(iter(weights))}"
            )
    return tuple(weights[name] for name in chosen)


def _is_role(weight: WeightSpec, role: str) -> bool:
    in_stack = f"{weight.stack.removesuffix('_block')}/{weight.role}"
    return role in (weight.role, in_stack, weight.name)


def _of_other_stack(role: str, side: str, stacks: Iterable[str]) -> bool:
    sides = (stack.removesuffix("_block") + "/" for stack in stacks)
    return not role.startswith(side) and any(role.startswith(other) for other in sides)


def count_top_blocks(
    family: Family, config: Any, weights: Sequence[WeightSpec]
) -> int | tuple[int, ...]:
    """Return how many last blocks of each stack must be unrolled to edit these weights."""
    tops = []
    for stack, size in family.model_class.stack_sizes(config).items():
        blocks = [w.block for w in weights if w.stack == stack]
        tops.append(size - min(blocks) if blocks else 0)
    return tops[0] if len(tops) == 1 else tuple(tops)
