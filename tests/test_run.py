"""Whole runs on a tiny random base: the contract of files, resume, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, save_tiny, tiny

import mend_jax
from mend_jax import checkpoint
from mend_jax import config as configs
from mend_jax.editors import make_editor
from mend_jax.errors import CheckpointError, ConfigError, DataError, TrainingError
from mend_jax.evaluate import says
from mend_jax.main import parse
from mend_jax.mesh import make_mesh, replicate, shard_batch
from mend_jax.objective import meta_loss
from mend_jax.optimizer import make_optimizer
from mend_jax.train import Record, init_state, make_train_step, success_weight

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "data.name": "world_facts/offline", "data.train_edits": 48, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 24, "train.steps": 6, "train.edits_per_step": 4,
    "train.val_every": 3, "train.val_edits": 8, "train.checkpoint_every": 2,
    "train.log_every": 1, "eval.edits": 6, "eval.edits_per_step": 4, "eval.max_new_tokens": 24,
    "eval.examples": 4, "editor.options.rank": 8, "eval.baselines.fine_tune.max_steps": 3,
    "eval.baselines.fine_tune.edits_per_step": 4,
}  # fmt: skip


def arguments(base, workdir, **extra):
    settings = {"model.spec": base, "model.last_n_blocks": 2} | SETTINGS | extra
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
    """What must be equal between two equal runs: everything but times and memory."""
    drop = {"seconds_per_edit", "peak_memory_bytes", "seconds_total", "seconds"}
    if isinstance(results, dict):
        return {k: steady(v) for k, v in results.items() if k not in drop}
    return results


def test_a_run_leaves_the_files_of_the_contract(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"} <= names
    assert {"summary.png", "training.png", "tradeoff.png", "success.png"} <= names
    results = json.loads((finished / "results.json").read_text())
    for entry in (results["eval"], results["baselines"]["fine_tune"]):
        for name in ("edit", "rephrase"):
            keys = {"success_exact", "success_token", "success_generated", "nll"}
            assert keys <= entry[name].keys() and keys <= entry[name]["before"].keys()
        both = (entry["edit"]["success_exact"] + entry["rephrase"]["success_exact"]) / 2
        assert entry["success"] == pytest.approx(both)
        for name in ("kl", "argmax_agreement", "accuracy_drawdown", "perplexity_drawdown"):
            assert np.isfinite(entry["locality"][name])
        assert entry["n"] == 6 and entry["seconds_per_edit"] > 0
    assert results["eval"]["peak_memory_bytes"] > 1e8
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in lines if x["kind"] == "validation"] == [3, 6]
    assert len(json.loads((finished / "examples.json").read_text())) == 4


def test_training_lowers_the_meta_loss(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    first, last = [x["loss"] for x in lines if x["kind"] == "validation"]
    assert last < first


def test_a_finished_run_only_reports(base, finished, capsys):
    before = (finished / "results.json").read_bytes()
    (finished / "report.html").unlink()
    run(base, finished)
    assert (finished / "results.json").read_bytes() == before
    assert (finished / "report.html").exists()
    assert "is finished" in capsys.readouterr().err


@pytest.fixture(scope="module")
def command_line_run(base, tmp_path_factory):
    """An undisturbed run in a process of its own."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(base, workdir)
    assert process.wait(timeout=600) == 0, (workdir / "stderr").read_text()
    return workdir


def start(base, workdir):
    """The command in a process of its own; what it says goes to WORKDIR/stderr."""
    with (Path(workdir) / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "mend_jax.main", *arguments(base, workdir)],
            cwd=ROOT,
            stderr=stderr,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )


@pytest.mark.parametrize("after_step", [2, 4])
def test_kill_nine_and_resume_is_bit_for_bit(base, command_line_run, tmp_path, after_step):
    process = start(base, tmp_path)
    log, saved = tmp_path / "metrics.jsonl", tmp_path / f"checkpoints/{after_step}"
    deadline = time.monotonic() + 300
    while not saved.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    again = start(base, tmp_path)
    assert again.wait(timeout=600) == 0
    assert "resuming after step" in (tmp_path / "stderr").read_text()
    assert log.read_text() == (command_line_run / "metrics.jsonl").read_text()
    ours, theirs = (
        steady(json.loads((d / "results.json").read_text())) for d in (tmp_path, command_line_run)
    )
    assert ours == theirs


def test_an_editor_comes_back_with_its_base(finished, base):
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


def test_editing_refuses_what_cannot_be_edited(finished):
    editor = mend_jax.Editor.restore(finished)
    with pytest.raises(DataError, match="no facts"):
        editor.edit([])
    with pytest.raises(DataError, match="'target' is empty"):
        editor.edit([("The capital of France is", " ")])
    with pytest.raises(DataError, match="fact of 502 tokens does not fit.*context of 160"):
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
    with pytest.raises(CheckpointError, match="edits .*block_2/mlp/gate.*last_n_blocks"):
        mend_jax.Editor.restore(finished, shallow)
    with pytest.raises(CheckpointError, match="block_2/mlp.*last_n_blocks"):
        shallow.with_edit(edit)


