"""`nq_open`: Natural Questions in open form, a source of unrelated questions.

Source: NQ-open (Kwiatkowski et al. 2019, Lee et al. 2019), as its authors publish it; MEND's zsRE
files take their `loc` questions from it. A row has a question and its first answer and no edit.
Licence: CC BY-SA 3.0.

Splits: train is `NQ-open.train`. If that is missing, it is the questions of it that AmbigQA (Min et
al. 2020) annotated again, in lower case and without the question mark at the end, so that they read
like NQ's; their answers stay as they are, with spaces around punctuation. Validation is the
development set of EfficientQA, test is `NQ-open.dev`. A question in two splits stays in the later
one of train, validation, test. Whether a file is the complete published one is not checked. The
test set of EfficientQA is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config

VERSION = "1.0.0"
LICENSE = "Natural Questions and AmbigQA: CC BY-SA 3.0"
DESCRIPTION = (
    "Questions of Natural Questions (open form) with their first answer, as unrelated texts. "
    "Train: NQ-open.train, else the questions of it in AmbigQA, lower-cased; validation: "
    "EfficientQA's development set; test: NQ-open.dev. No question is in two splits."
)
_FILES = {
    "train": ("nq_open/NQ-open.train.jsonl", "nq_open/ambignq_train.jsonl"),
    "validation": ("nq_open/NQ-open.efficientqa.dev.1.1.jsonl",),
    "test": ("nq_open/NQ-open.dev.jsonl",),
}
_FIELDS = {"question": "text", "answer": "texts"}


def find_files(root: Path | None) -> dict[str, Path]:
    """Return the file of each split; {} if one is missing."""
    found = {split: raw_files.find_file(root, *names) for split, names in _FILES.items()}
    return {split: path for split, path in found.items() if path} if all(found.values()) else {}


def read(files: Mapping[str, Path]) -> BuiltSplits:
    """Return the rows of each split.

    Raises:
      DataError: a file cannot be used.
    """
    splits, lost = rows.without_overlap({k: _rows(k, p) for k, p in files.items()}, by="far")
    return BuiltSplits(splits, {"rows_lost": {"question in a later split": lost}})


def _rows(split: str, path: Path) -> list[rows.Row]:
    found = []
    for number, (_, record) in enumerate(raw_files.iter_records(path, _FIELDS), start=1):
        question, answer = record["question"].strip(), record["answer"][0].strip()
        if path.name.startswith("ambignq"):
            question = question.removesuffix("?").rstrip().lower() or question
        found.append(rows.text_row(f"{split}-{number}", question, answer))
    return found


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe; there is one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("nq_open", config, ("default",))
    files = raw_files.require_files(root, "nq_open", _FILES)
    return Recipe(
        name="nq_open",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: read(files),
        files=tuple(files.values()),
        raw_dir=root,
    )
