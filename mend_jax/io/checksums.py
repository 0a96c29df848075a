"""Checksums of arrays and of JSON, by which a checkpoint that was damaged is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def array_checksums(tree: Any) -> dict[str, str]:
    """A checksum of every array by its path, 16 hex digits.

    They depend on the bits of the arrays alone: however an array lies on devices or processes, its
    checksum is the same, and no process needs the whole of it. A change of a single element is
    always seen, others by all odds. It is against damage, not against forgery.
    """
    leaves = jax.tree.leaves_with_path(tree)
    found = jax.device_get([_sums(jnp.asarray(leaf)) for _, leaf in leaves])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return {n: f"{int(a):08x}{int(b):08x}" for n, (a, b) in zip(names, found, strict=True)}


@jax.jit
def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2^32 of an array's words, each mixed with its place.

    Sums of integers do not depend on their order, and mixing is one to one: a word that changes
    changes the sum.
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
    """A number of 32 bits that looks random, of one that does not (MurmurHash3's last step)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))


def json_checksum(value: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
