"""All that a run measures of its editor: test edits, other test sets, baselines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mend_jax.editors import EditTransform, make_editor
from mend_jax.evaluate import evaluate, time_edits
from mend_jax.experiment import Experiment, Split
from mend_jax.judged import Judged
from mend_jax.sharding import EDITOR_RULES, place
from mend_jax.train import TrainState

Between = Callable[[], None]


def appraise(
    experiment: Experiment, state: TrainState, workdir: Any, between: Between
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entries `eval`, `also` and `baselines` of results.json, and examples.

    Every pass keeps what it judged in WORKDIR/edits*.jsonl and goes on from there.

    Args:
      between: called before each batch; it may raise to end the pass.
    """
    c = experiment.config
    own = (experiment.editor, state.params, state.editor_state)
    mark = {"step": int(state.step)}

    def judge(split: Split, editor: Any, name: str, per_step: int, examples: int, mark: Any):
        """One pass; its file is named after it."""
        file = "edits" + "".join(f"_{part}" for part in re.findall(r"\w+", name)) + ".jsonl"
        of = {"of": name, "n": len(split), "at_once": per_step, **mark}
        log = Judged(workdir / file, of)
        return _judge(experiment, split, editor, per_step, examples, name, between, log)

    per_step = c.eval.edits_per_step
    results: dict[str, Any] = {"also": {}, "baselines": {}}
    results["eval"], examples = judge(
        experiment.test, own, "", per_step, c.eval.examples, mark
    )  # fmt: skip
    for name, split in experiment.also.items():
        results["also"][name], _ = judge(split, own, f"also {name}", per_step, 0, mark)
    for name, options in c.eval.baselines.items():
        editor, split, at_once = _baseline(experiment, name, options.to_dict())
        results["baselines"][name], _ = judge(split, editor, name, at_once, 0, {})
    return results, examples


def _baseline(
    experiment: Experiment, name: str, options: dict[str, Any]
) -> tuple[tuple[EditTransform, Any, Any], Split, int]:
    """An editor that needs no training, the test edits for it (all, or `edits` of them), and E."""
    split = experiment.subset(experiment.test, options.pop("edits", 0))
    per_step = options.pop("edits_per_step", experiment.config.eval.edits_per_step)
    editor = make_editor(options.pop("editor", name), options)
    start = editor.init(jax.random.key(experiment.config.seed), experiment.model.weights)
    return (editor, *start), split, per_step


def _judge(
    experiment: Experiment,
    split: Split,
    editor: tuple[EditTransform, Any, Any],
    per_step: int,
    n_examples: int,
    name: str,
    between: Between,
    log: Judged,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    transform, *start = editor
    params, state = (place(experiment.mesh, tree, EDITOR_RULES) for tree in start)
    found, examples = evaluate(
        transform, params, state, experiment.model, experiment.eval_batches(split, per_step),
        split.rows, experiment.mesh, n_edits=len(split),
        max_new=experiment.config.eval.max_new_tokens, n_examples=n_examples,
        what=f"evaluate {name or experiment.config.editor.name}", between=between, log=log,
    )  # fmt: skip
    first = next(experiment.eval_batches(split, per_step))
    found["seconds_per_edit"] = time_edits(transform, params, state, experiment.model, first)
    return found, examples
