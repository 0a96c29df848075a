"""`export --as merged` says what rounding to 16 bits loses, and --float32 loses nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.hub.merged_export import save_merged
from mend_jax.ledger.cli import main
from mend_jax.ledger.export_command import describe_rounding
from mend_jax.models.params import weight_at

FACT = ("The capital of France is", "Lyon")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(save_tiny(tmp_path_factory.mktemp("base")))
    return mend_jax.load_model(folder, last_n_blocks=1, dtype="bfloat16")


def edit_of(model, size):
    """dW = size |W|: below 2^-9 each entry is rounded away."""
    w = model.weights[0]
    change = size * np.abs(np.asarray(weight_at(model.params, w.name), np.float32))
    return Edit({w.name: Dense(jnp.asarray(change))}, base=model.fingerprint, facts=(FACT, FACT))


def written(monkeypatch, before, after):
    """Let models write these texts, with an edit and without one."""

    def generate(self, prompts, max_new):
        return [after if self.edit is None else before] * len(prompts)

    monkeypatch.setattr(mend_jax.LanguageModel, "generate", generate)


@pytest.mark.parametrize(
    "before, after, counts, warned",
    [(" Lyon.", " Rome", "2 are answered before rounding and 0 after", True),
     (" Lyon.", " Lyon", "2 are answered before rounding and 2 after", False)],
)  # fmt: skip
def test_what_is_lost_is_said(model, monkeypatch, before, after, counts, warned):
    written(monkeypatch, before, after)
    error, answers, *warning = describe_rounding(model, edit_of(model, 2.0**-10))
    assert error == (
        "rounded to bfloat16, the edit has a relative error of 1, and 100% of its entries change "
        "nothing"
    )
    assert counts in answers
    assert [("--float32" in w and "--as peft" in w) for w in warning] == [True] * warned


def test_weights_of_32_bits_need_no_words(model):
    whole = dataclasses.replace(model, params=weights_in_float32(model.params))
    assert describe_rounding(whole, edit_of(model, 0.1)) == []


def weights_in_float32(node):
    if isinstance(node, dict):
        return {key: weights_in_float32(child) for key, child in node.items()}
    return jnp.asarray(node, jnp.float32)


def test_edited_tensors_are_written_in_float32(model, tmp_path):
    edit = edit_of(model, 2.0**-10)
    save_merged(tmp_path / "half", model, edit)
    save_merged(tmp_path / "whole", model, edit, float32_edits=True)
    half, whole = (load_file(tmp_path / f / "model.safetensors") for f in ("half", "whole"))
    changed = [name for name in half if half[name].dtype != whole[name].dtype]
    assert len(changed) == 1 and whole[changed[0]].dtype == np.float32
    again = mend_jax.load_model(str(tmp_path / "whole"), last_n_blocks=1)
    name = model.weights[0].name
    kernel = np.asarray(weight_at(model.params, name), np.float64)
    np.testing.assert_array_equal(
        np.asarray(weight_at(again.params, name), np.float64), kernel + 2.0**-10 * np.abs(kernel)
    )


def test_only_merged_weights_have_the_option(tmp_path, capsys):
    argv = ["export", "all", "--ledger", str(tmp_path), "--to", "x", "--as", "peft", "--float32"]
    assert main(argv) == 2 and "--float32 is of --as merged" in capsys.readouterr().err
