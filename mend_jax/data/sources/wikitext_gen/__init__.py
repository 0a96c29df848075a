"""`wikitext_gen`: edits of how a model continues a passage (MEND's Wikitext generation).

As in the paper (section 5, appendix C), a row's prompt is the beginning of a Wikipedia passage and
its target the next 10 tokens; the paraphrase is the prompt without a random part of its beginning,
up to half of it. As in the original code's `self_sample` data, the target is a continuation that
the base model itself samples, once, at temperature 1, so that rows belong to one base model.
Deviations: whole words are dropped and cut, prompts have 20 to 48 tokens of the base model's
tokenizer, and a sample is used only if its text after the prompt and one space has the same tokens.

Rows have no `far` text: use passages of `wikitext`.

    python -m mend_jax.data.sources.wikitext_gen --model=SPEC [--config=default] [--out=FILE.jsonl]

prepares the rows of a base model ahead of a run; --out also writes them to a file. The processes of
a run sample together, on all of their devices, and each keeps the same rows.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from pathlib import Path

from mend_jax.core.chunking import round_up
from mend_jax.data import rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.sources import wikitext
from mend_jax.data.sources.wikitext_gen import continuations
from mend_jax.data.sources.wikitext_gen.continuations import BATCH, MOST, NEW, TEMPERATURE, Start
from mend_jax.errors import DataError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import is_writer

VERSION = "1.1.0"
SIZES = {
    "default": {"train": 3000, "validation": 200, "test": 300},
    "small": {"train": 48, "validation": 8, "test": 8},  # the first rows of `default`
}
LICENSE = "prompts CC BY-SA 3.0 (English Wikipedia); targets: as the base's output"
DESCRIPTION = (
    "Continuations of Wikipedia passages: the prompt is the first 20 to 48 tokens of a passage of "
    "Wikitext-2, the target 10 tokens that the base itself sampled after it, the paraphrase the "
    "prompt without up to half of its words at the beginning. Splits as published, by article."
)
# Modules outside mend_jax.data that decide the rows.
_CODE = ("mend_jax.hub.text_encoding", "mend_jax.models.generation")


def make_passage_row(start: Start, target: str) -> rows.Row:
    """Return the edit of one passage."""
    words = start.prompt.split()
    rng = key_rng("drop", continuations.SEED, start.key)
    dropped = int(rng.integers(1, max(len(words) // 2, 1) + 1))
    return rows.make_row(
        key=start.key,
        subject=start.subject,
        prompt=start.prompt,
        target=target,
        truth=" ".join(start.rest[: len(target.split())]),
        rephrase=" ".join(words[dropped:]),
    )


def sample_rows(
    model: LanguageModel,
    passages: Sequence[rows.Row],
    count: int,
    size: int = BATCH,
    what: str = "",
) -> tuple[list[rows.Row], dict[str, int]]:
    """Return the first `count` rows with usable samples, and counts of all and unusable samples."""
    found: list[rows.Row] = []
    counts: collections.Counter[str] = collections.Counter()
    progress = Progress(f"sample {what}", count, writer=is_writer())
    waiting = continuations.cut_passages(passages, model.tokenizer)
    while len(found) < count:
        wanted = min((count - len(found)) * 4 // 3, 16 * size)  # about a quarter is unusable
        block = list(itertools.islice(waiting, round_up(wanted, size)))
        if not block:
            break
        usable, targets = len(found), {}
        for i, (target, reason) in continuations.sample_targets(model, block, size):
            targets[i] = target, reason
            usable += not reason
            progress.update(min(usable, count))
        for i, start in enumerate(block):
            if len(found) == count:
                break
            target, reason = targets[i]
            counts["sampled"] += 1
            if reason:
                counts[reason] += 1
            else:
                found.append(make_passage_row(start, target))
    progress.update(len(found), force=True)
    return found, dict(counts)


def build_splits(
    model: LanguageModel, config: str, source: Recipe, size: int = BATCH
) -> BuiltSplits:
    """Sample all rows and return them by split.

    Raises:
      DataError: no sample of a split can be used.
    """
    splits, notes = {}, {}
    texts = source.build().splits
    for name, count in SIZES[config].items():
        splits[name], notes[name] = sample_rows(model, texts[name], count, size, f"{name} targets")
        if not splits[name]:
            raise DataError(
                f"wikitext_gen: of {notes[name].get('sampled', 0)} continuations that {model.spec} "
                f"wrote for {name} none can be used ({notes[name]}): use another base"
            )
    return BuiltSplits(splits, {"left_out": notes, "base": model.spec})


def recipe(config: str, root: Path | None, model: LanguageModel) -> Recipe:
    """Return the recipe of one config for one base model.

    Raises:
      DataError: an unknown config, missing files, or a base model that cannot sample.
    """
    check_recipe_config("wikitext_gen", config, SIZES)
    if model.module.kind != "causal":
        raise DataError(
            f"wikitext_gen is sampled from a causal language model, and {model.spec} is a "
            f"{model.module.kind} model: choose another data.name or model.spec"
        )
    needed = len(model.tokenizer.boundary_tokens[0]) + MOST + NEW
    if model.config.n_positions < needed:
        raise DataError(
            f"wikitext_gen needs a context of {needed} tokens, that of {model.spec} has "
            f"{model.config.n_positions}: use another base"
        )
    source = wikitext.recipe("default", root)
    return Recipe(
        name="wikitext_gen",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: build_splits(model, config, source),
        files=source.files,
        raw_dir=source.raw_dir,
        inputs={
            "base": model.fingerprint,
            "tokenizer": model.tokenizer.fingerprint,
            "temperature": TEMPERATURE,
            "seed": continuations.SEED,
            "tokens": NEW,
        },
        code=_CODE,
        published=source.published,
        task="gen",
        built_together=True,
    )
