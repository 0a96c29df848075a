"""Shipped scopes: found by the base and the blocks that are read."""

import pytest
from support.scoped import make_scope
from support.tiny import save_tiny

import mend_jax
from mend_jax.core import scope_file
from mend_jax.core.scope_file import LearnedScope
from mend_jax.errors import CheckpointError
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.training import pretrained_scopes


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def model(spec):
    return mend_jax.load_model(spec, last_n_blocks=2)


@pytest.fixture
def learned(model, tmp_path, monkeypatch):
    """A scope in a file of its own; the folder of shipped scopes is empty."""
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(pretrained_scopes, "FOLDER", tmp_path / "shipped")
    scope = make_scope(model.module, model.fingerprint)
    scope_file.save(tmp_path / "scope.safetensors", LearnedScope(scope, (0.5, 0.25), 0.1, {}))
    return tmp_path / "scope.safetensors"


def ship(learned):
    out = pretrained_scopes.FOLDER / "tiny.safetensors"
    assert pretrained_scopes.main([f"--scope={learned}", f"--out={out}"]) == 0
    return out


def test_a_shipped_scope_is_that_of_its_base_and_blocks(learned, model, spec):
    assert pretrained_scopes.find(model) is None
    out = ship(learned)
    assert out.stat().st_size < learned.stat().st_size
    found = pretrained_scopes.find(model)
    assert found.threshold == (0.5, 0.25) and found.scope.base == model.fingerprint
    assert pretrained_scopes.find(mend_jax.load_model(spec, last_n_blocks=1)) is None
    other = mend_jax.load_model(str(save_tiny(learned.parent / "other", seed=1)), last_n_blocks=2)
    assert pretrained_scopes.find(other) is None


def test_shipped_is_a_name_of_a_scope_and_so_is_a_file(learned, model, capsys):
    assert pretrained_scopes.load("shipped", model) is None
    assert "no scope is shipped for" in (said := capsys.readouterr().err)
    assert "with edits from block 2 on: edits apply to all texts" in said
    given = pretrained_scopes.load(str(learned), model)
    assert given.scope.fingerprint() == scope_file.load(learned).scope.fingerprint()
    ship(learned)
    assert pretrained_scopes.load("shipped", model).threshold == (0.5, 0.25)


def test_an_editor_without_a_scope_gets_the_shipped_one(learned, model):
    assert not choose_editor(model, "fine_tune").is_scoped
    ship(learned)
    assert choose_editor(model, "fine_tune").scope.threshold == (0.5, 0.25)


def test_errors_are_named(learned, model, capsys):
    missing = ["--scope=none.safetensors", "--out=x.safetensors"]
    assert pretrained_scopes.main(missing) == 2
    assert "none.safetensors: not a readable scope file" in capsys.readouterr().err
    ship(learned).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="tiny.safetensors: not a readable scope file"):
        pretrained_scopes.find(model)
