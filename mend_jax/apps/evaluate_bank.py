"""python -m mend_jax.apps.evaluate_bank --config=NAME.py [--facts=1,10,100,1000] [--edits=200]
  [--editor=RUN] [--workdir=DIR] [--config.KEY=VALUE ...]

Evaluates many scoped edits in one bank. The first `--edits` test facts of the config's data are
evaluated; a bank of n facts holds some of them and, where they are too few, facts of the training
split. Neighbours are of test facts that are in no bank. Writes DIR/bank.json (default DIR
runs/NAME-bank), after each size, and prints a table. Several seeds are several orders of insertion.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from mend_jax.apps.run_command import parse
from mend_jax.core.bank import Bank, insert, remove
from mend_jax.core.bank_file import same_facts
from mend_jax.core.chunking import power_of_two
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.losses import token_kl
from mend_jax.core.scope import reading
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.facts import fact_of_row
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.rows import Row
from mend_jax.errors import ConfigError, DataError, MendError, report_error
from mend_jax.evaluation.hard_case import mean_by_edit
from mend_jax.evaluation.statistics import wilson_interval
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.command import command
from mend_jax.io.files import write_json
from mend_jax.io.progress import Progress
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.training.provenance import hardware
from mend_jax.training.restored_editor import Editor

_BATCH = 32
_SETS = ("edit", "rephrase", "hard_near", "hard_target", "far")

Scores = dict[tuple[str, str], np.ndarray]


def evaluate_bank(
    config: ConfigDict, editor: Editor, sizes: Sequence[int], n_edits: int, seed: int = 0,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:  # fmt: skip
    """Return what banks of several sizes do, by size.

    Each entry has `facts`, `evaluated` (of them), `edit`, `paraphrase`, `paraphrase_unseen` (in
    wordings that training never uses): shares of facts whose every target token is the arg max;
    `leak`, `kept` and `kl` of hard neighbours of facts that are in no bank, `leak_before` of the
    base; `kl_far`; `exact_removal`: whether the bank without its last fact is that of the others,
    bit for bit; `seconds_insert`: of one fact more; `conflicts`; and `ci95`.

    Args:
      keep: receives what is found so far, after each size.

    Raises:
      ConfigError: the base has no learned scope.
      DataError: too few facts.
    """
    from mend_jax import data
    from mend_jax.training.assembly import choose_rows, encode_split

    if editor.scope is None:
        raise ConfigError(f"no scope is learned for {editor.model.spec}: a bank needs one")
    dataset = data.load(config.data.name, config.data.dir or None, model=editor.model)
    test = [row for row in dataset.split("test") if row["subject"]]
    rows = choose_rows(test, n_edits)
    known = {row["key"] for row in rows}
    pool = [row for row in test if row["key"] not in known]
    outside = HardTextMaker(pool, [], config.eval.hard_neighbours)  # of facts that are in no bank
    split = encode_split(config, editor.model, outside.add_to(rows), for_evaluation=True)
    rows = [split.rows[int(i)] for i in split.encoded.index]
    texts = {name: t for name, t in split.encoded.texts.items() if name in _SETS}
    needed = max(sizes) - len(rows)
    train = dataset.split("train")
    filling = choose_rows([train[i] for i in range(len(train))], max(needed, 1))[: max(needed, 0)]
    if needed > len(filling):
        raise DataError(f"{len(rows) + len(filling)} facts are known: lower --facts")
    scoped = _scoped_edits(editor, [*rows, *filling])
    before = _scores(editor.model, None, texts)
    found: dict[str, Any] = {}
    for size in sizes:
        found[str(size)] = _of_size(editor, scoped, size, rows, texts, before, seed)
        keep(found)
    return found


def _scoped_edits(editor: Editor, rows: Sequence[Row]) -> list[ScopedEdit]:
    progress, found = Progress("scoped edits", len(rows)), []
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        found += editor.scoped_edits([fact_of_row(row) for row in some])
        progress.update(len(found), force=len(found) == len(rows))
    return found


def _of_size(
    editor: Editor, scoped: Sequence[ScopedEdit], size: int, rows: Sequence[Row],
    texts: dict[str, TokenBatch], before: Scores, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the entry of banks of `size` facts; smaller ones than the evaluated facts are many."""
    n = len(rows)
    groups = [np.arange(n)[i : i + size] for i in range(0, n, size)]
    parts, conflicts, seconds, exact = [], 0, 0.0, True
    progress, n_done = Progress(f"banks of {size}", n), 0
    for group in groups:
        more = np.arange(n, n + size - len(group)) if size > n else np.arange(0)
        order = np.random.default_rng(seed).permutation(np.concatenate([group, more]))
        gated, found = editor.empty_bank(size).insert([scoped[i] for i in order])
        conflicts += len(found)
        some = {name: jax.tree.map(lambda a, g=group: a[g], t) for name, t in texts.items()}
        parts.append(_scores(editor.model, gated, some))
        n_done += len(group)
        progress.update(n_done, force=n_done == n)
        if group is groups[-1]:
            seconds = _seconds_of_insert(gated.bank, scoped[order[0]])
            exact = _removal_is_exact(editor, gated.bank, [scoped[i] for i in order])
    scores = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return _summary(scores, before, rows) | {
        "facts": size, "conflicts": conflicts, "seconds_insert": seconds, "exact_removal": exact,
    }  # fmt: skip


def _seconds_of_insert(bank: Bank, one: ScopedEdit) -> float:
    """Return the time of inserting one fact (here one that is in the bank already), compiled."""
    insert(bank, one)
    started = time.perf_counter()
    jax.block_until_ready(insert(bank, one)[0].table)
    return time.perf_counter() - started


