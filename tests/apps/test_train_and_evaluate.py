"""Whole runs on a tiny random base: their files, resuming, and what is refused.

That a run which was killed ends as one that was not is in test_preemption_soak.py.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.apps.run_command import parse
from mend_jax.core.factors import Moments
from mend_jax.errors import CheckpointError, ConfigError, DataError, Preempted, TrainingError
from mend_jax.parallel.mesh import make_mesh
from mend_jax.training import checkpoints, pretrained
from mend_jax.training import config as configs

SETTINGS = {
    "data.name": "world_facts/offline", "data.train_edits": 48, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 24, "data.length_buckets": (), "train.steps": 6,
    "train.step_size_lr": 0.3,  # so that six steps lower the loss by more than CPUs differ
    "train.edits_per_step": 4, "train.val_every": 3, "train.val_edits": 8,
    "train.checkpoint_every": 2, "train.log_every": 1, "train.doctor": False, "eval.edits": 6,
    "eval.edits_per_step": 4, "eval.max_new_tokens": 24, "eval.examples": 4,
    "eval.hard_neighbours": 0,  # see tests/evaluation/test_evaluate_hard_texts.py
    "editor.options.rank": 8, "eval.baselines.fine_tune.max_steps": 3,
    "eval.baselines.fine_tune.edits_per_step": 4,
}  # fmt: skip


def arguments(base, workdir, **extra):
    edited = {"model.last_n_blocks": 2, "model.edit_roles": ("mlp/down",)}
    settings = {"model.spec": base} | edited | SETTINGS | extra
    return ["--config=quickstart.py", f"--workdir={workdir}"] + [
        f"--config.{k}={v}" for k, v in settings.items()
    ]


def run(base, workdir, **extra):
    return mend_jax.train_and_evaluate(*parse(arguments(base, workdir, **extra)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("run")
    run(base, workdir)
    return workdir


def steady(results):
    """Return what is equal between two equal runs: all but times and memory."""
    drop = {"seconds_per_edit", "peak_memory_bytes", "seconds_total", "seconds", "input_seconds"}
    if isinstance(results, dict):
        return {k: steady(v) for k, v in results.items() if k not in drop}
    return results


def test_a_run_writes_the_documented_files(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"} <= names
    assert {"summary.png", "training.png", "tradeoff.png", "success.png"} <= names
    results = json.loads((finished / "results.json").read_text())
    for entry in (results["eval"], results["baselines"]["fine_tune"]):
        for name in ("edit", "paraphrase"):
            keys = {"success_exact", "success_token", "success_generated", "nll"}
            assert keys <= entry[name].keys() and keys <= entry[name]["before"].keys()
        both = (entry["edit"]["success_exact"] + entry["paraphrase"]["success_exact"]) / 2
        assert entry["success"] == pytest.approx(both)
        for name in ("kl", "argmax_agreement", "accuracy_drawdown", "perplexity_drawdown"):
            assert np.isfinite(entry["locality"][name])
        assert entry["n"] == 6 and entry["seconds_per_edit"] > 0
    assert results["eval"]["peak_memory_bytes"] > 1e8
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in lines if x["kind"] == "validation"] == [3, 6]
    cards = json.loads((finished / "examples.json").read_text())
    assert cards and all(card["good"] or card["fault"] in card["faults"] for card in cards)
    assert results["training"]["input_seconds"] < 0.5 * results["training"]["seconds"]


def test_training_lowers_the_meta_loss(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    first, last = [x["loss"] for x in lines if x["kind"] == "validation"]
    assert last < first


def test_a_finished_run_only_writes_its_report(base, finished, capsys):
    before = (finished / "results.json").read_bytes()
    (finished / "report.html").unlink()
    run(base, finished)
    assert (finished / "results.json").read_bytes() == before
    assert (finished / "report.html").exists()
    assert "is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_evaluation_continues(base, finished, tmp_path, monkeypatch):
    calls = []

    def stop_at_the_second(stop, steps, workdir):
        def between():
            calls.append(workdir)
            if len(calls) == 2:
                raise Preempted("stop requested in evaluation")

        return between

    with monkeypatch.context() as patch:
        patch.setattr("mend_jax.apps.train_and_evaluate.stop_check", stop_at_the_second)
        with pytest.raises(Preempted):
            run(base, tmp_path)
    first = (tmp_path / "edits.jsonl").read_text()
    assert len(first.splitlines()) == 2 and not (tmp_path / "results.json").exists()
    with (tmp_path / "edits.jsonl").open("a") as file:
        file.write('{"index": [4, ')  # cut off
    monkeypatch.setattr(
        "mend_jax.apps.train_and_evaluate.stop_check", lambda *_: lambda: calls.append(1)
    )
    run(base, tmp_path)
    assert (tmp_path / "edits.jsonl").read_text().startswith(first)
    assert len(calls) == 2 + 1 + 2  # one batch of the editor was left, and two of the baseline
    for name in ("edits.jsonl", "edits_fine_tune.jsonl", "examples.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    ours, theirs = (
        steady(json.loads((d / "results.json").read_text())) for d in (tmp_path, finished)
    )
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["", "code", "base", "learned"])
def test_saved_scores_of_another_editor_or_code_are_not_used(
    base, finished, tmp_path, monkeypatch, changed
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results.json").unlink()
    for path in tmp_path.glob("edits*.jsonl"):
        head, *rest = map(json.loads, path.read_text().splitlines())
        head["edits"] |= {changed: "another"} if changed else {}
        path.write_text("".join(json.dumps(line) + "\n" for line in (head, *rest)))
    calls = []
    monkeypatch.setattr(
        "mend_jax.apps.train_and_evaluate.stop_check", lambda *_: lambda: calls.append(1)
    )
    run(base, tmp_path)
    assert len(calls) == (4 if changed else 0)
    for name in ("edits.jsonl", "edits_fine_tune.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_an_editor_is_restored_with_its_base(finished, base):
    editor = mend_jax.Editor.restore(finished)
    edit = editor.edit([("The capital of France is", "Lyon"), ("One and one is", "three")])
    assert edit.base == editor.model.fingerprint
    assert edit.facts == (("The capital of France is", "Lyon"), ("One and one is", "three"))
    plain = editor.model.generate(["The capital of France is"], 5)
    edited = editor.model.with_edit(edit.scale(50.0)).generate(["The capital of France is"], 5)
    assert plain != edited
    assert editor.model.generate(["The capital of France is"], 5) == plain
    assert (
        editor.model.with_edit(None).generate("The capital", 3)
        == editor.model.generate(["The capital"], 3)[0]
    )


def test_invalid_facts_are_refused(finished):
    editor = mend_jax.Editor.restore(finished)
    with pytest.raises(DataError, match="no facts"):
        editor.edit([])
    with pytest.raises(DataError, match="'target' is empty"):
        editor.edit([("The capital of France is", " ")])
    with pytest.raises(DataError, match="the model.s context of 160.*has 502 tokens"):
        editor.edit([("x" * 500, "y")])
    for bad in (["ab"], ("The capital of France is", "Lyon"), [("a", "b", "c")]):
        with pytest.raises(DataError, match="pair 1"):
            editor.edit(bad)
    with pytest.raises(DataError, match="context of 160"):
        editor.model.generate("x" * 155, 10)
    with pytest.raises(DataError, match="has no tokens"):
        editor.model.generate("", 3)


def test_another_base_is_refused(finished, base, tmp_path):
    other = mend_jax.load_model(str(save_tiny(tmp_path / "other", seed=1)), last_n_blocks=2)
    with pytest.raises(CheckpointError, match=f"another base model.*{other.fingerprint}"):
        mend_jax.Editor.restore(finished, other)
    edit = mend_jax.Editor.restore(finished).edit([("a", "b")])
    with pytest.raises(CheckpointError, match=other.fingerprint):
        other.with_edit(edit)
    shallow = mend_jax.load_model(str(base), last_n_blocks=1)
    with pytest.raises(CheckpointError, match="edits .*block_2/mlp/down.*last_n_blocks"):
        mend_jax.Editor.restore(finished, shallow)
    with pytest.raises(CheckpointError, match="block_2/mlp.*last_n_blocks"):
        shallow.with_edit(edit)


def test_another_config_is_refused(base, finished):
    with pytest.raises(CheckpointError, match=r"seed was 0, is 1"):
        run(base, finished, seed=1)


@pytest.mark.full
def test_a_trained_editor_is_evaluated_again_in_another_folder(base, finished, tmp_path):
    """`editor.init_from` without steps evaluates the editor of another run."""
    again = {"editor.init_from": finished, "train.steps": 0, "eval.edits_per_step": 3}
    results = run(base, tmp_path / "again", **again)
    before = json.loads((finished / "results.json").read_text())["eval"]
    assert results["training"]["steps"] == 0
    assert results["eval"]["edit"]["nll"] == pytest.approx(before["edit"]["nll"], rel=1e-5)
    assert results["eval"]["locality"]["kl"] == pytest.approx(before["locality"]["kl"], rel=1e-3)
    come_back = mend_jax.Editor.restore(tmp_path / "again")
    theirs = mend_jax.Editor.restore(finished)
    for mine, old in zip(*map(jax.tree.leaves, (come_back.params, theirs.params)), strict=True):
        np.testing.assert_array_equal(mine, old)


@pytest.mark.slow
def test_a_run_starts_from_the_editor_of_another(base, finished, tmp_path):
    """A step at a tiny learning rate keeps the parameters; statistics include its rows."""
    more = {"editor.init_from": finished, "train.steps": 1, "train.val_every": 1}
    run(base, tmp_path, **more, **{"train.lr": 1e-12, "train.step_size_lr": 1e-12})
    mine, theirs = (mend_jax.Editor.restore(d) for d in (tmp_path, finished))
    for new, old in zip(*map(jax.tree.leaves, (mine.params, theirs.params)), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-9)
    counts = [min(m.count for m in _moments(editor.state)) for editor in (theirs, mine)]
    assert 0 < counts[0] < counts[1]


@pytest.mark.slow
def test_a_run_starts_from_the_shipped_editor(base, finished, tmp_path, monkeypatch):
    load = functools.partial(mend_jax.Editor.restore, finished)
    monkeypatch.setattr(pretrained, "load", load)  # none is shipped for a tiny base
    run(base, tmp_path, **{"editor.init_from": "shipped", "train.steps": 0})
    mine, theirs = (mend_jax.Editor.restore(d) for d in (tmp_path, finished))
    for new, old in zip(*map(jax.tree.leaves, (mine.params, theirs.params)), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.full
def test_statistics_restart_if_the_number_of_facts_changes(base, finished, tmp_path):
    more = {"editor.init_from": finished, "train.steps": 1, "train.val_every": 1}
    run(base, tmp_path, **more, **{"data.edits_per_batch": 2, "train.lr": 1e-12})
    mine, theirs = (mend_jax.Editor.restore(d) for d in (tmp_path, finished))
    counts = [min(m.count for m in _moments(editor.state)) for editor in (theirs, mine)]
    assert 0 < counts[1] < counts[0]
    evaluated = {"editor.init_from": finished, "train.steps": 0, "data.edits_per_batch": 2}
    run(base, tmp_path / "evaluated", **evaluated)  # as it was trained
    same = mend_jax.Editor.restore(tmp_path / "evaluated")
    assert min(m.count for m in _moments(same.state)) == counts[0]


@pytest.mark.slow
def test_a_run_starts_with_scaled_step_sizes(base, finished, tmp_path):
    more = {"editor.init_from": finished, "editor.init_step_size_scale": 0.5, "train.steps": 0}
    run(base, tmp_path, **more)
    mine, theirs = (mend_jax.Editor.restore(d) for d in (tmp_path, finished))
    halves = jax.tree.map(lambda log: log + np.log(0.5), theirs.params["scale_by_layer_lr"])
    wanted = {**theirs.params, "scale_by_layer_lr": halves}
    for new, old in zip(*map(jax.tree.leaves, (mine.params, wanted)), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6)


def test_a_scale_needs_an_editor_to_start_from(base, tmp_path):
    with pytest.raises(
        ConfigError, match="editor.init_step_size_scale is 0.5 and editor.init_from is empty"
    ):
        run(base, tmp_path, **{"editor.init_step_size_scale": 0.5})


@pytest.mark.full
def test_the_trunk_cache_changes_no_result(base, tmp_path, monkeypatch, capsys):
    """Five epochs of eight rows, without a trunk from the second on."""
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    few = {"data.train_edits": 8, "train.steps": 10, "train.val_every": 10}
    found = []
    for kind in ("", "disk"):
        run(base, tmp_path / f"run{kind}", **few, **{"train.trunk_cache": kind})
        lines = (tmp_path / f"run{kind}" / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    for plain, kept in zip(*found, strict=True):
        assert kept.pop("kind") == plain.pop("kind")
        # A KL of 1e-3 is a difference of log-probabilities of about 6, whose float32 have 5e-7.
        assert kept == pytest.approx(plain, rel=1e-6, abs=1e-7)
    assert "trunk cache: 128 of 160 rows were found in it" in capsys.readouterr().err


def test_a_start_with_other_options_is_refused(base, finished, tmp_path):
    with pytest.raises(CheckpointError, match="editor.init_from.*has other parameters"):
        run(base, tmp_path, **{"editor.init_from": finished, "editor.options.rank": 4})


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run.*python -m mend_jax.main"):
        mend_jax.Editor.restore(tmp_path)


def test_an_unwritable_workdir_is_refused(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run("nowhere", tmp_path / "file" / "sub")


def test_a_damaged_checkpoint_is_named(base, finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read.*move that folder away"):
        mend_jax.Editor.restore(tmp_path / "run")


@pytest.mark.slow
def test_a_non_finite_loss_ends_training_with_the_last_good_state(base, tmp_path):
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*rows of that batch: \[\d+, .*kept"):
        wrong = {"editor.options.step_size": 1e30, "train.max_non_finite_steps": 1}
        run(base, tmp_path, **wrong, **{"model.edit_roles": ()})
    manager = checkpoints.open_manager(tmp_path / "checkpoints", read_only=True)
    assert manager.latest_step() == 0
    assert checkpoints.restore_meta(manager, 0)["data_state"] == {"next_index": 0}
    assert not (tmp_path / "results.json").exists()


def test_a_non_finite_validation_loss_never_ranks_a_checkpoint(tmp_path):
    manager = checkpoints.open_manager(tmp_path / "c")
    checkpoints.save(manager, 1, {"x": jnp.ones(2)}, {}, 1.0)
    with pytest.raises(ValueError, match="cannot rank step 2"):
        checkpoints.save(manager, 2, {"x": jnp.ones(2)}, {}, float("nan"))
    for number, loss in ((2, 3.0), (3, None), (4, 2.0), (5, None)):
        checkpoints.save(manager, number, {"x": jnp.ones(2)}, {}, loss)
    assert manager.best_step() == 1
    assert sorted(manager.all_steps()) == [1, 4, 5]


@pytest.mark.slow
def test_the_kept_checkpoint_is_evaluated_and_restored(base, tmp_path, monkeypatch):
    kept = {}
    for keep, step in (("best", 3), ("last", 6)):
        losses = iter([1.0, 2.0])  # the first validation is the best
        monkeypatch.setattr(
            "mend_jax.training.run_training.validate",
            lambda *_, at=losses, **__: {"loss": next(at)},
        )
        training = run(base, tmp_path / keep, **{"train.keep_checkpoint": keep})["training"]
        assert (training["best_step"], training["kept_step"]) == (3, step)
        kept[keep] = mend_jax.Editor.restore(tmp_path / keep)
    seen = {k: sum(int(m.count) for m in _moments(e.state)) for k, e in kept.items()}
    assert 0 < seen["best"] < seen["last"]


def _moments(state):
    is_moments = lambda x: isinstance(x, Moments)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_moments) if is_moments(x)]


@pytest.mark.full
def test_rows_that_never_fit_are_refused_before_compute(base, tmp_path):
    with pytest.raises(DataError, match="none of the .* rows can be used.*data.max_target"):
        run(base, tmp_path, **{"data.max_target": 1})
    with pytest.raises(ConfigError, match="context of 160"):
        run(base, tmp_path, **{"data.max_len": 140})


def test_a_mesh_that_does_not_fit_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="needs 16 devices; there are 8"):
        make_mesh(dict(data=16))
    with pytest.raises(ConfigError, match="train.edits_per_step is 4, not a multiple of the 8"):
        run(base, tmp_path, **{"mesh.data": 8})


def test_the_config_is_saved_with_the_run(finished):
    kept = json.loads((finished / "config.json").read_text())
    assert kept["train"]["steps"] == 6
    assert kept == configs.to_json_dict(parse(arguments(Path(kept["model"]["spec"]), finished))[0])
