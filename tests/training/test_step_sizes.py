"""The learned step sizes of an editor: read, and scaled."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import tiny

from mend_jax.editors import EDITORS, make_editor
from mend_jax.errors import ConfigError
from mend_jax.training.step_sizes import LOG_OPTIONS, are_logs, scaled, step_sizes


def test_step_sizes_are_read_from_the_parameters():
    params = {"net": {"x": jnp.ones(())}, "scale_by_layer_lr": {"w": jnp.log(0.5)}}
    assert step_sizes(params, logs=True) == pytest.approx({"scale_by_layer_lr/w": 0.5})
    plain = step_sizes(params, logs=False)["scale_by_layer_lr/w"]
    assert plain == pytest.approx(np.log(0.5))
    assert step_sizes({}, logs=False) == {}


def test_a_ridge_is_always_a_logarithm():
    sizes = step_sizes({"ridge_solve": {"w": jnp.float32(-0.01)}}, logs=False)
    assert sizes["ridge_solve/w"] == pytest.approx(np.exp(-0.01))


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("name", ["mend", "meta_curvature", "malmen", "enn"])
def test_scaled_step_sizes_are_so_many_times_as_large(name, logs):
    """And nothing else changes, a ridge neither."""
    options = {"log_step_size": logs}
    params = make_editor(name, options).init(jax.random.key(0), tiny("gpt2")[2])[0]
    assert are_logs(options) is logs
    found = scaled(params, 0.2, logs)
    before, after = (step_sizes(p, logs) for p in (params, found))
    ridges = [k for k in before if k.startswith("ridge_solve")]
    assert bool(ridges) is (name == "malmen")
    wanted = {k: v if k in ridges else 0.2 * v for k, v in before.items()}
    assert after == pytest.approx(wanted, rel=1e-5)  # a logarithm near 5 has 5e-7 in float32
    for part in params.keys() - {k.split("/")[0] for k in before}:
        assert found[part] is params[part]


@pytest.mark.parametrize("logs", [False, True])
def test_a_step_size_for_every_parameter_is_scaled_too(logs):
    params = make_editor("meta_sgd", {"log_lr": logs}).init(jax.random.key(0), tiny("gpt2")[2])[0]
    found = scaled(params, 0.2, logs)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
    for new, old in pairs:
        assert old.ndim == 2
        wanted = old + np.log(0.2) if logs else 0.2 * old
        np.testing.assert_allclose(new, wanted, rtol=1e-6)


def test_an_editor_without_step_sizes_cannot_scale_them():
    for params in ({}, {"low_rank_mlp": {}}, {"ridge_solve": {"w": jnp.zeros(())}}):
        with pytest.raises(
            ConfigError, match=r"editor\.init_step_size_scale is 0\.5, .*leave it at 1\.0"
        ):
            scaled(params, 0.5, logs=True)


def test_every_option_that_learns_a_logarithm_is_known():
    options = {o for make in EDITORS.values() for o in inspect.signature(make).parameters}
    assert {o for o in options if o.startswith("log_")} == set(LOG_OPTIONS)