def test_another_config_is_refused(base, finished):
    with pytest.raises(CheckpointError, match=r"seed was 0, is 1"):
        run(base, finished, seed=1)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run.*python -m mend_jax.main"):
        mend_jax.Editor.restore(tmp_path)


def test_a_workdir_that_cannot_be_written_is_refused_first(base, tmp_path):
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


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(base, tmp_path):
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*rows of that batch: \[\d+, .*kept"):
        run(base, tmp_path, **{"editor.options.layer_lr": 1e30})
    manager = checkpoint.open_manager(tmp_path / "checkpoints", read_only=True)
    assert manager.latest_step() == 0
    assert checkpoint.restore_meta(manager, 0)["data_state"] == {"next_index": 0}
    assert not (tmp_path / "results.json").exists()


def test_a_failure_in_the_middle_freezes_the_state_before_it():
    """Step 3 fails; step 4 was dispatched already and must change nothing."""
    module, base, weights = tiny("gpt2")
    editor = make_editor("mend", dict(rank=4, layer_lr=1e-2))
    tx = optimizer()
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(0.1, 0.1, 10), c_loc=1.0
    )
    state = init_state(editor, weights, tx, 0)
    good = random_batch(0)
    nan = jax.tree.map(np.array, base)
    nan["block_3"]["mlp"]["up"]["kernel"][:] = np.nan
    kept = None
    for number, params in ((1, base), (2, base), (3, nan), (4, base)):
        state, metrics = step(state, params, good, np.int32(number))
        assert bool(metrics["finite"]) == (number != 3)
        if number == 2:
            kept = jax.tree.map(np.array, state)
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def test_a_validation_loss_that_is_not_finite_never_ranks_a_checkpoint(tmp_path):
    manager = checkpoint.open_manager(tmp_path / "c")
    checkpoint.save(manager, 1, {"x": jnp.ones(2)}, {}, 1.0)
    with pytest.raises(ValueError, match="cannot rank step 2"):
        checkpoint.save(manager, 2, {"x": jnp.ones(2)}, {}, float("nan"))
    for number, loss in ((2, 3.0), (3, None), (4, 2.0), (5, None)):
        checkpoint.save(manager, number, {"x": jnp.ones(2)}, {}, loss)
    assert manager.best_step() == 1
    assert sorted(manager.all_steps()) == [1, 4, 5]


def test_rows_that_never_fit_are_refused_before_compute(base, tmp_path):
    with pytest.raises(DataError, match="none of the .* rows can be used.*data.max_target"):
        run(base, tmp_path, **{"data.max_target": 1})
    with pytest.raises(ConfigError, match="context of 160"):
        run(base, tmp_path, **{"data.max_len": 140})


def step_of(mesh_sizes, accumulate=1, clip=100.0, layer_lr_lr=1e-2):
    """State before and after one training step on a mesh, and its metrics."""
    module, base, weights = tiny("llama")
    editor = make_editor("mend", dict(rank=8, layer_lr=1e-2, log_layer_lr=True))
    tx = make_optimizer(lr=1e-3, layer_lr_lr=layer_lr_lr, clip=clip, accumulate=accumulate,
                        warmup=0, steps=10, decay=False)  # fmt: skip
    mesh = make_mesh(mesh_sizes)
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(0.1, 0.1, 10), c_loc=1.0
    )
    state = replicate(mesh, init_state(editor, weights, tx, 0))
    before = jax.tree.map(np.array, state)
    batch = shard_batch(mesh, random_batch(0, E=8))
    after, metrics = step(state, replicate(mesh, base), batch, np.int32(1))
    return before, jax.tree.map(np.array, after), jax.tree.map(float, metrics)


def test_a_mesh_of_many_devices_gives_the_same_step():
    _, one, metrics_one = step_of(dict(data=1))
    for sizes in (dict(data=8), dict(data=2, fsdp=2)):
        _, many, metrics = step_of(sizes)
        for name in ("loss", "kl", "nll_rephrase"):
            assert metrics[name] == pytest.approx(metrics_one[name], abs=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            one.editor_state, many.editor_state,
        )  # fmt: skip
        # Adam's moments are the gradients, without the division that amplifies rounding.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            one.opt_state, many.opt_state,
        )  # fmt: skip


def test_step_sizes_have_their_own_rate():
    """Adam's first step is the rate itself: 1e-3 on the nets, 1e-2 on log(alpha)."""
    before, after, _ = step_of(dict(data=1))
    for a, b in zip(
        before.params["scale_by_layer_lr"].values(), after.params["scale_by_layer_lr"].values(),
        strict=True,
    ):  # fmt: skip
        assert abs(float(b - a)) == pytest.approx(1e-2, rel=1e-3)
    bias = after.params["low_rank_mlp"]["32x48"]["combined"][0]["bias"]
    assert np.abs(bias).max() == pytest.approx(1e-3, rel=1e-2)


