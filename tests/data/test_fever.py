"""FEVER: three forms of files, edits that flip a label, claims that must stay."""

import collections
import gzip
import json

import pytest
from support.raw_files import ROOT

from mend_jax import data
from mend_jax.data.name_matching import normalise_name
from mend_jax.data.sources import fever
from mend_jax.errors import DataError

REAL = ROOT / "fever/train.jsonl.gz"
LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
SAID = ("was built in 1901", "is a river of the north", "has no mayor", "likes cold soup")


def folder_form(number, claim, label, page):
    pages = [] if label == LABELS[2] else sorted([page, "Aa"])
    return {"id": number, "claim": claim, "label": label, "evidence_pages": pages}


def original_form(number, claim, label, page):
    none = label == LABELS[2]
    steps = [[3, None, None, None]] if none else [[3, 4, page, 0], [3, 4, "Aa", 1]]
    return {"id": number, "verifiable": "-", "label": label, "claim": claim, "evidence": [steps]}


def kilt_form(number, claim, label, page):
    output = [{"provenance": [{"title": page.replace("_", " "), "section": "x"}]}]
    return {"id": str(number), "input": claim, "output": [{"answer": label}, *output]}


FORMS = {
    "folder": (folder_form, "train.jsonl.gz", "eval.jsonl.gz"),
    "original": (original_form, "train.jsonl", "paper_dev.jsonl"),
    "kilt": (kilt_form, "fever-train-kilt.jsonl", "fever-dev-kilt.jsonl"),
}


def write(path, lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def records(form, towns, first=0):
    """Return claims about made-up towns, a third of them without a verdict."""
    found = []
    for town in towns:
        for said in SAID:
            label = LABELS[(len(found) + first) % 3]
            claim = f"Zz{town} {said}."
            found.append(form(first + len(found), claim, label, f"Zz{town}"))
    return found


def make_root(folder, name):
    form, train, test = FORMS[name]
    write(folder / "fever" / train, records(form, range(60)))
    write(folder / "fever" / test, records(form, range(100, 110), first=1000))
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name, tmp_path):
    loaded = data.load("fever", make_root(tmp_path / "raw", name), tmp_path / "prepared")
    assert loaded.task == "fc" and loaded.name == "fever"
    splits = {name: list(held) for name, held in loaded.splits.items()}
    assert sum(map(len, splits.values())) == 187 and len(splits["test"]) == 27
    left = loaded.notes["records_left_out"].values()
    assert sorted(left, key=lambda n: n["not enough info"]) == [
        {"not enough info": 13}, {"not enough info": 80}
    ]  # fmt: skip
    assert 2 <= len({row["subject"] for row in splits["validation"]}) <= 12
    check(splits)
    assert {row["subject"][:2] for held in splits.values() for row in held} == {"Zz"}


def check(splits):
    """Check what holds for all rows."""
    pages = {name: {normalise_name(r["subject"]) for r in held} for name, held in splits.items()}
    said = {name: {normalise_name(r["prompt"]) for r in held} for name, held in splits.items()}
    for parts in (pages, said):
        assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    keys = [row["key"] for held in splits.values() for row in held]
    assert len(set(keys)) == len(keys)
    for split, held in splits.items():
        true = {normalise_name(row["prompt"]): row["truth"] for row in held}
        for row in held:
            assert {row["truth"], row["target"]} == {"true", "false"}
            assert row["relation"] == f"made {row['target']}"
            assert normalise_name(row["rephrase"]) != normalise_name(row["prompt"])
            assert not (split == "train" and row["rephrase_unseen"])
            assert true[normalise_name(row["near_prompt"])] == row["near_answer"]
            assert true[normalise_name(row["far"])] == row["far_answer"]
            assert normalise_name(row["near_prompt"]) != normalise_name(row["prompt"])
            assert normalise_name(row["near_subject"]) in pages[split]
            is_same_page = normalise_name(row["near_subject"]) == normalise_name(row["subject"])
            assert row["near_relation"] == (row["relation"] if is_same_page else "")
            assert row["scope"] == row["key"] and row["key"] not in row["near_scope"].split("|")
            assert set(row["near_scope"].split("|")) <= set(keys)
            assert f" {normalise_name(row['subject'])} " not in f" {normalise_name(row['far'])} "


