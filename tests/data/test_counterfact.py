"""CounterFact in both forms: fields of a row, disjoint splits, malformed files."""

from pathlib import Path

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write
from support.sound_rows import check_near_apart, check_rows, made_and_prepared
from support.tiers import in_tiers

from mend_jax import data
from mend_jax.data import raw_files
from mend_jax.data.sources import counterfact
from mend_jax.errors import DataError

NAMES = {"train": "train", "validation": "val", "test": "edit"}
NAMES = {split: f"counterfact/counterfact-{name}.jsonl" for split, name in NAMES.items()}
SUBSET, FULL = "counterfact/rome_form_subset.jsonl", "counterfact/counterfact.json"


def cases(first, n):
    return [
        {
            "case_id": i, "subject": f"Subject{i}", "prompt": f"Subject{i} is a",
            "target_new": f" new{i % 5}", "ground_truth": f"true{i % 5} ",
            "rephrase_prompt": f"They say. Subject{i}, a", "locality_prompt": f"Other{i} is a",
            "locality_ground_truth": f"true{i % 5}",
        }
        for i in range(first, first + n)
    ]  # fmt: skip


def rome(*numbers):
    return [
        {
            "case_id": i, "pararel_idx": 1, "requested_rewrite": {
                "prompt": "{} is a", "relation_id": f"P{i % 3}", "subject": f"Subject{i}",
                "target_new": {"str": f"new{i % 5}", "id": "Q1"},
                "target_true": {"str": f"true{i % 5}", "id": "Q2"},
            },
            "paraphrase_prompts": [f"Once. Subject{i}, a", f"Twice. Subject{i}, a"],
            "neighborhood_prompts": [f"Another{i} of {j} is a" for j in range(3)],
        }
        for i in numbers
    ]  # fmt: skip


RECORDS = {
    NAMES["train"]: cases(0, 20), NAMES["validation"]: cases(20, 5), NAMES["test"]: cases(25, 6),
    SUBSET: rome(1, 2, 21, 26, 27),
}  # fmt: skip


def write_all(root, form="lines", **changed):
    for name, records in (RECORDS | changed).items():
        write(root / name, records, form)
    return root


