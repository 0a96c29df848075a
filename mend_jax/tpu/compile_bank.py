"""Compile generation under a bank of scoped edits for a TPU slice, on any machine.

`python -m mend_jax.tpu.compile_bank gptj.py v5e-8 --facts=100000` prints what the compiler says of
its memory and collectives, beside the same without a bank.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mend_jax.core.bank import empty_bank
from mend_jax.core.gated_bank import GATED_BANK_RULES, GatedBank
from mend_jax.core.mentions import TokenTexts
from mend_jax.core.scope import Scope, first_site, init_projection, reading
from mend_jax.core.weight_edit import variables
from mend_jax.errors import MendError
from mend_jax.io.command import command
from mend_jax.models.abstract_model import AbstractModel
from mend_jax.models.editable_model import Inputs
from mend_jax.models.generation import generate
from mend_jax.parallel.mesh import batch_sharding, use_mesh
from mend_jax.parallel.sharding import abstract_arrays, make_shardings
from mend_jax.tpu.abstract_run import AbstractRun, abstract_run
from mend_jax.tpu.compile_steps import (
    Report,
    compile_step,
    plan_of_run,
    step_summary,
    topology_mesh,
)
from mend_jax.tpu.slices import GIB, Slice, parse_slice
from mend_jax.training.config import load_config

_PROMPT, _NEW = 32, 32  # tokens of a prompt, and generated


def abstract_bank(model: AbstractModel, facts: int, delta_rows: int, dtype: Any) -> GatedBank:
    """Return a bank with room for some facts and the scope of its keys, as shapes.

    Args:
      delta_rows: rows of each fact's factors; as many keys.
      dtype: of the factors; keys are float32.
    """
    site = first_site(model.module)
    sizes = {w.name: (w.d_in, w.d_out) for w in model.weights}
    width, n_tokens = model.config.d_model, model.config.vocab_size

    def make() -> GatedBank:
        heads = [init_projection(jax.random.key(0), width) for _ in range(2)]
        scope = Scope(heads[0], heads[1], site)
        bank = empty_bank(
            sizes, scope.d_key, capacity=facts, key_rows=delta_rows, delta_rows=delta_rows,
            dtype=dtype,
        )  # fmt: skip
        hashes, flags = jnp.zeros((n_tokens,), jnp.uint32), jnp.zeros((n_tokens,), bool)
        texts = TokenTexts(hashes, hashes, hashes, flags, flags, flags, flags)
        return GatedBank(bank, scope, texts).arrays_only()

    return jax.eval_shape(make)


def compile_bank(
    config: ml_collections.ConfigDict, where: Slice, facts: int, delta_rows: int, texts: int
) -> dict[str, Report]:
    """Return what the compiler says of generation with a bank and without, by that name.

    Args:
      facts: that the bank has room for; they are split over the axis `tensor` of the mesh.
      delta_rows: rows of each fact's factors, and keys.
      texts: that are continued at once, by 32 tokens each.

    Raises:
      ConfigError: no libtpu, or a mesh that does not fit the slice.
    """
    run = abstract_run(config)
    mesh = topology_mesh(where, plan_of_run(run, where))
    dtype = next(iter(jax.tree.leaves(run.base))).dtype
    bank = abstract_bank(run.model, facts, delta_rows, dtype)
    with use_mesh(mesh):
        bank = abstract_arrays(bank, make_shardings(mesh, bank, GATED_BANK_RULES))
        return {
            name: compile_step(_generation(run, mesh, under, texts), run, where)
            for name, under in (("base", None), ("bank", bank))
        }


def _generation(run: AbstractRun, mesh: Mesh, bank: GatedBank | None, texts: int) -> Any:
    """Return a function that traces generation, greedy, from prompts of 32 tokens."""
    model = run.model
    site = first_site(model.module)
    module = reading(model.module, site) if bank is not None else model.module
    base = abstract_arrays(run.base, make_shardings(mesh, run.base, model.family.sharding_rules))
    shape = (texts, _PROMPT)
    tokens, mask = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for dtype in (np.int32, np.bool_)
    )

    @jax.jit
    def program(base: Any, bank: GatedBank | None, tokens: Any, mask: Any) -> jax.Array:
        bound = variables(base, bank)
        return generate(module, bound, Inputs(tokens, mask), max_new=_NEW, eos_id=0)

    return lambda: program.trace(base, bank, tokens, mask)


@command
def main(argv: list[str]) -> int:
    """Run the command; return 0 if both programs fit, 1 if not, 2 if the input is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.tpu.compile_bank", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("config", nargs="?", default="gptj.py", metavar="NAME.py")
    parser.add_argument("slice", nargs="?", default="v5e-8", metavar="SLICE")
    parser.add_argument("--facts", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=2, help="of each fact's factors, and keys")
    parser.add_argument("--texts", type=int, default=8, help="that are continued at once")
    args = parser.parse_args(argv)
    try:
        config, where = load_config(args.config), parse_slice(args.slice)
        found = compile_bank(config, where, args.facts, args.rows, args.texts)
    except MendError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for name, entry in found.items():
        print(f"{name}: {step_summary(entry)}")
    more = found["bank"]["bytes_per_chip"] - found["base"]["bytes_per_chip"]
    print(
        f"{args.facts:,} facts in {args.rows} rows: {more / GIB:.2f} GiB a chip, "
        f"{more * where.n_chips / args.facts / 1024:.0f} KiB a fact"
    )
    return 0 if all(entry["fits"] for entry in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
