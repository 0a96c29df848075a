"""A run that is started again: its scores, lock, steps and config."""

import errno
import json
import shutil

import ml_collections
import pytest
from test_checkpoint import fresh, go
from test_checkpoint_damage import LIKE, MINE, arrays_of, copy, newest, saved  # noqa: F401
from test_prepared_files import change_a_bit, recipe

from mend_jax.data import prepared_files
from mend_jax.errors import CheckpointError, ConfigError, DataError, TrainingError
from mend_jax.io.json_lines import JsonLines
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.checkpoints import migration, recovery
from mend_jax.training.config_keys import ADDED_KEYS, KEYS
from mend_jax.training.run_folder import locked_folder


def damage_scores(folder):
    for path in folder.glob("*/metrics/metrics"):
        path.write_text("")


def test_a_damaged_score_is_restored_from_the_meta(saved, tmp_path, capsys):  # noqa: F811
    folder = copy(saved, tmp_path)
    damage_scores(folder)
    step, _, _, steps = newest(folder)
    assert (step, steps) == (7, [2, 6, 7])
    assert "the score is taken from the meta of step 2" in capsys.readouterr().err
    with checkpoints.open_manager(folder) as manager:
        assert manager.best_step() == 2 and manager.metrics(2) == {checkpoints.SCORE: 0.5}


def test_a_run_with_only_damaged_steps_does_not_start_again(saved, tmp_path):  # noqa: F811
    folder = copy(saved, tmp_path)
    for step in (6, 7):
        shutil.rmtree(folder / str(step))
    damage_scores(folder)
    (folder / "2/meta/metadata").write_text("{}")
    for _ in range(2):
        with checkpoints.open_manager(folder) as manager:
            with pytest.raises(CheckpointError, match="has no step, and .*checkpoints_damaged"):
                recovery.newest_intact(manager, LIKE, MINE)
    shutil.rmtree(tmp_path / "checkpoints_damaged")
    with checkpoints.open_manager(folder) as manager:
        assert recovery.newest_intact(manager, LIKE, MINE) is None


def test_a_step_that_was_not_replaced_is_moved_back(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_manager(folder) as manager:
        checkpoints.save(manager, 3, arrays_of(3), {"a": 1}, None)
        checkpoints.finish(manager)

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(manager, "save", full)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(manager, 3, arrays_of(3), {"a": 2}, 0.5, replace=True)
        assert manager.all_steps() == []
    with checkpoints.open_manager(folder) as manager:
        assert checkpoints.restore_meta(manager, 3)["a"] == 1
        checkpoints.save(manager, 3, arrays_of(3), {"a": 2}, 0.5, replace=True)
        assert checkpoints.restore_meta(manager, 3)["a"] == 2 and manager.best_step() == 3
    assert not (tmp_path / checkpoints.REPLACED).exists()


def test_of_equal_validations_the_first_is_the_best(tmp_path):
    *_, run_state = go(tmp_path, validate=lambda state: {"loss": 1.0})
    assert run_state.best_step == 3
    with checkpoints.open_manager(tmp_path / "checkpoints", read_only=True) as manager:
        assert manager.best_step() == 3
        checkpoints.restore_state(manager, run_state.best_step, fresh())


def test_a_non_finite_validation_ends_every_start(tmp_path):
    for _ in range(2):
        with pytest.raises(TrainingError, match="validation after step 3: the loss is nan"):
            go(tmp_path, validate=lambda state: {"loss": float("nan")})


@pytest.mark.parametrize(
    "error", [MemoryError("bad_alloc"), OSError(errno.EIO, "Input/output error")]
)
def test_an_error_of_the_machine_moves_no_step(saved, tmp_path, monkeypatch, error):  # noqa: F811
    folder = copy(saved, tmp_path)

    def fail(*args, **kwargs):
        raise error

    with checkpoints.open_manager(folder) as manager:
        monkeypatch.setattr(manager, "restore", fail)
        with pytest.raises(CheckpointError, match="says nothing about its content"):
            recovery.newest_intact(manager, LIKE, MINE)
        assert sorted(manager.all_steps()) == [2, 6, 7]
    assert not (tmp_path / "checkpoints_damaged").exists()


@pytest.mark.parametrize("key", ADDED_KEYS)
def test_a_run_whose_config_lacks_a_key_is_resumed(key):
    config = configs.load_config("quickstart.py")
    ours = configs.to_json_dict(config)
    group, name = key.split(".")
    ours["train"]["doctor"] = False
    ours[group][name] = ADDED_KEYS[key]  # what a run without it did
    theirs = json.loads(json.dumps(ours))
    del theirs[group][name]
    if not theirs[group]:
        del theirs[group]
    meta = {
        "format": migration.FORMAT,
        "config": configs.to_json_dict(ml_collections.ConfigDict(theirs)),
    }
    checkpoints.refuse_other_run(meta, {"config": json.loads(json.dumps(ours))}, "here")
    if not any(k.name == key and k.may_differ for k in KEYS):
        ours[group][name] = 7
        with pytest.raises(CheckpointError, match=f"another config.*{key} was"):
            checkpoints.refuse_other_run(meta, {"config": ours}, "here")


def test_a_folder_is_locked_against_a_second_run(tmp_path):
    with locked_folder(tmp_path):
        with pytest.raises(ConfigError, match="in use by another run"):
            with locked_folder(tmp_path):
                pass
    with locked_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_damaged_prepared_data_that_cannot_be_rebuilt_is_not_used(tmp_path, monkeypatch):
    folder = prepared_files.prepare(recipe(), tmp_path) / "tiny/default/1.0.0"
    change_a_bit(folder / "features.json")

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_files.sealed_folder, "seal", full)
    with pytest.raises(DataError, match="could not be written.*No space left"):
        prepared_files.prepare(recipe(), tmp_path)


def test_step_sizes_are_compared_with_the_initial_ones(tmp_path):
    """Also those that diverged before the first validation."""
    size = iter([0.1, 50.0, 50.0, 50.0])
    _, lines, run_state = go(tmp_path, sizes=lambda state: {"a": next(size)})
    assert run_state.guards.initial_step_sizes == {"a": 0.1}
    assert [x["guard"] for x in lines if x["kind"] == "guard"] == ["step_size"]


@pytest.mark.parametrize("at, kept", [(1, True), (2, False)])
def test_a_log_damaged_before_its_end_is_moved_aside(tmp_path, capsys, at, kept):
    log = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step})
    texts = log.path.read_text().splitlines()
    texts[at] = texts[at][:-1]
    before = "\n".join(texts) + "\n" * kept  # a last line without its end was cut off
    log.path.write_text(before)
    log.rewind(3)
    assert [line["step"] for line in log.read()] == [1, 2, 3][:at]
    aside = tmp_path / "metrics.jsonl.damaged"
    assert aside.exists() == kept and ("damaged at line 2" in capsys.readouterr().err) == kept
    assert not kept or aside.read_text() == before
