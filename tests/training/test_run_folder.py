"""Run folders, object stores (faked by a folder), and editors on a mesh."""

import contextlib
import errno
import os
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from etils.epath import backend, gpath
from jax.sharding import NamedSharding
from support.tiny import save_tiny
from test_train_and_evaluate import SETTINGS

import mend_jax
from mend_jax.apps import train_and_evaluate
from mend_jax.apps.run_command import parse
from mend_jax.errors import CheckpointError, ConfigError, Preempted
from mend_jax.evaluation.reports import run_report
from mend_jax.io.files import as_path, is_remote, write_bytes, write_json
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import StopRequest
from mend_jax.parallel.mesh import make_mesh
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training import run_folder as workdir_of_run
from mend_jax.training.assembly import open_experiment
from mend_jax.training.config_keys import ADDED_KEYS
from mend_jax.training.loop import TrainLoop

FACTS = [("The capital of France is", "Lyon"), ("One and one is", "three")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run folder, config, experiment) with an untrained editor, saved as by a run."""
    base = save_tiny(tmp_path_factory.mktemp("base"))
    settings = {"model.spec": base, "model.last_n_blocks": 2} | SETTINGS
    settings |= {"editor.options.step_size": 1.0, "editor.options.rank": 8}
    settings["model.trunk_products"] = "float32"
    config, _, _ = parse(
        ["--config=quickstart.py"] + [f"--config.{k}={v}" for k, v in settings.items()]
    )
    experiment = open_experiment(config)
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, experiment)
    return workdir, config, experiment


def save_run(workdir, experiment):
    with checkpoints.open_manager(workdir / "checkpoints") as manager:
        checkpoints.save(manager, 1, experiment.fresh_state(), experiment.identity(), 1.0)
    (workdir / "config.json").write_text(configs.to_json(experiment.config))


@pytest.mark.slow
def test_an_editor_is_placed_on_its_models_mesh(made):
    workdir, config, _ = made
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    plain = mend_jax.Editor.restore(workdir)
    split = mend_jax.Editor.restore(
        workdir, mend_jax.load_model(config.model.spec, last_n_blocks=2, mesh=mesh)
    )
    for leaf in jax.tree.leaves((split.params, split.state)):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.params))
    for leaf in jax.tree.leaves(plain.params):
        assert leaf.sharding.device_set == {jax.devices()[0]}
    one, two = plain.edit(FACTS), split.edit(FACTS)
    assert one.base == two.base
    largest = 0.0
    for name, delta in one.deltas.items():
        ours, theirs = (np.asarray(d.dense()) for d in (two.deltas[name], delta))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
        largest = max(largest, np.abs(theirs).max())
    assert largest > 1e-6
    with_one, with_two = plain.model.with_edit(one), split.model.with_edit(two)
    assert with_one.generate("The capital of", 4) == with_two.generate("The capital of", 4)


def test_a_stop_in_evaluation_keeps_the_trained_editor(made, monkeypatch, tmp_path):
    _, config, _ = made
    polls = []

    def at(self, number):
        polls.append(number)
        return True

    monkeypatch.setattr(StopRequest, "after_step", at)
    with pytest.raises(Preempted, match=f"stop requested in evaluation.*saved in {tmp_path}"):
        train_and_evaluate.stop_check(StopRequest(), 6, tmp_path)()
    assert polls == [7]
    with config.unlocked():
        short = config.copy_and_resolve_references()
    short.train.steps = 0
    with pytest.raises(Preempted, match="stop requested in evaluation"):
        mend_jax.train_and_evaluate(short, tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "checkpoints/0").exists()


def test_only_the_writer_prints_progress(capsys):
    Progress("train", 2, writer=False).update(2, force=True)
    assert capsys.readouterr().err == ""
    Progress("train", 2).update(2, force=True)
    assert "train 2/2" in capsys.readouterr().err


class Store(backend._OsPathBackend):
    """A fake gs://: a folder in which nothing can be appended to or renamed."""

    def __init__(self, root):
        super().__init__()
        self.root, self.written = root, []

    def local(self, path):
        return os.path.join(self.root, os.fspath(path).removeprefix("gs://"))

    def open(self, path, mode):
        assert "a" not in mode and "+" not in mode, "an object cannot be appended to"
        if "w" in mode:
            self.written.append(os.path.basename(path))
        return super().open(self.local(path), mode)

    def exists(self, path):
        return super().exists(self.local(path))

    def isdir(self, path):
        return super().isdir(self.local(path))

    def listdir(self, path):
        return super().listdir(self.local(path))

    def makedirs(self, path, **options):
        return super().makedirs(self.local(path), **options)

    def remove(self, path):
        return super().remove(self.local(path))

    def rename(self, path, dst):
        raise AssertionError("an object cannot be renamed")

    replace = rename


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    with mock.patch.dict(gpath._PREFIX_TO_BACKEND, {"gs": store}):
        yield store


def test_paths_use_the_fake_store(store):
    as_path("gs://bucket/a").mkdir(parents=True)
    write_bytes(as_path("gs://bucket/a/b"), b"c")
    assert (store.root / "bucket/a/b").read_bytes() == b"c" and store.written == ["b"]


