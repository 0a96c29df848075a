"""The edits so far, where they follow one another, on disk, for a pass that was interrupted."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mend_jax.core.weight_edit import Edit
from mend_jax.io.files import write_bytes
from mend_jax.parallel import distributed


class SequentialState:
    """An edit and an editor's state after k edits, in one file that is written whole."""

    def __init__(self, path: Any = None, of: Mapping[str, Any] | None = None) -> None:
        """Args: the file (None: nothing is kept), and what tells this pass from others."""
        self.path, self.of = path, json.dumps(dict(of or {}), sort_keys=True)

    def save(self, k: int, so_far: Edit, state: Any) -> None:
        """Keeps what there is after k edits."""
        if self.path is None:
            return
        leaves = distributed.gather(jax.tree.leaves((so_far, state)))
        if distributed.is_writer():
            out = io.BytesIO()
            np.savez(out, *map(np.asarray, leaves), k=np.asarray(k), of=np.asarray(self.of))
            write_bytes(self.path, out.getvalue())

    def load(self, fresh: Edit, state: Any, latest: int) -> tuple[int, Edit, Any]:
        """(k, edits, state) as kept, at the most `latest` edits; else (0, fresh, state).

        What is kept is not used either where it is another pass's or damaged.

        Args:
          state: the editor's at first, placed as that to go on with shall be.
        """
        with distributed.fail_together("reading the edits so far"):
            found = self._read()
        like, tree = jax.tree.flatten((fresh, state))
        if found is None or found[0] > latest or len(found[1]) != len(like):
            return 0, fresh, state
        placed = [
            jax.device_put(x, old.sharding) if isinstance(old, jax.Array) else x
            for x, old in zip(found[1], like, strict=True)
        ]
        return found[0], *jax.tree.unflatten(tree, placed)

    def _read(self) -> tuple[int, list[np.ndarray]] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as kept:
                if str(kept["of"]) != self.of:
                    return None
                return int(kept["k"]), [kept[f"arr_{i}"] for i in range(len(kept.files) - 2)]
        except Exception:  # zipfile's, numpy's, and those of each library that unpacks
            return None

    def forget(self) -> None:
        """Deletes the file, once all edits are made and judged."""
        if self.path is not None and distributed.is_writer() and self.path.exists():
            self.path.unlink()
