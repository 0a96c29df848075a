"""The state of interrupted sequential editing on disk: the edits so far and the editor's state."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mend_jax.core.editor_protocol import EditorState
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.parallel import distributed
from mend_jax.parallel.sharding import key_path_name

FORMAT = "mend_jax_sequential_edits/1"


class SequentialState:
    """An edit and an editor's state after k edits, in one file.

    A file of an older run, of the same name but for `.npz`, is read where there is no new one.
    """

    def __init__(self, path: Any = None, of: Mapping[str, Any] | None = None) -> None:
        """Args: the file (None: nothing is kept), and JSON values that identify this pass."""
        self.path, self.of = path, dict(of or {})

    def save(self, k: int, so_far: Edit, state: EditorState) -> None:
        """Write the composed edit and the editor's state after k edits."""
        if self.path is None:
            return
        arrays = _by_name(distributed.gather((so_far, state)))
        if distributed.is_writer():
            array_files.write(self.path, FORMAT, arrays, {"edits": k, "of": self.of})

    def load(self, fresh: Edit, state: EditorState, latest: int) -> tuple[int, Edit, EditorState]:
        """Return (k, edits, state) as saved, at most `latest` edits; else (0, fresh, state).

        A file that is damaged, or of another pass, is ignored.

        Args:
          state: the editor's initial state, placed as the result should be.
        """
        with distributed.fail_together("reading the edits so far"):
            saved = self._read((fresh, state))
        if saved is None or saved[0] > latest:
            return 0, fresh, state
        with jax.enable_x64(True):  # sums of combined edits are in float64
            placed = jax.tree.map(
                lambda x, old: jax.device_put(x, old.sharding) if isinstance(old, jax.Array) else x,
                saved[1],
                (fresh, state),
            )
        return saved[0], *placed

    def _read(self, like: tuple[Edit, EditorState]) -> tuple[int, tuple[Edit, EditorState]] | None:
        if self.path is None:
            return None
        if not self.path.exists():
            return self._read_npz(like)
        try:
            file = array_files.read(self.path, FORMAT, kind="file of edits so far")
            if json.dumps(file.metadata["of"], sort_keys=True) != self._identity():
                return None
            names, (_, tree) = list(_by_name(like)), jax.tree.flatten(like)
            if set(names) != set(file.arrays):
                return None
            return file.metadata["edits"], jax.tree.unflatten(tree, [file.arrays[n] for n in names])
        except (CheckpointError, KeyError):
            return None

    def _read_npz(
        self, like: tuple[Edit, EditorState]
    ) -> tuple[int, tuple[Edit, EditorState]] | None:
        """Read the older form: leaves by number, and what identifies the pass as JSON text."""
        path = self.path.with_suffix(".npz")
        if not path.exists():
            return None
        leaves, tree = jax.tree.flatten(like)
        try:
            with np.load(io.BytesIO(path.read_bytes())) as kept:
                if str(kept["of"]) != self._identity() or len(kept.files) != len(leaves) + 2:
                    return None
                arrays = [kept[f"arr_{i}"] for i in range(len(leaves))]
                return int(kept["k"]), jax.tree.unflatten(tree, arrays)
        except Exception:  # zipfile's, numpy's, and those of each library that unpacks
            return None

    def _identity(self) -> str:
        return json.dumps(self.of, sort_keys=True)

    def forget(self) -> None:
        """Delete the file, once all edits are made and scored."""
        if self.path is not None and distributed.is_writer():
            for path in (self.path, self.path.with_suffix(".npz")):
                if path.exists():
                    path.unlink()


def _by_name(tree: Any) -> dict[str, Any]:
    return {key_path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
