"""What is read from a compiled program: on 8 virtual devices, whose programs are known."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mend_jax.parallel.mesh import make_mesh
from mend_jax.tpu import hlo
from mend_jax.tpu.compile_steps import gathered_weights
from mend_jax.tpu.flops import matmul_flops


def compiled(fn, *arguments):
    """fn with (shape, spec) arguments, compiled for a mesh of 8 along `tensor`."""
    mesh = make_mesh(dict(tensor=8))
    structs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    whole = NamedSharding(mesh, P())
    return jax.jit(fn, out_shardings=whole).lower(*structs).compile().as_text()


def test_a_row_split_matmul_is_one_all_reduce():
    text = compiled(lambda x, w: x @ w, ((16, 64), P(None, "tensor")), ((64, 32), P("tensor")))
    found = hlo.collectives(text)
    assert hlo.by_kind(found) == {"all-reduce": {"count": 1, "bytes": 16 * 32 * 4}}
    assert found[0].shapes == (("f32", (16, 32)),)


TWO_SLICES = """
ENTRY %main (p: f32[4]) -> f32[4] {
  %a = f32[4,8,128]{2,1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1},{2,3}}
  %send = (f32[4,8,128]{2,1,0}, u32[], token[]) send(%a, %t), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.333_0",_xla_megascale_x="SUM"}
  %other = (f32[9]{0}, u32[], token[]) send(%a, %t), channel_id=5, is_host_transfer=false
}
"""


def test_what_goes_between_slices_is_what_the_compiler_sends_there():
    """The text of the compiler of a program for two slices, cut."""
    found = hlo.sent_between_slices(TWO_SLICES)
    assert hlo.by_kind(found) == {"all-reduce": {"count": 1, "bytes": 4 * 8 * 128 * 4}}


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    columns = NamedSharding(make_mesh(dict(tensor=8)), P(None, "tensor"))

    def five_blocks(x, w):
        def block(x, w):
            hidden = jax.lax.with_sharding_constraint(x @ w, columns)
            return jnp.tanh(hidden @ w.T), None

        return jax.lax.scan(block, x, w)[0]

    text = compiled(five_blocks, ((16, 64), P()), ((5, 64, 32), P(None, None, "tensor")))
    assert hlo.loops(text) == [5]
    found = hlo.by_kind(hlo.collectives(text))
    assert found["all-reduce"] == {"count": 5, "bytes": 5 * 16 * 64 * 4}


def test_a_weight_that_is_gathered_is_named():
    text = compiled(lambda w: w * 2.0, ((64, 48), P("tensor")))
    base = {
        "block_0": {"mlp": {"up": {"kernel": jnp.zeros((64, 48))}}},
        "trunk": {"mlp": {"down": {"kernel": jnp.zeros((3, 48, 80))}}},
        "norm": {"scale": jnp.zeros((64,))},
    }
    assert gathered_weights(hlo.collectives(text), base) == ["block_0/mlp/up/kernel"]
    reduced = compiled(lambda x, w: x @ w, ((16, 64), P(None, "tensor")), ((64, 48), P("tensor")))
    assert gathered_weights(hlo.collectives(reduced), base) == []


def test_the_text_of_tpu_programs():
    """Loops without a noted length, asynchronous collectives, tuples, 16 bits, as libtpu prints."""
    text = """HloModule jit_step

%cond.1 (p.0: (s32[], bf16[4,8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(9)
  %p.0 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

%body.1 (p.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-reduce.3 = (f32[4,8]{1,0}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%a, %b), channel_id=1
}

%cond.2 (p.2: (s32[])) -> pred[] {
  ROOT %ne = pred[] compare(%x, %y), direction=NE
}

ENTRY %main.1 (w: bf16[4,8]) -> bf16[4,8] {
  %while.1 = (s32[], bf16[4,8]) while(%t), condition=%cond.1, body=%body.1
  %while.2 = (s32[]) while(%t), condition=%cond.2, body=%body.2
  %ag = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%w), dimensions={0}
  %agd = bf16[4,8]{1,0} all-gather-done(%ag)
}
"""
    assert hlo.loops(text) == [9, None]
    assert hlo.by_kind(hlo.collectives(text)) == {
        "all-gather": {"count": 1, "bytes": 4 * 8 * 2},
        "all-reduce": {"count": 9, "bytes": 9 * (4 * 8 * 4 + 4 * 8 * 2)},
    }


def test_matmul_flops_of_loops_branches_and_derivatives():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))

    def loop(x, w):
        return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=7)[0].sum()

    one = 2 * 4 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(loop)(x, w)) == 7 * one
    assert matmul_flops(jax.make_jaxpr(jax.jit(loop))(x, w)) == 7 * one
    # Backward: as much again for each of the two inputs.
    assert matmul_flops(jax.make_jaxpr(jax.grad(loop, argnums=(0, 1)))(x, w)) == 21 * one

    def branches(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: (x @ w) @ w, lambda: x @ w)

    assert matmul_flops(jax.make_jaxpr(branches)(x, w)) == 2 * one
    batched = jax.vmap(jnp.matmul, in_axes=(0, None))
    assert matmul_flops(jax.make_jaxpr(batched)(jnp.ones((3, 4, 8)), w)) == 3 * one
