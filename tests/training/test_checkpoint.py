"""Checkpoints are written in the background, and contain what was saved."""

import asyncio
import errno
import functools
import math
import os
import resource
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.path import atomicity

from mend_jax.core.meta_loss import token_batches
from mend_jax.errors import CheckpointError, OutputError, Preempted, TrainingError
from mend_jax.io.json_lines import JsonLines
from mend_jax.parallel.distributed import StopRequest
from mend_jax.parallel.mesh import make_mesh, shard_batch
from mend_jax.training import checkpoints
from mend_jax.training.checkpoints import recovery
from mend_jax.training.guards import Guards
from mend_jax.training.loop import TrainLoop
from mend_jax.training.run_state import LoopSettings, RunState, resume
from mend_jax.training.step import TrainState


@pytest.fixture
def manager(tmp_path):
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        yield manager


@pytest.mark.parametrize("axes", [P(), P("data", "tensor")])
def test_a_state_may_be_donated_as_soon_as_save_returns(manager, axes):
    """The saved state is that at the call, even if its buffers change later."""
    sharding = NamedSharding(make_mesh(dict(data=2, fsdp=2, tensor=2)), axes)
    step = jax.jit(lambda x: {"x": x["x"] * 1.5 + 1}, donate_argnums=0)
    state = {
        "x": jax.device_put(jnp.arange(1 << 18, dtype=jnp.float32).reshape(512, 512), sharding)
    }
    wanted = {}
    for number in range(1, 5):
        wanted[number] = np.array(state["x"])
        checkpoints.save(manager, number, state, {}, None)
        donated = state["x"]
        for _ in range(3):
            state = step(state)
        assert donated.is_deleted()
        like = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=sharding)}
        checkpoints.finish(manager)
        found = checkpoints.restore_state(manager, number, like)["x"]
        np.testing.assert_array_equal(np.asarray(found), wanted[number])


@pytest.fixture
def held(monkeypatch):
    """An event; a checkpoint is not completed before it is set."""
    event, finalize = threading.Event(), atomicity.AtomicRenameTemporaryPath.finalize

    async def wait(self, *args, **kwargs):
        assert event.wait(60)
        return await finalize(self, *args, **kwargs)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", wait)
    return event


def test_saving_does_not_wait_for_the_disk_but_finish_does(manager, held):
    checkpoints.save(manager, 1, {"x": jnp.ones(3)}, {}, None)
    assert not (manager.directory / "1").exists()
    threading.Timer(0.2, held.set).start()
    checkpoints.finish(manager)
    assert (manager.directory / "1").exists()


@pytest.fixture
def full(monkeypatch):
    """A disk on which no checkpoint can be completed."""

    async def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", fail)


@pytest.mark.parametrize("later", ["save", "finish"])
def test_a_background_error_names_itself(manager, full, later):
    checkpoints.save(manager, 1, {"x": jnp.ones(3)}, {}, None)
    with pytest.raises(CheckpointError, match=r"checkpoints .*No space left.*make room there"):
        if later == "save":
            checkpoints.save(manager, 2, {"x": jnp.ones(3)}, {}, None)
        else:
            checkpoints.finish(manager)


def test_checkpoints_are_written_beside_a_running_event_loop(manager):
    """As in a notebook's kernel."""

    async def cell():
        checkpoints.save(manager, 1, {"x": jnp.arange(3.0)}, {"a": 1}, None)
        checkpoints.finish(manager)
        return checkpoints.restore_meta(manager, 1)

    assert asyncio.run(cell())["a"] == 1
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    np.testing.assert_array_equal(checkpoints.restore_state(manager, 1, like)["x"], [0, 1, 2])


def test_a_step_can_be_replaced(manager):
    checkpoints.save(manager, 1, {"x": jnp.ones(3)}, {"a": 1}, None)
    checkpoints.save(manager, 1, {"x": jnp.zeros(3)}, {"a": 2}, 0.5, replace=True)
    checkpoints.finish(manager)
    assert checkpoints.restore_meta(manager, 1)["a"] == 2
    assert manager.best_step() == 1


