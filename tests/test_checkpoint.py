"""Checkpoints are written while training goes on, and hold what they were given."""

import asyncio
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.path import atomicity

from mend_jax import checkpoint
from mend_jax.distributed import StopRequest
from mend_jax.errors import CheckpointError, Preempted, TrainingError
from mend_jax.mesh import make_mesh, shard_batch
from mend_jax.objective import texts_of
from mend_jax.train import Plan, Record, TrainState, resume, train
from mend_jax.writers import JsonLines


@pytest.fixture
def manager(tmp_path):
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        yield manager


@pytest.mark.parametrize("axes", [P(), P("data", "tensor")])
def test_a_state_may_be_donated_as_soon_as_save_returns(manager, axes):
    """What is saved is the state at that time, whatever becomes of its buffers."""
    sharding = NamedSharding(make_mesh(dict(data=2, fsdp=2, tensor=2)), axes)
    step = jax.jit(lambda x: {"x": x["x"] * 1.5 + 1}, donate_argnums=0)
    state = {
        "x": jax.device_put(jnp.arange(1 << 18, dtype=jnp.float32).reshape(512, 512), sharding)
    }
    wanted = {}
    for number in range(1, 5):
        wanted[number] = np.array(state["x"])
        checkpoint.save(manager, number, state, {}, None)
        donated = state["x"]
        for _ in range(3):
            state = step(state)
        assert donated.is_deleted()
        like = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=sharding)}
        checkpoint.finish(manager)
        found = checkpoint.restore_state(manager, number, like)["x"]
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
    checkpoint.save(manager, 1, {"x": jnp.ones(3)}, {}, None)
    assert not (manager.directory / "1").exists()
    threading.Timer(0.2, held.set).start()
    checkpoint.finish(manager)
    assert (manager.directory / "1").exists()


@pytest.fixture
def full(monkeypatch):
    """A disk on which no checkpoint can be completed."""

    async def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", fail)


@pytest.mark.parametrize("later", ["save", "finish"])
def test_an_error_of_the_background_is_raised_by_name(manager, full, later):
    checkpoint.save(manager, 1, {"x": jnp.ones(3)}, {}, None)
    with pytest.raises(CheckpointError, match=r"checkpoints .*No space left.*make room there"):
        if later == "save":
            checkpoint.save(manager, 2, {"x": jnp.ones(3)}, {}, None)
        else:
            checkpoint.finish(manager)


def test_a_step_can_be_replaced(manager):
    checkpoint.save(manager, 1, {"x": jnp.ones(3)}, {"a": 1}, None)
    checkpoint.save(manager, 1, {"x": jnp.zeros(3)}, {"a": 2}, 0.5, replace=True)
    checkpoint.finish(manager)
    assert checkpoint.restore_meta(manager, 1)["a"] == 2
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
    return TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(4)}, (), ())


@functools.partial(jax.jit, donate_argnums=0)
def add(state, base, texts, number):
    params = {"w": state.params["w"] * 0.5 + jnp.mean(texts["edit"])}
    total = params["w"].sum()
    metrics = {"loss": total, "kl": total, "grad_norm": total, "finite": jnp.ones(())}
    return TrainState(state.step + 1, params, (), ()), metrics


class Stop(StopRequest):
    """Asked to stop after a step, or from the n-th validation on."""

    def __init__(self, after=0):
        super().__init__()
        self.after = after

    def at(self, step):
        return step == self.after


def place(batch):
    return shard_batch(make_mesh({}), texts_of(batch))


def go(folder, stop=None, validate=None, steps=7):
    """Trains, or resumes, to the end or to what stops it; (final state, lines)."""
    log = JsonLines(folder / "metrics.jsonl")
    batches = Numbers()
    plan = Plan(steps=steps, log_every=1, val_every=3, checkpoint_every=2, patience=0)
    loss = validate or (lambda state: {"loss": float(state.params["w"].sum())})
    with checkpoint.open_manager(folder / "checkpoints") as manager:
        state, record = resume(manager, fresh(), batches, {})
        log.rewind(int(state.step))
        try:
            state = train(
                state, None, batches, place=place, plan=plan, train_step=add, validate=loss,
                manager=manager, meta={}, record=record, log=log, stop=stop or Stop(),
            )  # fmt: skip
        finally:
            assert not manager.is_saving_in_progress()
    record.seconds = record.input_seconds = 0.0
    return np.asarray(state.params["w"]), log.read(), record


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_a_run_asked_to_stop_saves_that_step_and_goes_on_equally(tmp_path, step):
    whole = go(tmp_path / "whole")
    with pytest.raises(Preempted, match=f"state after step {step} of 7 is saved"):
        go(tmp_path / "cut", Stop(after=step))
    assert (tmp_path / f"cut/checkpoints/{step}").exists()
    assert_same(go(tmp_path / "cut"), whole)


@pytest.mark.parametrize("which", [3, 6, 7])
def test_a_validation_that_was_cut_short_is_done_by_the_resume(tmp_path, which):
    whole = go(tmp_path / "whole")

    def cut(state):
        if int(state.step) == which:
            raise Preempted("asked to stop in validation")
        return {"loss": float(state.params["w"].sum())}

    for _ in range(2):  # the second time it is the validation that the first one owed
        with pytest.raises(Preempted, match=f"state after step {which} of 7 is saved"):
            go(tmp_path / "cut", validate=cut)
        with checkpoint.open_manager(tmp_path / "cut/checkpoints", read_only=True) as manager:
            assert checkpoint.restore_meta(manager, which)["record"]["owed"] == which
    assert_same(go(tmp_path / "cut"), whole)
    with checkpoint.open_manager(tmp_path / "cut/checkpoints", read_only=True) as manager:
        assert manager.best_step() == whole[2].best_step


def test_all_is_on_disk_when_training_ends(tmp_path, monkeypatch):
    """However it ends, and however slow the disk is."""
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


def test_a_full_disk_ends_training_by_name(tmp_path, full):
    with pytest.raises(CheckpointError, match="could not be written"):
        go(tmp_path)


def test_records_of_older_runs_are_read():
    assert Record(**{"best": 1.0, "best_step": 2, "stopped": "", "seconds": 3.0}).owed == 0
