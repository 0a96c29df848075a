"""Generation under a bank, compiled for a TPU slice on a machine without a TPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support.tiny import save_tiny

from mend_jax.core.gated_bank import GATED_BANK_RULES
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import make_shardings
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.compile_bank import abstract_bank, main
from mend_jax.training.config import load_config

ROOT = Path(__file__).parents[2]
CONFIG = """
from mend_jax.training.config import load_config

def get_config(variant=""):
    c = load_config("gptj.py")
    c.model.spec, c.model.last_n_blocks, c.editor.options.rank = {base!r}, 1, 16
    c.data.update(dict(max_len=20, max_target=9, far_len=28))
    return c
"""


def test_the_facts_of_an_abstract_bank_are_split_over_tensor():
    run = abstract_run(load_config("gptj.py"))
    bank = abstract_bank(run.model, 1000, 2, jnp.bfloat16)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(bank))
    assert {name: delta.a.shape[0] for name, delta in bank.bank.deltas.items()} == {
        w.name: 1000 for w in run.model.weights
    }
    shardings = make_shardings(make_mesh(dict(tensor=8)), bank, GATED_BANK_RULES)
    for delta in shardings.bank.deltas.values():
        assert delta.a.spec[0] == delta.b.spec[0] == "tensor"
    assert shardings.bank.table.keys.spec[0] == "tensor"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
def test_a_tiny_model_with_a_bank_is_compiled_for_a_slice(tmp_path):
    base = str(save_tiny(tmp_path / "base", "gptj"))
    (tmp_path / "tiny.py").write_text(CONFIG.format(base=base))
    done = subprocess.run(
        [sys.executable, "-m", "mend_jax.tpu.compile_bank", str(tmp_path / "tiny.py"), "v5e-4",
         "--facts=4096", "--texts=4"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert "fits" in lines["base"] and "fits" in lines["bank"]
    found = re.fullmatch(r"([\d.]+) GiB a chip, (\d+) KiB a fact", lines["4,096 facts in 2 rows"])
    run = abstract_run(load_config(str(tmp_path / "tiny.py")))
    bank = abstract_bank(run.model, 4096, 2, run.base["embedding"].dtype)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(bank))
    assert found and int(found[2]) * 1024 >= size / 4096  # all facts are on the chips


def test_a_wrong_slice_is_named(capsys):
    assert main(["gptj.py", "v5e-7"]) == 2
    assert "v5e-7" in capsys.readouterr().err
