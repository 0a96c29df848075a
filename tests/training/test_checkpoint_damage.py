"""Runs whose checkpoints are damaged, changed, or written by other versions."""

import gc
import json
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_checkpoint import Numbers, fresh, go

from mend_jax.errors import CheckpointError
from mend_jax.io import checksums
from mend_jax.parallel.mesh import make_mesh
from mend_jax.training import checkpoints
from mend_jax.training.checkpoints import damage, migration, recovery
from mend_jax.training.run_state import RunState, resume

# What Orbax leaves behind of a restore that failed is thrown away in any order.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LIKE = {"x": jnp.zeros(3000), "y": jnp.zeros((2, 3), jnp.bfloat16)}
MINE = {"base": "b1", "data": "d1", "config": {"editor": {"name": "mend"}}}


def arrays_of(step):
    return {"x": jnp.arange(3000.0) * step, "y": jnp.full((2, 3), step, jnp.bfloat16)}


@pytest.fixture(autouse=True)
def tidied():
    """Collect garbage within the test that left it."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 2 (the best), 6 and 7."""
    folder = tmp_path_factory.mktemp("saved")
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        for step, loss in ((2, 0.5), (4, 0.9), (6, None), (7, None)):
            run_state = RunState(best_loss=0.5, best_step=2).to_stored()
            meta = MINE | {"data_state": {"next_index": step}, "record": run_state}
            checkpoints.save(manager, step, arrays_of(step), meta, loss)
        checkpoints.finish(manager)
        assert sorted(manager.all_steps()) == [2, 6, 7]
    return folder


def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints"


def newest(folder, mine=MINE, **options):
    with checkpoints.open_manager(folder) as manager:
        step, state, meta = recovery.newest_intact(manager, LIKE, mine, **options)
        return step, jax.tree.map(np.asarray, state), meta, sorted(manager.all_steps())


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


HARMS = {
    "missing": lambda path: path.unlink(),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit": lambda path: path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_of_the_newest_step_is_repaired_or_the_previous_step_used(
    saved, tmp_path, capsys, harm
):
    """Never other numbers or an internal error; damaged files are moved, not deleted."""
    files = sorted(p.relative_to(saved) for p in (saved / "checkpoints/7").rglob("*"))
    files = [f for f in files if (saved / f).is_file()]
    assert len(files) > 10
    fell_back = 0
    for number, file in enumerate(files):
        root = tmp_path / str(number)
        folder = copy(saved, root)
        HARMS[harm](root / file)
        step, state, meta, steps = newest(folder)
        jax.tree.map(np.testing.assert_array_equal, state, arrays_of(step))
        assert meta["data_state"] == {"next_index": step}
        printed = capsys.readouterr().err
        if step == 7:
            assert printed == "" and steps == [2, 6, 7]
            continue
        fell_back += 1
        assert step == 6 and steps == [2, 6] and (root / damage.FOLDER / "7").is_dir()
        assert "checkpoints/7 cannot be read" in printed and "resuming from step 6" in printed
        assert "checkpoints_damaged/7" in printed
    assert fell_back >= 3  # some files are not needed to read a step


def test_arrays_and_meta_of_another_step_are_detected(saved, tmp_path):
    """Each file is intact, but of another step: only the checksums show it."""
    for number, item in enumerate(("state", "meta")):
        folder = copy(saved, tmp_path / str(number))
        shutil.rmtree(folder / "7" / item)
        shutil.copytree(folder / "6" / item, folder / "7" / item)
        if item == "meta":  # a whole one of another step, so that its arrays do not fit it
            with checkpoints.open_manager(folder) as manager:
                with pytest.raises(damage.DamageError, match="2 arrays are not those saved"):
                    checkpoints.restore_state(manager, 7, LIKE)
        assert newest(folder)[0] == 6


@pytest.mark.parametrize("change", [('next_index": 7', 'next_index": 8'), ('"b1"', '"b2"')])
def test_a_changed_meta_is_detected(saved, tmp_path, change):
    folder = copy(saved, tmp_path)
    path = folder / "7/meta/metadata"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    assert newest(folder)[0] == 6


