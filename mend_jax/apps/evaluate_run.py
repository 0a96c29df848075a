"""All measurements of a run's editor: test edits, extra test sets, baselines, general ability."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mend_jax.core.combined_edits import SolveOptions
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.facts import fact_of_row
from mend_jax.data.rows import fingerprint_rows
from mend_jax.editors import make_editor
from mend_jax.editors.lifelong import with_lifelong_statistics
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
from mend_jax.evaluation.sequential_edits import (
    Ability,
    Banked,
    Combination,
    evaluate_sequential_edits,
)
from mend_jax.evaluation.sequential_state import SequentialState
from mend_jax.io import checksums
from mend_jax.io.progress import Progress
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch
from mend_jax.parallel.sharding import place
from mend_jax.training import config as configs
from mend_jax.training.assembly import Experiment, Split, build_editor
from mend_jax.training.calibration import calibrate
from mend_jax.training.key_covariance import measure_key_covariance
from mend_jax.training.provenance import code_fingerprint
from mend_jax.training.restored_editor import Editor
from mend_jax.training.step import TrainState
from mend_jax.training.threshold_tuning import tune_threshold


class EditorUnderTest(NamedTuple):
    """An editor with its parameters and state; `mark` identifies it in files of scores."""

    transform: EditTransform
    params: EditorParams
    state: EditorState
    mark: dict[str, Any]


def evaluate_run(
    experiment: Experiment, state: TrainState, workdir: Path, between: Callable[[], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the entries `eval`, `extra_data_sets` and `baselines` of results.json, and examples.

    Every pass keeps its scores in WORKDIR/edits*.jsonl (sequences of edits: sequential*.jsonl, and
    the edits so far in sequential*.safetensors), from which an interrupted evaluation continues.

    Args:
      between: called before each batch; it may raise to end the pass.
    """
    return RunEvaluation(experiment, workdir, between).run(state)


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """The passes of an evaluation; see `evaluate_run`."""

    experiment: Experiment
    workdir: Path
    between: Callable[[], None]

    def run(self, state: TrainState) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Evaluate the trained editor, then each baseline."""
        e, c = self.experiment, self.experiment.config.eval
        own = self._editor(e.editor, state.params, state.editor_state)
        evaluation, examples = self._pass(e.test, own, "", c.edits_per_step, n_examples=c.examples)
        evaluation |= self._sequences(own, "", c.sequential)
        extra = {
            name: self._pass(split, own, f"also {name}", c.edits_per_step)[0]
            for name, split in e.extra_test_sets.items()
        }
        if c.ability_edits:
            evaluation["ability"] = self._general_ability(own)
        baselines = {
            name: self._baseline(name, options.to_dict()) for name, options in c.baselines.items()
        }
        return {"extra_data_sets": extra, "baselines": baselines, "eval": evaluation}, examples

    def _editor(
        self, transform: EditTransform, params: EditorParams, state: EditorState
    ) -> EditorUnderTest:
        """Return an editor, placed on the mesh."""
        mark = {
            "config": checksums.json_checksum(configs.to_json_dict(self.experiment.config)),
            "base": self.experiment.model.fingerprint,
            "code": code_fingerprint(),
            "learned": checksums.json_checksum(checksums.array_checksums((params, state))),
        }
        mesh, rules = self.experiment.mesh, transform.sharding_rules
        params, state = (place(mesh, tree, rules) for tree in (params, state))
        return EditorUnderTest(transform, params, state, mark)

    def _baseline(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Evaluate an editor without training on `edits` of the test edits (0: all)."""
        e = self.experiment
        lengths = options.pop("sequential", ())
        split = e.subset(e.test, options.pop("edits", 0))
        per_step = options.pop("edits_per_step", e.config.eval.edits_per_step)
        transform = make_editor(options.pop("editor", name), options)
        params, state = transform.init(jax.random.key(e.config.seed), e.model.weights)
        state = calibrate(e, transform, params, state)
        editor = self._editor(transform, *tune_threshold(e, transform, params, state))
        evaluation, _ = self._pass(split, editor, name, per_step)
        return evaluation | self._sequences(editor, name, lengths)

    def _pass(
        self,
        split: Split,
        editor: EditorUnderTest,
        name: str,
        per_step: int,
        n_examples: int = 0,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the scores of one pass over a split, and examples."""
        e, (transform, params, state, mark) = self.experiment, editor
        mark = {
            "of": name, "n": len(split), "at_once": per_step, "rows": rows_fingerprint(split),
            **mark,
        }  # fmt: skip
        evaluation, examples = evaluate(
            transform, params, state, e.model, e.eval_batches(split, per_step), split.rows, e.mesh,
            n_edits=len(split), max_new=e.config.eval.max_new_tokens, n_examples=n_examples,
            n_hard=e.config.eval.hard_edits, continuation=e.config.eval.continuation_tokens,
            what=f"evaluate {name or e.config.editor.name}", between=self.between,
            log=ScoredBatches(self._file("edits", name, ".jsonl"), mark),
            records=self._file("records", name, ".jsonl"),
        )  # fmt: skip
        evaluation["facts_per_edit"] = e.config.data.edits_per_batch
        evaluation["n_left_out"] = split.encoded.n_dropped
        if transform.predictor is None:  # a predictor makes no edit
            first = next(e.eval_batches(split, per_step))
            evaluation["seconds_per_edit"] = time_edits(transform, params, state, e.model, first)
        if transform.tuning is not None:
            evaluation["threshold_tuning"] = transform.tuning.summary(*gather((params, state)))
        return evaluation, examples

    def _sequences(
        self, editor: EditorUnderTest, name: str, lengths: Sequence[int]
    ) -> dict[str, Any]:
        """Return the entry `sequential`, if sequences of edits are to be measured."""
        e, (transform, params, state, mark) = self.experiment, editor
        if not lengths or e.sequential_rows is None:
            return {}
        facts = e.config.data.edits_per_batch
        mark = {
            "of": name, "turns": list(lengths), "n": facts,
            "rows": rows_fingerprint(e.sequential_rows), **mark,
        }  # fmt: skip
        rows, bank = e.config.eval.lifelong_rows, self._bank(editor)
        if rows and transform.lifelong_edit is None and bank is None:
            transform = with_lifelong_statistics(transform, rows)
        scores = evaluate_sequential_edits(
            transform, params, state, e.model, e.sequential_rows.encoded, checkpoints=lengths,
            facts_per_edit=facts, combination=self.combination, bank=bank, between=self.between,
            log=ScoredBatches(self._file("sequential", name, ".jsonl"), mark),
            saved=SequentialState(self._file("sequential", name, ".safetensors"), mark),
            ability=self.ability if e.config.eval.sequential_ability else None,
            what=f"sequential edits, {name or e.config.editor.name}",
        )  # fmt: skip
        return {"sequential": scores}

    @functools.cached_property
    def ability(self) -> Ability:
        """What general ability is measured by: preferably facts that the base recalls."""
        texts, model = self.experiment.ability_texts, self.experiment.model
        assert texts is not None
        known = jax.jit(functools.partial(base_ability, model=model.module))(model.params, texts)
        return Ability(
            *prefer_recalled_facts(texts, known, self.experiment.config.eval.ability_facts)
        )

    @functools.cached_property
    def combination(self) -> Combination | None:
        """How edits of a sequence are combined, by the config; None: they are added."""
        c = self.experiment.config.eval
        if not c.combine:
            return None
        if c.combine == "sum":
            return Combination("base", None)
        covariance = measure_key_covariance(self.experiment) if c.combine_covariance else None
        options = SolveOptions(c.combine_ridge, c.combine_covariance)
        return Combination(c.combine, options, c.combine_limited, c.combine_rows, covariance)

    def _bank(self, editor: EditorUnderTest) -> Banked | None:
        """Return where the scoped edits of a sequence are kept; None: its edits are plain."""
        e = self.experiment
        if e.scope is None or editor.transform is not e.editor or e.sequential_rows is None:
            return None
        maker = Editor(
            e.model, build_editor(e.config), editor.params, editor.state,
            append_eos=e.config.data.append_eos, name=e.config.editor.name, scope=e.scope,
        )  # fmt: skip
        rows = [e.sequential_rows.rows[int(i)] for i in e.sequential_rows.encoded.index]

        template = e.config.data.template

        def scoped_edits(numbers: Sequence[int]) -> list[ScopedEdit]:
            return maker.scoped_edits([fact_of_row(rows[i], template) for i in numbers])

        return Banked(maker.empty_bank(len(rows)), scoped_edits)

    def _general_ability(self, editor: EditorUnderTest) -> dict[str, Any]:
        """Return the effect of `eval.ability_edits` test edits on texts and facts they share."""
        e, c, model = self.experiment, self.experiment.config.eval, self.experiment.model
        texts, mark = e.ability_texts, editor.mark
        assert texts is not None
        split = e.subset(e.test, c.ability_edits)
        mark = {
            "of": "ability", "at_once": c.edits_per_step, "rows": rows_fingerprint(e.test), **mark
        }  # fmt: skip
        log = ScoredBatches(self._file("ability", "", ".jsonl"), mark)
        known = jax.jit(functools.partial(base_ability, model=model.module))(model.params, texts)
        pool = np.asarray(known.recalled)
        texts, known = prefer_recalled_facts(texts, known, c.ability_facts)
        score = jax.jit(functools.partial(_ability_scores, editor.transform, model))
        progress = Progress("general ability", len(split), start=log.n_edits, writer=is_writer())
        for number, batch in enumerate(e.eval_batches(split, c.edits_per_step)):
            if number < len(log.batches):
                continue
            self.between()
            placed = shard_batch(e.mesh, batch)
            scores = gather(
                score(editor.params, editor.state, model.params, placed["edit"], texts, known)
            )
            valid, row_numbers = gather((placed["valid"], placed["index"]))
            kept = {("probes", k): np.asarray(v)[valid.any(-1)] for k, v in scores.items()}
            log.add(row_numbers[valid].tolist(), kept, {})
            progress.update(log.n_edits, force=log.n_edits == len(split))
        joined = {name: values for (_, name), values in log.scores().items()}
        return summarise_ability(joined, texts, known) | {
            "pool_recall": float(pool.mean()),
            "n_pool_facts": len(pool),
        }

    def _file(self, kind: str, name: str, ending: str) -> Any:
        words = re.findall(r"\w+", name)
        return self.workdir / ("_".join([kind, *words]) + ending)


def rows_fingerprint(split: Split) -> str:
    """Return the fingerprint of a split's encoded rows."""
    return fingerprint_rows({"": [split.rows[int(i)] for i in split.encoded.index]})


def _ability_scores(
    transform: EditTransform,
    model: Any,
    params: EditorParams,
    state: EditorState,
    base: Params,
    facts: TokenBatch,
    texts: Any,
    known: Any,
) -> Mapping[str, jax.Array]:
    """Return the scores of `texts` under edits of `facts`."""
    if transform.predictor is not None:
        problem = make_problem(model.module, base, model.weights, facts)
        read = functools.partial(transform.predictor.logits, params, problem)
        return score_predictor_ability(read, facts.batch_shape[0], texts, known, model=model.module)
    edit = make_edit(transform, model.module, model.weights, params, state, base, facts)
    return score_ability(base, edit, texts, known, model=model.module)
