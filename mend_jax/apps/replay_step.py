"""python -m mend_jax.apps.replay_step DIR/non_finite/STEP

Repeats the training step whose loss or gradient was not finite, without changing anything. Prints
which terms of the loss and which parts of the editor's gradient are not finite, for the whole batch
and for each of its edits alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.meta_loss import token_batches
from mend_jax.errors import CheckpointError, MendError, report_error
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.command import command
from mend_jax.io.files import as_path
from mend_jax.models.params import Params
from mend_jax.training import assembly, batch_files, checkpoints
from mend_jax.training.assembly import base_identity
from mend_jax.training.guards import GROUP_NORM
from mend_jax.training.run_folder import read_run_config
from mend_jax.training.step import Batch, TrainState, TrainStep


def replay(folder: str | Path, model: LanguageModel | None = None) -> dict[str, Any]:
    """Repeat the step of a saved batch.

    Args:
      folder: DIR/non_finite/STEP, in the folder DIR of the run.
      model: its base, if it is loaded already.

    Returns:
      `step`; `loss`; `whole`, the non-finite values of the step (see `non_finite_values`); `rows`,
      for each edit of the batch its row numbers and the non-finite values of a step of it alone.

    Raises:
      CheckpointError: no batch, no run around it, no checkpoint of the step before; another base.
    """
    path = as_path(folder)
    batch, info = batch_files.load(path)
    workdir = path.parent.parent
    config = read_run_config(workdir)
    editor, tx = assembly.build_editor(config), assembly.build_optimizer(config)
    model = model or assembly.build_model(config)
    with checkpoints.open_manager(workdir / "checkpoints", read_only=True) as manager:
        before = info["step"] - 1
        if before not in manager.all_steps():
            raise CheckpointError(
                f"{workdir}/checkpoints has no step {before}, from which step {before + 1} began; "
                f"it has {sorted(manager.all_steps())}"
            )
        checkpoint = manager.directory / str(before)
        meta = checkpoints.restore_meta(manager, before)
        checkpoints.refuse_other_run(meta, base_identity(model), checkpoint)
        like = assembly.abstract_state(config, editor, tx, model.weights)
        state = checkpoints.restore_state(manager, before, like)
    step = assembly.build_train_step(config, editor, tx, model)
    return {"step": info["step"], **repeat_step(step, state, model.params, batch)}


def repeat_step(step: TrainStep, state: TrainState, base: Params, batch: Batch) -> dict[str, Any]:
    """Take one step of a batch, and of each of its edits alone; see `replay`. `state` is kept."""
    texts, number = token_batches(batch), np.int32(int(state.step) + 1)

    def metrics(texts: Batch) -> dict[str, float]:
        _, values = step(jax.tree.map(jnp.copy, state), base, texts, number)
        return {k: float(v) for k, v in jax.device_get(values).items()}

    whole = metrics(texts)
    rows = []
    for e, index in enumerate(np.asarray(batch["index"])):
        one_edit = metrics(jax.tree.map(lambda a, e=e: a[e : e + 1], texts))
        rows.append({"rows": index.reshape(-1).tolist(), **non_finite_values(one_edit)})
    return {"loss": whole["loss"], "whole": non_finite_values(whole), "rows": rows}


def non_finite_values(metrics: Mapping[str, float]) -> dict[str, list[str]]:
    """Return the non-finite `terms` of the loss, and the editor's parts in `gradient_of`."""
    names = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    return {
        "terms": [name for name in names if not name.startswith("grad_norm")],
        "gradient_of": [n.removeprefix(GROUP_NORM) for n in names if n.startswith(GROUP_NORM)],
    }


def describe(report: Mapping[str, Any]) -> str:
    """Return a report as lines of text."""
    lines = [f"step {report['step']}: loss {report['loss']:.6g}; {_list_values(report['whole'])}"]
    bad = [row for row in report["rows"] if row["terms"] or row["gradient_of"]]
    lines += [f"  row {row['rows']} alone: {_list_values(row)}" for row in bad]
    if not bad:
        lines.append("  each row alone is finite: only together are they not")
    elif len(bad) < len(report["rows"]):
        lines.append(f"  the other {len(report['rows']) - len(bad)} edits alone are finite")
    return "\n".join(lines)


def _list_values(values: Mapping[str, Sequence[str]]) -> str:
    if not (values["terms"] or values["gradient_of"]):
        return "all finite"
    terms, parts = (", ".join(values[k]) or "none" for k in ("terms", "gradient_of"))
    return f"not finite: terms {terms}; gradient of {parts}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.apps.replay_step", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR/non_finite/STEP")
    try:
        print(describe(replay(parser.parse_args(argv).folder)))
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
