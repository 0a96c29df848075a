"""The inverse Cholesky factor: against float64, its derivative, and many at once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support.tiers import in_tiers

from mend_jax.editors.cholesky import inverse_cholesky


def positive(m, *lead, condition=10.0):
    rng = np.random.default_rng(m)
    q, _ = np.linalg.qr(rng.standard_normal((*lead, m, m)))
    return (q * np.geomspace(1.0, condition, m)) @ q.swapaxes(-1, -2)


@pytest.mark.parametrize("m", in_tiers([1, 3, 40], [1, 2, 3, 8, 13, 40]))
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_inverse_cholesky_is_the_inverse_of_the_cholesky_factor(m, lead):
    """float32: eps, 6e-8, times the condition 1e3 of the matrix, and a small factor for sums."""
    gram = positive(m, *lead, condition=1e3).astype(np.float32)
    found = inverse_cholesky(jnp.asarray(gram))
    wanted = np.linalg.inv(np.linalg.cholesky(gram.astype(np.float64)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-4 * np.abs(wanted).max())
    assert found.dtype == jnp.float32 and np.array_equal(found, np.tril(found))


def test_the_derivative_equals_finite_differences():
    with jax.enable_x64(True):
        gram, weights = jnp.asarray(positive(5, 2)), jnp.asarray(positive(5, 2) ** 2)

        def value(g):  # symmetric in what is read of it
            return (weights * jnp.tanh(inverse_cholesky(0.5 * (g + g.swapaxes(-1, -2))))).sum()

        check_grads(value, (gram,), order=1, modes=("rev",), rtol=1e-6)
        under_vmap = jax.vmap(lambda g: inverse_cholesky(g))(gram)
        np.testing.assert_allclose(under_vmap, inverse_cholesky(gram), rtol=1e-12)


STEPS = """
import jax, jax.numpy as jnp
from mend_jax.editors.ridge_regression import least_squares

def loss(many):
    return sum(jnp.square(least_squares(k, d, 1.0).a).sum() for k, d in many)

keys = jax.random.split(jax.random.key(0), 9)
many = [(jax.random.normal(k, (8, 120, 256)), jax.random.normal(k, (8, 120, 64))) for k in keys]
step = jax.jit(jax.grad(loss))
for _ in range(20):
    jax.block_until_ready(step(many))
print("done")
"""


@pytest.mark.slow
def test_many_simultaneous_solves_finish_on_two_threads():
    """jaxlib's batched kernels, called by nine weights at once, wait for each other forever."""
    root = Path(__file__).parents[2]
    cores = sorted(os.sched_getaffinity(0))[:2]
    environment = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {cores})\n{STEPS}"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr
