"""Pretrained editors of the package: from a finished run to a file, and back."""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.tiny import save_tiny

import mend_jax
from mend_jax.apps.run_command import parse
from mend_jax.core import scope_file
from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.io import array_files
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.training import pretrained, pretrained_scopes
from mend_jax.training.assembly import build_editor
from mend_jax.training.config_keys import with_added_keys

SETTINGS = {
    "data.name": "world_facts/offline", "data.train_edits": 16, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 16, "data.length_buckets": (), "train.steps": 2,
    "train.edits_per_step": 2, "train.val_every": 2, "train.val_edits": 2,
    "train.checkpoint_every": 2, "train.edit_from_paraphrase": False, "eval.edits": 2,
    "eval.hard_neighbours": 0,
    "eval.edits_per_step": 2, "eval.max_new_tokens": 24, "eval.examples": 1,
    "eval.baselines": "{}", "editor.options.rank": 4, "model.last_n_blocks": 1,
    "model.edit_roles": ("mlp/down",),
    "train.doctor": False,
}  # fmt: skip
FACT = ("The capital of France is", "Lyon")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    flags = [f"--config.{k}={v}" for k, v in SETTINGS.items()]
    config = ["--config=quickstart.py", f"--workdir={workdir}", f"--config.model.spec={base}"]
    mend_jax.train_and_evaluate(*parse([*config, *flags]))
    return workdir


@pytest.fixture(scope="module")
def model(base):
    return mend_jax.load_model(base, last_n_blocks=1, edit_roles=("mlp/down",))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path


def same(one, other, **tolerance):
    for name, delta in one.deltas.items():
        np.testing.assert_allclose(delta.dense(), other.deltas[name].dense(), **tolerance)


def test_a_float32_file_has_exactly_the_run_s_editor(run, model, folder):
    description = pretrained.write(run, folder / "tiny.safetensors", "float32")
    assert pretrained.names() == {model.fingerprint: "tiny"}
    assert pretrained.describe("tiny") == description
    restored, loaded = mend_jax.Editor.restore(run, model), pretrained.load(model)
    assert (loaded.id, loaded.name, loaded.append_eos) == (restored.id, "mend", False)
    same(restored.edit([FACT]), loaded.edit([FACT]), rtol=0)
    assert choose_editor(model).id == loaded.id
    assert choose_editor(model, str(folder / "tiny.safetensors")).id == loaded.id
    assert choose_editor(model, str(run)).id == loaded.id
    same(choose_editor(model, "", 0.5).edit([FACT]), loaded.edit([FACT]).scale(0.5), rtol=1e-5)


def test_a_file_describes_its_training(run, model, folder):
    description = pretrained.write(run, folder / "tiny.safetensors")
    results = json.loads((run / "results.json").read_text())
    assert (description["base"], description["spec"], description["seed"]) == (
        model.fingerprint,
        model.spec,
        0,
    )
    assert description["config"]["options"]["rank"] == 4 and description["weights"] == [
        w.name for w in model.weights
    ]
    assert description["command"].startswith("python -m mend_jax.main --config=quickstart.py")
    assert description["numbers"]["eval"]["success"] == results["eval"]["success"]
    assert description["numbers"]["training"]["steps"] == 2


def test_in_bfloat16_matrices_are_rounded_and_vectors_are_not(run, model, folder):
    path = folder / "tiny.safetensors"
    pretrained.write(run, path, "bfloat16")
    with safe_open(str(path), framework="numpy") as f:
        arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    matrices = {n for n, a in arrays.items() if a.ndim > 1}
    assert matrices and matrices != set(arrays)
    for name, array in arrays.items():
        assert (array.dtype.name == "bfloat16") == (name in matrices), name
    assert any(name.startswith("state/") for name in set(arrays) - matrices)
    # bfloat16 has 8 bits; of sums of such products the rounding is about 1% of the largest.
    restored, loaded = (e.edit([FACT]) for e in
                        (mend_jax.Editor.restore(run, model), pretrained.load(model)))  # fmt: skip
    largest = max(float(np.abs(d.dense()).max()) for d in restored.deltas.values())
    same(restored, loaded, atol=0.02 * largest)
    assert loaded.editor != restored.editor


def test_in_int8_rows_keep_their_largest_number(run, model, folder):
    path = folder / "tiny.safetensors"
    pretrained.write(run, path, "int8")
    with safe_open(str(path), framework="numpy") as f:
        arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    whole = [name for name, a in arrays.items() if a.dtype == np.int8]
    assert whole and all(np.abs(arrays[name]).max() == 127 for name in whole)
    restored, loaded = mend_jax.Editor.restore(run, model), pretrained.load(model)
    for wanted, got in zip(
        jax.tree.leaves(restored.params), jax.tree.leaves(loaded.params), strict=True
    ):
        step = np.abs(wanted).max(-1, keepdims=True) / 127 if wanted.ndim > 1 else 0.0
        # Rounded to the nearest step of its row; the last bits are float32's own.
        assert (np.abs(got - wanted) <= 0.5001 * step).all()


