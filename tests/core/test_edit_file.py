"""Edit files: written whole, read in all formats; damage and other programs' files are named."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save as serialise
from support.small_edits import FINGERPRINT, UP, bits, small_edit
from support.tiny import save_tiny

import mend_jax
from mend_jax.core import edit_file
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.editors import make_editor
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files

MADE = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edit.safetensors"


def write_old(path, arrays, metadata):
    path.write_bytes(serialise(arrays, {"format": "mend_jax_edit/2"} | metadata))


def write_new(path, arrays, metadata):
    path.write_bytes(array_files.encode(edit_file.FORMAT, arrays, metadata))


@pytest.mark.parametrize("rows", [2, 0, None])
def test_save_and_load_keep_every_bit(path, rows):
    edit = small_edit(rows=rows, editor="mend@01234567", created=MADE)
    edit = edit.replace(facts=(("Who?", "Ünï"), ("", "\u2028\n")))
    edit.save(path)
    loaded = Edit.load(path)
    assert bits(loaded) == bits(edit) and loaded.created == MADE
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_keys_are_kept_without_their_zero_rows(path):
    edit = small_edit()
    keys = {name: np.zeros((4, d.shape[0]), np.float32) for name, d in edit.deltas.items()}
    for rows in keys.values():
        rows[:2] = np.arange(1, 1 + rows[:2].size).reshape(2, -1)
    edit.replace(keys=keys).save(path)
    loaded = Edit.load(path)
    for name, rows in keys.items():
        np.testing.assert_array_equal(loaded.keys[name], rows[:2])
    jax.tree.map(np.testing.assert_array_equal, loaded.deltas, edit.deltas)


def test_files_of_the_third_format_have_no_keys(path):
    metadata = {"base": FINGERPRINT, "facts": [["Who?", "x"]], "editor": "", "created": MADE}
    arrays = {f"{UP}.w": np.full((2, 3), 0.5, np.float32)}
    path.write_bytes(array_files.encode("mend_jax_edit/3", arrays, metadata))
    edit = Edit.load(path)
    assert edit.keys is None and (edit.facts, edit.created) == ((("Who?", "x"),), MADE)


@pytest.mark.parametrize("keys", [{f"{UP}.key": np.ones((2, 5), np.float32)},
                                  {f"{UP}.key": np.ones(3, np.float32)},
                                  {"block_9/mlp/up.key": np.ones((2, 3), np.float32)}])  # fmt: skip
def test_keys_that_fit_no_delta_are_refused(path, keys):
    metadata = {"base": FINGERPRINT, "facts": [], "editor": "", "created": MADE}
    write_new(path, {f"{UP}.w": np.full((3, 4), 0.5, np.float32)} | keys, metadata)
    with pytest.raises(CheckpointError, match="do not fit the deltas"):
        Edit.load(path)


def test_unknown_metadata_are_empty(path):
    Edit({UP: Dense(jnp.ones((3, 4)))}).save(path)
    loaded = Edit.load(path)
    assert (loaded.base, loaded.facts, loaded.editor, loaded.created) == ("", (), "", "")


def test_files_of_the_first_format_are_read(path):
    a, b = np.ones((2, 3), np.float32), np.full((2, 4), 0.5, np.float32)
    metadata = {"format": "mend_jax_edit/1", "base": FINGERPRINT, "facts": '[["Who?", "Ünï"]]'}
    path.write_bytes(serialise({f"{UP}.a": a, f"{UP}.b": b}, metadata))
    edit = Edit.load(path)
    assert (edit.base, edit.facts) == (FINGERPRINT, (("Who?", "Ünï"),))
    assert (edit.editor, edit.created) == ("", "")
    np.testing.assert_array_equal(edit.deltas[UP].dense(), a.T @ b)


def test_files_of_the_second_format_are_read(path):
    metadata = {"base": FINGERPRINT, "facts": '[["Who?", "x"]]', "editor": "mend@1", "made": MADE}
    write_old(path, {f"{UP}.w": np.full((2, 3), 0.5, np.float32)}, metadata)
    edit = Edit.load(path)
    assert (edit.base, edit.facts) == (FINGERPRINT, (("Who?", "x"),))
    assert (edit.editor, edit.created) == ("mend@1", MADE)
    np.testing.assert_array_equal(edit.deltas[UP].dense(), np.full((2, 3), 0.5))


def test_a_changed_edit_file_is_named(path):
    small_edit().save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b"mlp/up.a", b"mlp/up.z")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="contents of this edit file are not those"):
            Edit.load(path)


def test_zero_rows_are_not_saved(path):
    delta = LowRank(jnp.eye(4, 3), jnp.concatenate([jnp.ones((2, 5)), jnp.zeros((2, 5))]))
    Edit({UP: delta}).save(path)
    loaded = Edit.load(path).deltas[UP]
    assert loaded.a.shape == (2, 3)
    np.testing.assert_array_equal(loaded.dense(), delta.dense())


def test_truncated_files_are_named(path):
    small_edit().save(path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="edit.safetensors: not a readable edit file"):
            Edit.load(path)
    with pytest.raises(CheckpointError, match="nowhere: not a readable edit file"):
        Edit.load(path.with_name("nowhere"))


@pytest.mark.parametrize("form", ["mend_jax_edit/5", "mend_jax_edit/", "lora", None])
def test_files_of_other_formats_are_named(path, form):
    metadata = {"base": "x"} | ({} if form is None else {"format": form})
    path.write_bytes(serialise({f"{UP}.w": np.ones((2, 3))}, metadata))
    with pytest.raises(CheckpointError, match=f"format {form!r} is none of mend_jax_edit/1, .*4;"):
        Edit.load(path)


def test_invalid_arrays_and_metadata_are_named(path):
    ones = np.ones((2, 3))
    for write in (write_old, write_new):
        write(path, {f"{UP}.a": ones, f"{UP}.z": ones}, {})
        message = "edit.safetensors: .* of block_1/mlp/up do not make"
        with pytest.raises(CheckpointError, match=message):
            Edit.load(path)
    write_old(path, {f"{UP}.w": ones}, {"facts": json.dumps(["Who?"])})
    with pytest.raises(CheckpointError, match="metadata `facts` is not a list of pairs"):
        Edit.load(path)
    write_new(path, {f"{UP}.w": ones}, {"facts": ["Who?"]})
    with pytest.raises(CheckpointError, match="metadata `facts` is not a list of pairs"):
        Edit.load(path)
    write_new(path, {f"{UP}.w": ones}, {"editor": 3})
    with pytest.raises(CheckpointError, match="metadata `editor` is not a text"):
        Edit.load(path)
    several = Edit({UP: LowRank(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 4)))})
    with pytest.raises(CheckpointError, match="block_1/mlp/up holds several edits"):
        several.save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


def test_another_base_is_refused_with_both_fingerprints(path, model):
    name = model.weights[0].name
    small = Edit({name: LowRank(np.ones((1, 32), "f"), np.ones((1, 48), "f"))}, base=FINGERPRINT)
    small.save(path)
    with pytest.raises(CheckpointError, match=f"{FINGERPRINT}.*{model.fingerprint}"):
        model.with_edit(Edit.load(path))
    small.replace(base=model.fingerprint).save(path)
    assert model.with_edit(Edit.load(path)).edit.deltas.keys() == {name}


def test_edits_name_their_editor_and_date(path, model):
    ids = set()
    for seed in (0, 0, 1):
        transform = make_editor("mend", {})
        params, state = transform.init(jax.random.key(seed), model.weights)
        editor = mend_jax.Editor(model, transform, params, state, name="mend")
        assert re.fullmatch("mend@[0-9a-f]{8}", editor.id)
        assert editor.id is editor.id  # hashed once
        ids.add(editor.id)
    assert len(ids) == 2
    counted = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state)
    assert mend_jax.Editor(model, transform, params, counted, name="mend").id not in ids
    transform = make_editor("fine_tune", {"max_steps": 2})
    params, state = transform.init(jax.random.key(0), model.weights)
    editor = mend_jax.Editor(model, transform, params, state, name="fine_tune")
    edit = editor.edit([("The capital of France is", "Lyon")])
    edit.save(path)
    loaded = Edit.load(path)
    assert loaded.editor == editor.id == "fine_tune"
    assert loaded.created[:4].isdigit() and loaded.created.endswith("+00:00")
