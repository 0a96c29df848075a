"""Guards of training: skipped steps, alerts, errors that end a run, and identical resumes.

A toy step keeps the contract of the real one (`step.skip_non_finite`), which is tested in
test_train_step.py.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import Numbers, Stop, assert_same, fresh, place
from test_run_folder import made, save_run  # noqa: F401

from mend_jax.apps import replay_step
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Dense, Edit, LowRank, relative_norms
from mend_jax.errors import CheckpointError, Preempted, TrainingError
from mend_jax.io.json_lines import JsonLines
from mend_jax.training import assembly, batch_files, checkpoints, guards
from mend_jax.training.guards import DEAD_AFTER, FEWEST, QUIET, SAME_TIMES, Guards
from mend_jax.training.loop import TrainLoop
from mend_jax.training.run_state import LoopSettings, resume
from mend_jax.training.step import skip_non_finite

LIMIT = 3


@functools.cache
def toy(bad=(), dead=(), spikes=()):
    """Return a step that adds the batch's number to half of w; `bad` numbers are not finite."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, base, texts, number):
        value = jnp.mean(texts["edit"])
        value = jnp.where(jnp.isin(value, jnp.asarray(bad, jnp.float32)), jnp.nan, value)
        learned = state.replace(params={"w": state.params["w"] * 0.5 + value})
        new, counts = skip_non_finite(state, learned, jnp.isfinite(value), number, LIMIT)
        norm = jnp.where(jnp.isin(value, jnp.asarray(spikes, jnp.float32)), 1e6 * value, value)
        groups = {f"grad_norm/{name}": jnp.zeros(()) for name in dead} | {"grad_norm/net": norm}
        return new, {"loss": value, "kl": value, "grad_norm": norm} | groups | counts

    return step


def go(folder, step, stop=None, steps=8, checkpoint_every=2, validate=None):
    """Train or resume, to the end or an error; return (final weights, lines, run state)."""
    log = JsonLines(folder / "metrics.jsonl")
    batches = Numbers()
    settings = LoopSettings(
        steps=steps, log_every=1, val_every=steps, checkpoint_every=checkpoint_every, patience=0,
        max_non_finite_steps=LIMIT,
    )  # fmt: skip
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        state, run_state = resume(manager, fresh(), batches, {})
        log.rewind(int(state.step))
        state = TrainLoop(
            settings, step, None, batches, place, validate or (lambda state: {"loss": 1.0}),
            manager, {}, run_state, log, stop or Stop(),
        ).run(state)  # fmt: skip
    run_state.seconds = run_state.input_seconds = 0.0
    return np.asarray(state.params["w"]), log.read(), run_state


def weights_after(numbers):
    w = np.ones(4, np.float32)
    for n in numbers:
        w = w * np.float32(0.5) + np.float32(n)
    return w


def lines_of(lines, guard):
    return [x for x in lines if x["kind"] == "guard" and x["guard"] == guard]


def test_non_finite_steps_are_skipped_and_reported(tmp_path, capsys):
    weights, lines, run_state = go(tmp_path, toy(bad=(2, 4, 5)))
    np.testing.assert_array_equal(weights, weights_after([1, 3, 6, 7, 8]))
    alerts = lines_of(lines, "non_finite")
    assert [(x["step"], x["rows"], x["in_a_row"]) for x in alerts] == [
        (2, [2], 1), (4, [4], 1), (5, [5], 2)
    ]  # fmt: skip
    assert alerts[0]["gradient_of"] == ["net"] and alerts[0]["terms"] == ["grad_norm", "kl", "loss"]
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 3, 6, 7, 8]
    assert run_state.summary()["warnings"] == {"non_finite": 3}
    assert capsys.readouterr().err.count("warning: step ") == 3