class Numbers:
    """The batches of a run: 0, 1, 2, ..."""

    def __init__(self):
        self.next = 0

    def __next__(self):
        self.next += 1
        texts = {name: np.float32(self.next)[None] for name in ("edit", "rephrase", "near", "far")}
        return texts | {"index": np.asarray([[self.next]])}

    def get_state(self):
        return {"next_index": self.next}

    def set_state(self, state):
        self.next = state["next_index"]


def fresh():
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, {"w": jnp.ones(4)}, (), (), skipped)


@functools.partial(jax.jit, donate_argnums=0)
def add(state, base, texts, number):
    params = {"w": state.params["w"] * 0.5 + jnp.mean(texts["edit"])}
    total = params["w"].sum()
    metrics = {"loss": total, "kl": total, "grad_norm": total, "finite": jnp.ones(())}
    return TrainState(state.step + 1, params, (), (), state.skipped), metrics


class Stop(StopRequest):
    """A stop request after a step."""

    def __init__(self, after=0):
        super().__init__()
        self.after = after

    def after_step(self, step):
        return step == self.after


def place(batch):
    return shard_batch(make_mesh({}), token_batches(batch))


def go(folder, stop=None, validate=None, steps=7, sizes=lambda state: {}):
    """Train or resume, to the end or an error; return (final weights, lines, run state)."""
    log = JsonLines(folder / "metrics.jsonl")
    batches = Numbers()
    settings = LoopSettings(steps=steps, log_every=1, val_every=3, checkpoint_every=2, patience=0)
    loss = validate or (lambda state: {"loss": float(state.params["w"].sum())})
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        state, run_state = resume(manager, fresh(), batches, {})
        log.rewind(int(state.step))
        try:
            state = TrainLoop(
                settings, add, None, batches, place, loss, manager, {}, run_state, log,
                stop or Stop(), sizes,
            ).run(state)  # fmt: skip
        finally:
            assert not manager.is_saving_in_progress()
    run_state.seconds = run_state.input_seconds = 0.0
    return np.asarray(state.params["w"]), log.read(), run_state


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_a_stopped_run_saves_its_step_and_resumes_identically(tmp_path, step):
    whole = go(tmp_path / "whole")
    with pytest.raises(Preempted, match=f"state after step {step} of 7 is saved"):
        go(tmp_path / "cut", Stop(after=step))
    assert (tmp_path / f"cut/checkpoints/{step}").exists()
    assert_same(go(tmp_path / "cut"), whole)


@pytest.mark.parametrize("which", [3, 6, 7])
def test_a_resume_does_the_interrupted_validation(tmp_path, which):
    whole = go(tmp_path / "whole")

    def cut(state):
        if int(state.step) == which:
            raise Preempted("stop requested in validation")
        return {"loss": float(state.params["w"].sum())}

    for _ in range(2):  # the second time it is the validation that the first one owed
        with pytest.raises(Preempted, match=f"state after step {which} of 7 is saved"):
            go(tmp_path / "cut", validate=cut)
        with checkpoints.open_manager(tmp_path / "cut/checkpoints", read_only=True) as manager:
            assert checkpoints.restore_meta(manager, which)["record"]["owed"] == which
    assert_same(go(tmp_path / "cut"), whole)
    with checkpoints.open_manager(tmp_path / "cut/checkpoints", read_only=True) as manager:
        assert manager.best_step() == whole[2].best_step


@pytest.mark.slow
def test_checkpoints_are_on_disk_when_training_ends(tmp_path, monkeypatch):
    """For every way to end, on a slow disk."""
    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def slowly(self, *args, **kwargs):
        await asyncio.sleep(0.2)
        return await finalize(self, *args, **kwargs)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", slowly)
    go(tmp_path / "whole")
    with pytest.raises(Preempted):
        go(tmp_path / "stopped", Stop(after=2))
    with pytest.raises(TrainingError, match="validation after step 3"):
        go(tmp_path / "bad", validate=lambda state: {"loss": float("nan")})