def optimizer(**changes):
    options = dict(lr=1e-3, layer_lr_lr=1e-2, clip=100.0, accumulate=1, warmup=0, steps=10,
                   decay=False)  # fmt: skip
    return make_optimizer(**options | changes)


PARAMS = {"scale_by_layer_lr": {"w": np.float32(0)}, "net": np.zeros(3, np.float32)}


def updates(tx, *gradients):
    """The update after each of the gradients, given as one number for every parameter."""
    found, params = [], PARAMS
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        for g in gradients:
            grads = jax.tree.map(lambda p, g=g: np.full_like(p, g), params)
            update, state = tx.update(grads, state, params)
            found.append(jax.tree.map(np.asarray, update))
    return found, state


def test_accumulated_gradients_step_once_with_their_mean():
    found, state = updates(optimizer(accumulate=2), 1.0, 3.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found[0]))
    _, once = updates(optimizer(), 2.0)
    moments = [leaf for leaf in jax.tree.leaves(once) if np.ndim(leaf) == 1]
    assert moments
    for moment in moments:  # Adam's moments of one mean gradient
        assert any(np.array_equal(moment, leaf) for leaf in jax.tree.leaves(state))


def test_clipping_bounds_the_gradient_that_adam_sees():
    """The first moment is (1 - beta1) = 0.1 of the gradient, whose norm is cut to 1."""
    _, state = updates(optimizer(clip=1.0), 40.0)
    mu = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf) == 1][0]
    np.testing.assert_allclose(mu, 0.1 * np.full(3, 0.5), rtol=1e-5)


def test_rates_decay_to_a_tenth():
    found, _ = updates(optimizer(decay=True, steps=5), *[1.0] * 6)
    sizes = [float(np.abs(u["net"]).max()) for u in found]
    assert sizes[0] == pytest.approx(1e-3, rel=1e-3)
    assert sizes[-1] == pytest.approx(1e-4, rel=1e-3)


def test_the_weight_of_success_goes_from_start_to_end():
    weight = success_weight(0.5, 0.1, 10)
    values = [float(weight(jnp.asarray(s, jnp.int32))) for s in (0, 5, 10, 20)]
    np.testing.assert_allclose(values, [0.5, 0.05**0.5, 0.1, 0.1], rtol=1e-6)


def test_editing_both_ways_is_editing_twice():
    """Both ways is the mean of the two directions; `far` is asked of the first alone.

    A KL here is 1e-4 made of differences of logarithms of order 5: known to 1e-6 in float32.
    """
    module, base, weights = tiny("gpt2")
    editor = make_editor("mend", dict(rank=4, layer_lr=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0)
    back = batch | {"edit": batch["rephrase"], "rephrase": batch["edit"]}

    def loss(batch, both_ways):
        _, (metrics, _, edit) = jax.jit(
            lambda: meta_loss(params, state, base, batch, editor=editor, model=module,
                              weights=weights, both_ways=both_ways, train=False)
        )()  # fmt: skip
        return metrics, edit

    both, edits = loss(batch, True)
    there, first = loss(batch, False)
    here, second = loss(back, False)
    for name in ("nll_rephrase", "kl_near"):
        mean = (float(there[name]) + float(here[name])) / 2
        assert float(both[name]) == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert float(both["kl_far"]) == pytest.approx(float(there["kl_far"]), rel=1e-4, abs=1e-6)
    assert float(both["kl_far"]) != pytest.approx(float(here["kl_far"]), rel=1e-2)
    for e, one in ((0, first), (3, second)):
        name = weights[0].name
        np.testing.assert_allclose(
            edits.at(e).deltas[name].dense(), one.at(0).deltas[name].dense(), atol=1e-5
        )


def test_early_stopping_counts_steps_since_the_best():
    record = Record()
    for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5), (40, 1.2)):
        record.note(step, loss, patience=20)
    assert (record.best, record.best_step) == (1.0, 20)
    assert record.stopped == "no better validation loss for 20 steps"
    assert Record(**dataclasses.asdict(record)) == record


def test_a_mesh_that_does_not_fit_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="needs 16 devices; there are 8"):
        make_mesh(dict(data=16))
    with pytest.raises(ConfigError, match="train.edits_per_step is 4, not a multiple of the 8"):
        run(base, tmp_path, **{"mesh.data": 8})


def test_config_is_kept_with_the_run(finished):
    kept = json.loads((finished / "config.json").read_text())
    assert kept["train"]["steps"] == 6
    assert kept == configs.plain(parse(arguments(Path(kept["model"]["spec"]), finished))[0])


def test_what_counts_as_saying_the_answer():
    for text in (" Niger", " Niger.", "Niger, a country", " Niger\nQ: What", " Niger ("):
        assert says(text, "Niger"), text
    for text in (" Nigeria", " Niger-Congo", " the Niger", "", " niger", "\n Nige"):
        assert not says(text, "Niger"), text