def _removal_is_exact(editor: Editor, bank: Bank, inserted: Sequence[ScopedEdit]) -> bool:
    """Return whether the bank without its last fact is that of the others, bit for bit."""
    without = editor.empty_bank(1).insert(inserted[:-1])[0].bank
    (last,) = {fact.id for fact in bank.facts} - {fact.id for fact in without.facts}
    return same_facts(remove(bank, last), without)


def _scores(model: LanguageModel, gated: GatedBank | None, texts: dict[str, TokenBatch]) -> Scores:
    """Return what `_score` finds of all texts: arrays [N] or [N, k]."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    module = reading(model.module, gated.scope.site) if gated is not None else model.module
    bank = None if gated is None else gated.arrays_only()
    with use_mesh(mesh_of_arrays(model.params)):
        for name, batch in texts.items():
            flat = batch.reshape(-1)
            for start in range(0, len(flat.tokens), _BATCH):
                n = min(_BATCH, len(flat.tokens) - start)
                size = power_of_two(n)  # of a bank of one fact there is one text
                some = jax.tree.map(lambda a, i=start, s=size: _padded(a[i : i + s], s), flat)
                scores = jax.device_get(_score(module, model.module, model.params, bank, some))
                for key, values in scores.items():
                    found.setdefault((name, key), []).append(np.asarray(values)[:n])
    return {
        (name, key): np.concatenate(parts).reshape(texts[name].batch_shape)
        for (name, key), parts in found.items()
    }


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    module: Any, plain: Any, params: Any, bank: GatedBank | None, texts: TokenBatch
) -> dict[str, Array]:
    """Return for texts [B] under a bank (None: unedited):

    `real` (anything is scored), `exact` (every target token is the arg max), `kept` and `kl` at the
    first scored position, and `kl_mean` over the scored positions, against the unedited base.
    """
    before = top_logits(plain, params, trunk_states(plain, params, texts), texts)
    after = before
    if bank is not None:
        after = top_logits(module, params, trunk_states(module, params, texts), texts, bank)
    mask = jnp.asarray(texts.score_mask)
    best, kl = after.argmax(-1), token_kl(before, after)
    right = (best == jnp.asarray(texts.target)) | ~mask
    count = jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)
    return {
        "real": mask.any(-1),
        "exact": right.all(-1) & mask.any(-1),
        "kept": best[..., 0] == before.argmax(-1)[..., 0],
        "kl": kl[..., 0],
        "kl_mean": jnp.where(mask, kl, 0.0).sum(-1) / count,
    }


def _summary(scores: Scores, before: Scores, rows: Sequence[Row]) -> dict[str, Any]:
    unseen = np.asarray([bool(row.get("rephrase_unseen")) for row in rows])
    real = scores["hard_near", "real"]
    shares = {
        "edit": scores["edit", "exact"],
        "paraphrase": scores["rephrase", "exact"],
        "paraphrase_seen": scores["rephrase", "exact"][~unseen],
        "paraphrase_unseen": scores["rephrase", "exact"][unseen],
    }
    by_edit = {
        "leak": mean_by_edit(scores["hard_target", "exact"], scores["hard_target", "real"]),
        "leak_before": mean_by_edit(before["hard_target", "exact"], before["hard_target", "real"]),
        "kept": mean_by_edit(scores["hard_near", "kept"], real),
    }
    shares |= by_edit
    found: dict[str, Any] = {k: float(v.mean()) for k, v in shares.items() if len(v)}
    found["ci95"] = {k: wilson_interval(found[k], len(v)) for k, v in shares.items() if len(v)}
    found["kl"] = float(mean_by_edit(scores["hard_near", "kl"], real).mean())
    found["kl_far"] = float(scores["far", "kl_mean"].mean())
    return found | {"evaluated": len(rows), "neighbours": int(real.sum())}


_COLUMNS = {
    "facts": "facts", "edit": "edit", "paraphrase_seen": "paraphrase, known wording",
    "paraphrase_unseen": "new wording", "leak": "neighbours that leak",
    "leak_before": "by the base", "kept": "kept", "kl": "KL", "kl_far": "KL, far texts",
    "exact_removal": "exact removal", "seconds_insert": "seconds to insert",
}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return the sizes as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS.values()) + " |", "|---" * len(_COLUMNS) + "|"]
    for entry in results.values():
        cells = [entry.get(key, "") for key in _COLUMNS]
        text = [f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells]
        lines.append("| " + " | ".join(text) + " |")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    from mend_jax.parallel.mesh import make_mesh
    from mend_jax.training import pretrained
    from mend_jax.training.assembly import build_model

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.apps.evaluate_bank", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--facts", default="1,10,100,1000", help="sizes of banks")
    parser.add_argument("--edits", type=int, default=200, help="test facts that are evaluated")
    parser.add_argument(
        "--editor", default="", help="the folder of a run; default: the shipped one"
    )
    args, rest = parser.parse_known_args(argv)
    try:
        config, workdir, name = parse(rest)
        sizes = _sizes(args.facts)
        model = build_model(config, make_mesh(dict(config.mesh)))
        editor = Editor.restore(args.editor, model) if args.editor else pretrained.load(model)
        path = Path(f"{workdir}-bank" if "--workdir" not in " ".join(rest) else workdir)
        path.mkdir(parents=True, exist_ok=True)
        about = {"config_name": name, "editor": editor.id, "seed": config.seed,
                 "hardware": hardware()}  # fmt: skip

        def keep(found: dict[str, Any]) -> None:
            write_json(path / "bank.json", about | {"sizes": found})

        found = evaluate_bank(config, editor, sizes, args.edits, config.seed, keep)
    except MendError as e:
        return report_error(e)
    print(table(found))
    print(f"results: {path / 'bank.json'}")
    return 0


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise ConfigError(f"--facts={text}: give numbers of facts such as 1,10,100")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
