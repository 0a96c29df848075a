"""Compiled programs that later processes find."""

import os
import subprocess
import sys

import jax
import pytest

from mend_jax.io import compile_cache

PROGRAM = """
import jax, jax.numpy as jnp
from jax import monitoring
from mend_jax.io import compile_cache
compile_cache._LEAST_SECONDS = 0.0
compile_cache.keep_compiled_programs()
found = []
monitoring.register_event_listener(lambda name, **_: found.append(name))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).sum())
print(sum(name.endswith("cache_hits") for name in found))
"""


def run(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | variables, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    total, hits = out.stdout.split()
    return float(total), int(hits)


def test_a_second_process_compiles_nothing_anew(tmp_path):
    first, second = (run(MEND_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first[0] == second[0] and first[1] == 0 < second[1]
    assert list((tmp_path / "compiled").iterdir())


@pytest.mark.parametrize("name", ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"))
def test_the_users_own_setting_stays(name, monkeypatch, tmp_path):
    monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    compile_cache.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