def test_files_of_a_run_in_a_store(store):
    workdir = workdir_of_run.prepare_folder("gs://bucket/run")
    assert str(workdir) == "gs://bucket/run" and is_remote(workdir)
    assert os.listdir(store.root / "bucket/run") == []
    assert workdir_of_run.read_results(workdir) is None
    log = JsonLines(workdir / "metrics.jsonl")
    log.rewind(0)
    store.written.clear()
    for step in (1, 2, 3):
        log.append({"step": step, "kind": "train", "loss": 1.0 / step})
    assert store.written == []  # held until the next checkpoint
    log.flush()
    assert store.written == ["metrics.jsonl"]
    again = JsonLines(workdir / "metrics.jsonl")
    again.rewind(2)
    again.append({"step": 3, "kind": "train", "loss": 9.0})
    again.flush()
    losses = [line["loss"] for line in JsonLines(workdir / "metrics.jsonl").read()]
    assert losses == [1.0, 0.5, 9.0]
    write_json(workdir / "results.json", {"config": {}, "eval": {}, "baselines": {}})
    assert workdir_of_run.read_results(workdir) == {"config": {}, "eval": {}, "baselines": {}}
    assert str(run_report.write(workdir)) == "gs://bucket/run/report.html"
    assert (store.root / "bucket/run/report.html").stat().st_size > 1000


def test_only_the_writer_writes_lines(store):
    other = JsonLines(as_path("gs://bucket/metrics.jsonl"), writer=False)
    other.append({"step": 1})
    other.flush()
    assert store.written == []


def test_an_editor_is_restored_from_a_store(made, store, monkeypatch):
    """Our own files; the checkpoint is in a folder, because Orbax has no fake store."""
    workdir, _, _ = made
    with pytest.raises(CheckpointError, match="gs://bucket/run holds no run"):
        mend_jax.Editor.restore("gs://bucket/run")
    write_bytes(as_path("gs://bucket/run/config.json"), (workdir / "config.json").read_bytes())
    opened_paths, opened = [], checkpoints.open_manager

    def open_manager(directory, read_only):
        opened_paths.append(str(directory))
        return opened(workdir / "checkpoints", read_only=read_only)

    monkeypatch.setattr(checkpoints, "open_manager", open_manager)
    assert mend_jax.Editor.restore("gs://bucket/run").edit(FACTS[:1]).base
    assert opened_paths == ["gs://bucket/run/checkpoints"]


def test_a_disk_too_small_for_the_checkpoints_is_refused(made, tmp_path, monkeypatch):
    """Space for four steps, minus those that exist, and 16 MiB for the other files."""
    state = made[2].fresh_state()
    each = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert each > 5e4
    for there, steps in ((0, 4), (3, 1), (9, 1)):
        enough = steps * each + 16 * 2**20
        for free in (enough, enough - 1):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, n=free: mock.Mock(free=n))
            refused = pytest.raises(ConfigError, match=f"--workdir {tmp_path}: .* GB are free")
            with refused if free < enough else contextlib.nullcontext():
                workdir_of_run.require_disk_space(tmp_path, state, there)


def test_a_run_checks_disk_space_before_training(made, tmp_path, monkeypatch):
    _, config, _ = made
    monkeypatch.setattr(shutil, "disk_usage", lambda path: mock.Mock(free=10**6))
    monkeypatch.setattr(TrainLoop, "run", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match="make room there, or choose another"):
        mend_jax.train_and_evaluate(config, tmp_path)


def test_a_read_only_workdir_is_refused(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be written.*Read-only file system"):
        workdir_of_run.prepare_folder(tmp_path)


@contextlib.contextmanager
def without(name):
    """Act as if a package were not installed."""
    with mock.patch.dict("sys.modules", {name: None}):
        yield


def test_the_error_for_a_missing_store_library_says_what_to_install():
    with without("gcsfs"), pytest.raises(ConfigError, match="library.*missing.*pip install gcsfs"):
        workdir_of_run.prepare_folder("gs://bucket/run")
    with (
        without("gcsfs"),
        pytest.raises(CheckpointError, match="gs://bucket/run holds no run.*gcsfs"),
    ):
        mend_jax.Editor.restore("gs://bucket/run")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match="ftp://.*give a folder, or one of gs://"):
        workdir_of_run.prepare_folder("ftp://host/run")


def test_local_paths_stay_local(tmp_path):
    assert isinstance(as_path(str(tmp_path)), pathlib.Path) and not is_remote(as_path("runs/a"))
    assert str(as_path("gs://a/b")) == "gs://a/b"


@pytest.mark.parametrize("text", [b"{", b"[" * 10**5, b"[]", b'{"config": 1}', b"\xff"])
def test_damaged_results_are_named(tmp_path, text):
    (tmp_path / "results.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"results\.json is damaged .*delete it"):
        workdir_of_run.read_results(tmp_path)


def test_an_older_config_is_completed_with_the_behaviour_of_its_version(tmp_path):
    config = configs.load_config("quickstart.py")
    held = configs.to_json_dict(config)
    for key in ADDED_KEYS:
        group, name = key.split(".")
        del held[group][name]
    del held["scope"]  # all of whose keys were added
    write_json(tmp_path / "config.json", held)
    found = workdir_of_run.read_run_config(tmp_path)
    assert configs.to_json_dict(found) == configs.to_json_dict(config) | {
        "train": configs.to_json_dict(config)["train"] | {"doctor": False, "c_after": 0.0},
        "scope": configs.to_json_dict(config)["scope"] | {"file": ""},
        "model": configs.to_json_dict(config)["model"] | {"trunk_products": "float32"},
        "eval": configs.to_json_dict(config)["eval"]
        | {"hard_neighbours": 0, "hard_edits": 200, "continuation_tokens": 0},
    }  # the others are as today


@pytest.mark.parametrize(
    "text, message",
    [("{", "Expecting"), ("[]", "no object"), ('{"job": "edit"}', "train.lr is missing"),
     ('{"__class__": {}}', "cannot be overridden"), ('{"a.b": 1}', "dot"),
     ("[" * 3000, "nested")],
)  # fmt: skip
def test_a_damaged_config_of_a_run_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"config.json is damaged .*{message}"):
        workdir_of_run.read_run_config(tmp_path)
