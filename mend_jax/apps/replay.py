"""python -m mend_jax.apps.replay DIR/non_finite/STEP

Runs one training step again: that at which training stopped because its loss or gradient was not
finite. Says which terms of the loss and which parts of the editor's gradient are not finite, and
which rows are not by themselves. Changes nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.meta_loss import token_batches
from mend_jax.errors import CheckpointError, MendError, report_error
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.files import as_path
from mend_jax.training import assembly, batch_files, checkpoints
from mend_jax.training.assembly import base_identity
from mend_jax.training.guards import GROUP_NORM
from mend_jax.training.run_folder import read_config
from mend_jax.training.step import TrainState, TrainStep


def replay(folder: Any, model: LanguageModel | None = None) -> dict[str, Any]:
    """What the step of a saved batch gives.

    Args:
      folder: DIR/non_finite/STEP, in the folder DIR of the run.
      model: its base if it is loaded already.

    Returns:
      `step`; `whole`, what is not finite of the step as it was (see `judge`), and `loss`; `rows`,
      for each edit of the batch its row numbers and what is not finite of a step of it alone.

    Raises:
      CheckpointError: no batch, no run around it, no checkpoint of the step before; another base.
    """
    folder = as_path(folder)
    batch, told = batch_files.load(folder)
    workdir = folder.parent.parent
    config = read_config(workdir)
    editor, tx = assembly.build_editor(config), assembly.build_optimizer(config)
    model = model or assembly.build_model(config)
    with checkpoints.open_manager(workdir / "checkpoints", read_only=True) as manager:
        before = told["step"] - 1
        if before not in manager.all_steps():
            raise CheckpointError(
                f"{workdir}/checkpoints has no step {before}, from which step {before + 1} began; "
                f"it has {sorted(manager.all_steps())}"
            )
        where = manager.directory / str(before)
        checkpoints.refuse_other_run(
            checkpoints.restore_meta(manager, before), base_identity(model), where
        )
        like = assembly.abstract_state(config, editor, tx, model.weights)
        state = checkpoints.restore_state(manager, before, like)
    step = assembly.build_train_step(config, editor, tx, model)
    return {"step": told["step"], **run_again(step, state, model.params, batch)}


def run_again(
    step: TrainStep, state: TrainState, base: Any, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """One step of a batch and of each of its edits alone; see `replay`. The state is kept."""
    texts, number = token_batches(batch), np.int32(int(state.step) + 1)

    def of(texts: Any) -> dict[str, float]:
        _, metrics = step(jax.tree.map(jnp.copy, state), base, texts, number)
        return {k: float(v) for k, v in jax.device_get(metrics).items()}

    whole = of(texts)
    rows = []
    for e, index in enumerate(np.asarray(batch["index"])):
        alone = of(jax.tree.map(lambda a, e=e: a[e : e + 1], texts))
        rows.append({"rows": index.reshape(-1).tolist(), **judge(alone)})
    return {"loss": whole["loss"], "whole": judge(whole), "rows": rows}


def judge(metrics: Mapping[str, float]) -> dict[str, list[str]]:
    """What is not finite of a step: `terms` of the loss, and `gradient_of` which editor's parts."""
    bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    return {
        "terms": [name for name in bad if not name.startswith("grad_norm")],
        "gradient_of": [n.removeprefix(GROUP_NORM) for n in bad if n.startswith(GROUP_NORM)],
    }


def in_words(found: Mapping[str, Any]) -> str:
    """A report in lines."""
    lines = [f"step {found['step']}: loss {found['loss']:.6g}; {_parts(found['whole'])}"]
    bad = [row for row in found["rows"] if row["terms"] or row["gradient_of"]]
    lines += [f"  row {row['rows']} alone: {_parts(row)}" for row in bad]
    if not bad:
        lines.append("  each row alone is finite: only together are they not")
    elif len(bad) < len(found["rows"]):
        lines.append(f"  the other {len(found['rows']) - len(bad)} edits alone are finite")
    return "\n".join(lines)


def _parts(found: Mapping[str, Sequence[str]]) -> str:
    if not (found["terms"] or found["gradient_of"]):
        return "all finite"
    terms, parts = (", ".join(found[k]) or "none" for k in ("terms", "gradient_of"))
    return f"not finite: terms {terms}; gradient of {parts}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the step was run, 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.apps.replay", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR/non_finite/STEP")
    try:
        print(in_words(replay(parser.parse_args(argv).folder)))
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
