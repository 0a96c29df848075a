"""The learned step sizes of an editor: reading and scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import tiny

from mend_jax.core.editor_protocol import StepSizes
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.training.step_sizes import scale_step_sizes, step_sizes


def test_step_sizes_are_read_from_the_parameters():
    params = {"net": {"x": jnp.ones(())}, "rates": {"w": jnp.log(0.5)}}
    [log, plain] = [(StepSizes(log, path="rates"),) for log in (True, False)]
    assert step_sizes(params, log) == pytest.approx({"rates/w": 0.5})
    assert step_sizes(params, plain)["rates/w"] == pytest.approx(np.log(0.5))
    assert step_sizes({}, log) == step_sizes(params, ()) == {}


def test_a_ridge_is_always_a_logarithm():
    declared = make_editor("malmen", {}).step_sizes
    sizes = step_sizes({"ridge_solve": {"w": jnp.float32(-0.01)}}, declared)
    assert sizes["ridge_solve/w"] == pytest.approx(np.exp(-0.01))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ["mend", "meta_curvature", "malmen", "rledit", "enn"])
def test_scaled_step_sizes_are_multiplied_and_nothing_else_changes(name, log):
    """A ridge does not change."""
    editor = make_editor(name, {"log_step_size": log})
    params = editor.init(jax.random.key(0), tiny("gpt2")[2])[0]
    scaled = scale_step_sizes(params, 0.2, editor.step_sizes)
    before, after = (step_sizes(p, editor.step_sizes) for p in (params, scaled))
    assert {part.log for part in editor.step_sizes if part.scales_edit} == {log}
    ridges = [k for k in before if k.startswith("ridge_solve")]
    assert bool(ridges) is (name in ("malmen", "rledit"))
    expected = {k: v if k in ridges else 0.2 * v for k, v in before.items()}
    assert after == pytest.approx(expected, rel=1e-5)  # a logarithm near 5 has 5e-7 in float32
    for part in params.keys() - {k.split("/")[0] for k in before}:
        jax.tree.map(np.testing.assert_array_equal, scaled[part], params[part])


@pytest.mark.parametrize("log", [False, True])
def test_a_step_size_for_every_parameter_is_scaled_too(log):
    editor = make_editor("meta_sgd", {"log_lr": log})
    params = editor.init(jax.random.key(0), tiny("gpt2")[2])[0]
    scaled = scale_step_sizes(params, 0.2, editor.step_sizes)
    assert step_sizes(params, editor.step_sizes) == {}  # matrices are not listed
    for new, old in zip(jax.tree.leaves(scaled), jax.tree.leaves(params), strict=True):
        assert old.ndim == 2
        expected = old + np.log(0.2) if log else 0.2 * old
        np.testing.assert_allclose(new, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["fine_tune", "ultraedit", "ke"])
def test_an_editor_without_step_sizes_cannot_scale_them(name):
    declared = make_editor(name, {}).step_sizes
    with pytest.raises(ConfigError, match=r"init_step_size_scale is 0\.5, .*leave it at 1\.0"):
        scale_step_sizes({"low_rank_mlp": {}}, 0.5, declared)
