"""zsRE in each of its forms: fields of a row, disjoint splits, malformed files."""

import itertools
from pathlib import Path

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write
from support.sound_rows import check_rows, made_and_prepared, says, texts_of
from support.tiers import in_tiers

from mend_jax import data
from mend_jax.data.name_matching import normalise_name
from mend_jax.data.neighbours import without_subject
from mend_jax.data.sources import zsre
from mend_jax.errors import DataError

TRAIN, DEV = "zsre/levy_mend_form_train.jsonl", "zsre/levy_mend_form_dev.jsonl"
MEND, EVAL = "zsre/mend_train_1k.jsonl", "zsre/mend_eval_portability.jsonl"
FULL, KNOWEDIT = "zsre/zsre_mend_train.json", "zsre/knowedit_test.jsonl"
LEVY = "zsre/levy_positive.jsonl"
TEMPLATES = {
    "colour": ("What is the colour of XXX?", "Which colour has XXX?", "How is XXX painted?"),
    "maker": ("Who made XXX?", "By whom was XXX built?"),
}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
NAMES = ["".join(s).capitalize() for s in itertools.product(SYLLABLES, SYLLABLES[:9])]


def mend(first, n, **more):
    """Return records of MEND's form about n different names."""
    found = []
    for i in range(first, first + n):
        relation = ("colour", "maker")[i % 2]
        prompt, paraphrase = (text.replace("XXX", NAMES[i]) for text in TEMPLATES[relation][:2])
        found.append({
            "subject": NAMES[i], "src": prompt, "rephrase": paraphrase, "alt": f"wrong {i % 7}",
            "answers": [f"right {i % 5}", "also"], "loc": f"nq question: who is {i}",
            "loc_ans": f"nobody {i}", "pred": "", "cond": "",
        } | more)  # fmt: skip
    return found


def derived(first, n):
    return [r | {"relation": ("colour", "maker")[i % 2]} for i, r in enumerate(mend(first, n))]


def knowedit(first, n):
    found = []
    for record in mend(first, n):
        name = record["subject"]
        found.append({
            "subject": f"{name} ", "prompt": record["src"], "target_new": f" {record['alt']}",
            "ground_truth": record["answers"], "rephrase_prompt": record["rephrase"], "cond": "",
            "locality": {"Relation_Specificity": [
                {"prompt": f"{name} weighs", "ground_truth": [["a lot", "much"], ["x"]]},
                {"prompt": f"The age of {name} is", "ground_truth": "9"},
            ]},
            "portability": {
                "Reasoning": [{"prompt": f"Whose is {name}?", "ground_truth": ["mine", "me"]}],
                "Subject_Aliasing": [{"prompt": "And the old one?", "ground_truth": "wrong"}],
            },
        })  # fmt: skip
    return found