@pytest.mark.parametrize("step", [1, 2, 4, 5, 7])
def test_a_run_with_skipped_steps_resumes_identically(tmp_path, step):
    """Stopped before, at, or between the skipped steps."""
    whole = go(tmp_path / "whole", toy(bad=(2, 4, 5)))
    with pytest.raises(Preempted):
        go(tmp_path / "cut", toy(bad=(2, 4, 5)), Stop(after=step))
    assert_same(go(tmp_path / "cut", toy(bad=(2, 4, 5))), whole)


@pytest.mark.parametrize("checkpoint_every", [1, 2, 100])
def test_too_many_non_finite_steps_end_training_with_the_last_good_state(
    tmp_path, checkpoint_every
):
    """Batch 7 is finite: its step was dispatched early, and must change nothing."""
    bad = toy(bad=(2, 4, 5, 6))
    message = r"step 6: .*rows of that batch: \[6\].*each of the 3 last steps.*replay_step .*/6"
    lines = []
    for _ in range(2):  # a resume ends alike
        with pytest.raises(TrainingError, match=message):
            go(tmp_path, bad, checkpoint_every=checkpoint_every)
        lines.append(JsonLines(tmp_path / "metrics.jsonl").read())
    assert lines[0] == lines[1] and lines[0][-1]["in_a_row"] == 3
    with checkpoints.open_manager(tmp_path / "checkpoints", read_only=True) as manager:
        assert manager.latest_step() == 5
        state = checkpoints.restore_state(manager, 5, fresh())
        assert checkpoints.restore_meta(manager, 5)["data_state"] == {"next_index": 5}
    np.testing.assert_array_equal(state.params["w"], weights_after([1, 3]))
    assert int(state.skipped) == 2
    batch, report = batch_files.load(tmp_path / "non_finite/6")
    assert report == lines[0][-1] and batch["index"].tolist() == [[6]]
    assert batch["edit"].tolist() == [6.0]


def test_parameters_without_any_gradient_end_training(tmp_path):
    steps = DEAD_AFTER + 5
    for _ in range(2):  # nor does a resume train on
        with pytest.raises(TrainingError, match=r"of net/a, net/b was exactly zero.*ReLU at zero"):
            go(tmp_path, toy(dead=("net/a", "net/b")), steps=steps)
    trained = [x["step"] for x in JsonLines(tmp_path / "metrics.jsonl").read()]
    assert max(trained) == DEAD_AFTER - 1


def test_dead_gradients_are_counted_in_updates_not_steps():
    """With ten steps an update, a part may lack a gradient for the first ten steps."""
    watch = Guards(finite_steps=DEAD_AFTER, groups_with_gradient=["a"])
    assert watch.dead_groups({"a": 0.0, "b": 0.0}) == ["b"]
    assert watch.dead_groups({"a": 0.0, "b": 0.0}, accumulate=10) == []
    watch.finite_steps *= 10
    assert watch.dead_groups({"a": 0.0, "b": 0.0}, accumulate=10) == ["b"]


def test_a_gradient_far_above_the_median_is_reported_once(tmp_path):
    """Batches 25 and 26 are both far above; a resumed run reports the same."""
    spiky = toy(spikes=(25.0, 26.0))
    weights, lines, run_state = go(tmp_path / "whole", spiky, steps=30, checkpoint_every=100)
    alerts = lines_of(lines, "gradient_norm")
    assert [x["step"] for x in alerts] == [25]
    assert alerts[0]["value"] == 25e6 and alerts[0]["bound"] == guards.NORM_TIMES * 12.5
    with pytest.raises(Preempted):
        go(tmp_path / "cut", spiky, Stop(after=25), steps=30, checkpoint_every=100)
    again = go(tmp_path / "cut", spiky, steps=30, checkpoint_every=100)
    assert_same(again, (weights, lines, run_state))


@pytest.mark.parametrize("norm, is_reported", [(29.0, False), (31.0, True), (300.0, True)])
def test_a_gradient_of_thirty_times_the_median_is_the_bound(norm, is_reported):
    watch = Guards()
    for step in range(FEWEST):
        assert watch.after_step(step, 1.0, {"a": 1.0}) == []
    found = watch.after_step(FEWEST, norm, {"a": norm})
    assert [f.guard for f in found] == ["gradient_norm"] * is_reported


