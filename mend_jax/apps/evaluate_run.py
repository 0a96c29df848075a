"""All that a run measures of its editor: test edits, other test sets, baselines, ability."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.problem import make_problem
from mend_jax.data.rows import fingerprint_rows
from mend_jax.editors import EditTransform, make_editor
from mend_jax.evaluation.edit_costs import time_edits
from mend_jax.evaluation.evaluate_split import evaluate
from mend_jax.evaluation.general_ability import (
    base_ability,
    prefer_recalled_facts,
    score_ability,
    score_predictor_ability,
    summarise_ability,
)
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import make_edit
from mend_jax.evaluation.sequential_edits import evaluate_sequential_edits
from mend_jax.evaluation.sequential_state import SequentialState
from mend_jax.io import checksums
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch
from mend_jax.parallel.sharding import place
from mend_jax.training import config as configs
from mend_jax.training.assembly import Experiment, Split
from mend_jax.training.calibration import calibrate
from mend_jax.training.provenance import code_fingerprint
from mend_jax.training.step import TrainState
from mend_jax.training.threshold_tuning import tune_threshold

Between = Callable[[], None]


def evaluate_run(
    experiment: Experiment, state: TrainState, workdir: Any, between: Between
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entries `eval`, `extra_data_sets` and `baselines` of results.json, and examples.

    Every pass keeps what it judged in WORKDIR/edits*.jsonl (of edits in turn: sequential*.jsonl,
    and the edits so far in sequential*.npz) and goes on from there.

    Args:
      between: called before each batch; it may raise to end the pass.
    """
    c = experiment.config
    own = (experiment.editor, state.params, state.editor_state)
    run_mark = {
        "config": checksums.json_checksum(configs.to_json_dict(c)),
        "base": experiment.model.fingerprint,
        "code": code_fingerprint(),
    }  # fmt: skip

    def mark_of(editor: tuple[EditTransform, Any, Any]) -> dict[str, Any]:
        """Tells what an editor scores, here and now, from what another one scored."""
        _, params, state = editor
        return {
            **run_mark,
            "learned": checksums.json_checksum(checksums.array_checksums((params, state))),
        }

    def file(kind: str, name: str, ending: str) -> Any:
        """The files of a pass are named after it."""
        return workdir / "".join([kind, *(f"_{x}" for x in re.findall(r"\w+", name)), ending])

    def judge(split: Split, editor: Any, name: str, per_step: int, examples: int, mark: Any):
        """One pass."""
        of = {"of": name, "n": len(split), "at_once": per_step, "rows": rows_mark(split), **mark}
        log = ScoredBatches(file("edits", name, ".jsonl"), of)
        return _judge(experiment, split, editor, per_step, examples, name, between, log)

    def in_turn(editor: Any, name: str, turns: Sequence[int], mark: Any) -> dict[str, Any]:
        """The entry `sequential`, if so many edits in turn are asked for."""
        if not turns:
            return {}
        of = {"of": name, "turns": list(turns), "n": c.data.edits_per_batch}
        of |= {"rows": rows_mark(experiment.sequential_rows), **mark}
        transform, params, state = _placed(experiment, editor)
        found = evaluate_sequential_edits(
            transform, params, state, experiment.model, experiment.sequential_rows.encoded,
            checkpoints=turns, facts_per_edit=c.data.edits_per_batch, between=between,
            log=ScoredBatches(file("sequential", name, ".jsonl"), of),
            saved=SequentialState(file("sequential", name, ".npz"), of),
            what=f"edits in turn, {name or c.editor.name}",
        )  # fmt: skip
        return {"sequential": found}

    per_step = c.eval.edits_per_step
    results: dict[str, Any] = {"extra_data_sets": {}, "baselines": {}}
    mark = mark_of(own)
    results["eval"], examples = judge(
        experiment.test, own, "", per_step, c.eval.examples, mark
    )  # fmt: skip
    results["eval"] |= in_turn(own, "", c.eval.sequential, mark)
    for name, split in experiment.extra_test_sets.items():
        results["extra_data_sets"][name], _ = judge(split, own, f"also {name}", per_step, 0, mark)
    if experiment.ability_texts is not None:
        of = {"of": "ability", "at_once": per_step, "rows": rows_mark(experiment.test), **mark}
        log = ScoredBatches(file("ability", "", ".jsonl"), of)
        results["eval"]["ability"] = _general_ability(experiment, own, between, log)
    for name, options in c.eval.baselines.items():
        options = options.to_dict()
        turns = options.pop("sequential", ())
        editor, split, at_once = _baseline(experiment, name, options)
        mark = mark_of(editor)
        results["baselines"][name], _ = judge(split, editor, name, at_once, 0, mark)
        results["baselines"][name] |= in_turn(editor, name, turns, mark)
    return results, examples