@pytest.mark.full
@pytest.mark.skipif(not REAL.is_file(), reason=f"no FEVER files below {ROOT}; set MEND_DATA_DIR")
def test_the_real_files(tmp_path):
    loaded = data.load("fever", ROOT, tmp_path)
    splits = {name: list(held) for name, held in loaded.splits.items()}
    assert {name: len(held) for name, held in splits.items()} == {
        "train": 8188, "validation": 774, "test": 1660,
    }  # fmt: skip
    assert len({row["subject"] for row in splits["test"]}) == 226
    check(splits)
    for held in splits.values():
        assert 0.48 < sum(row["truth"] == "true" for row in held) / len(held) < 0.52
        assert sum(bool(row["near_relation"]) for row in held) > 0.95 * len(held)
        words = sum(row["rephrase"].endswith(row["prompt"][4:]) for row in held)
        assert words < 0.35 * len(held)  # a frame round the claim is the last resort
    unseen = sum(row["rephrase_unseen"] for row in splits["test"]) / len(splits["test"])
    assert 0.3 < unseen < 0.37


@pytest.mark.parametrize("name", FORMS)
def test_labels_flip_and_a_name_in_the_claim_decides_the_page(name, tmp_path):
    form = FORMS[name][0]
    lines = [
        form(1, "Zz One is wet.", "SUPPORTS", "Zz_One_-LRB-town-RRB-"),
        form(2, "The place is dry.", "REFUTES", "Zz_Two-COLON-_a_town"),
    ]
    write(tmp_path / "claims.jsonl", lines)
    claims, left = fever.read(tmp_path / "claims.jsonl")
    assert left == {} and [c.label for c in claims] == ["true", "false"]
    assert [c.key for c in claims] == ["claims-1", "claims-2"]
    assert claims[0].pages[-1] == "Zz One (town)" or claims[0].pages[0] == "Zz One (town)"
    assert fever.claim_subject(claims[0].text, claims[0].pages) == "Zz One (town)"
    first = "Aa" if name == "folder" else "Zz Two: a town"  # its lists are sorted by name
    assert fever.claim_subject(claims[1].text, claims[1].pages) == first


def test_near_claims_do_not_say_nearly_the_same(tmp_path):
    pages = ["Zz"]
    claims = [
        fever.Claim(f"k{i}", f"Zz {said}.", "true", pages)
        for i, said in enumerate(("is a town", "is a big town", "is a grey town", "eats fish"))
    ]
    drafts = [fever._draft(c) for c in claims]
    other = fever._draft(fever.Claim("k9", "Yy is a town.", "false", ["Yy"]))
    pool = fever._ClaimPool([*drafts, other])
    made = [pool.row(draft, training=True) for draft in drafts]
    assert [row["near_prompt"] for row in made[:3]] == ["Zz eats fish."] * 3
    assert [row["near_scope"] for row in made[:3]] == ["k3"] * 3
    assert made[3]["near_prompt"] != "Zz eats fish." and "k0" in made[3]["near_scope"].split("|")
    lonely = fever._ClaimPool([*drafts[:3], other]).row(drafts[0], training=True)
    assert lonely["near_prompt"] == "Yy is a town." and lonely["near_relation"] == ""
    assert all(row["far"] == "Yy is a town." for row in made)


def test_repeated_claims_and_pages_of_later_splits_are_dropped_and_counted(tmp_path):
    train = [*records(folder_form, range(40)), folder_form(900, "ZZ0 was built in 1901",
                                                           "REFUTES", "Zz0")]  # fmt: skip
    write(tmp_path / "fever/train.jsonl", train)
    write(tmp_path / "fever/eval.jsonl", records(folder_form, range(35, 45), first=1000))
    made = fever.recipe("default", tmp_path).build()
    assert made.notes["records_left_out"]["train.jsonl"]["repeated claim"] == 1
    lost = collections.Counter()
    for counts in made.notes["rows_lost"].values():
        lost.update(counts)
    assert lost["train"] + lost.get("validation", 0) > 10
    check(made.splits)


