"""`counterfact`: counterfactual edits of statements about a subject.

Source: Meng et al. 2022 (ROME), from the facts and wordings of ParaRel and LAMA; `default` is the
one-paraphrase, one-neighbour form that EasyEdit publishes. Licence: ROME is MIT; the facts are
LAMA's, CC BY-NC 4.0 (not for commercial use).

A row is the beginning of a statement with a new, false end, a rephrased beginning, and a near fact:
a statement about another subject with the same true end, which must stay. There are no unrelated
texts: those come from another data set at run time. Configs:

- `default`: train, validation and test are the files `train`, `val` and `edit`. Beware: most of its
  rephrases are not ROME's paraphrases but prompts that ROME lets a model write on from; many ask
  for something related ("People in Lyon's twin city speak the language of").
- `rome`: train and validation as `default`; test is ROME's own form, with its paraphrases (a stray
  sentence before the statement) and neighbours. Where the full `counterfact.json` is there, test is
  its cases that are in the file `edit`; else all cases of the part `rome_form_subset`, which takes
  its cases out of train and validation.

A row of train or validation is left out where its subject or its prompt stands in a later split, or
where it would teach a near fact that a later split judges; a row of any split where its near facts
all speak of its subject ("University of Oklahoma" and "University of Oklahoma Bookstore") or its
new end is the true one. The notes count them. So no split is the published one to the row, even
from complete files, and results on a part of the files are not comparable with published ones.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.name_matching import comparison_words, same_answer, scope_name, spaced_words
from mend_jax.data.recipe import BuiltSplits, Recipe, check_config
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "ROME: MIT; facts of LAMA (T-REx): CC BY-NC 4.0"
DESCRIPTION = (
    "Beginnings of statements about a subject with a new, false end, a rephrased beginning, and a "
    "statement about another subject that must keep its true end. {test}No subject is in two "
    "splits; no unrelated texts."
)
CONFIGS = {
    "default": "One paraphrase and one neighbour a row; test: the file `edit`. ",
    "rome": "Test: ROME's own form, the files that the notes name. ",
}
_FILES = {
    split: (f"counterfact/{stem}.jsonl", f"counterfact/{stem}.json")
    for split, stem in (
        ("train", "counterfact-train"),
        ("validation", "counterfact-val"),
        ("test", "counterfact-edit"),
    )
}
_ROME = ("counterfact/counterfact.json", "counterfact/rome_form_subset.jsonl")
_KINDS = {
    **{name: "text" for name in ("prompt", "target_new", "subject", "ground_truth")},
    **{name: "text" for name in ("rephrase_prompt", "locality_prompt", "locality_ground_truth")},
    "case_id": "id",
}
_ROME_KINDS = {
    **{"case_id": "id", "requested_rewrite": "object"},
    **{"paraphrase_prompts": "texts", "neighborhood_prompts": "texts"},
}
_REWRITE = {
    **{"prompt": "text", "subject": "text", "relation_id": "text"},
    **{"target_new": "object", "target_true": "object"},
}
_LONGEST_NAME = 8  # words of a subject that is looked for in near facts


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """How one config is made.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_config("counterfact", config, CONFIGS)
    files = {
        split: raw_files.require_file(root, "counterfact", *names)
        for split, names in _FILES.items()
    }
    rome = raw_files.find_file(root, *_ROME)
    if config == "rome":
        rome = raw_files.require_file(root, "counterfact/rome", *_ROME)
    return Recipe(
        name="counterfact",
        config=config,
        version=VERSION,
        description=DESCRIPTION.format(test=CONFIGS[config]),
        license=LICENSE,
        build=lambda: _build_splits(config, files, rome),
        files=(*files.values(), *([rome] if rome else [])),
        raw_dir=root,
    )


def _build_splits(config: str, files: Mapping[str, Path], rome: Path | None) -> BuiltSplits:
    whole = _read_rome(rome) if rome else {}
    relations = {key: row["relation"] for key, row in whole.items()}
    splits = {split: _read(path, relations) for split, path in files.items()}
    if config == "rome":
        cases = {row["key"] for row in splits["test"]}
        part = rome.name.startswith("rome_form_subset")
        splits["test"] = [row for key, row in whole.items() if part or key in cases]
    left: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    kept = {split: list(_usable(held, split, left)) for split, held in splits.items()}
    kept, by_subject = rows.without_overlap(kept)
    kept, by_prompt = rows.without_overlap(kept, by="prompt")
    kept, by_near = rows.without_near_leaks(kept)
    lost = {
        "subject in a later split": by_subject,
        "prompt in a later split": by_prompt,
        "near fact in a later split": by_near,
        **{reason: dict(counts) for reason, counts in left.items()},
    }
    return BuiltSplits({k: _scoped(held) for k, held in kept.items()}, {"rows_lost": lost})