def rows_mark(split: Split) -> str:
    """Tells the rows of a split from others."""
    return fingerprint_rows({"": [split.rows[int(i)] for i in split.encoded.index]})


def _placed(
    experiment: Experiment, editor: tuple[EditTransform, Any, Any]
) -> tuple[EditTransform, Any, Any]:
    """The editor with its parameters and state where the mesh wants them."""
    transform, *start = editor
    return transform, *(place(experiment.mesh, tree, transform.sharding_rules) for tree in start)


def _general_ability(
    experiment: Experiment,
    editor: tuple[EditTransform, Any, Any],
    between: Between,
    log: ScoredBatches,
) -> dict[str, Any]:
    """What `eval.ability_edits` edits of the test split do to texts and facts that all share."""
    c, model, probes = experiment.config.eval, experiment.model, experiment.ability_texts
    split = experiment.subset(experiment.test, c.ability_edits)
    transform, params, state = _placed(experiment, editor)

    @jax.jit
    def probe(params, state, base, texts, probes, known):
        if transform.predictor is not None:
            problem = make_problem(model.module, base, model.weights, texts)
            read = functools.partial(transform.predictor.logits, params, problem)
            return score_predictor_ability(
                read, texts.batch_shape[0], probes, known, model=model.module
            )
        edit = make_edit(transform, model.module, model.weights, params, state, base, texts)
        return score_ability(base, edit, probes, known, model=model.module)

    known = jax.jit(functools.partial(base_ability, model=model.module))(model.params, probes)
    pool = np.asarray(known.recalled)
    probes, known = prefer_recalled_facts(probes, known, c.ability_facts)
    progress = Progress("general ability", len(split), start=log.n_edits, writer=is_writer())
    for number, batch in enumerate(experiment.eval_batches(split, c.edits_per_step)):
        if number < len(log.batches):
            continue
        between()
        placed = shard_batch(experiment.mesh, batch)
        found = gather(probe(params, state, model.params, placed["edit"], probes, known))
        valid, numbered = gather((placed["valid"], placed["index"]))
        kept = {("probes", name): np.asarray(v)[valid.any(-1)] for name, v in found.items()}
        log.add(numbered[valid].tolist(), kept, {})
        progress.update(log.n_edits, force=log.n_edits == len(split))
    joined = {name: values for (_, name), values in log.scores().items()}
    return summarise_ability(joined, probes, known) | {
        "pool_recall": float(pool.mean()),
        "n_pool_facts": len(pool),
    }


def _baseline(
    experiment: Experiment, name: str, options: dict[str, Any]
) -> tuple[tuple[EditTransform, Any, Any], Split, int]:
    """An editor that needs no training, the test edits for it (all, or `edits` of them), and E."""
    split = experiment.subset(experiment.test, options.pop("edits", 0))
    per_step = options.pop("edits_per_step", experiment.config.eval.edits_per_step)
    editor = make_editor(options.pop("editor", name), options)
    key = jax.random.key(experiment.config.seed)
    params, state = editor.init(key, experiment.model.weights)
    state = calibrate(experiment, editor, params, state)
    return (editor, *tune_threshold(experiment, editor, params, state)), split, per_step


def _judge(
    experiment: Experiment,
    split: Split,
    editor: tuple[EditTransform, Any, Any],
    per_step: int,
    n_examples: int,
    name: str,
    between: Between,
    log: ScoredBatches,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    transform, params, state = _placed(experiment, editor)
    found, examples = evaluate(
        transform, params, state, experiment.model, experiment.eval_batches(split, per_step),
        split.rows, experiment.mesh, n_edits=len(split),
        max_new=experiment.config.eval.max_new_tokens, n_examples=n_examples,
        what=f"evaluate {name or experiment.config.editor.name}", between=between, log=log,
    )  # fmt: skip
    first = next(experiment.eval_batches(split, per_step))
    found["facts_per_edit"] = experiment.config.data.edits_per_batch
    if transform.predictor is None:  # else there is no edit to make, and reading is dearer instead
        found["seconds_per_edit"] = time_edits(transform, params, state, experiment.model, first)
    if transform.tuning is not None:
        found["threshold_tuning"] = transform.tuning.summary(*gather((params, state)))
    return found, examples