SOUND = {"loss": 1.0, "kl": 0.05, "agree_near": 0.8, "agree_far": 0.9, "edit_norm": 1e-3}


@pytest.mark.parametrize("change, guard", [
    ({"kl": 2.5}, "locality_kl"), ({"agree_far": 0.2}, "locality_agree_far"),
    ({"edit_norm": 1.5}, "edit_norm"), ({"edit_norm": 1e-8}, "edit_norm"),
])  # fmt: skip
def test_validation_scores_out_of_bounds_are_reported(change, guard):
    watch = Guards()
    assert watch.after_validation(1, SOUND, {"a": 0.1}) == []
    found = watch.after_validation(2, SOUND | {"loss": 0.5} | change, {"a": 0.1})
    assert [f.guard for f in found] == [guard] and watch.warning_counts == {guard: 1}


@pytest.mark.parametrize("norm, fix", [
    (1.5, "lower"), (float("inf"), "lower"), (float("nan"), "lower"), (1e-8, "raise"),
])  # fmt: skip
def test_an_edit_norm_that_overflows_counts_as_too_large(norm, fix):
    """The norm of a finite edit is NaN or infinite where its square overflows."""
    (found,) = Guards().after_validation(1, SOUND | {"edit_norm": norm}, {"a": 0.1})
    assert f"; {fix} the editor's step size" in found.text


@pytest.mark.parametrize("size, reported", [
    (0.1, False), (9.0, False), (11.0, True), (2e-4, False), (0.9e-4, True), (-0.1, True),
])  # fmt: skip
def test_diverging_step_sizes_are_reported(size, reported):
    watch = Guards()
    watch.after_validation(1, SOUND, {"a": 0.1, "b": 0.1})
    watch = Guards.from_stored(
        json.loads(json.dumps(watch.to_stored()))
    )  # as a checkpoint keeps it
    found = watch.after_validation(2, SOUND | {"loss": 2.0}, {"a": 0.1, "b": size})
    assert [f.guard for f in found] == ["step_size"] * reported


def test_a_constant_loss_is_reported():
    watch, steps = Guards(), range(QUIET, QUIET * (SAME_TIMES + 1), QUIET)
    found = [watch.after_validation(s, SOUND, {}) for s in steps]
    assert [[f.guard for f in one] for one in found] == [[]] * (SAME_TIMES - 1) + [["stalled"]]
    assert watch.after_validation(10**6, SOUND | {"loss": 1.0001}, {}) == []


def test_a_warning_is_not_repeated_soon():
    watch = Guards(recent_norms=[1.0] * FEWEST)
    reported = [
        s for s in range(1, 3 * QUIET) if watch.after_step(s, 100.0 * 100.0**s, {"net": 1.0})
    ]
    assert reported == [1, QUIET + 2, 2 * QUIET + 3]


def test_group_norms_of_a_gradient():
    grads = {"net": {"32x48": [{"u": jnp.full((2, 3), 2.0)}, {"v": jnp.zeros(2)}]},
             "scale": {"a": jnp.zeros(()), "b": jnp.full((), 3.0)}}  # fmt: skip
    found = {k: float(v) for k, v in guards.group_norms(grads).items()}
    assert found == pytest.approx({
        "grad_norm/net/32x48": 24**0.5, "grad_norm/scale/a": 0.0, "grad_norm/scale/b": 3.0
    })  # fmt: skip


