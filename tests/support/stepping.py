"""One training step of a tiny model on a mesh."""

import jax
import numpy as np
from support.tiny import random_batch, sharding_rules, tiny

from mend_jax.editors import make_editor
from mend_jax.parallel.mesh import make_mesh, shard_batch, use_mesh
from mend_jax.parallel.sharding import bytes_per_device, place
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import init_state, make_train_step, success_weight


def step_of(mesh_sizes, accumulate=1, clip=100.0, step_size_lr=1e-2, kind="llama", n_top=2):
    """Return the state before and after one training step on a mesh, and its metrics."""
    module, base, weights = tiny(kind, n_top)
    editor = make_editor("mend", dict(rank=8, step_size=1e-2, log_step_size=True))
    tx = make_optimizer(lr=1e-3, step_size_lr=step_size_lr, clip=clip, accumulate=accumulate,
                        warmup=0, steps=10, decay=False, step_sizes=editor.step_sizes)  # fmt: skip
    mesh = make_mesh(mesh_sizes)
    state = place(mesh, init_state(editor, weights, tx, 0), editor.sharding_rules)
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(0.1, 0.1, 10), c_loc=1.0,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )  # fmt: skip
    before = jax.tree.map(np.array, state)
    batch = shard_batch(mesh, random_batch(0, E=8, kind=module.kind))
    with use_mesh(mesh):
        after, metrics = step(state, place(mesh, base, sharding_rules(kind)), batch, np.int32(1))
    shares = bytes_per_device(after.params), bytes_per_device(after.opt_state)
    return before, jax.tree.map(np.array, after), jax.tree.map(float, metrics), shares
