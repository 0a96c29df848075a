"""Small edits of no particular model, made with numpy: JAX starts threads, and then no process may
fork.
"""

import numpy as np

from mend_jax.core.weight_edit import Dense, Edit, LowRank

FINGERPRINT = "0123456789abcdef"
UP, DOWN = "block_1/mlp/up", "block_2/mlp/down"
SHAPES = {UP: (6, 5), DOWN: (5, 6)}


def small_delta(rng, name, rows=2):
    """Return a random delta; without rows (None) a dense one."""
    d_in, d_out = SHAPES[name]
    if rows is None:
        return Dense(rng.normal(size=(d_in, d_out)).astype(np.float32))
    a, b = rng.normal(size=(rows, d_in)), rng.normal(size=(rows, d_out))
    return LowRank(a.astype(np.float32), b.astype(np.float32))


def small_edit(seed=0, names=(UP, DOWN), rows=2, base=FINGERPRINT, **fields):
    """Return a random edit of these weights, about `fact SEED`."""
    rng = np.random.default_rng(seed)
    deltas = {name: small_delta(rng, name, rows) for name in names}
    return Edit(deltas, base=base, facts=((f"fact {seed}", "x"),), **fields)


def bits(edit):
    """Return an edit's contents, for comparison to the last bit."""
    leaves = {n: {k: (v.dtype.name, v.shape, v.tobytes()) for k, v in vars(d).items()}
              for n, d in _on_host(edit).deltas.items()}  # fmt: skip
    return leaves, edit.base, edit.facts, edit.editor


def _on_host(edit):
    return edit.replace(
        deltas={n: d.replace(**{k: np.asarray(v) for k, v in vars(d).items()})
                for n, d in edit.deltas.items()}
    )  # fmt: skip
