"""What rounding takes from a merged edit: numbers that were rounded by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mend_jax.core.merge_rounding import merge_rounding
from mend_jax.core.weight_edit import Dense, Edit, LowRank, merge
from mend_jax.errors import CheckpointError

W = np.float32([[1.0, 1.0], [2.0, -1.0]])
"""Numbers of bfloat16 beside 1 are 2^-8 below and 2^-7 above, beside 2 twice as far."""
DW = np.float32([[2**-9, 2**-7], [2**-7, 0.0]])
"""The first is rounded to 0, the second is kept, the third is half of 2^-6 and goes to even: 0."""


def params_of(dtype):
    return {"w": {"kernel": jnp.asarray(W, dtype)}}


def test_what_bfloat16_loses():
    found = merge_rounding(params_of(jnp.bfloat16), Edit({"w": Dense(jnp.asarray(DW))}))
    lost, size = 2.0**-18 + 2.0**-14, 2.0**-18 + 2 * 2.0**-14
    assert found.error == pytest.approx(np.sqrt(lost / size), rel=1e-6)
    assert found.unchanged == pytest.approx(2 / 3)


def test_float32_loses_nothing_that_matters():
    a, b = np.float32([[1.0, 2.0]]), np.float32([[2**-9, 0.0]])
    for delta in (Dense(jnp.asarray(DW)), LowRank(jnp.asarray(a), jnp.asarray(b))):
        assert merge_rounding(params_of(jnp.float32), Edit({"w": delta})) == (0.0, 0.0)
    merged = merge(params_of(jnp.bfloat16), Edit({"w": Dense(jnp.asarray(DW))}), np.float32)
    np.testing.assert_array_equal(merged["w"]["kernel"], W + DW)


def test_an_edit_of_zeros_loses_nothing():
    edit = Edit({"w": Dense(jnp.zeros((2, 2)))})
    assert merge_rounding(params_of(jnp.bfloat16), edit) == (0.0, 0.0)
    with pytest.raises(CheckpointError, match="not an unstacked weight"):
        merge_rounding(params_of(jnp.bfloat16), Edit({"x": edit.deltas["w"]}))
