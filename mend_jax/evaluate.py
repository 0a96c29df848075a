"""Evaluates an editor on a whole split: teacher-forced, freely generated, and elsewhere."""

from __future__ import annotations

import functools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax import metrics
from mend_jax.distributed import gather, is_writer
from mend_jax.editors.base import EditTransform
from mend_jax.forward import make_problem
from mend_jax.language_model import LanguageModel
from mend_jax.mesh import shard_batch
from mend_jax.objective import ASKED, locality_sets, texts_of
from mend_jax.scoring import edit_and_score, generate_answers
from mend_jax.writers import Progress

Batch = Mapping[str, Any]


def make_scorer(editor: EditTransform, model: LanguageModel) -> Callable[..., Any]:
    """Jitted (params, state, base, batch) -> (edits, scores); see `scoring.edit_and_score`."""
    return jax.jit(
        functools.partial(edit_and_score, editor=editor, model=model.module, weights=model.weights)
    )


def collect(
    parts: dict[tuple[str, str], list[np.ndarray]], scores: Mapping[str, Any], valid: np.ndarray
) -> None:
    """Appends a batch's scores [E, n] to `parts`, rows that only fill up the batch left out."""
    for name, group in gather(scores).items():
        for key, values in group.items():
            parts.setdefault((name, key), []).append(np.asarray(values)[valid])


def join(parts: Mapping[tuple[str, str], list[np.ndarray]]) -> dict[tuple[str, str], np.ndarray]:
    return {key: np.concatenate(values) for key, values in parts.items()}


