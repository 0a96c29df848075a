"""Every model of configs/ at full size, without allocating it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.full_sizes import SIZES
from support.tiers import in_tiers
from support.tiny import random_batch

from mend_jax import models
from mend_jax.core.meta_loss import meta_loss
from mend_jax.editors import make_editor
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.models.params import stack_trunk
from mend_jax.tpu.sharding_report import configs_without_mesh
from mend_jax.training.config import load_config
from mend_jax.training.config_check import check_editing_config

CONFIGS = Path(__file__).parents[2] / "configs"


def parsed(name):
    """Return (family, config, experiment config) of a model of configs/."""
    experiment = load_config(f"{name}.py")
    hf = PUBLISHED[experiment.model.spec]
    family = models.find_family(hf)
    return family, models.parse_config(family, hf), experiment


def abstract_base(family, config, module):
    """Return the nested parameters as shapes in bfloat16."""
    flat = {s.path: np.broadcast_to(np.float32(0), s.shape) for s in family.tensor_specs(config)}

    def stack(flat):
        return stack_trunk(flat, module.stacks, xp=jnp)

    return jax.eval_shape(
        stack, {p: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for p, a in flat.items()}
    )


def test_every_config_is_tested_here():
    """The configs of the paper's models and of recent ones, whose mesh depends on the machine."""
    assert {Path(name).stem for name in configs_without_mesh()} == set(SIZES)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_config_fits_its_model(name):
    """The file passes the checks of a run, and its default weights are those of the paper."""
    family, config, experiment = parsed(name)
    check_editing_config(experiment)
    check_editing_config(load_config(f"{name}.py:smoke"))
    assert f"--config={name}.py" in (CONFIGS / f"{name}.py").read_text()
    n_blocks = experiment.model.last_n_blocks
    weights = models.choose_weights(family, config, n_blocks)
    _, expected = SIZES[name]
    stacks = family.model_class.stack_sizes(config)
    assert n_blocks == (2 if len(stacks) > 1 else 3)
    assert {w.name: (w.d_in, w.d_out) for w in weights} == {
        f"{stack}_{i}/{role}": shape
        for stack, size in stacks.items()
        for i in range(size - n_blocks, size)
        for role, shape in expected.items()
    }


QUICK, SLOW = ("gptj", "t5_small"), ("bart_base", "llama3_8b")


@pytest.mark.parametrize("name", in_tiers(QUICK, sorted(SIZES), SLOW))
def test_training_step_of_the_full_size_has_the_right_shapes(name):
    """One meta-gradient of MEND, traced at full size; the parameter count is the published one."""
    family, config, experiment = parsed(name)
    weights = models.choose_weights(family, config, experiment.model.last_n_blocks)
    module = family.model_class(
        config,
        models.count_top_blocks(family, config, weights),
        jnp.bfloat16,
        experiment.model.remat,
    )
    base = abstract_base(family, config, module)
    millions = sum(np.prod(a.shape, dtype=np.int64) for a in jax.tree.leaves(base)) / 1e6
    assert millions == pytest.approx(SIZES[name][0], rel=2e-3)
    editor = make_editor("mend", experiment.editor.options.to_dict())
    params, state = jax.eval_shape(lambda: editor.init(jax.random.key(0), weights))
    loss = functools.partial(meta_loss, editor=editor, model=module, weights=weights)
    batch = random_batch(0, E=2, kind=module.kind)
    grads, (metrics, _, edit) = jax.eval_shape(
        jax.grad(loss, has_aux=True), params, state, base, batch
    )
    assert jax.tree.map(lambda a: (a.shape, a.dtype), grads) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    assert metrics["loss"].dtype == jnp.float32
    assert set(edit.deltas) == {w.name for w in weights}
