"""Read from keys and gradients why edits in sequence destroy each other.

    python -m benchmarks.sequential_keys --run=DIR [--facts=100] [--turns=20]

DIR is the folder of a run of MEND or MALMEN whose config has `eval.sequential`. Prints three tables
in Markdown, over the facts of that sequence:

- how parallel the keys of different facts are (mean |cos| over pairs), at the first answer position
  and at the last token of the subject, as they are and whitened by the keys of plain texts;
- how many directions the keys of all facts have (the exponential of the entropy of their energies,
  and how many hold .99 of it), beside their number and d_in;
- how gradients and edits grow when each edit is made on the model as edited so far, relative to the
  same edits made on the base.

Which runs decide the other suspected causes is in `mend_jax.apps.collapse_causes`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mend_jax.core.combined_edits import fact_keys
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.key_value_memory import rows_at_subject
from mend_jax.evaluation.sequential_edits import next_edit, no_edits
from mend_jax.hub.text_encoding import take_rows
from mend_jax.io.files import as_path
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.training.assembly import Experiment, open_experiment
from mend_jax.training.key_covariance import measure_key_covariance
from mend_jax.training.restored_editor import Editor
from mend_jax.training.run_folder import read_run_config

RIDGE = 1e-3
"""Added to C for whitening, in units of its mean eigenvalue."""
AT_TURNS = (1, 2, 5, 10, 20, 50, 100)
Keys = Float[np.ndarray, "facts d_in"]


def mean_cosine(keys: Keys) -> float:
    """Return the mean |cos| over all pairs of rows."""
    units = keys / np.maximum(np.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    cosines = np.abs(units @ units.T)
    n = len(keys)
    return float((cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def whitened(keys: Keys, moment: Float[np.ndarray, "d_in d_in"]) -> Keys:
    """Return keys C^-1/2, with C the second moment of plain texts' keys."""
    values, vectors = np.linalg.eigh(moment)
    scale = 1 / np.sqrt(np.maximum(values, 0) + RIDGE * values.mean())
    return keys @ (vectors * scale) @ vectors.T


def directions(keys: Keys) -> tuple[float, int]:
    """Return exp(entropy) of the energies of the keys' directions, and how many hold .99."""
    energy = np.linalg.svd(keys, compute_uv=False) ** 2
    share = energy / energy.sum()
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum()
    return float(np.exp(entropy)), int(np.searchsorted(np.cumsum(share), 0.99) + 1)


def keys_of_facts(
    experiment: Experiment, facts: TokenBatch
) -> tuple[dict[str, Keys], dict[str, Keys]]:
    """Return the keys of facts [1, n] by weight, at all answer positions and at the subject.

    Only of weights that act on every token.
    """
    model = experiment.model

    @jax.jit
    def read(params: Any, texts: TokenBatch) -> tuple[dict[str, Any], dict[str, Any]]:
        problem = make_problem(model.module, params, model.weights, texts)
        answers, every = (fact_keys(problem, rows) for rows in ("answer", "all"))
        n, t = texts.tokens.shape[-2:]
        subject = {
            name: rows_at_subject(problem, keys.reshape(1, n, t, -1))
            for name, keys in every.items()
            if keys.shape[-2] == n * t
        }
        return answers, subject

    answers, subject = jax.device_get(read(model.params, facts))
    kept = {name: keys[0][np.any(keys[0], -1)] for name, keys in answers.items() if name in subject}
    return kept, {name: np.asarray(keys[0], np.float64) for name, keys in subject.items()}


def _first_positions(facts: TokenBatch) -> TokenBatch:
    """Return the facts with only the first token of each answer scored."""
    mask = np.asarray(facts.score_mask).copy()
    mask[..., 1:] = False
    return dataclasses.replace(facts, score_mask=mask)


def growth(
    editor: Editor, experiment: Experiment, facts: TokenBatch, turns: int
) -> list[tuple[int, float, float]]:
    """Return (turn, gradient, edit): |delta| and |dW| of that turn relative to the base's own."""
    model = experiment.model
    functions: dict[str, Any] = {
        "editor": editor.transform, "model": model.module, "weights": model.weights
    }  # fmt: skip

    @jax.jit
    def turn(applied: Edit, texts: TokenBatch) -> tuple[Edit, Any, Any]:
        def one(applied: Edit, on_base: bool) -> tuple[Edit, Any]:
            together, _ = next_edit(
                editor.params, editor.state, applied, model.params, texts, on_base=on_base,
                **functions,
            )  # fmt: skip
            problem = make_problem(model.module, model.params, model.weights, texts)
            active = None if on_base else applied
            factors = problem.factors(edit=active, rows="answer")
            return together, sum(jnp.square(f.delta).sum() for f in factors.values())

        together, gradient = one(applied, on_base=False)
        alone, base_gradient = one(jax.tree.map(jnp.zeros_like, applied), on_base=True)
        steps = jax.tree.map(lambda new, old: new - old, together, applied)
        size, base_size = (
            sum(jnp.square(x).sum() for x in jax.tree.leaves(edit.deltas))
            for edit in (steps, alone)
        )
        return together, jnp.sqrt(gradient / base_gradient), jnp.sqrt(size / base_size)

    applied, found = no_edits(model.weights), []
    for t in range(1, turns + 1):
        texts = take_rows(facts, np.asarray([[t - 1]]))
        applied, gradient, size = jax.block_until_ready(turn(applied, texts))
        if t in AT_TURNS:
            found.append((t, float(gradient), float(size)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the three tables of one run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential_keys")
    parser.add_argument("--run", required=True)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--turns", type=int, default=20)
    args = parser.parse_args(argv)
    config = read_run_config(as_path(args.run))
    experiment = open_experiment(config, mesh_sizes(config))
    assert experiment.sequential_rows is not None, "the run's config has no eval.sequential"
    editor = Editor.restore(args.run, experiment.model)
    texts = experiment.sequential_rows.encoded.texts["edit"]
    facts = take_rows(texts, np.arange(args.facts)[None])
    answers, subject = keys_of_facts(experiment, facts)
    first, _ = keys_of_facts(experiment, _first_positions(facts))
    moments = {n: np.asarray(c, np.float64) for n, c in measure_key_covariance(experiment).items()}
    print(f"{args.run}: {args.facts} facts\n")
    print("| weight | answer, raw | answer, whitened | subject, raw | subject, whitened |")
    print("|---|---|---|---|---|")
    for name in subject:
        cells = [
            mean_cosine(change(keys[name]))
            for keys in (first, subject)
            for change in (lambda k: k, lambda k, c=moments[name]: whitened(k, c))
        ]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    print("\n| weight | keys | directions | that hold .99 | d_in |\n|---|---|---|---|---|")
    for name, keys in answers.items():
        spread, most = directions(np.asarray(keys, np.float64))
        print(f"| {name} | {len(keys)} | {spread:.1f} | {most} | {keys.shape[-1]} |")
    print("\n| turn | gradient, times the base's | edit, times the base's |\n|---|---|---|")
    for turn, gradient, size in growth(editor, experiment, texts, args.turns):
        print(f"| {turn} | {gradient:.3g} | {size:.3g} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
