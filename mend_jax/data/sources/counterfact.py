"""`counterfact`: counterfactual edits of statements about a subject.

Source: Meng et al. 2022 (ROME), from the facts and templates of ParaRel and LAMA; `default` is the
one-paraphrase, one-neighbour form that EasyEdit publishes. Licence: ROME is MIT; the facts are
LAMA's, CC BY-NC 4.0 (not for commercial use).

A row is the beginning of a statement with a new, false end, a paraphrased beginning, and a near
fact: a statement about another subject with the same true end, which must stay. There are no
unrelated texts: at run time they come from another data set. Configs:

- `default`: train, validation and test are the files `train`, `val` and `edit`. Beware: most of its
  paraphrases are not ROME's but prompts that ROME lets a model continue; many are about something
  related ("People in Lyon's twin city speak the language of").
- `rome`: train and validation as `default`; test is ROME's form, with its paraphrases (a stray
  sentence before the statement) and neighbours. If the full `counterfact.json` exists, test is its
  cases that are in the file `edit`; else all cases of the part `rome_form_subset`, which are then
  taken out of train and validation.

A row of train or validation is dropped if its subject or its prompt is in a later split, or if it
would train on a near fact of a later split. A row of any split is dropped if all its near facts
mention its subject ("University of Oklahoma" and "University of Oklahoma Bookstore") or if its new
end is the true one. The notes count the dropped rows. So even with complete files no split is
exactly the published one, and results on a part of the files are not comparable with published
ones.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import comparison_words, same_answer, scope_name, spaced_words
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "ROME: MIT; facts of LAMA (T-REx): CC BY-NC 4.0"
DESCRIPTION = (
    "Beginnings of statements about a subject with a new, false end, a paraphrased beginning, and "
    "a statement about another subject that must keep its true end. {test}No subject is in two "
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
_FIELDS = {
    **dict.fromkeys(("prompt", "target_new", "subject", "ground_truth"), "text"),
    **dict.fromkeys(("rephrase_prompt", "locality_prompt", "locality_ground_truth"), "text"),
    "case_id": "id",
}
_ROME_FIELDS = {
    **{"case_id": "id", "requested_rewrite": "object"},
    **{"paraphrase_prompts": "texts", "neighborhood_prompts": "texts"},
}
_REWRITE_FIELDS = {
    **{"prompt": "text", "subject": "text", "relation_id": "text"},
    **{"target_new": "object", "target_true": "object"},
}
_LONGEST_NAME = 8  # words of a subject that is looked up in near facts


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("counterfact", config, CONFIGS)
    files = raw_files.require_files(root, "counterfact", _FILES)
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
    rome_rows = _read_rome(rome) if rome else {}
    relations = {key: row["relation"] for key, row in rome_rows.items()}
    splits = {split: _read(path, relations) for split, path in files.items()}
    if config == "rome" and rome:
        edit_cases = {row["key"] for row in splits["test"]}
        is_part = rome.name.startswith("rome_form_subset")
        splits["test"] = [r for key, r in rome_rows.items() if is_part or key in edit_cases]
    unusable: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    kept = {split: list(_usable(part, split, unusable)) for split, part in splits.items()}
    kept, by_subject = rows.without_overlap(kept)
    kept, by_prompt = rows.without_overlap(kept, by="prompt")
    kept, by_near = rows.without_near_leaks(kept)
    lost = {
        "subject in a later split": by_subject,
        "prompt in a later split": by_prompt,
        "near fact in a later split": by_near,
        **{reason: dict(counts) for reason, counts in unusable.items()},
    }
    with_scopes = {split: _with_near_scopes(part) for split, part in kept.items()}
    return BuiltSplits(with_scopes, {"rows_lost": lost})


def _read(path: Path, relations: Mapping[str, str]) -> list[rows.Row]:
    """Return the rows of the one-paraphrase form."""
    return [
        _row(
            key=(key := str(case["case_id"])),
            relation=relations.get(key, ""),
            subject=case["subject"],
            prompt=case["prompt"],
            target=case["target_new"],
            truth=case["ground_truth"],
            rephrases=[case["rephrase_prompt"]],
            near=[(case["locality_prompt"], case["locality_ground_truth"])],
        )
        for _, case in raw_files.iter_records(path, _FIELDS, unique="case_id")
    ]


def _read_rome(path: Path) -> dict[str, rows.Row]:
    """Return the rows of ROME's form by their case."""
    found = {}
    for where, case in raw_files.iter_records(path, _ROME_FIELDS, unique="case_id"):
        rewrite = raw_files.check_fields(case["requested_rewrite"], where, _REWRITE_FIELDS)
        target, truth = (
            raw_files.check_fields(rewrite[name], f"{where}: {name}", {"str": "text"})["str"]
            for name in ("target_new", "target_true")
        )
        if "{}" not in rewrite["prompt"]:
            raise DataError(
                f"{where}: prompt {rewrite['prompt']!r} has no {{}} for the subject; add it"
            )
        found[str(case["case_id"])] = _row(
            key=str(case["case_id"]),
            relation=rewrite["relation_id"],
            subject=rewrite["subject"],
            prompt=rewrite["prompt"].replace("{}", rewrite["subject"]),
            target=target,
            truth=truth,
            rephrases=case["paraphrase_prompts"],
            near=[(prompt, truth) for prompt in case["neighborhood_prompts"]],
        )
    return found


def _row(rephrases: Sequence[str], near: Sequence[tuple[str, str]], **fields: str) -> rows.Row:
    """Return a row whose near facts are all in `more_near_*` yet."""
    return rows.make_row(
        **{name: text.strip() for name, text in fields.items()},
        rephrase=rephrases[0].strip(),
        more_rephrases=[text.strip() for text in rephrases[1:]],
        scope=scope_name(fields["subject"].strip()),
        **rows.near_fields((prompt.strip(), answer.strip()) for prompt, answer in near),
    )


def _usable(
    part: Iterable[rows.Row], split: str, unusable: Mapping[str, collections.Counter[str]]
) -> Iterator[rows.Row]:
    """Yield rows with the near facts that do not mention their subject; count the other rows."""
    for row in part:
        subject = spaced_words(row["subject"])
        near = [pair for pair in rows.near_pairs(row) if subject not in spaced_words(pair[0])]
        if same_answer(row["target"], row["truth"]):
            unusable["the target is the true answer"][split] += 1
        elif not near:
            unusable["near facts speak of the subject"][split] += 1
        else:
            (prompt, answer), *more = near
            yield row | {"near_prompt": prompt, "near_answer": answer} | rows.near_fields(more)


def _with_near_scopes(part: Sequence[rows.Row]) -> list[rows.Row]:
    """Return the rows with the scopes of those subjects of the split that their near fact names."""
    scopes = collections.defaultdict(set)
    for row in part:
        scopes[" ".join(comparison_words(row["subject"]))].add(row["scope"])
    found = []
    for row in part:
        words = comparison_words(row["near_prompt"])
        names = {
            " ".join(words[start : start + size])
            for size in range(1, _LONGEST_NAME + 1)
            for start in range(len(words) - size + 1)
        }
        near = set().union(*(scopes[name] for name in names if name in scopes))
        found.append(row | {"near_scope": "|".join(sorted(near))})
    return found