def validate(
    scorer: Callable[..., Any], params: Any, state: Any, model: LanguageModel,
    batches: Iterator[Batch], mesh: Any, *, c_edit: float, c_loc: float,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Teacher-forced validation numbers and the meta-loss that early stopping watches.

    `between` is called before each batch; it may raise to end the pass.
    """
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    sets: list[str] = []
    for batch in batches:
        between()
        sets = locality_sets(batch)
        placed = shard_batch(mesh, batch)
        _, scores = scorer(params, state, model.params, texts_of(placed))
        collect(parts, scores, gather(placed["valid"]))
    scores = join(parts)
    found = {f"{name}_exact": float(scores[name, "exact"].mean()) for name in ASKED}
    by_set = {name: metrics.locality_summary(scores, name) for name in sets}
    for name, summary in by_set.items():
        found |= {f"kl_{name}": summary["kl"], f"agree_{name}": summary["argmax_agreement"]}
    kl = sum(s["kl"] for s in by_set.values()) / max(len(by_set), 1)
    nll = float(scores["rephrase", "nll"].mean())
    return {"loss": c_edit * nll + c_loc * kl, "nll_rephrase": nll, "kl": kl, **found}


def evaluate(
    editor: EditTransform,
    params: Any,
    state: Any,
    model: LanguageModel,
    batches: Iterator[Batch],
    rows: Sequence[Mapping[str, Any]],
    mesh: Any,
    *,
    n_edits: int,
    max_new: int,
    n_examples: int = 0,
    what: str = "evaluate",
    between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The `eval` entry of results.json and before/after examples, over one pass of `batches`.

    Free generation is greedy, from the prompt alone, up to the end-of-text token or `max_new`
    tokens; see `says` for when it counts as a success. A natural stop is not asked for: without
    the end-of-text token in its targets (data.append_eos) an editor does not change where a model
    stops.

    Args:
      rows: the split that `batches` number by `index`; gives texts, relations and subsets.
      n_edits: how many edits the pass has, for the progress line.
      n_examples: how many examples to pick, successes and failures.
      between: called before each batch; it may raise to end the pass.
    """
    scorer = make_scorer(editor, model)
    eos = model.tokenizer.eos_id
    write = jax.jit(functools.partial(generate_answers, model.module, max_new=max_new, eos_id=eos))
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    numbers: list[int] = []
    answers: list[dict[str, str]] = []
    progress = Progress(what, n_edits, writer=is_writer())
    sets: list[str] = []
    for batch in batches:
        between()
        sets = locality_sets(batch)
        placed = shard_batch(mesh, batch)  # rows and scores are gathered in one order
        valid, numbered = gather((placed["valid"], placed["index"]))
        texts = texts_of(placed)
        edit, scores = scorer(params, state, model.params, texts)
        collect(parts, scores, valid)
        index = numbered[valid].tolist()
        generated = {}
        names = (*ASKED, *sets[:1])
        for suffix, under in (("", edit), ("_before", None)):
            written = write(model.params, [texts[name] for name in names], under)
            for name, ids in zip(names, gather(written), strict=True):
                generated[name + suffix] = [model.decode_answer(row) for row in ids[valid]]
        for i, number in enumerate(index):
            answers.append({name: values[i] for name, values in generated.items()})
            numbers.append(number)
        progress.update(len(numbers), force=len(numbers) == n_edits)
    scores = join(parts)
    chosen = [rows[i] for i in numbers]
    scores |= _generated_scores(answers, chosen, scores if model.judges else None)
    unseen = np.asarray([bool(r.get("rephrase_unseen", False)) for r in chosen])
    summary = metrics.summarise(scores, sets, {"rephrase_seen": ~unseen, "rephrase_unseen": unseen})
    relations = [str(r.get("relation", "")) for r in chosen]
    hard = np.asarray([r.get("near_relation", "") == r.get("relation") for r in chosen])
    if "near" in sets and hard.any():
        found = metrics.locality_summary(scores, "near", hard)
        summary["locality"]["near_same_relation"] = found | {"n": int(hard.sum())}
    summary["by_relation"] = metrics.by_relation(scores, relations, sets)
    examples = _examples(scores, answers, chosen, sets, n_examples)
    return summary, examples


def says(text: str, answer: str) -> bool:
    """Whether a freely written text gives exactly this answer before it goes on or stops.

    It must begin with the answer, and the answer must end there: " Niger, a country" says Niger,
    " Nigeria" and " Niger-Congo" do not. What follows a line end or a full stop does not matter.
    """
    text, answer = text.strip(), answer.strip()
    follows = text[len(answer) : len(answer) + 1]
    return text.startswith(answer) and not (follows.isalnum() or follows in ("-", "'", "\u2019"))


def _generated_scores(
    answers: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """Whether what was written is the target; for a classifier, whether its judgement is."""
    scores = {}
    for name in ASKED:
        for suffix in ("", "_before"):
            if judged is not None:
                scores[name, f"generated{suffix}"] = judged[name, f"exact{suffix}"]
                continue
            scores[name, f"generated{suffix}"] = np.asarray(
                [says(a[name + suffix], r["target"]) for a, r in zip(answers, rows, strict=True)],
                np.float32,
            )
    return scores


def _examples(
    scores: Mapping[tuple[str, str], np.ndarray],
    answers: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    sets: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    """`count` edits: the first good ones of different relations, and up to 4 failures among them.

    Good: edit and paraphrase right when generated, and no locality KL above 0.1.
    """
    made = []
    for i, (a, r) in enumerate(zip(answers, rows, strict=True)):
        kl = {s: float(scores[s, "kl"][i] / max(scores[s, "n_tokens"][i], 1)) for s in sets}
        good = all(scores[name, "generated"][i] > 0 for name in ASKED) and all(
            v <= 0.1 for v in kl.values()
        )
        example = {k: r.get(k, "") for k in ("relation", "prompt", "target", "truth", "rephrase")}
        example |= {
            "near_prompt": r.get("near_prompt", ""),
            "near_answer": r.get("near_answer", ""),
        }
        example |= {"before": a["edit_before"], "after": a["edit"]}
        for name in ("rephrase", *sets[:1]):
            for suffix, key in (("_before", "before"), ("", "after")):
                example[f"{name}_{key}"] = a[name + suffix]
        example |= {f"kl_{s}": v for s, v in kl.items()} | {"good": good}
        made.append(example)
    failures = _one_a_relation([e for e in made if not e["good"]], min(4, count))
    successes = _one_a_relation([e for e in made if e["good"]], count - len(failures))
    return successes + failures


def _one_a_relation(examples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count`, relations taking turns."""
    turn: dict[str, int] = {}
    keyed = []
    for position, e in enumerate(examples):
        turn[e["relation"]] = turn.get(e["relation"], 0) + 1
        keyed.append((turn[e["relation"]], position, e))
    return [e for _, _, e in sorted(keyed, key=lambda k: k[:2])[:count]]


def time_edits(
    editor: EditTransform, params: Any, state: Any, model: LanguageModel, batch: Batch,
    repeats: int = 10,
) -> float:  # fmt: skip
    """Median seconds to make one edit from its tokens, the trunk pass included, compiled before."""

    @jax.jit
    def make(params, state, base, seqs):
        problem = make_problem(model.module, base, model.weights, seqs)
        return editor.edit(params, state, problem, False)[0]

    edits = gather(batch["edit"])
    n = edits.lead[0]
    seconds = []
    for i in range(repeats + 1):
        one = jax.tree.map(lambda a, at=i % n: a[at : at + 1], edits)
        began = time.perf_counter()
        jax.block_until_ready(make(params, state, model.params, one))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def peak_memory_bytes() -> int:
    """Peak memory of the accelerator where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