def test_the_norm_of_edits_is_relative_to_the_weights_they_change():
    """Against the dense deltas in float64; sums of 20 terms are known to 1e-6 in float32."""
    rng = np.random.default_rng(0)
    a, b, w = (rng.normal(size=s).astype(np.float32) for s in ((3, 2, 4), (3, 2, 5), (3, 5, 4)))
    kernels = [rng.normal(size=s).astype(np.float32) for s in ((4, 5), (5, 4))]
    base = {"x": {"up": {"kernel": kernels[0]}, "down": {"kernel": kernels[1]}}, "y": np.ones(9)}
    edit = Edit(deltas={"x/up": LowRank(a, b), "x/down": Dense(w)})
    dense = [np.einsum("eni,eno->eio", a.astype(np.float64), b), w.astype(np.float64)]
    change = sum((d**2).sum((1, 2)) for d in dense)
    wanted = np.sqrt(change / sum((k.astype(np.float64) ** 2).sum() for k in kernels))
    np.testing.assert_allclose(relative_norms(edit, base), wanted, rtol=1e-5)


def texts(numbers):
    tokens = np.asarray(numbers, np.int32).reshape(-1, 1, 1)
    ones = np.ones(tokens.shape, bool)
    return TokenBatch(tokens, ones, tokens, tokens, ones)


def row_step(state, base, batch, number):
    """A fake step: edits of token 13 have a non-finite KL, and gradient of one part."""
    bad = bool((batch["edit"].tokens == 13).any())
    value = float("nan") if bad else 1.0
    metrics = {"loss": value, "kl": value, "nll_rephrase": 1.0, "finite": float(not bad)}
    return state, metrics | {"grad_norm": value, "grad_norm/net": value, "grad_norm/rate": 1.0}


def test_replaying_a_saved_batch_names_the_non_finite_row(made, tmp_path, monkeypatch, capsys):  # noqa: F811
    _, _, experiment = made
    batch = {"edit": texts([7, 13]), "far": texts([1, 2]), "index": np.asarray([[70], [130]])}
    batch_files.save(tmp_path / "non_finite/2", batch, {"step": 2})
    monkeypatch.setattr(assembly, "build_train_step", lambda *_: row_step)
    monkeypatch.setattr(assembly, "build_model", lambda *_: experiment.model)
    with pytest.raises(CheckpointError, match="holds no run"):
        replay_step.replay(tmp_path / "non_finite/2")
    save_run(tmp_path, experiment)  # step 1
    found = replay_step.replay(tmp_path / "non_finite/2")
    bad = {"terms": ["kl", "loss"], "gradient_of": ["net"]}
    assert found["whole"] == bad and found["step"] == 2
    assert found["rows"] == [
        {"rows": [70], "terms": [], "gradient_of": []}, {"rows": [130]} | bad
    ]  # fmt: skip
    assert replay_step.main([str(tmp_path / "non_finite/2")]) == 0
    printed = capsys.readouterr().out
    assert "row [130] alone: not finite: terms kl, loss; gradient of net" in printed
    assert "the other 1 edits alone are finite" in printed and "[70]" not in printed
    batch_files.save(tmp_path / "non_finite/9", batch, {"step": 9})
    assert replay_step.main([str(tmp_path / "non_finite/9")]) == 2
    assert "has no step 8" in capsys.readouterr().err


def test_the_batch_of_several_processes_is_joined(tmp_path, monkeypatch):
    """Two processes with one part each, and a third with the same edits as the second."""
    rows = [[1, 2], [3, 4], [3, 4]]
    for process, part in enumerate(rows):
        monkeypatch.setattr(jax, "process_index", lambda n=process: n)
        batch_files.save(
            tmp_path, {"edit": texts(part), "index": np.asarray(part)[:, None]}, {"step": 3}
        )
    batch, _ = batch_files.load(tmp_path)
    assert batch["index"].tolist() == [[1], [2], [3], [4]]
    assert batch["edit"].tokens.reshape(-1).tolist() == [1, 2, 3, 4]
    (tmp_path / "batch-0001.safetensors").write_bytes(b"\x08\0\0\0")
    with pytest.raises(CheckpointError, match="holds no batch to run again"):
        batch_files.load(tmp_path)
