"""Compiled programs that later processes find."""

import os
import subprocess
import sys
import time

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


def write(folder, name, age, suffixes=("-cache", "-atime")):
    for suffix in suffixes:
        file = folder / f"{name}{suffix}"
        file.write_bytes(bytes(8))
        os.utime(file, (time.time() - age,) * 2)


def test_only_old_halves_of_programs_are_removed(tmp_path):
    write(tmp_path, "whole", age=1000)
    write(tmp_path, "half", age=1000, suffixes=("-cache",))
    write(tmp_path, "being_written", age=0, suffixes=("-cache",))
    compile_cache.remove_half_written(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"whole-cache", "whole-atime", "being_written-cache"}
    compile_cache.remove_half_written(tmp_path / "missing")  # there is no cache yet


def test_programs_are_kept_after_another_process_was_killed_while_it_wrote(tmp_path):
    """JAX alone could then add no program any more."""
    (tmp_path / "compiled").mkdir()
    write(tmp_path / "compiled", "jit_killed", age=1000, suffixes=("-cache",))
    first, second = (run(MEND_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first[0] == second[0] and first[1] == 0 < second[1]
