"""Scopes, scoped edits and banks of tiny models."""

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.bank import empty_bank, insert
from mend_jax.core.forward import trunk_states
from mend_jax.core.scope import Scope, first_site, init_projection, reading, scope_keys
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.editors import make_editor
from mend_jax.training.restored_editor import Editor

NEVER, ALWAYS, OWN = 1.5, -2.0, 0.999
"""Thresholds that nothing, everything and the keys' own positions are above."""


def both(threshold):
    """One threshold for subject and question, or one of each."""
    return np.broadcast_to(np.asarray(threshold, np.float32), (2,))


def make_scope(module, base="", site=None, seed=0):
    """Random projections for a model."""
    heads = [init_projection(jax.random.key(2 * seed + i), module.config.d_model) for i in range(2)]
    return Scope(*heads, site or first_site(module), base)


def random_deltas(weights, seed=0, rows=3, std=0.3):
    """Low-rank deltas of some weights."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return jnp.asarray(rng.normal(0, std, shape), jnp.float32)

    return {w.name: LowRank(random(rows, w.d_in), random(rows, w.d_out)) for w in weights}


def scoped_edits(module, params, weights, scope, texts, threshold=OWN, rows=3, seed=0):
    """One scoped edit for each text [F, 1], with random deltas and the text's own keys."""
    keys, mask = _keys(reading(module, scope.site))(params, scope, texts)
    fingerprint = scope.fingerprint()
    return [
        ScopedEdit(
            Edit(random_deltas(weights, seed + i, rows), scope.base, ((f"p{i}", f"t{i}"),)),
            keys[i, 0], mask[i, 0], both(threshold), np.float32(0), fingerprint,
        )
        for i in range(len(keys))
    ]  # fmt: skip


def _keys(module):
    @jax.jit
    def keys(params, scope, texts):
        return scope_keys(scope, module, params, trunk_states(module, params, texts), texts)

    return keys


def bank_of(scoped, capacity=16, **options):
    """A bank of scoped edits."""
    first = scoped[0]
    empty = empty_bank(
        first.edit.weight_shapes(), first.keys.shape[-1], base=first.edit.base, scope=first.scope,
        capacity=capacity, **options,
    )  # fmt: skip
    return insert(empty, scoped)[0]


def with_threshold(bank, threshold):
    """The bank with another threshold for all of its facts."""
    table = bank.table.replace(threshold=jnp.full((bank.capacity, 2), threshold, jnp.float32))
    return bank.replace(table=table)


SHAPES = {"block_1/mlp/down": (5, 6), "block_1/mlp/up": (6, 5)}
D_KEY = 8


def small_scoped(
    seed, key_rows=2, delta_rows=3, fact=None, keys=None, threshold=0.9, mention=0.0,
    names=(), base="b" * 16, scope="5" * 16,
):  # fmt: skip
    """A random scoped edit of no particular model."""
    rng = np.random.default_rng(seed)
    if keys is None:
        keys = rng.normal(size=(key_rows, 2, D_KEY // 2))
        keys = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
        keys = keys.reshape(key_rows, D_KEY)
    deltas = {
        name: LowRank(*(rng.normal(size=(delta_rows, d)).astype(np.float32) for d in shape))
        for name, shape in SHAPES.items()
    }
    edit = Edit(deltas, base, (fact or (f"Who is {seed}?", f"Name {seed}"),), "mend@1", "2026")
    keys = np.asarray(keys, np.float32)
    numbers = both(threshold), np.float32(mention)
    return ScopedEdit(edit, keys, np.ones(len(keys), bool), *numbers, scope, names)


def small_bank(*scoped, **options):
    """A bank for `small_scoped`."""
    options = dict(base="b" * 16, scope="5" * 16, capacity=4, key_rows=2, delta_rows=2) | options
    return insert(empty_bank(SHAPES, D_KEY, **options), scoped)[0]


def scoped_editor(model, threshold=OWN, mention=0.0, **options):
    """An untrained MEND editor whose edits are large enough to see."""
    transform = make_editor("mend", dict(rank=8, step_size=3e-1) | options)
    params, state = transform.init(jax.random.key(0), model.weights)
    scope = make_scope(model.module, model.fingerprint)
    learned = LearnedScope(scope, tuple(both(threshold).tolist()), mention, {})
    return Editor(model, transform, params, state, name="mend", scope=learned)
