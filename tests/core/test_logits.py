"""Functions of logits with their derivatives in one forward pass (`core.logits.map_logits`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.logits import map_logits
from mend_jax.core.losses import correct_tokens, token_kl, token_nll
from mend_jax.models.layers import float32_product
from mend_jax.tpu.flops import matmul_flops

E, N, S = 2, 3, 7


@functools.cache
def given(dtype=jnp.float32):
    module, base, _ = tiny("llama", n_top=1)
    width = module.config.d_model
    states = [
        jax.random.normal(jax.random.key(i), (E, N, S, width), jnp.float32).astype(dtype)
        for i in range(2)
    ]
    return module, base, states, random_sequences(0, E=E, n=N, T=12, S=S, kind="lm").target


def plainly(module, base, fn, states, *aligned):
    """Return the same without a custom derivative."""
    logits = [module.apply({"params": base}, h, method="head") for h in states]
    return fn(*logits, *aligned)


def weighted(make, fn, chunk, *aligned):
    """Return a function of the last states: a sum that weighs every position differently."""
    module, base, (before, _), _ = given()

    def total(after):
        states = [before, after] if fn is token_kl else [after]
        values = make(module.clone(logits_chunk=chunk), base, fn, states, *aligned)
        return (values * jnp.arange(1.0, values.size + 1).reshape(values.shape)).sum()

    return total


def close(found, wanted):
    """Compare sums of a few hundred products in another order: float32 rounding of the largest."""
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("fn", [token_nll, token_kl])
def test_values_and_derivatives_equal_those_of_the_plain_program(fn, chunk):
    """Also the second derivative, which ENN and other editors with inner descent need."""
    _, _, (_, after), target = given()
    aligned = (target,) if fn is token_nll else ()
    ours, plain = weighted(map_logits, fn, chunk, *aligned), weighted(plainly, fn, 0, *aligned)
    close(ours(after), plain(after))
    close(jax.grad(ours)(after), jax.grad(plain)(after))

    def squared(total):
        return lambda h: jnp.square(jax.grad(total)(h)).sum()

    wanted = jax.grad(squared(plain))(after)
    assert np.any(np.abs(wanted) > 1e-3)
    close(jax.grad(squared(ours))(after), wanted)


@pytest.mark.parametrize("chunk", [0, 2])
def test_no_logits_are_kept_for_a_backward_pass(chunk):
    module, base, (before, after), _ = given()

    def kept(make):
        def kl(after):
            return make(module.clone(logits_chunk=chunk), base, token_kl, [before, after])

        pull = jax.eval_shape(lambda h: jax.vjp(kl, h)[1], after)
        return max(leaf.size for leaf in jax.tree.leaves(pull))

    n_logits = E * N * S * module.config.vocab_size
    assert kept(map_logits) == after.size
    assert kept(plainly) >= n_logits


def test_a_logits_chunk_needs_no_further_operations():
    module, base, (before, after), _ = given()

    def products(chunk):
        def kl(after):
            found = map_logits(module.clone(logits_chunk=chunk), base, token_kl, [before, after])
            return found.sum()

        return matmul_flops(jax.make_jaxpr(jax.grad(kl))(after))

    head = 2 * after.size * module.config.vocab_size
    assert products(0) == 3 * head  # both sides forward, one backward
    assert products(1) == 3 * head


def test_only_the_first_of_several_results_has_a_gradient():
    module, base, (_, after), target = given()

    def nll_and_correct(logits, target):
        return token_nll(logits, target), correct_tokens(logits, target)

    def loss(h):
        nll, correct = map_logits(module, base, nll_and_correct, [h], target)
        return nll.sum(), correct

    grad, correct = jax.grad(loss, has_aux=True)(after)
    plain = jax.grad(lambda h: plainly(module, base, token_nll, [h], target).sum())(after)
    close(grad, plain)
    assert correct.shape == (E, N, S) and correct.dtype == bool


def test_other_states_and_the_head_are_constants():
    module, base, (before, after), _ = given()

    def kl(before, base):
        return map_logits(module, base, token_kl, [before, after]).sum()

    for grad in jax.tree.leaves(jax.grad(kl, argnums=(0, 1))(before, base)):
        assert not np.any(grad)


def test_bfloat16_states_have_a_bfloat16_derivative():
    module, base, (_, after), target = given(jnp.bfloat16)
    grad = jax.grad(lambda h: map_logits(module, base, token_nll, [h], target).sum())(after)
    assert grad.dtype == jnp.bfloat16 and np.any(grad)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_products_in_float32_and_their_gradients(dtype, axis):
    """Equal to XLA's product; only gradients are rounded to the operands' dtype."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), dtype)
    w = jax.random.normal(jax.random.key(1), (8, 5) if axis == 0 else (5, 8), dtype)
    dims = (((2,), (axis,)), ((), ()))

    def plain(x, w):
        return jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)

    def slope(product, x, w):
        y, pull = jax.vjp(product, x, w)
        return y, pull(jnp.sin(y).astype(dtype).astype(jnp.float32))  # already rounded

    (y, expected), (found_y, found) = (
        slope(p, x, w) for p in (plain, lambda x, w: float32_product(x, w, axis))
    )
    assert found_y.dtype == jnp.float32
    np.testing.assert_array_equal(found_y, y)
    # The same numbers are summed in another order: 2^-7 is one step of bfloat16.
    rtol = 1e-6 if dtype == jnp.float32 else 2**-7
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (ours, theirs)), rtol, 1e-6)


def test_a_16_bit_head_multiplies_16_bits_backward_and_makes_no_gradient_of_frozen_weights():
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 5), jnp.bfloat16)

    def backward(wanted):
        """Return the operands of the products that jax.grad adds after the forward call."""
        made = jax.make_jaxpr(jax.grad(lambda x, w: float32_product(x, w, 0).sum(), wanted))(x, w)
        products = [e for e in made.eqns if e.primitive.name == "dot_general"]
        return [[v.aval.dtype for v in e.invars] for e in products]

    assert backward(0) == [[jnp.bfloat16] * 2]
    assert backward((0, 1)) == [[jnp.bfloat16] * 2] * 2
