"""python -m mend_jax.apps.evaluate_shipped --config=NAME.py [--scope=FILE] [--workdir=DIR]
  [--config.KEY=VALUE ...]

Evaluates the editor that is shipped for a config's base, without training: on the test edits of the
config's data, as a run evaluates its own. Writes DIR/results.json, report.html and records.jsonl,
one line for each edit (default DIR runs/NAME). The config's `train` and `editor` sections are not
used, nor are its baselines.
With --scope its edits are scoped: they apply where that learned scope finds their fact.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mend_jax.apps.run_command import parse
from mend_jax.errors import ConfigError, MendError, report_error
from mend_jax.io.command import command
from mend_jax.io.files import write_json
from mend_jax.training import config as configs


def evaluate_shipped(
    config: ConfigDict, workdir: str | Path, name: str = "", scope: str = ""
) -> dict[str, Any]:
    """Evaluate the shipped editor of a config's base; return what results.json holds.

    Args:
      scope: "shipped" or a file of a learned scope, for scoped edits; "": plain edits.

    Raises:
      ConfigError: no editor is shipped for the base, or the folder holds a run.
    """
    from mend_jax.apps.train_and_evaluate import describe_data
    from mend_jax.editors.scoped import ScopeGate, with_scope
    from mend_jax.evaluation.evaluate_split import evaluate
    from mend_jax.evaluation.reports import run_report
    from mend_jax.parallel.mesh import use_mesh
    from mend_jax.training import pretrained
    from mend_jax.training.assembly import open_experiment
    from mend_jax.training.provenance import code_fingerprint, hardware, versions

    workdir, started = Path(workdir), time.monotonic()
    if (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds a run: give another --workdir")
    config.data.train_edits = 1  # nothing is trained
    config.scope.file = scope
    experiment = open_experiment(config)
    editor, c, split = pretrained.load(experiment.model), config.eval, experiment.test
    transform, params = editor.transform, editor.params
    if experiment.scope is not None:
        gate = ScopeGate.of(experiment.scope, experiment.model.tokenizer.token_texts)
        transform = with_scope(transform, gate)
    workdir.mkdir(parents=True, exist_ok=True)
    with use_mesh(experiment.mesh):
        scores, examples = evaluate(
            transform, params, editor.state, experiment.model,
            experiment.eval_batches(split, c.edits_per_step), split.rows, experiment.mesh,
            n_edits=len(split), max_new=c.max_new_tokens, n_examples=c.examples,
            n_hard=c.hard_edits, continuation=c.continuation_tokens,
            records=workdir / "records.jsonl",
        )  # fmt: skip
    results = {
        "config_name": name,
        "config": configs.to_json_dict(config) | {"editor": {"name": editor.name}},
        "editor": editor.id,
        "base": {"spec": editor.model.spec, "fingerprint": editor.model.fingerprint},
        "data": describe_data(experiment),
        "code": code_fingerprint(),
        "hardware": hardware(),
        "versions": versions(),
        "eval": scores
        | {"facts_per_edit": config.data.edits_per_batch, "n_left_out": split.encoded.n_dropped},
        "extra_data_sets": {},
        "baselines": {},
        "seconds_total": time.monotonic() - started,
    }
    write_json(workdir / "examples.json", examples)
    write_json(workdir / "results.json", results)
    run_report.write(workdir)
    return results


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    from mend_jax.evaluation.reports.text_tables import run_table

    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    scope = next((a.partition("=")[2] for a in argv if a.startswith("--scope=")), "")
    try:
        arguments = parse([a for a in argv if not a.startswith("--scope=")])
        results = evaluate_shipped(*arguments, scope=scope)
    except MendError as e:
        return report_error(e)
    print(run_table(results))
    print(f"report: {arguments.workdir}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
