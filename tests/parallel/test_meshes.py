"""Training steps on meshes of 8 virtual devices equal those on one device.

On a mesh with all three axes, the hardest case, in the slow tier; `--full` adds meshes of one axis
and two further families.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from support.full_counts import ALL_MESHES
from support.stepping import step_of
from support.tiers import in_tiers

KINDS = ("gpt2", "t5", "bert")
MESHES = ((2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8))
CASES = [(kind, (2, 2, 2)) for kind in KINDS]
N_TOP = 2 if ALL_MESHES else 1
if ALL_MESHES:
    CASES = list(itertools.product((*KINDS, "llama", "gptj"), MESHES))


@functools.cache
def one_device_step(kind):
    return step_of(dict(data=1), kind=kind, n_top=N_TOP)


@pytest.fixture
def optimised():
    """Compile programs as users do.

    Unoptimised ones, as in other tests, gave gradients of T5's KL on a mesh with 1% error.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("case", in_tiers([], CASES, CASES[:1]), ids=str)
def test_a_mesh_of_many_devices_gives_the_same_step(optimised, case):
    """To 1e-5 in float32, and each device holds its share of the editor."""
    kind, sizes = case
    sizes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    _, one, metrics_one, whole = one_device_step(kind)
    _, many, metrics, shares = step_of(sizes, kind=kind, n_top=N_TOP)
    for name in ("loss", "kl", "nll_rephrase"):
        assert metrics[name] == pytest.approx(metrics_one[name], abs=1e-5)
    # The sums of squares in the statistics are large: 1e-5 relative to their size.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        one.editor_state, many.editor_state,
    )  # fmt: skip
    # Adam's moments are the gradients, without the division that amplifies rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        one.opt_state, many.opt_state,
    )  # fmt: skip
    # All but biases and FiLM rows are split over `fsdp` and `tensor`, and so are Adam's moments.
    ways = sizes["fsdp"] * sizes["tensor"]
    small = sum(
        leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(many.params)
        if path[-1].key not in ("u", "v")
    )  # fmt: skip
    assert shares[0] == (whole[0] - small) / ways + small
    assert shares[1] <= (whole[1] - 2 * small) / ways + 2 * small + 64
