"""Between the flat, one-entry-per-block form of parameters and the nested, trunk-stacked form.

Files, edits and fingerprints use flat paths (`block_3/mlp/up/kernel`). `module.apply` takes the
nested tree: the trunk's blocks are stacked along a new first axis under `trunk`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.models.blocks import Stack, trunk_name
from mend_jax.models.tensor_spec import TensorSpec

Params = Mapping[str, Any]
"""Nested base parameters, as `module.apply` expects them."""
FlatParams = Mapping[str, Any]
"""Base parameters by flat path."""

BLOCK = re.compile(r"((?:\w+_)?block)_(\d+)/(.*)")
"""A flat path within a block: stack, number, the rest."""
_TRUNK = re.compile(r"((?:\w+_)?)trunk/(.*)")


def nest(flat: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Return the nested form: {'a/b': x} -> {'a': {'b': x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the flat form, the inverse of `nest`: {'a': {'b': x}} -> {'a/b': x}."""
    flat: dict[str, Any] = {}
    for key, node in tree.items():
        if isinstance(node, Mapping):
            flat.update(flatten(node, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = node
    return flat


def stack_trunk(flat: FlatParams, stacks: Iterable[Stack], xp: Any = np) -> dict[str, Any]:
    """Return the nested tree of a model whose trunk blocks are stacked.

    Args:
      xp: the module with `stack`: numpy or jax.numpy.
    """
    return nest(
        {
            path: flat[source] if isinstance(source, str) else xp.stack([flat[p] for p in source])
            for path, source in stacked_paths(flat, stacks).items()
        }
    )


def stacked_paths(
    paths: Iterable[str], stacks: Iterable[Stack]
) -> dict[str, str | tuple[str, ...]]:
    """Map each path in the nested tree to its flat path, or to those that it stacks, in order."""
    n_trunk = {stack.name: stack.n_trunk for stack in stacks}
    sources: dict[str, str | tuple[str, ...]] = {}
    for path in paths:
        match = BLOCK.fullmatch(path)
        if match and int(match[2]) < n_trunk[match[1]]:
            name, suffix = match[1], match[3]
            members = (f"{name}_{i}/{suffix}" for i in range(n_trunk[name]))
            sources[f"{trunk_name(name)}/{suffix}"] = tuple(members)
        else:
            sources[path] = path
    return sources


def unstack_trunk(params: Params) -> dict[str, Any]:
    """Return flat parameters, one entry per block; the inverse of `stack_trunk`."""
    flat = {}
    for path, leaf in flatten(params).items():
        if match := _TRUNK.fullmatch(path):
            for i in range(leaf.shape[0]):
                flat[f"{match[1]}block_{i}/{match[2]}"] = leaf[i]
        else:
            flat[path] = leaf
    return flat


def weight_at(params: Params, name: str) -> Any:
    """Return the kernel of the weight `name` (`block_3/mlp/up`) in nested parameters.

    Raises:
      KeyError: no such weight, or its block is part of the stacked trunk.
    """
    node: Any = params
    for part in name.split("/"):
        node = node[part]
    return node["kernel"]


def random_params(
    specs: Sequence[TensorSpec], seed: int, std: float = 0.02
) -> dict[str, np.ndarray]:
    """Return small random flat parameters (norm scales near one) for tests and benchmarks."""
    rng = np.random.default_rng(seed)
    flat = {}
    for spec in specs:
        noise = rng.normal(0.0, std, spec.shape).astype(np.float32)
        flat[spec.path] = noise + np.float32(1.0 if spec.path.endswith("/scale") else 0.0)
    return flat


def count_params(params: Any) -> int:
    """Return the number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