def test_another_run_is_refused_and_nothing_is_moved(saved, tmp_path):
    """Also if the newest step is damaged: another base is no reason to try older ones."""
    folder = copy(saved, tmp_path)
    for mine, message in (
        (MINE | {"base": "b2"}, "another base model: its fingerprint is b1, this run's is b2"),
        (MINE | {"config": {"editor": {"name": "ke"}}}, "editor.name was 'mend', is 'ke'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            newest(folder, mine)
    (folder / "7/state/manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="another base model"):
        newest(folder, MINE | {"base": "b2"})
    assert not (tmp_path / damage.FOLDER).exists() and (folder / "7").is_dir()


def test_if_no_step_is_intact_all_are_named_and_kept(saved, tmp_path):
    folder = copy(saved, tmp_path)
    for path in folder.glob("*/state/manifest.ocdbt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is intact: .*/7 .*/6 .*/2 "):
        newest(folder)
    assert {p.name for p in folder.iterdir()} >= {"2", "6", "7"}


def test_a_reader_falls_back_and_moves_nothing(saved, tmp_path, capsys):
    folder = copy(saved, tmp_path)
    (folder / "2/state/manifest.ocdbt").unlink()
    with checkpoints.open_manager(folder, read_only=True) as manager:
        best = recovery.best_step(manager)
        found = recovery.newest_intact(manager, LIKE, MINE, first=best, read_only=True)
    assert (best, found[0]) == (2, 7) and (folder / "2").is_dir()
    assert "checkpoints/2 cannot be read" in capsys.readouterr().err


class Batches:
    def set_state(self, state):
        self.state = state


@pytest.mark.parametrize("harm", ["missing", "another number"])
def test_a_lost_best_step_is_reported_and_replaced_by_the_next_best(saved, tmp_path, capsys, harm):
    folder = copy(saved, tmp_path)
    path = folder / "2/metrics/metrics"
    if harm == "another number":
        path.write_text(json.dumps({"val_loss": 0.1}))
    else:
        path.unlink()
    with checkpoints.open_manager(folder) as manager:
        _, run_state = resume(manager, LIKE, Batches(), MINE)
        assert (run_state.best_step, run_state.best_loss) == (0, float("inf"))
        assert sorted(manager.all_steps()) == [6, 7]
    assert "of the best validation, step 2, is lost" in capsys.readouterr().err
    assert harm == "missing" or (tmp_path / damage.FOLDER / "2").is_dir()


@flax.struct.dataclass
class FirstState:
    """The arrays of a checkpoint as the first version wrote them."""

    step: jax.Array
    params: dict
    opt_state: tuple
    editor_state: tuple


def write_first(folder, step, state, next_index):
    """A checkpoint as the first version wrote it: no format, no checksums, no guards."""
    run_state = dict(best=9.5, best_step=step, stopped="", seconds=1.0, input_seconds=0.1, owed=0)
    config = {"job": "edit", "train": {"lr": 0.1}}
    meta = {"base": "b", "config": config, "data_state": {"next_index": next_index},
            "record": run_state}  # fmt: skip
    first = FirstState(state.step, state.params, (), ())
    items = dict(state=ocp.args.StandardSave(first), meta=ocp.args.JsonSave(meta))
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def test_a_checkpoint_of_the_first_version_is_resumed(tmp_path):
    """Trained first by that version and then by this one, it ends like a run of this one."""
    whole = go(tmp_path / "whole")
    w = np.ones(4, np.float32)
    for n in (1, 2, 3, 4):  # what its first four steps learn
        w = w * np.float32(0.5) + np.float32(n)
    state = fresh().replace(step=jnp.asarray(4, jnp.int32), params={"w": jnp.asarray(w)})
    write_first(tmp_path / "old", 4, state, next_index=4)
    mine = {"base": "b", "config": {"job": "edit", "train": {"lr": 0.1, "max_non_finite_steps": 3}}}
    batches = Numbers()
    with checkpoints.open_manager(tmp_path / "old/checkpoints") as manager:
        state, run_state = resume(manager, fresh(), batches, mine)
    assert int(state.skipped) == 0 and int(state.step) == 4 and batches.next == 4
    assert (run_state.best_loss, run_state.best_step, run_state.summary()["warnings"]) == (
        9.5,
        4,
        {},
    )
    np.testing.assert_array_equal(go(tmp_path / "old")[0], whole[0])
    with checkpoints.open_manager(tmp_path / "old/checkpoints", read_only=True) as manager:
        assert checkpoints.restore_meta(manager, 7)["format"] == migration.FORMAT == 2


def test_a_setting_of_the_first_version_that_differs_is_still_refused(tmp_path):
    write_first(tmp_path, 4, fresh(), next_index=4)
    for train, message in (
        ({"lr": 0.2, "max_non_finite_steps": 3}, "train.lr was 0.1, is 0.2"),
        ({"lr": 0.1, "max_non_finite_steps": 5}, "max_non_finite_steps was 3, is 5"),
    ):
        with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
            mine = {"base": "b", "config": {"job": "edit", "train": train}}
            with pytest.raises(CheckpointError, match=message):
                resume(manager, fresh(), Numbers(), mine)


def test_results_of_older_versions_match_the_same_config():
    """For editing runs; other jobs have no such key."""
    new = {"job": "edit", "train": {"lr": 1.0, "max_non_finite_steps": 3}}
    old = {"job": "edit", "train": {"lr": 1.0}}
    checkpoints.refuse_other_run({"config": old}, {"config": new}, "here")
    checkpoints.refuse_other_run({"config": new}, {"config": new}, "here")
    other = {"job": "finetune", "train": {"lr": 1.0}}
    checkpoints.refuse_other_run({"config": other}, {"config": other}, "here")


def test_a_later_format_is_refused(saved, tmp_path):
    folder = copy(saved, tmp_path)
    path = folder / "7/meta/metadata"
    meta = json.loads(path.read_text()) | {"format": 3}
    meta.pop("sha256")
    path.write_text(json.dumps(meta | {"sha256": checksums.json_checksum(meta)}))
    with pytest.raises(CheckpointError, match="format 3, and this version reads 1 to 2"):
        newest(folder)
    assert (folder / "7").is_dir()


def test_checksums_depend_on_every_bit_and_not_on_the_mesh():
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    [plain] = checksums.array_checksums({"x": jnp.asarray(x)}).values()
    bits = x.view(np.uint32).reshape(-1)
    found = set()
    for at in (0, 7, 47):
        for bit in range(32):
            changed = bits.copy()
            changed[at] ^= np.uint32(1 << bit)
            found |= {
                *checksums.array_checksums({"x": changed.view(np.float32).reshape(8, 6)}).values()
            }
    assert plain not in found and len(found) == 96
    signs = bits.copy()
    signs[[1, 2]] ^= np.uint32(1 << 31)  # two changes that cancel in a sum of plain words
    for other in (signs.view(np.float32).reshape(8, 6), x[::-1].copy()):
        assert checksums.array_checksums({"x": other})["['x']"] != plain
    sharding = jax.NamedSharding(make_mesh(dict(data=4, tensor=2)), jax.P("data", "tensor"))
    assert checksums.array_checksums({"x": jax.device_put(x, sharding)})["['x']"] == plain