def load(tmp_path, config="default"):
    return data.load(f"counterfact/{config}", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def filled(row):
    return {name: value for name, value in row.items() if value}


def test_a_row_has_the_fields_of_its_record(tmp_path):
    write_all(tmp_path / "raw")
    loaded = load(tmp_path)
    rows = rows_of(loaded)
    check_rows(rows)
    assert {name: len(held) for name, held in rows.items()} == {
        "train": 20, "validation": 5, "test": 6,
    }  # fmt: skip
    assert filled(rows["test"][2]) == {
        "key": "27", "relation": "P0", "subject": "Subject27", "prompt": "Subject27 is a",
        "target": "new2", "truth": "true2", "rephrase": "They say. Subject27, a",
        "near_prompt": "Other27 is a", "near_answer": "true2", "scope": "subject27",
    }  # fmt: skip
    assert rows["train"][0]["relation"] == "" and loaded.task == "qa"
    assert set(loaded.notes["files"]) == set(RECORDS)


def test_a_row_of_romes_form_has_the_fields_of_its_record(tmp_path):
    write_all(tmp_path / "raw")
    rows = rows_of(load(tmp_path, "rome"))
    check_rows(rows)
    assert [row["key"] for row in rows["test"]] == ["1", "2", "21", "26", "27"]
    assert len(rows["train"]) == 18 and len(rows["validation"]) == 4
    assert filled(rows["test"][0]) == {
        "key": "1", "relation": "P1", "subject": "Subject1", "prompt": "Subject1 is a",
        "target": "new1", "truth": "true1", "rephrase": "Once. Subject1, a",
        "more_rephrases": ["Twice. Subject1, a"], "near_prompt": "Another1 of 0 is a",
        "near_answer": "true1",
        "more_near_prompts": ["Another1 of 1 is a", "Another1 of 2 is a"],
        "more_near_answers": ["true1", "true1"], "scope": "subject1",
    }  # fmt: skip


def test_the_full_file_is_preferred_and_only_its_edit_cases_are_used(tmp_path):
    write_all(tmp_path / "raw")
    write(tmp_path / "raw" / FULL, rome(*range(31)), "list")
    loaded = load(tmp_path, "rome")
    rows = rows_of(loaded)
    assert [row["key"] for row in rows["test"]] == ["25", "26", "27", "28", "29", "30"]
    assert len(rows["train"]) == 20 and rows["train"][4]["relation"] == "P1"
    assert FULL in loaded.notes["files"] and SUBSET not in loaded.notes["files"]


def test_relations_are_empty_without_romes_form(tmp_path):
    (write_all(tmp_path / "raw") / SUBSET).unlink()
    assert not any(row["relation"] for row in load(tmp_path).split("test"))
    with pytest.raises(DataError, match="counterfact/rome is made from .*rome_form_subset"):
        load(tmp_path, "rome")


@pytest.mark.parametrize("form", ["lines.gz", "list", "list.gz"])
def test_every_form_gives_the_same_rows(tmp_path, form):
    write_all(tmp_path / "raw")
    usual = load(tmp_path, "rome").fingerprint
    write_all(tmp_path / "raw", form)
    assert load(tmp_path, "rome").fingerprint == usual


def test_rows_shared_by_splits_are_dropped_and_counted(tmp_path):
    train = change(RECORDS[NAMES["train"]], 0, subject="the SUBJECT25", prompt="The subject25 has")
    train = change(train, 1, prompt="Subject26 is a")
    train = change(train, 4, locality_prompt="Other27 is  a")
    train = change(train, 5, locality_prompt="Subject26 is a")
    train = change(train, 6, rephrase_prompt="Other21 is a")
    validation = change(RECORDS[NAMES["validation"]], 0, subject="Subject27", prompt="Subject27 in")
    write_all(tmp_path / "raw", **{NAMES["train"]: train, NAMES["validation"]: validation})
    loaded = load(tmp_path)
    check_rows(rows_of(loaded))
    assert loaded.notes["rows_lost"] == {
        "subject in a later split": {"train": 1, "validation": 1},
        "prompt in a later split": {"train": 1},
        "near fact in a later split": {"train": 3},
    }
    check_near_apart(rows_of(loaded))
    assert [row["key"] for row in loaded.split("train")][:2] == ["2", "3"]


def test_near_facts_about_the_subject_are_not_used(tmp_path):
    test = change(RECORDS[NAMES["test"]], 0, locality_prompt="Old-Subject25 is a")
    test = change(test, 1, target_new="TRUE1.")
    near = ["The subject1's age is", "Other1 is a", "Subject1 is a", "Other2 is a"]
    whole = change(RECORDS[SUBSET], 0, neighborhood_prompts=[*near])
    write_all(tmp_path / "raw", **{NAMES["test"]: test, SUBSET: whole})
    loaded = load(tmp_path)
    assert [row["key"] for row in loaded.split("test")] == ["27", "28", "29", "30"]
    lost = loaded.notes["rows_lost"]
    assert lost["near facts speak of the subject"] == {"test": 1}
    assert lost["the target is the true answer"] == {"test": 1}
    row = load(tmp_path, "rome").split("test")[0]
    assert row["near_prompt"] == near[1] and row["more_near_prompts"] == [near[3]]


def test_near_facts_have_the_scopes_of_the_subjects_they_name(tmp_path):
    test = RECORDS[NAMES["test"]]
    for number, said in enumerate(
        ["Subject27 of Subject29's is", "The SUBJECT-26!", "Subject2 is"]
    ):
        test = change(test, number, locality_prompt=said)
    write_all(tmp_path / "raw", **{NAMES["test"]: change(test, 4, subject="Subject 26")})
    scopes = [row["near_scope"] for row in load(tmp_path).split("test")]
    assert scopes == ["subject27", "subject 26", "", "", "", ""]


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "name, field",
    [
        (NAMES["train"], "target_new"), (NAMES["validation"], "ground_truth"),
        (NAMES["test"], "subject"), (NAMES["test"], "locality_prompt"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_described(tmp_path, name, field, how):
    write_all(tmp_path / "raw")
    match = spoil(tmp_path / "raw" / name, RECORDS[name], how, field)
    with pytest.raises(DataError, match=match):
        load(tmp_path)
    assert not list((tmp_path).glob("prepared/**/*.array_record*"))


def rewrite(**fields):
    return {"requested_rewrite": change([rome(2)[0]["requested_rewrite"]], 0, **fields)[0]}


@pytest.mark.parametrize(
    "name, fields, message",
    [
        (NAMES["test"], {"case_id": 25}, ":2: case_id 25 was used before, in .*edit.jsonl:1;"),
        (SUBSET, {"case_id": 1}, ":2: case_id 1 was used before"),
        (SUBSET, {"requested_rewrite": "x"}, ":2: field 'requested_rewrite' is a text"),
        (SUBSET, {"paraphrase_prompts": []}, ":2: field 'paraphrase_prompts' is an empty list"),
        (SUBSET, {"neighborhood_prompts": None}, ":2: field 'neighborhood_prompts' is missing"),
        (SUBSET, rewrite(prompt="It is a"), ":2: prompt 'It is a' has no {} for the subject"),
        (SUBSET, rewrite(relation_id=None), ":2: field 'relation_id' is missing"),
        (SUBSET, rewrite(relation_id=" "), ":2: field 'relation_id' is empty"),
        (SUBSET, rewrite(target_new="x"), ":2: field 'target_new' is a text"),
        (SUBSET, rewrite(target_true={"str": ""}), ":2: target_true: field 'str' is empty"),
    ],
)
def test_fields_of_a_record(tmp_path, name, fields, message):
    write_all(tmp_path / "raw", **{name: change(RECORDS[name], 1, **fields)})
    with pytest.raises(DataError, match=Path(name).name.replace(".", r"\.") + message):
        load(tmp_path, "rome")


@pytest.mark.parametrize("name", [NAMES["train"], NAMES["test"]])
def test_a_changed_file_is_another_data_set(tmp_path, name):
    prints = []
    for target in ("new", "newer", "new"):
        write_all(tmp_path / "raw", **{name: change(RECORDS[name], 3, target_new=target)})
        prints.append(load(tmp_path).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"counterfact is made from .*counterfact-train\.json"):
        load(tmp_path)
    with pytest.raises(DataError, match="no config 'full': use one of default, rome"):
        load(tmp_path, "full")


@pytest.fixture(scope="module", params=in_tiers([], counterfact.CONFIGS, ["default"]))
def real(request, tmp_path_factory):
    if not list(ROOT.glob("counterfact/*")):
        pytest.skip(f"no counterfact files below {ROOT}")
    if request.param == "rome" and not raw_files.find_file(ROOT, FULL, SUBSET):
        pytest.skip(f"no file of ROME's form below {ROOT}")
    recipe = counterfact.recipe(request.param, ROOT)
    return request.param, *made_and_prepared(recipe, tmp_path_factory.mktemp(request.param))


def test_the_real_files_give_sound_rows(real):
    config, rows, notes = real
    check_rows(rows)
    check_near_apart(rows)
    assert len(rows["train"]) > 5000 and len(rows["validation"]) > 1000
    assert len(rows["test"]) > (1000 if config == "rome" else 7000)
    lost = sum(sum(n.values()) for n in notes["rows_lost"].values())
    assert 0 < lost < 0.3 * sum(map(len, rows.values()))
    shared = [row for row in rows["test"] if row["near_scope"]]
    assert 0 < len(shared) < 0.3 * len(rows["test"])
    if config == "rome":
        assert all(r["more_near_prompts"] and r["more_rephrases"] for r in rows["test"])
        assert all(r["relation"].startswith("P") for r in rows["test"])
