"""Runs and their data: a checkpoint identifies its data by content, not by place."""

import json
import shutil

import pytest
from support.tiny import save_tiny
from test_train_and_evaluate import arguments, run

from mend_jax import data
from mend_jax.apps.run_command import parse
from mend_jax.apps.train_and_evaluate import describe_data
from mend_jax.data.encoded_rows import HARD_SETS
from mend_jax.errors import CheckpointError, DataError
from mend_jax.training import checkpoints
from mend_jax.training.assembly import open_experiment
from mend_jax.training.config import load_config


def write_facts(path, n=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"prompt": f"Town {i} lies in", "target": f"land {i % 7}", "subject": f"Town {i}",
         "rephrases": [f"Where is town {i}? In", f"Town {i}, of"]}
        for i in range(n)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)


def settings(root, **more):
    return {"data.name": "facts/towns.jsonl", "data.dir": root, "train.steps": 2,
            "train.val_every": 2, "eval.edits": 4, "train.val_edits": 4,
            "eval.baselines.fine_tune.edits": 2, **more}  # fmt: skip


@pytest.mark.full
def test_a_changed_data_file_is_another_data_set_to_a_checkpoint(base, tmp_path):
    file = write_facts(tmp_path / "data/facts/towns.jsonl")
    results = run(base, tmp_path / "run", **settings(tmp_path / "data"))
    manager = checkpoints.open_manager(tmp_path / "run/checkpoints", read_only=True)
    kept = checkpoints.restore_meta(manager, manager.latest_step())["data"]
    assert kept == results["data"]["fingerprint"]
    assert results["eval"]["more_paraphrases"]["n"] == results["eval"]["n"]
    (tmp_path / "run/results.json").unlink()
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    file.write_text(file.read_text().replace("land 3", "land 8", 1))
    with pytest.raises(CheckpointError, match=f"another data set: its fingerprint is {kept}, this"):
        run(base, tmp_path / "run", **settings(tmp_path / "data"))
    # The same data in another place is the same data.
    again = run(base, tmp_path / "run", **settings(tmp_path / "elsewhere"))
    assert again["data"]["fingerprint"] == kept
    assert again["eval"]["edit"] == results["eval"]["edit"]


@pytest.mark.parametrize("together", [1, 2])
def test_edits_that_do_not_fit_are_not_counted(base, tmp_path, together):
    """A third of the targets is too long; the data has 11 test facts that fit."""
    file = write_facts(tmp_path / "data/facts/towns.jsonl", n=200)
    file.write_text(file.read_text().replace("land 3", "land " * 9).replace("land 4", "l" * 40))
    for wanted in (10, 10_000):
        sizes = {"eval.edits": wanted, "train.val_edits": 12, "data.train_edits": 31}
        more = sizes | {"data.edits_per_batch": together, "train.edit_from_paraphrase": False}
        flags = arguments(base, tmp_path / "run", **settings(tmp_path / "data", **more))
        experiment = open_experiment(parse(flags)[0])
        found = [len(experiment.validation), len(experiment.train), len(experiment.test)]
        left_out = sum(experiment.test.encoded.dropped.values())
        if wanted == 10:
            assert found == [12, 31, 10] and left_out > 0
            few = {experiment.test.rows[i]["key"] for i in experiment.test.encoded.index}
        else:  # all that there are
            all_rows = experiment.dataset.split("test")
            assert 10 < found[2] == len(all_rows) - left_out
            assert few < {experiment.test.rows[i]["key"] for i in experiment.test.encoded.index}


def test_too_few_training_facts_are_refused_before_compute(base, tmp_path):
    write_facts(tmp_path / "data/facts/towns.jsonl", n=8)
    with pytest.raises(DataError, match="has no split 'train'"):
        run(base, tmp_path / "run", **settings(tmp_path / "data"))