def test_the_command_writes_a_file(run, tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    argv = [f"--workdir={run}", f"--out={path}"]
    assert pretrained.main(argv) == 0 and path.exists()
    assert f"{path.stat().st_size:,} bytes, int8" in capsys.readouterr().out
    assert pretrained.main([f"--workdir={tmp_path}/none", f"--out={path}"]) == 2
    assert "CheckpointError" in capsys.readouterr().err


def test_a_run_or_file_that_cannot_ship_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="dtype is 'int4'"):
        pretrained.write(run, tmp_path / "x.safetensors", "int4")
    with pytest.raises(ConfigError, match="a file NAME.safetensors"):
        pretrained.write(run, tmp_path / "x")
    monkeypatch.setattr(pretrained, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="more than the 1,000"):
        pretrained.write(run, tmp_path / "x.safetensors")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=lambda *_: ["results.json"])
    with pytest.raises(CheckpointError, match="let the run finish"):
        pretrained.write(unfinished, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_other_bases_are_refused_by_name(run, model, folder, base, tmp_path):
    with pytest.raises(ConfigError, match="no editor 'tiny' is shipped"):
        pretrained.describe("tiny")
    path = folder / "tiny.safetensors"
    pretrained.write(run, path)
    other = mend_jax.load_model(str(save_tiny(tmp_path / "other", seed=1)), last_n_blocks=1)
    with pytest.raises(ConfigError, match=f"no editor is shipped for .*{other.fingerprint}"):
        pretrained.load(other)
    with pytest.raises(CheckpointError, match=other.fingerprint):
        pretrained.read(path, other)
    with pytest.raises(CheckpointError, match="last_n_blocks"):
        pretrained.load(mend_jax.load_model(base, last_n_blocks=2))


def test_damaged_files_are_named(run, model, folder):
    path = folder / "tiny.safetensors"
    pretrained.write(run, path)
    whole = path.read_bytes()
    with safe_open(str(path), framework="numpy") as f:
        metadata, arrays = f.metadata(), {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="not a readable editor file"):
        pretrained.load(model)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not those that were written"):
        pretrained.load(model)
    rank_5 = metadata["metadata"].replace('"rank": 4', '"rank": 5')
    for change, says in (
        ({"format": "another/1"}, "format 'another/1'"),
        ({"metadata": "{"}, "metadata of this editor file are damaged"),
        ({"metadata": rank_5}, "not those that were"),
    ):
        assert change.items() - metadata.items()
        save_file(arrays, path, metadata | change)
        with pytest.raises(CheckpointError, match=says):
            pretrained.load(model)
    description, fewer = json.loads(metadata["metadata"]), dict(list(arrays.items())[1:])
    array_files.write(
        path, pretrained.FORMAT, arrays, {k: v for k, v in description.items() if k != "seed"}
    )
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        pretrained.load(model)
    array_files.write(path, pretrained.FORMAT, fewer, description)
    with pytest.raises(CheckpointError, match="do not match editor 'mend'"):
        pretrained.load(model)


def test_files_of_the_first_format_are_read(run, model, folder):
    """Metadata by field, values as JSON, and a checksum of tensors and config."""
    path = folder / "tiny.safetensors"
    description = pretrained.write(run, path)
    arrays = array_files.read(path, pretrained.FORMAT, kind="editor file").arrays
    texts = {k: json.dumps(v) if k in pretrained._VALUES else v for k, v in description.items()}
    old = {"format": "mend_jax_shipped_editor/1"} | texts
    del old["trained_facts"]  # of an edit: one, in the first format
    right = pretrained._old_digest(arrays, description["config"])
    new_editor = pretrained.load(model)
    save_file(arrays, path, old | {"sha256": right})
    assert pretrained.describe("tiny") == description | {"sha256": right}
    same(pretrained.load(model).edit([FACT]), new_editor.edit([FACT]), rtol=0)
    for change, says in (
        ({"seed": "{"}, "metadata is damaged"),
        ({"config": texts["config"].replace('"rank": 4', '"rank": 5')}, "not those that were"),
        ({"sha256": "0"}, "not those that were"),
    ):
        save_file(arrays, path, old | {"sha256": right} | change)
        with pytest.raises(CheckpointError, match=says):
            pretrained.load(model)


@pytest.mark.parametrize("facts", [3, 0, "1", True])
def test_a_file_says_how_many_facts_an_edit_had_in_training(run, model, folder, facts):
    path = folder / "tiny.safetensors"
    assert pretrained.write(run, path)["trained_facts"] == 1 == pretrained.load(model).trained_facts
    file = array_files.read(path, pretrained.FORMAT, kind="editor file")
    changed = file.metadata | {"trained_facts": facts}
    path.write_bytes(array_files.encode(pretrained.FORMAT, file.arrays, changed))
    if facts == 3:
        assert pretrained.load(model).most_facts == 3
        return
    with pytest.raises(CheckpointError, match=f"metadata is damaged.*{facts!r} facts an edit"):
        pretrained.load(model)


def test_shipped_files_are_intact_and_small():
    for path in pretrained.FOLDER.glob("*.safetensors"):
        description, _ = pretrained._read(path)
        assert path.stat().st_size <= 10_000_000 and description["name"] == path.stem
        config = with_added_keys({"editor": description["config"]})
        assert "step_size" in config["editor"]["options"]  # shipped under its old name
        assert build_editor(ml_collections.ConfigDict(config)).trainable


def test_the_scope_of_a_shipped_editor_is_shipped_too():
    scopes = sorted(pretrained_scopes.FOLDER.glob("*.safetensors"))
    assert {scope_file.load(path).scope.base for path in scopes} == pretrained.names().keys()
    files = [*scopes, *pretrained.FOLDER.glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) < 12_000_000