def one(**changes):
    record = folder_form(1, "Zz is wet.", "SUPPORTS", "Zz") | changes
    return {k: v for k, v in record.items() if v is not None}


GOOD = folder_form(0, "Zz is dry.", "REFUTES", "Zz")


@pytest.mark.parametrize(("line", "message"), [
    (one(claim=None), r"x.jsonl:2: field 'claim' is missing"),
    (one(claim="  "), r"x.jsonl:2: field 'claim' is empty"),
    (one(claim=3), r"x.jsonl:2: field 'claim' is a number"),
    (one(label=None), r"x.jsonl:2: field 'label' is missing"),
    (one(label="MAYBE"), r"x.jsonl:2: label 'MAYBE' is not known; it must be one of .'SUPPORTS'"),
    (one(id=None), r"x.jsonl:2: field 'id' is missing"),
    (one(id=0), r"x.jsonl:2: id 0 was used before, in .*x.jsonl:1"),
    (one(evidence_pages=None), r"x.jsonl:2: no field of evidence_pages, evidence, output; it"),
    (one(evidence_pages=[]), r"x.jsonl:2: the claim has label SUPPORTS and no evidence page"),
    (one(evidence_pages=[3]), r"x.jsonl:2: field 'evidence_pages' lacks FEV"),
    (one(evidence_pages=None, evidence=[[3]]), r"x.jsonl:2: field 'evidence' lacks FEV"),
    (one(evidence_pages=None, evidence=[[[1, 2]]]), r"x.jsonl:2: field 'evidence' lacks FEV"),
    (one(evidence_pages=None, evidence=[[[1, 2, None, None]]]), r"x.jsonl:2: .* no evidence page"),
    ({"id": 1, "input": "Zz is wet.", "output": []}, r"x.jsonl:2: field 'output' lacks FEV"),
    ({"id": 1, "input": "Zz is wet.", "output": [{}]}, r"x.jsonl:2: field 'output' lacks FEV"),
    ({"id": 1, "input": " ", "output": [{}]}, r"x.jsonl:2: field 'input' is empty"),
    ("[1]\n", r"x.jsonl:2: a JSON list, not an object"),
    ("{\n", r"x.jsonl:2: not JSON"),
])  # fmt: skip
def test_a_malformed_record_is_named(line, message, tmp_path):
    write(tmp_path / "x.jsonl", [GOOD, line])
    with pytest.raises(DataError, match=message):
        fever.read(tmp_path / "x.jsonl")


def test_a_malformed_file_is_named(tmp_path):
    write(tmp_path / "x.jsonl.gz", records(folder_form, range(900)))
    whole = (tmp_path / "x.jsonl.gz").read_bytes()
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"x.jsonl.gz: the gzip stream breaks off .* whole lines"):
        fever.read(tmp_path / "x.jsonl.gz")
    text = json.dumps(GOOD) + "\n" + json.dumps(one(claim="Café is wet."), ensure_ascii=False)
    (tmp_path / "x.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"x.jsonl:2: not UTF-8 text \(byte 0xe9\)"):
        fever.read(tmp_path / "x.jsonl")
    write(tmp_path / "x.jsonl", [])
    with pytest.raises(DataError, match="x.jsonl: no records in it"):
        fever.read(tmp_path / "x.jsonl")


def test_missing_files_and_configs_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"fever is made from fever/train.jsonl .*data.dir"):
        data.load("fever")
    with pytest.raises(DataError, match=r"fever/eval.jsonl or .*fever/paper_dev.jsonl"):
        write(tmp_path / "fever/train.jsonl", [GOOD])
        data.load("fever", tmp_path)
    with pytest.raises(DataError, match="fever has no config 'large'"):
        data.load("fever/large", tmp_path)


def test_a_split_about_one_page_is_refused(tmp_path):
    for name in ("train", "eval"):
        write(tmp_path / f"fever/{name}.jsonl", records(folder_form, [name]))
    with pytest.raises(DataError, match="are about 'Zz.*add claims of another page"):
        fever.recipe("default", tmp_path).build()