def test_missing_raw_data_is_named(base, tmp_path):
    with pytest.raises(DataError, match="set --config.data.dir .or MEND_DATA_DIR"):
        run(base, tmp_path / "run", **settings(tmp_path, **{"data.name": "zsre"}))
    with pytest.raises(DataError, match="zsre is made from .*no data root is known"):
        run(base, tmp_path / "run", **settings("", **{"data.name": "zsre"}))
    with pytest.raises(DataError, match="fever is for classifier models.*causal model"):
        (tmp_path / "fever").mkdir()
        for name in ("train", "eval"):
            rows = [
                {"id": i, "claim": f"Claim {name} {i}.", "label": "SUPPORTS",
                 "evidence_pages": [f"{name}_{i}"]} for i in range(400)
            ]  # fmt: skip
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"fever/{name}.jsonl").write_text(text)
        run(base, tmp_path / "run", **settings(tmp_path, **{"data.name": "fever"}))


@pytest.mark.slow
def test_test_edits_have_hard_texts_unless_they_are_switched_off(base, tmp_path):
    """They come from the test split, follow its edits, and change neither data nor identity."""
    identities = []
    for count in (3, 0):
        more = {"eval.hard_neighbours": count, "data.train_edits": 4, "train.val_edits": 2}
        experiment = open_experiment(parse(arguments(base, tmp_path, **more))[0])
        identity = experiment.identity()
        identities.append({k: identity[k] for k in ("base", "data", "weights")})
        texts = {**experiment.test.encoded.texts}
        assert not set(HARD_SETS) & set(experiment.train.encoded.texts)
        assert set(HARD_SETS) & set(texts) == (set(HARD_SETS) if count else set())
        if count:
            assert texts["hard_near"].batch_shape == texts["hard_target"].batch_shape == (6, 3)
            few = experiment.subset(experiment.test, 2)
            assert few.encoded.texts["hard_near"].batch_shape == (2, 3)
            wordings = [r["prompt"].replace(r["subject"], "{}") for r in experiment.test.rows]
            subjects = {r["subject"] for r in experiment.dataset.split("test")}
            for row, wording in zip(experiment.test.rows, wordings, strict=True):
                head, _, tail = wording.partition("{}")
                for prompt in row["hard_near_prompts"]:
                    assert prompt.removeprefix(head).removesuffix(tail) in subjects
    assert identities[0] == identities[1]


def test_test_edits_have_the_references_of_their_answers(base, tmp_path):
    write_facts(tmp_path / "data/facts/towns.jsonl", 200)
    file = tmp_path / "references.jsonl"
    file.write_text('{"target": "land 3", "texts": ["Ys lies in land 3."]}\n')
    given = settings(tmp_path / "data", **{"eval.references": str(file), "eval.edits": 30})
    experiment = open_experiment(parse(arguments(base, tmp_path, **given))[0])
    wanted = {True: ["Ys lies in land 3."], False: []}
    rows = experiment.test.rows
    assert all(row["references"] == wanted[row["target"] == "land 3"] for row in rows)
    assert any(row["references"] for row in rows)
    file.write_text('{"target": "land 9", "texts": ["Is lies in land 9."]}\n')
    with pytest.raises(DataError, match="has no text for any new answer of facts/towns"):
        open_experiment(parse(arguments(base, tmp_path, **given))[0])


def test_training_rows_of_more_data_sets_are_added(base, tmp_path):
    towns = write_facts(tmp_path / "data/facts/towns.jsonl", 30)
    rivers = towns.read_text().replace("Town", "River").replace("town", "river")
    (tmp_path / "data/facts/rivers.jsonl").write_text(rivers)
    config = load_config("quickstart.py:lean")
    config.model.spec, config.train.val_edits, config.eval.edits = str(base), 4, 4
    config.data.update(
        dict(
            name="facts/towns.jsonl",
            dir=str(tmp_path / "data"),
            train_edits=0,
            max_len=48,
            max_target=12,
        )
    )
    config.eval.max_new_tokens = 12
    alone = open_experiment(config)
    config.data.more_train = ("facts/rivers.jsonl",)
    both = open_experiment(config)
    n = len(alone.train)
    more = len(data.load("facts/rivers.jsonl", str(tmp_path / "data")).split("train"))
    assert more > 10 and len(both.test) == len(alone.test)
    first = [row["prompt"].split()[0] for row in both.train.rows]
    assert first == ["Town"] * n + ["River"] * more
    assert all(row["prompt"].startswith("Town") for row in both.validation.rows)
    assert both.identity()["data"].split("+")[0] == alone.identity()["data"].split("+")[0]
    assert both.identity() != alone.identity()
    assert "facts" in describe_data(both)["name"] and "+" in describe_data(both)["name"]
