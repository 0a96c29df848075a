"""A trunk that multiplies in bfloat16: what is rounded, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import prompts_of, texts, twin, writer
from support.tiny import HF

from mend_jax.errors import ConfigError
from mend_jax.models.layers import EditableDense, products_in
from mend_jax.parallel import processor


@pytest.mark.parametrize("kind", sorted(HF))
def test_only_products_of_the_trunk_are_rounded(kind):
    """States stay float32 and change by about the rounding of bfloat16; the top is as before."""
    module, params = twin(kind).ours(n_top=1)
    fast, inputs = module.clone(trunk_dtype=jnp.bfloat16), texts(kind).inputs

    def states(model):
        return jax.jit(lambda p, x: model.apply({"params": p}, x, method="run_trunk"))

    exact, ours = states(module)(params, inputs), states(fast)(params, inputs)
    moved = []
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(ours), strict=True):
        assert a.dtype == b.dtype
        if a.dtype == jnp.float32:
            moved.append(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)))
    assert 0 < max(moved) < 0.02
    if module.kind == "seq2seq":  # the top of the encoder is below the decoder's trunk
        return
    top = [
        jax.jit(lambda p, h, x, m=m: m.apply({"params": p}, h, x, method="run_top"))
        for m in (module, fast)
    ]
    np.testing.assert_array_equal(*(run(params, exact, inputs) for run in top))


def test_generation_with_a_cache_agrees_with_the_whole_pass():
    module, params = twin("llama").ours(n_top=1)
    fast, some = module.clone(trunk_dtype=jnp.bfloat16), texts("llama", 1, n=4)
    written = np.asarray(writer(fast)({"params": params}, prompts_of("llama", some)))
    assert written.shape[0] == 4 and len(np.unique(written)) > 4


def test_products_have_float32_sums():
    """A sum of 4,096 ones is lost in bfloat16, whose next number after 256 is 258."""
    layer, x = EditableDense(1), jnp.ones((1, 4097))
    params = {"params": {"kernel": jnp.ones((4097, 1))}}
    with products_in(jnp.bfloat16):
        assert layer.apply(params, x) == 4097 and layer.apply(params, x + 1e-3) == 4097
    assert layer.apply(params, x + 1e-3) > 4097


def test_the_setting_follows_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.trunk_products("auto") == "float32"
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : sse amx_bf16 amx_tile\n")
    assert processor.multiplies_bfloat16() and processor.trunk_products("auto") == "bfloat16"
    assert processor.trunk_products("float32") == "float32"
    (tmp_path / "cpuinfo").write_text("flags : sse avx512_bf16\n")
    assert processor.trunk_products("auto") == "float32"
    assert processor.trunk_products("bfloat16") == "bfloat16"
    with pytest.raises(ConfigError, match="float16"):
        processor.trunk_products("float16")
