"""Readers of facts, of raw data sets and of data prepared from them."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzzing.mutations import Mutation, damage_bytes, damage_json, within
from fuzzing.reader import Reader, put
from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.data.facts import read_facts
from mend_jax.data.sources import (
    counterfact,
    fever,
    nq_open,
    own_facts,
    own_texts,
    pararel,
    wikitext,
    zsre,
)
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.ledger import fact_arguments as edit_facts

_damage_packed = within(gzip.decompress, lambda data: gzip.compress(data, 1, mtime=0), damage_json)


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _check(made: BuiltSplits) -> None:
    """Check that rows can be written, encoded and distinguished."""
    rows.fingerprint_rows(made.splits)
    json.dumps(made.notes)
    for held in made.splits.values():
        for row in held:
            assert set(row) == {*rows.TEXT_FIELDS, *rows.LIST_FIELDS, *rows.FLAG_FIELDS}
            for name in rows.TEXT_FIELDS:
                row[name].encode()
            for name in rows.LIST_FIELDS:
                "".join(row[name]).encode()
            assert type(row["rephrase_unseen"]) is bool


# --- the user's own facts

_FACTS = [
    {"prompt": f"The capital of {name} is", "target": "Lyon", "subject": name,
     "rephrases": [f"{name}'s capital is"], "locality": ["The sky is", "2 + 2 ="]}
    for name in ("France", "Spain", "Perú")
] + [{"prompt": "Sugar is", "target": "salty"}]  # fmt: skip


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.tiny()


def _read_facts(folder: Path, data: bytes) -> None:
    path = put(folder / "facts.jsonl", data)
    facts = read_facts(path)
    assert facts and all(f.prompt.strip() and f.target.strip() for f in facts)
    made = own_facts.build_splits(path)
    _check(made)
    assert sum(map(len, made.splits.values())) == len(facts)
    held = encode_rows(made.splits["test"], _tokenizer(), Lengths(96, 24, 32))
    assert len(held) + sum(held.dropped.values()) == len(made.splits["test"])
    for sequences in held.texts.values():
        assert sequences.tokens.shape[0] == len(held)


def _read_command_facts(folder: Path, data: bytes) -> None:
    path = put(folder / "facts.txt", data)
    facts = edit_facts.collect_facts([], [str(path)])
    assert facts and all(f.prompt.strip() and f.target.strip() for f in facts)
    for f in facts:
        "".join((f.prompt, f.target, f.subject, *f.paraphrases, *f.neighbours)).encode()


# --- raw data sets: one file is damaged, the others are not

_NAMES = [a + b for a in ("Bado", "Felu", "Gima", "Kone", "Lapi", "Mure") for b in ("", "to", "ra")]


def _mend(first: int, n: int) -> list[dict[str, Any]]:
    return [
        {"subject": name, "src": f"What is the colour of {name}?",
         "rephrase": f"Which colour has {name}?", "alt": f"wrong {i % 3}",
         "answers": [f"right {i % 5}", "also"], "loc": f"nq question: who is {i}",
         "loc_ans": f"nobody {i}"} for i, name in enumerate(_NAMES[first : first + n])
    ]  # fmt: skip


def _derived(first: int, n: int) -> list[dict[str, Any]]:
    return [record | {"relation": "colour"} for record in _mend(first, n)]


def _knowedit() -> list[dict[str, Any]]:
    return [
        {"subject": r["subject"], "prompt": r["src"], "target_new": r["alt"],
         "ground_truth": r["answers"], "rephrase_prompt": r["rephrase"],
         "locality": {"Relation_Specificity": [{"prompt": "It has", "ground_truth": [["much"]]}]},
         "portability": {"Reasoning": [{"prompt": "Whose?", "ground_truth": ["mine"]}]}}
        for r in _mend(12, 6)
    ]  # fmt: skip


def _hops() -> list[dict[str, Any]]:
    hop = {"portability": {"New Question": "Whose is it?", "New Answer": "mine"}}
    return [record | hop for record in _mend(12, 6)]


def _levy() -> list[dict[str, Any]]:
    wordings = ("What is the colour of XXX?", "Which colour has XXX?")
    return [
        {"relation": "colour", "question_template": wording, "subject": name,
         "sentence": "Long ago.", "answers": [f"answer{i % 4}"]}
        for i, name in enumerate(_NAMES) for wording in wordings
    ]  # fmt: skip


def _levy_lines() -> bytes:
    cells = [[r["relation"], r["question_template"], r["subject"], r["sentence"], *r["answers"]]
             for r in _levy()]  # fmt: skip
    return "\n".join("\t".join(line) for line in cells).encode()


def _cases(first: int, n: int) -> list[dict[str, Any]]:
    return [
        {"case_id": i, "subject": f"Subject{i}", "prompt": f"Subject{i} is a",
         "target_new": f" new{i % 5}", "ground_truth": f"true{i % 5} ",
         "rephrase_prompt": f"They say. Subject{i}, a", "locality_prompt": f"Other{i} is a",
         "locality_ground_truth": f"true{i % 5}"} for i in range(first, first + n)
    ]  # fmt: skip


def _rome() -> list[dict[str, Any]]:
    return [
        {"case_id": i, "requested_rewrite": {
            "prompt": "{} is a", "relation_id": f"P{i % 3}", "subject": f"Subject{i}",
            "target_new": {"str": f"new{i % 5}"}, "target_true": {"str": f"true{i % 5}"}},
         "paraphrase_prompts": [f"Once. Subject{i}, a", f"Twice. Subject{i}, a"],
         "neighborhood_prompts": [f"Another{i} of {j} is a" for j in range(3)]} for i in (1, 7, 12)
    ]  # fmt: skip


def _claims(form: str, first: int) -> list[dict[str, Any]]:
    found = []
    for i in range(first, first + 12):
        label = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")[i % 3]
        page = f"Zz{_NAMES[i % len(_NAMES)]}_-LRB-town-RRB-"
        record: dict[str, Any] = {"id": i, "claim": f"Zz{_NAMES[i % len(_NAMES)]} is cold {i}."}
        if form == "folder":
            record |= {"label": label, "evidence_pages": [] if i % 3 == 2 else [page, "Aa"]}
        elif form == "original":
            record |= {"label": label, "evidence": [[[3, 4, None if i % 3 == 2 else page, 0]]]}
        else:
            record["input"] = record.pop("claim")
            record["output"] = [{"answer": label, "provenance": [{"title": page}]}]
        found.append(record)
    return found


_QUESTIONS = [{"question": f"who is {i}?", "answer": [f"nobody {i}", "x"]} for i in range(5)]
_ARTICLE = (
    ' \n = Grey Bado = \n \n The grey bado , which the " Felu " call kone , is a small '
    "bird of cold rivers , lakes and the coast . It weighs 5 @-@ 6 grams ( 0 @.@ 2 oz ) , and "
    "lives on seeds , insects and what the sea brings . It may grow to 60 cm in the <unk> . \n "
    " = = Description = = \n The bird is grey , with a white breast and a tail as long as its "
    "body , although those that were seen in 1901 – 1903 were darker . Like other birds it must "
    "change its feathers in order to live through the winter , which takes three weeks . \n "
)  # fmt: skip
_PROSE = " ".join(
    f"The {name} of the north is a small grey bird that lives near the river and eats seeds."
    for name in _NAMES
)
_FACT_LINES = [
    {"relation_id": f"P{i % 2}", "sub_label": name, "obj_label": "blue"}
    for i, name in enumerate(_NAMES)
]
_PATTERNS = [{"relation_id": f"P{i}", "pattern": "[X] has the colour [Y] ."} for i in range(2)]

Files = Mapping[str, bytes]
_ZSRE = {
    "zsre/levy_mend_form_train.jsonl": _lines(_derived(0, 6)),
    "zsre/levy_mend_form_dev.jsonl": _lines(_derived(6, 6)),
    "zsre/mend_train_1k.jsonl": _lines(_mend(0, 6)),
    "zsre/mend_eval_portability.jsonl": _lines(_hops()),
    "zsre/knowedit_test.jsonl": _lines(_knowedit()),
    "zsre/levy_positive.jsonl": _lines(_levy()),
}
_COUNTERFACT = {
    "counterfact/counterfact-train.jsonl": _lines(_cases(0, 8)),
    "counterfact/counterfact-val.jsonl": _lines(_cases(8, 3)),
    "counterfact/counterfact-edit.jsonl": _lines(_cases(11, 4)),
    "counterfact/rome_form_subset.jsonl": _lines(_rome()),
}
_NQ = {
    "nq_open/NQ-open.train.jsonl": _lines(_QUESTIONS),
    "nq_open/NQ-open.efficientqa.dev.1.1.jsonl": _lines(_QUESTIONS[:2]),
    "nq_open/NQ-open.dev.jsonl": _lines(_QUESTIONS[2:4]),
}
_WIKITEXT = {f"wikitext-2/{name}.txt": _ARTICLE.encode() for name in ("train", "valid", "test")}


def _of(
    recipe: Callable[..., Any], config: str, name: str, others: Files, *,
    share: float = 0.4, seeds: Sequence[bytes] = (), damage: Mutation = damage_json,
) -> Reader:  # fmt: skip
    """Return the reader of one file of a data set."""

    def read(folder: Path, data: bytes) -> None:
        for other, text in others.items():
            put(folder / other, text)
        put(folder / name, data)
        _check(recipe(config, folder).build())

    return Reader(lambda: list(seeds) or [others[name]], read, damage, share)


def _as_list(data: bytes) -> bytes:
    return json.dumps([json.loads(line) for line in data.splitlines()]).encode()


def _fever(form: str, train: str, test: str) -> Reader:
    others = {
        f"fever/{train}": _lines(_claims(form, 0)),
        f"fever/{test}": _lines(_claims(form, 24)),
    }
    return _of(fever.recipe, "default", f"fever/{train}", others)


def _zsre(config: str, name: str, **more: Any) -> Reader:
    return _of(zsre.recipe, config, f"zsre/{name}", _ZSRE, **more)


def _read_texts(folder: Path, data: bytes) -> None:
    lines = "\n<|endoftext|>\n".join(f"{_PROSE} Number {i} is the last one." for i in range(60))
    put(folder / "owt/sound.txt", lines.encode())
    put(folder / "owt/damaged.txt", data)
    put(folder / "owt/damaged.jsonl", data) if data.lstrip()[:1] == b"{" else None
    _check(own_texts.recipe("owt", folder).build())


def _read_pararel(folder: Path, data: bytes) -> None:
    whole = {"facts": _lines(_FACT_LINES), "patterns": _lines(_PATTERNS)}
    damaged = "patterns" if b"pattern" in data else "facts"
    for name, text in (whole | {damaged: data}).items():
        put(folder / f"pararel/{name}.jsonl", text)
    for statement in pararel.statements(folder):
        assert statement.prompt.encode() and statement.answer.strip()


def _read_raw(folder: Path, data: bytes) -> None:
    """Read compressed files with the lowest-level reader."""
    path = put(folder / "raw.jsonl.gz", data)
    for where, record in raw_files.iter_records(path, {"question": "text", "answer": "texts"}):
        assert where.startswith(str(path)) and record["question"].encode()


READERS = {
    "facts": Reader(lambda: [_lines(_FACTS), _as_list(_lines(_FACTS))], _read_facts, share=3),
    "facts of the command": Reader(
        lambda: [_lines(_FACTS), "The capital of Perú is => Lyon\nSugar is => salty\n".encode(),
                 b'{"prompt": "a", "target": "b", "paraphrases": ["c"], "neighbours": ["d"]}'],
        _read_command_facts, share=2),
    "packed records": Reader(
        lambda: [gzip.compress(_lines(_QUESTIONS), mtime=0)], _read_raw, _damage_packed, 2),
    "zsRE, derived": _zsre("default", "levy_mend_form_train.jsonl"),
    "zsRE, MEND": _zsre("mend", "mend_eval_portability.jsonl"),
    "zsRE, KnowEdit": _zsre("knowedit", "knowedit_test.jsonl"),
    "zsRE, Levy": _zsre("levy", "levy_positive.jsonl", seeds=[_lines(_levy()), _levy_lines()]),
    "CounterFact": _of(counterfact.recipe, "default", "counterfact/counterfact-train.jsonl",
                       _COUNTERFACT),
    "CounterFact, ROME": _of(counterfact.recipe, "rome", "counterfact/rome_form_subset.jsonl",
                             _COUNTERFACT),
    "FEVER": _fever("folder", "train.jsonl", "eval.jsonl"),
    "FEVER, original": _fever("original", "train.jsonl", "paper_dev.jsonl"),
    "FEVER, KILT": _fever("kilt", "fever-train-kilt.jsonl", "fever-dev-kilt.jsonl"),
    "Natural Questions": _of(nq_open.recipe, "default", "nq_open/NQ-open.train.jsonl", _NQ),
    "Wikitext": _of(wikitext.recipe, "default", "wikitext-2/train.txt", _WIKITEXT,
                    damage=damage_bytes),
    "texts": Reader(lambda: [_PROSE.encode(), _lines([{"text": _PROSE}] * 2)], _read_texts,
                    share=0.2),
    "ParaRel": Reader(lambda: [_lines(_FACT_LINES), _lines(_PATTERNS)], _read_pararel, share=0.4),
}  # fmt: skip
