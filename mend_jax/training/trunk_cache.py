"""A cache of the trunk states of training texts, so that later epochs need no trunk.

The trunk is frozen and a text's states never change, so a step only needs rows of a table. States
are computed when a row is first used and kept where `train.trunk_cache` says: in the memory of the
device, of the host, or in a folder on disk that later runs of the same base and texts reuse.
A run of less than one epoch gains nothing. Shape letters: E edits, n texts per edit, N rows.

Tables on disk are memory-mapped, gigabytes large and filled row by row, so they are raw files and
not `io.array_files`, which writes whole files with a checksum.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mend_jax.core.forward import shared_trunk_states
from mend_jax.core.meta_loss import token_batches
from mend_jax.data.batches import Batch
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.errors import ConfigError
from mend_jax.io.files import write_bytes
from mend_jax.io.package_cache import cache_dir
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel.mesh import shard_batch
from mend_jax.training.config_keys import TRUNK_CACHES

_GIB = 2**30
_FILLED = "filled.npy"


class TrunkCache:
    """A table of states for each part of the training rows; see `place`.

    Attributes:
      rows, hits: rows requested so far, and those of them that were cached.
    """

    def __init__(
        self,
        kind: str,
        model: EditableModel,
        base: Params,
        mesh: Mesh,
        parts: Sequence[EncodedRows],
        names: Sequence[str],
        *,
        limit_gib: float,
        fingerprint: str,
        folder: Path | None = None,
    ) -> None:
        """Args:
          kind: "device", "host" or "disk".
          model, base: the module and its nested parameters, placed.
          parts: the training rows, as in `Experiment.train_batches`.
          names: the sets of texts whose states a step needs.
          limit_gib: the largest size of the tables.
          fingerprint: of the base.
          folder: of tables on disk; default `<cache>/trunks`.

        Raises:
          ConfigError: the tables are too large, or there are several devices or processes.
        """
        self._check(kind, mesh)
        self._model, self._base, self._mesh, self._kind = model, base, mesh, kind
        self._names, self._parts = tuple(names), parts
        self._trunk = jax.jit(self._states_of)
        self._where = _places(parts)
        shapes = [self._shapes(part) for part in parts]
        size = sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))
        if size > limit_gib * _GIB:
            raise ConfigError(
                f"train.trunk_cache: the states of {sum(map(len, parts))} rows take "
                f"{size / _GIB:.1f} GiB, train.trunk_cache_gib allows {limit_gib:g}: raise it, use "
                "fewer rows (data.train_edits) or shorter texts, or leave trunk_cache empty"
            )
        self.rows = self.hits = 0
        self._folder = None
        if kind == "disk":
            self._folder = (folder or cache_dir() / "trunks") / self._digest(fingerprint)
        self._open(shapes, size)

    def place(self, batch: Batch) -> dict[str, Any]:
        """Return the texts of a batch on the mesh, with the `states` [E, n, ...] a step needs."""
        texts = shard_batch(self._mesh, token_batches(batch))
        part, at = self._locate(batch)
        cached = all(self._filled[part][name][rows].all() for name, rows in at.items())
        n_rows = sum(rows.size for rows in at.values())
        self.rows, self.hits = self.rows + n_rows, self.hits + n_rows * cached
        if cached:
            states = {n: jax.tree.map(lambda t, r=r: t[r], self._tables[part][n])
                      for n, r in at.items()}  # fmt: skip
            if self._kind != "device":
                states = shard_batch(self._mesh, states)
            return texts | {"states": states}
        states = self._trunk(self._base, {name: texts[name] for name in self._names})
        self._store(part, at, states)
        return texts | {"states": states}

    def finish(self) -> None:
        """Write tables on disk to the end; nothing for tables in memory."""
        if self._folder is None:
            return
        for table in jax.tree.leaves(self._tables):
            table.flush()
        flags = np.concatenate([f[name] for f in self._filled for name in self._names])
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._folder / _FILLED, np.packbits(flags).tobytes())

    def _states_of(self, base: Any, texts: Mapping[str, Any]) -> dict[str, Any]:
        states = shared_trunk_states(self._model, base, [texts[n] for n in self._names])
        return dict(zip(self._names, states, strict=True))

    def _check(self, kind: str, mesh: Any) -> None:
        if kind not in TRUNK_CACHES[1:]:
            raise ConfigError(f"train.trunk_cache is {kind!r}, not one of {TRUNK_CACHES}")
        if jax.process_count() > 1:
            raise ConfigError(
                "train.trunk_cache: the rows of a step are in the memory of one process; with "
                f"{jax.process_count()} processes leave it empty"
            )
        if kind == "device" and mesh.size > 1:
            raise ConfigError(
                f"train.trunk_cache: tables in device memory are for one device, the mesh has "
                f"{mesh.size}: use 'host'"
            )

    def _shapes(self, part: EncodedRows) -> dict[str, Any]:
        """Return the shapes of a part's tables."""
        one = {n: jax.tree.map(lambda a: np.asarray(a[:1, None]), part.texts[n])
               for n in self._names}  # fmt: skip
        states = jax.eval_shape(self._states_of, self._base, one)
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((len(part), *s.shape[2:]), s.dtype), states
        )

    def _open(self, shapes: Sequence[Any], size: int) -> None:
        """Open empty tables, or those on disk with their filled rows."""
        self._filled = [
            {name: np.zeros(len(part), bool) for name in self._names} for part in self._parts
        ]
        if self._folder is None:
            xp = np if self._kind == "host" else jax.numpy
            self._tables = jax.tree.map(lambda s: xp.zeros(s.shape, s.dtype), list(shapes))
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        existing = sum(512 * f.stat().st_blocks for f in self._folder.glob("*.bin"))
        if size - existing > free:
            raise ConfigError(
                f"train.trunk_cache: the states take {size / _GIB:.1f} GiB and {self._folder} has "
                f"{free / _GIB:.1f} GiB left: make room, or set MEND_CACHE_DIR to another disk"
            )
        leaves, tree = jax.tree.flatten(list(shapes))
        files = [self._folder / f"{i}.bin" for i in range(len(leaves))]
        complete = all(map(_has_size, files, leaves))
        try:
            self._tables = jax.tree.unflatten(tree, [*map(_memory_map, files, leaves)])
        except OSError as e:
            raise ConfigError(
                f"train.trunk_cache: {self._folder} cannot be written ({e}): make room, or set "
                "MEND_CACHE_DIR to another disk"
            ) from e
        count = sum(map(len, self._parts)) * len(self._names)
        flags = _read_flags(self._folder / _FILLED, count) & complete
        for filled in self._filled:
            for name in self._names:
                filled[name][:], flags = flags[: len(filled[name])], flags[len(filled[name]) :]

    def _locate(self, batch: Batch) -> tuple[int, dict[str, np.ndarray]]:
        """Return the part of a batch and, by set of texts, its rows there, int[E, n]."""
        own = np.asarray(batch["index"])
        part = int(self._where[own.flat[0], 0])
        rows = {n: np.asarray(batch.get("near_index", own)) if n == "near" else own
                for n in self._names}  # fmt: skip
        return part, {name: self._where[index, 1] for name, index in rows.items()}

    def _store(self, part: int, at: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> None:
        for name, rows in at.items():
            table = self._tables[part][name]
            if self._kind == "device":
                self._tables[part][name] = _put(table, rows, states[name])
            else:
                jax.tree.map(lambda t, s, r=rows: t.__setitem__(r, np.asarray(s)), table,
                             states[name])  # fmt: skip
            self._filled[part][name][rows] = True

    def _digest(self, fingerprint: str) -> str:
        """Return a digest of base, trunk and texts, the name of the tables' folder."""
        about = {
            "base": fingerprint, "names": self._names, "dtype": np.dtype(self._model.dtype).name,
            "stacks": [[s.name, s.n_trunk] for s in self._model.stacks],
        }  # fmt: skip
        if self._model.trunk_dtype is not None:
            about["products"] = np.dtype(self._model.trunk_dtype).name
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for part in self._parts:
            for name in self._names:
                for leaf in jax.tree.leaves(part.texts[name].inputs):
                    digest.update(str(leaf.shape).encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


@functools.partial(jax.jit, donate_argnums=0)
def _put(table: Any, rows: jax.Array, states: Any) -> Any:
    return jax.tree.map(lambda t, s: t.at[rows].set(s), table, states)


def _places(parts: Sequence[EncodedRows]) -> np.ndarray:
    """Return int[rows, 2]: the part of each row number and the row in it; -1: in no part."""
    where = np.full((1 + max(int(part.index.max()) for part in parts), 2), -1)
    for number, part in enumerate(parts):
        where[part.index, 0], where[part.index, 1] = number, np.arange(len(part))
    return where


def _has_size(path: Path, like: Any) -> bool:
    size = math.prod(like.shape) * np.dtype(like.dtype).itemsize
    return path.exists() and path.stat().st_size == size


def _memory_map(path: Path, like: Any) -> np.memmap:
    """Return the file as an array; a file of another size is created again.

    Its space is allocated at once: with a sparse file, a disk that is full later would kill the
    process by a signal.
    """
    dtype = np.dtype(like.dtype)
    if not _has_size(path, like):
        path.unlink(missing_ok=True)
    with path.open("ab") as file:
        size = math.prod(like.shape) * dtype.itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, mode="r+", shape=like.shape)


def _read_flags(path: Path, count: int) -> np.ndarray:
    """Return the flags that `finish` wrote; none are set if their number is not `count`."""
    try:
        packed = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        packed = np.zeros(0, np.uint8)
    if len(packed) != -(-count // 8):
        return np.zeros(count, bool)
    return np.unpackbits(packed, count=count).astype(bool)