def _read(path: Path, relations: Mapping[str, str]) -> list[rows.Row]:
    """The rows of the one-paraphrase form."""
    found = []
    for _, case in raw_files.iter_records(path, _KINDS, unique="case_id"):
        key = str(case["case_id"])
        found.append(
            _row(
                key=key,
                relation=relations.get(key, ""),
                subject=case["subject"],
                prompt=case["prompt"],
                target=case["target_new"],
                truth=case["ground_truth"],
                rephrases=[case["rephrase_prompt"]],
                near=[(case["locality_prompt"], case["locality_ground_truth"])],
            )
        )
    return found


def _read_rome(path: Path) -> dict[str, rows.Row]:
    """The rows of ROME's form by their case."""
    found = {}
    for where, case in raw_files.iter_records(path, _ROME_KINDS, unique="case_id"):
        asked = raw_files.check_fields(case["requested_rewrite"], where, _REWRITE)
        target, truth = (
            raw_files.check_fields(asked[name], f"{where}: {name}", {"str": "text"})["str"]
            for name in ("target_new", "target_true")
        )
        if "{}" not in asked["prompt"]:
            raise DataError(f"{where}: prompt {asked['prompt']!r} has no {{}} for the subject")
        found[str(case["case_id"])] = _row(
            key=str(case["case_id"]),
            relation=asked["relation_id"],
            subject=asked["subject"],
            prompt=asked["prompt"].replace("{}", asked["subject"]),
            target=target,
            truth=truth,
            rephrases=case["paraphrase_prompts"],
            near=[(prompt, truth) for prompt in case["neighborhood_prompts"]],
        )
    return found


def _row(rephrases: Sequence[str], near: Sequence[tuple[str, str]], **fields: str) -> rows.Row:
    """A row; its near facts still stand in `more_near_*` alone."""
    fields = {name: text.strip() for name, text in fields.items()}
    return rows.make_row(
        **fields,
        rephrase=rephrases[0].strip(),
        more_rephrases=[text.strip() for text in rephrases[1:]],
        more_near_prompts=[prompt.strip() for prompt, _ in near],
        more_near_answers=[answer.strip() for _, answer in near],
        scope=scope_name(fields["subject"]),
    )


def _usable(
    held: Iterable[rows.Row], split: str, left: Mapping[str, collections.Counter[str]]
) -> Iterator[rows.Row]:
    """The rows with near facts that do not speak of their subject; `left` counts the others."""
    for row in held:
        near = zip(row["more_near_prompts"], row["more_near_answers"], strict=True)
        near = [(prompt, answer) for prompt, answer in near if not _says(prompt, row["subject"])]
        if same_answer(row["target"], row["truth"]):
            left["the target is the true answer"][split] += 1
        elif not near:
            left["near facts speak of the subject"][split] += 1
        else:
            yield row | {
                "near_prompt": near[0][0],
                "near_answer": near[0][1],
                "more_near_prompts": [prompt for prompt, _ in near[1:]],
                "more_near_answers": [answer for _, answer in near[1:]],
            }


def _says(text: str, name: str) -> bool:
    """Whether the words of a name stand in a text, in their order."""
    return spaced_words(name) in spaced_words(text)


def _scoped(held: Sequence[rows.Row]) -> list[rows.Row]:
    """The rows with the subjects of their split that stand in their near fact."""
    scopes = collections.defaultdict(set)
    for row in held:
        scopes[" ".join(comparison_words(row["subject"]))].add(row["scope"])
    found = []
    for row in held:
        words = comparison_words(row["near_prompt"])
        names = {
            " ".join(words[start : start + size])
            for size in range(1, _LONGEST_NAME + 1)
            for start in range(len(words) - size + 1)
        }
        near = set().union(*(scopes[name] for name in names if name in scopes))
        found.append(row | {"near_scope": "|".join(sorted(near))})
    return found
