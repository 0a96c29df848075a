"""Checksums of arrays and of JSON, to detect damaged checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def array_checksums(tree: Any) -> dict[str, str]:
    """Return a checksum of every array by its path, 16 hex digits.

    It depends on the array's bits only, not on its placement on devices or processes, and no
    process needs the whole array. A change of a single element is always detected, other changes
    almost certainly. It protects against damage, not against forgery.
    """
    leaves = jax.tree.leaves_with_path(tree)
    sums = jax.device_get([_word_sums(jnp.asarray(leaf)) for _, leaf in leaves])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return {n: f"{int(a):08x}{int(b):08x}" for n, (a, b) in zip(names, sums, strict=True)}


@jax.jit
def _word_sums(x: jax.Array) -> tuple[jax.Array, ...]:
    """Return two sums modulo 2^32 of an array's words, each mixed with its position.

    Integer sums do not depend on order, and mixing is one to one: a changed word changes the sum.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    at = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        at = at * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return tuple(
        jnp.sum(_mixed(words ^ _mixed(at + jnp.uint32(salt))), dtype=jnp.uint32)
        for salt in (0x9E3779B9, 0x7F4A7C15)
    )


def _mixed(x: jax.Array) -> jax.Array:
    """Return the word with its bits mixed (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))


def json_checksum(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object; the order of its keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
