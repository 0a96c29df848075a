"""The placement of arrays on the mesh: rules from path patterns to PartitionSpecs.

Weights are split over `tensor` as in Megatron (the inner width of an MLP and the heads of
attention) and over `fsdp` along their other axis. An editor declares rules for its own arrays; the
optimiser state is placed like the parameters it belongs to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mend_jax.errors import ConfigError


class Rule(NamedTuple):
    """The mesh axes of the arrays whose whole path matches a regular expression.

    `axes` belong to the last axes of an array; leading ones (the stack of a trunk) are never split.
    """

    pattern: str
    axes: tuple[str | None, ...] = ()

    def under(self, prefix: str) -> Rule:
        """Return the rule for paths that begin with a prefix, a regular expression."""
        return self._replace(pattern=f"{prefix}(?:{self.pattern})")


_STACKED = r"(\w+_)?(trunk|block_\d+)/"
_COLUMNS = r"(attn|cross)/(q|k|v|qkv)|mlp/(gate|up)"
_ROWS = r"(attn|cross)/out|mlp/down"

BASE_RULES = (
    Rule(rf"{_STACKED}({_COLUMNS})/kernel", ("fsdp", "tensor")),
    Rule(rf"{_STACKED}({_COLUMNS})/bias", ("tensor",)),
    Rule(rf"{_STACKED}({_ROWS})/kernel", ("tensor", "fsdp")),
    Rule(rf"{_STACKED}({_ROWS})/bias"),
    Rule(rf"{_STACKED}.*norm\w*/(scale|bias)"),
    Rule(r"embedding", ("tensor", "fsdp")),
    Rule(r"unembedding", ("fsdp", "tensor")),
    Rule(r"(\w+_)?position", (None, "fsdp")),
    Rule(r"(\w+_)?norm(_\w+)?/(scale|bias)"),
)
"""Rules for the tensors that families share, by nested path; a family adds rules for others."""

OPTIMIZER_RULES = (Rule(r"(.*/)?(count|step|mini_step|gradient_step|skip_state)(/.*)?"),)
"""Rules for the optimiser state, except for mirrors of the editor's parameters.

An editor declares those of its parameters and state: `EditTransform.sharding_rules`.
"""


def key_path_name(keys: Sequence[Any]) -> str:
    """Return a key path of `jax.tree_util` as `a/b/0/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def partition_spec(
    path: str, shape: Sequence[int], rules: Sequence[Rule], mesh: Mesh | AbstractMesh
) -> P:
    """Return the PartitionSpec of one array.

    An axis that the mesh axis does not divide stays whole (GPT-2's 50257 words).

    Raises:
      ConfigError: no rule matches, or more than one.
    """
    if not shape:
        return P()
    matches = [rule for rule in rules if re.fullmatch(rule.pattern, path)]
    if len(matches) != 1:
        patterns = [rule.pattern for rule in matches]
        raise ConfigError(
            f"sharding: {path} {list(shape)} matches "
            + (f"{len(matches)} rules, {patterns}: make them exclude each other"
               if matches else "no rule: declare one in the editor's `sharding`, or in BASE_RULES")
        )  # fmt: skip
    axes = matches[0].axes
    if len(axes) > len(shape):
        raise ConfigError(
            f"sharding: {path} {list(shape)} has fewer axes than its rule {axes}: shorten it"
        )
    names = [None] * (len(shape) - len(axes)) + list(axes)
    kept = [n if n and size % mesh.shape[n] == 0 else None for n, size in zip(names, shape)]  # noqa: B905
    while kept and kept[-1] is None:
        kept.pop()
    return P(*kept)


def make_shardings(mesh: Mesh, tree: Any, rules: Sequence[Rule]) -> Any:
    """Return a NamedSharding for every leaf of a tree of arrays (or ShapeDtypeStructs).

    Raises:
      ConfigError: a leaf matches no rule, or more than one; every such leaf is named.
    """
    problems = []

    def sharding_of_leaf(keys: Sequence[Any], leaf: Any) -> NamedSharding | None:
        try:
            return NamedSharding(mesh, partition_spec(key_path_name(keys), leaf.shape, rules, mesh))
        except ConfigError as e:
            problems.append(str(e))
            return None

    shardings = jax.tree_util.tree_map_with_path(sharding_of_leaf, tree)
    if problems:
        raise ConfigError("\n".join(problems))
    return shardings


def place(mesh: Mesh, tree: Any, rules: Sequence[Rule]) -> Any:
    """Return the tree on the mesh, each leaf placed by its rule."""
    return jax.device_put(tree, make_shardings(mesh, tree, rules))


def abstract_arrays(tree: Any, shardings: Any) -> Any:
    """Return ShapeDtypeStructs with these shardings for a tree of arrays (or of such structs)."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def bytes_per_device(tree: Any) -> int:
    """Return the most bytes that any device holds of a tree of sharded arrays."""
    total: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        n_bytes = math.prod(shape) * leaf.dtype.itemsize
        for device in leaf.sharding.device_set:
            total[device] = total.get(device, 0) + n_bytes
    return max(total.values(), default=0)


def base_shardings(
    mesh: Mesh, shapes: Mapping[str, Sequence[int]], rules: Sequence[Rule]
) -> dict[str, NamedSharding]:
    """Return the shardings of base tensors by nested path, for `hub.read_sharded`."""
    return {p: NamedSharding(mesh, partition_spec(p, s, rules, mesh)) for p, s in shapes.items()}