def test_a_full_disk_ends_training_with_a_named_error(tmp_path, full):
    with pytest.raises(CheckpointError, match="could not be written"):
        go(tmp_path)


def test_run_states_of_older_runs_are_read():
    old = {"best": 1.0, "best_step": 2, "stopped": "", "seconds": 3.0, "watch": {}}
    assert (
        RunState.from_stored(old).pending_validation == 0
        and RunState.from_stored(old).guards == Guards()
    )


def fails_at(monkeypatch, owner, name, nth, chosen=lambda *args: True):
    """Let the nth chosen call of a function fail as on a full disk."""
    plain, calls = getattr(owner, name), []

    def call(*args, **options):
        if chosen(*args):
            calls.append(args)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(*args, **options)

    monkeypatch.setattr(owner, name, call)


FILE_CALLS = {
    "a line of the log": (Path, "open", lambda path, *args: path.name == "metrics.jsonl" and args),
    "rewriting the log": (os, "replace", lambda source, to: Path(to).name == "metrics.jsonl"),
    "flushing a file": (os, "fsync", lambda *_: True),
    "completing a checkpoint": (atomicity.AtomicRenameTemporaryPath, "finalize", lambda *_: True),
}


@pytest.mark.parametrize("what, nth", [
    ("a line of the log", 1), ("a line of the log", 5), ("rewriting the log", 1),
    ("flushing a file", 1), ("completing a checkpoint", 1), ("completing a checkpoint", 2),
    ("completing a checkpoint", 3), ("completing a checkpoint", 4),
])  # fmt: skip
def test_a_disk_that_fills_up_at_any_write_loses_nothing(tmp_path, whole, monkeypatch, what, nth):
    """The run ends with a named error, and resumes to the same end once there is space."""
    owner, name, chosen = FILE_CALLS[what]
    with monkeypatch.context() as patch:
        fails_at(patch, owner, name, nth, chosen)
        with pytest.raises((CheckpointError, OutputError), match="No space left.*make room there"):
            go(tmp_path)
    assert_same(go(tmp_path), whole)


def test_a_file_system_that_takes_no_more_bytes_loses_nothing(tmp_path):
    """A real limit on file sizes, which also stops writes outside of Python."""
    big = {"x": jax.random.normal(jax.random.key(0), (1 << 18,))}
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, 1, big, {}, 1.0)
        checkpoints.finish(manager)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
        try:
            with pytest.raises(CheckpointError, match="could not be written.*make room there"):
                checkpoints.save(manager, 2, big, {}, 0.5)
                checkpoints.finish(manager)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.all_steps() == [1] and recovery.is_intact(manager, 1, big)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of an uninterrupted run."""
    return go(tmp_path_factory.mktemp("whole"))


def test_the_best_step_is_never_lost(tmp_path):
    """With later steps with and without scores, validated later, in other processes."""
    rng, best = np.random.default_rng(0), (math.inf, 0)
    step = 0
    for _ in range(4):
        with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
            for _ in range(5):
                step += 1
                loss = round(float(rng.random()), 3) if rng.random() < 0.6 else None
                if loss is not None and rng.random() < 0.3:  # validation is done by a resume
                    checkpoints.save(manager, step, {"x": jnp.full(3, float(step))}, {}, None)
                    checkpoints.save(manager, step, {"x": jnp.full(3, float(step))}, {}, loss, True)
                else:
                    checkpoints.save(manager, step, {"x": jnp.full(3, float(step))}, {}, loss)
                if loss is not None:
                    best = min(best, (loss, step))
                checkpoints.finish(manager)
                assert not best[1] or manager.best_step() == best[1]
                assert {step, best[1] or step} <= {*manager.all_steps()}
                assert len(manager.all_steps()) <= checkpoints.MOST_AT_ONCE - 1
    with checkpoints.open_manager(tmp_path / "checkpoints", read_only=True) as manager:
        found = checkpoints.restore_state(manager, best[1], {"x": jnp.zeros(3)})
    np.testing.assert_array_equal(found["x"], np.full(3, best[1], np.float32))
    assert 1 < best[1] < step - 2
