"""A short name for the exact numbers of a base model."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping

import numpy as np


def fingerprint(flat: Mapping[str, np.ndarray]) -> str:
    """Hashes names, shapes, types and every byte of the tensors.

    Args:
      flat: tensors by name, in any order; numpy or JAX arrays of any layout.

    Returns:
      16 hex digits; the same on every machine and in every process, different as soon as one
      element, name, shape or type differs.
    """
    names = sorted(flat)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda name: _digest(flat[name]), names))
    total = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        encoded = name.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded + digest)
    return total.hexdigest()[:16]


def _digest(array: np.ndarray) -> bytes:
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    hasher = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}|".encode())
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return hasher.digest()
