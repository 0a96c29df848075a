"""Masked means."""

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.losses import masked_mean


def test_masked_values_do_not_count():
    values = jnp.asarray([[1.0, 2.0, jnp.nan], [jnp.inf, 5.0, jnp.nan], [jnp.inf, 1.0, 2.0]])
    mask = jnp.asarray([[True, True, False], [False, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(values, mask, axes=(1,)), [1.5, 5.0, 0.0])
    gradient = jax.grad(lambda v: masked_mean(v, mask, axes=(0, 1)))(values)
    np.testing.assert_allclose(gradient, mask.astype(np.float32) / 3, rtol=1e-6)