def levy(n):
    found = []
    for i in range(n):
        relation = ("colour", "maker")[i % 2]
        for template in TEMPLATES[relation][i % 4 // 2 :: 2]:
            found.append({
                "relation": relation, "question_template": template, "subject": NAMES[i],
                "sentence": "Long ago.", "answers": [f"answer{i % 9}", f"other{i % 9}"],
            })  # fmt: skip
    return found


RECORDS = {
    **{TRAIN: derived(0, 120), DEV: derived(200, 9), MEND: mend(120, 60)},
    **{EVAL: mend(300, 9), KNOWEDIT: knowedit(400, 9), LEVY: levy(120)},
}


def write_all(root, form="lines", **changed):
    for name, records in (RECORDS | changed).items():
        write(root / name, records, form)
    return root


def load(tmp_path, config):
    return data.load(f"zsre/{config}", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


@pytest.mark.parametrize("config", zsre.CONFIGS)
def test_rows_are_sound_and_files_are_named(tmp_path, config):
    write_all(tmp_path / "raw")
    loaded = load(tmp_path, config)
    rows = rows_of(loaded)
    check_rows(rows, *(["far", "far_answer"] if config in ("default", "mend") else []))
    assert loaded.task == "qa" and set(rows) == {"train", "validation", "test"}
    files = {
        "default": {TRAIN, DEV}, "mend": {TRAIN, MEND, EVAL}, "knowedit": {TRAIN, KNOWEDIT},
        "levy": {LEVY},
    }  # fmt: skip
    assert set(loaded.notes["files"]) == files[config]
    n_train = {"default": 120, "mend": 180, "knowedit": 120}
    if config != "levy":
        assert len(rows["train"]) + len(rows["validation"]) == n_train[config]
        assert len(rows["test"]) == 9 and 3 <= len(rows["validation"]) <= 25


def test_far_questions_of_validation_are_not_in_train(tmp_path):
    records = [r | {"loc": "nq question: who is it"} if i % 2 else r
               for i, r in enumerate(RECORDS[TRAIN])]  # fmt: skip
    write_all(tmp_path / "raw", **{TRAIN: records})
    rows = rows_of(load(tmp_path, "default"))
    far = [row["far"] for row in rows["validation"]]
    assert "who is it" in {row["far"] for row in rows["train"]} and "who is it" not in far
    assert len(set(far)) < len(far) and all(row["far_answer"] for row in rows["validation"])


def test_a_row_has_the_fields_of_its_record(tmp_path):
    write_all(tmp_path / "raw")
    row = load(tmp_path, "default").split("test")[2]
    name = NAMES[202]
    near = {k: row.pop(k) for k in list(row) if k.startswith("near_")}
    assert {k: v for k, v in row.items() if v} == {
        "key": "levy_mend_form_dev-3", "relation": "colour", "subject": name,
        "prompt": f"What is the colour of {name}?", "rephrase": f"Which colour has {name}?",
        "target": "wrong 6", "truth": "right 2", "far": "who is 202", "far_answer": "nobody 202",
        "scope": name.lower(),
    }  # fmt: skip
    other = next(r for r in RECORDS[DEV] if r["subject"] == near["near_subject"])
    assert near == {
        "near_relation": other["relation"], "near_subject": other["subject"],
        "near_prompt": other["src"], "near_answer": other["answers"][0],
        "near_scope": other["subject"].lower(),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["lines.gz", "list", "list.gz"])
def test_every_form_gives_the_same_rows(tmp_path, form):
    write_all(tmp_path / "raw")
    usual = load(tmp_path, "mend").fingerprint
    write_all(tmp_path / "raw", form)
    assert load(tmp_path, "mend").fingerprint == usual


def test_every_second_near_fact_of_train_is_of_the_same_relation(tmp_path):
    write_all(tmp_path / "raw")
    for config, named in (("default", True), ("mend", False)):
        if not named:
            write(tmp_path / "raw" / FULL, mend(0, 120))
        rows = rows_of(load(tmp_path, config))

        def kind(row, which=""):
            return row[f"{which}prompt"].replace(row[f"{which}subject"], "XXX")

        alike = [kind(row) == kind(row, "near_") for row in rows["train"]]
        assert all(alike[::2]) and 0.2 < sum(alike[1::2]) / len(alike[1::2]) < 0.8
        alike = [kind(row) == kind(row, "near_") for row in (*rows["test"], *rows["validation"])]
        assert 0 < sum(alike) < len(alike)


def test_rows_shared_by_splits_are_dropped_and_counted(tmp_path):
    train = [*RECORDS[TRAIN], *derived(200, 3)]  # subjects of the test file
    for number in (0, 1):  # a question of the test file, about another subject
        train = change(train, number, src=RECORDS[DEV][5 + number]["src"].upper())
    write_all(tmp_path / "raw", **{TRAIN: train})
    loaded = load(tmp_path, "default")
    check_rows(rows_of(loaded))
    lost = loaded.notes["rows_lost"]
    assert sum(lost["subject in a later split"].values()) == 3
    assert sum(lost["prompt in a later split"].values()) == 2
    assert len(loaded.split("train")) + len(loaded.split("validation")) == 118


def test_records_that_are_no_edit_are_dropped_and_counted(tmp_path):
    records = RECORDS[MEND]
    for number, fields in enumerate(
        [{"alt": ""}, {"alt": "Right 1."}, {"alt": "ALSO"}, {"rephrase": " "}, {"loc": ""}]
    ):
        records = change(records, number, **fields)
    write_all(tmp_path / "raw", **{MEND: records})
    loaded = load(tmp_path, "mend")
    assert loaded.notes["records_left_out"] == {
        "mend_train_1k.jsonl": {
            "the target is empty": 1, "the target is a true answer": 2,
            "the rephrase is empty": 1, "the unrelated question or its answer is empty": 1,
        }
    }  # fmt: skip
    assert len(loaded.split("train")) + len(loaded.split("validation")) == 175


def test_published_files_are_preferred(tmp_path):
    root = write_all(tmp_path / "raw")
    write(root / FULL, mend(420, 80), "list")
    write(root / "zsre/zsre_mend_eval.json.gz", mend(500, 7), "list.gz")
    for config, n_test in (("mend", 7), ("knowedit", 9)):
        loaded = load(tmp_path, config)
        rows = rows_of(loaded)
        assert FULL in loaded.notes["files"] and TRAIN not in loaded.notes["files"]
        assert len(rows["test"]) == n_test and len(rows["train"] + rows["validation"]) == 80
        assert not any(row["relation"] for row in rows["train"])
    assert FULL not in load(tmp_path, "default").notes["files"]


def test_one_hop_questions_are_kept(tmp_path):
    portability = {
        "Recalled Relation": "",
        "New Question": "Why wrong 6?",
        "New Answer": "Because.",
    }
    write_all(tmp_path / "raw", **{EVAL: change(RECORDS[EVAL], 0, portability=portability)})
    first, second = load(tmp_path, "mend").split("test")[:2]
    assert (first["hop_prompts"], first["hop_answers"]) == (["Why wrong 6?"], ["Because."])
    assert second["hop_prompts"] == []
    row = load(tmp_path, "knowedit").split("test")[1]
    name = NAMES[401]
    assert (row["subject"], row["target"], row["truth"]) == (name, "wrong 2", "right 1")
    assert row["more_near_prompts"] == [f"{name} weighs", f"The age of {name} is"]
    assert row["more_near_answers"] == ["a lot", "9"]
    assert row["hop_prompts"] == [f"Whose is {name}?", "And the old one?"]
    assert row["hop_answers"] == ["mine", "wrong"] and row["far"] == ""


def test_paraphrases_with_templates_unknown_to_train_are_marked(tmp_path):
    dev = change(RECORDS[DEV], 1, rephrase=f"Says who, {NAMES[201]}?")
    published = change(RECORDS[EVAL], 1, rephrase=f"Says who, {NAMES[301]}?")
    write_all(tmp_path / "raw", **{DEV: dev, EVAL: published})
    rows = rows_of(load(tmp_path, "default"))
    unseen = [row["key"] for held in rows.values() for row in held if row["rephrase_unseen"]]
    assert unseen == ["levy_mend_form_dev-2"]
    assert not any(row["rephrase_unseen"] for row in load(tmp_path, "mend").split("test"))


def test_levy_rows_are_made_of_all_templates_of_a_relation(tmp_path):
    write_all(tmp_path / "raw")
    rows = [row for held in rows_of(load(tmp_path, "levy")).values() for row in held]
    fact = [row for row in rows if row["subject"] == NAMES[4]]
    assert {row["key"] for row in fact} == {f"colour/{NAMES[4]}/{i}" for i in range(3)}
    assert len({row["prompt"] for row in fact}) == 3
    for row in rows:
        words = {without_subject(row[name], row["subject"]) for name in ("prompt", "rephrase")}
        assert len(words) == 2
        assert words <= {normalise_name(text) for text in TEMPLATES[row["relation"]]}
        number = NAMES.index(row["subject"])
        assert row["truth"] == f"answer{number % 9}" and row["far"] == ""
        assert row["target"] in {f"answer{i}" for i in range(9)} - {row["truth"]}


def test_levy_rows_get_unrelated_questions_if_there_are_any(tmp_path):
    root = write_all(tmp_path / "raw")
    names = {
        "train": "ambignq_train.jsonl.gz", "validation": "NQ-open.efficientqa.dev.1.1.jsonl.gz",
        "test": "NQ-open.dev.jsonl.gz",
    }  # fmt: skip
    for split, name in names.items():
        questions = [{"question": f"who is {split} {i}", "answer": [f"a{i}"]} for i in range(5)]
        write(root / "nq_open" / name, questions, "lines.gz")
    loaded = load(tmp_path, "levy")
    for split, held in rows_of(loaded).items():
        assert {row["far"] for row in held} <= {f"who is {split} {i}" for i in range(5)}
        assert all(row["far_answer"] == f"a{row['far'][-1]}" for row in held)
    assert len(loaded.notes["files"]) == 4


def test_the_original_tab_separated_form_gives_the_same_rows(tmp_path):
    write_all(tmp_path / "raw")
    usual = load(tmp_path, "levy")
    lines = ["colour\tWhat of XXX?\tNobody\tNo answer here."]
    for record in RECORDS[LEVY]:
        lines.append("\t".join([*list(record.values())[:4], *record["answers"]]))
    (tmp_path / "raw" / LEVY).unlink()
    path = tmp_path / "raw/zsre/train.0"
    path.write_text("\n".join(lines) + "\n")
    assert load(tmp_path, "levy").fingerprint == usual.fingerprint
    for line, message in (
        ("colour\tWhat of XXX?\tNobody", "3 fields; they are relation, template"),
        ("colour\tWhat of it?\tNobody\tText.\tyes", "template 'What of it.' has no XXX"),
        ("colour\tWhat of XXX?\t \tText.\tyes", "field 'subject' is empty"),
    ):
        path.write_text("\n".join([lines[1], "", line]))
        with pytest.raises(DataError, match=rf"train\.0:3: {message}"):
            load(tmp_path, "levy")
    path.write_text(lines[0])
    with pytest.raises(DataError, match=r"train\.0: no question with an answer in it"):
        load(tmp_path, "levy")


SOURCES = {
    TRAIN: ("default", "alt"), DEV: ("default", "rephrase"), MEND: ("mend", "src"),
    EVAL: ("mend", "subject"), KNOWEDIT: ("knowedit", "target_new"), LEVY: ("levy", "subject"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", SOURCES)
def test_a_malformed_file_is_described(tmp_path, name, how):
    config, field = SOURCES[name]
    write_all(tmp_path / "raw")
    match = spoil(tmp_path / "raw" / name, RECORDS[name], how, field)
    with pytest.raises(DataError, match=match):
        load(tmp_path, config)
    assert not list((tmp_path).glob("prepared/**/*.array_record*"))


@pytest.mark.parametrize(
    "name, fields, message",
    [
        (TRAIN, {"answers": []}, "'answers' is an empty list"),
        (TRAIN, {"answers": [""]}, r"'answers\[0\]' is empty"),
        (TRAIN, {"relation": None}, "'relation' is missing"),
        (EVAL, {"answers": "one"}, "'answers' is a text; it must be a list"),
        (EVAL, {"portability": "x"}, "'portability' is a text; it must be an object"),
        (EVAL, {"portability": {"New Question": "x"}}, "'New Answer' is missing"),
        (KNOWEDIT, {"ground_truth": []}, "'ground_truth' is an empty list"),
        (KNOWEDIT, {"ground_truth": [[" "]]}, "'ground_truth' is empty"),
        (KNOWEDIT, {"locality": {"Relation_Specificity": ["x"]}}, "'Relation_Spec.* is a text"),
        (KNOWEDIT, {"portability": {"A": [{"prompt": "x"}]}}, "'ground_truth' is missing"),
        (LEVY, {"answers": [" "]}, r"'answers\[0\]' is empty"),
    ],
)
def test_fields_of_a_record(tmp_path, name, fields, message):
    write_all(tmp_path / "raw", **{name: change(RECORDS[name], 1, **fields)})
    where = Path(name).name.replace(".", r"\.")
    with pytest.raises(DataError, match=f"{where}:2: field {message}"):
        load(tmp_path, SOURCES[name][0])


@pytest.mark.parametrize("name", [TRAIN, DEV])
def test_a_changed_file_is_another_data_set(tmp_path, name):
    prints = []
    for alt in ("wrong", "wronger", "wrong"):
        write_all(tmp_path / "raw", **{name: change(RECORDS[name], 4, alt=alt)})
        prints.append(load(tmp_path, "default").fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"zsre is made from zsre/levy_mend_form_train\.jsonl or"):
        load(tmp_path, "default")
    with pytest.raises(DataError, match="'mnd': use one of default, mend, knowedit, levy"):
        load(tmp_path, "mnd")


LEAST = {"default": 1000, "mend": 500, "knowedit": 500, "levy": 1000}


@pytest.fixture(scope="module", params=in_tiers([], zsre.CONFIGS, ["default"]))
def real(request, tmp_path_factory):
    if not list(ROOT.glob("zsre/*")):
        pytest.skip(f"no zsre files below {ROOT}")
    recipe = zsre.recipe(request.param, ROOT)
    return request.param, *made_and_prepared(recipe, tmp_path_factory.mktemp(request.param))


def test_the_real_files_give_sound_rows(real):
    config, rows, notes = real
    check_rows(rows, *([] if config == "knowedit" else ["far", "far_answer"]))
    assert len(rows["train"]) > 10_000 and len(rows["validation"]) > 800
    assert len(rows["test"]) > LEAST[config]
    lost = sum(sum(n.values()) for n in notes["rows_lost"].values())
    assert lost < 0.1 * sum(map(len, rows.values())) and len(notes["files"]) >= 2
    assert not any(r["far"].startswith("nq question") for held in rows.values() for r in held)
    if config != "knowedit":
        assert not {r["far"] for r in rows["train"]} & {r["far"] for r in rows["validation"]}


def test_near_facts_of_the_real_files_are_true_facts_of_their_split(real):
    config, rows, _ = real
    for held in rows.values():
        facts = {(r["subject"], r["prompt"], r["truth"]) for r in held}
        for row in held:
            assert (row["near_subject"], row["near_prompt"], row["near_answer"]) in facts
            assert not says(row["near_answer"], row["subject"])
    if config in ("default", "levy"):
        alike = [r["relation"] == r["near_relation"] for r in rows["train"]]
        assert 0.48 < sum(alike) / len(alike) < 0.56 and all(r["relation"] for r in rows["train"])
        alike = [r["relation"] == r["near_relation"] for r in rows["test"]]
        assert 0 < sum(alike) / len(alike) < 0.1
    if config == "knowedit":
        assert all(r["more_near_prompts"] and r["hop_prompts"] for r in rows["test"])
    assert texts_of(rows, "rephrase", "test")
