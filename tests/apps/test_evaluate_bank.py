"""`evaluate-bank`: many facts in one bank, on a tiny base."""

import dataclasses

import pytest
from support.scoped import ALWAYS, NEVER, OWN, scoped_editor
from support.tiny import save_tiny

import mend_jax
from mend_jax.apps import evaluate_bank
from mend_jax.apps.run_command import parse
from mend_jax.errors import ConfigError, DataError

SETTINGS = {
    "data.name": "world_facts/offline", "data.max_len": 96, "data.max_target": 24,
    "data.far_len": 16, "data.length_buckets": (), "eval.hard_neighbours": 2,
    "model.last_n_blocks": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def model(base):
    return mend_jax.load_model(base, last_n_blocks=1)


@pytest.fixture(scope="module")
def config(base):
    flags = [f"--config.{k}={v}" for k, v in SETTINGS.items()]
    return parse(["--config=quickstart.py", f"--config.model.spec={base}", *flags]).config


@pytest.mark.slow
def test_a_silent_bank_changes_nothing_and_others_change_the_facts_in_them(model, config):
    kept: list[list[str]] = []

    def keep(found: dict) -> None:
        kept.append(list(found))

    never, own, always = (
        evaluate_bank.evaluate_bank(config, scoped_editor(model, t), (1, 6), 4, keep=keep)
        for t in (NEVER, OWN, ALWAYS)
    )
    assert kept == 3 * [["1"], ["1", "6"]]  # written after each size
    for found in (never, own, always):
        assert [entry["facts"] for entry in found.values()] == [1, 6]
        assert all(entry["exact_removal"] and entry["evaluated"] == 4 for entry in found.values())
        assert all(entry["neighbours"] >= 4 for entry in found.values())
    for entry in never.values():
        assert entry["kept"] == 1 and entry["kl"] == pytest.approx(0, abs=1e-6)
        assert entry["leak"] == entry["leak_before"] and entry["conflicts"] == 0
    for entry in own.values():
        assert entry["kl"] == pytest.approx(0, abs=1e-6)
    assert always["6"]["kl"] > 1e-3
    assert evaluate_bank.table(own).count("\n") == 3


@pytest.mark.full
def test_the_command_names_what_is_missing(base, config, tmp_path, capsys):
    flags = [f"--config.{k}={v}" for k, v in SETTINGS.items()]
    flags += ["--config=quickstart.py", f"--config.model.spec={base}", f"--workdir={tmp_path}"]
    assert evaluate_bank.main([*flags, "--facts=many"]) == 2
    assert "--facts=many: give numbers of facts" in capsys.readouterr().err
    assert evaluate_bank.main([*flags, "--edits=2"]) == 2
    assert "no editor is shipped for" in capsys.readouterr().err
    editor = scoped_editor(mend_jax.load_model(base, last_n_blocks=1))
    with pytest.raises(DataError, match="facts are known: lower --facts"):
        evaluate_bank.evaluate_bank(config, editor, (10**6,), 2)
    with pytest.raises(ConfigError, match="no scope is learned"):
        evaluate_bank.evaluate_bank(config, dataclasses.replace(editor, scope=None), (1,), 2)


def test_sizes_are_numbers():
    assert evaluate_bank._sizes("10,1,10") == [1, 10]
    for bad in ("", "0", "a,1"):
        with pytest.raises(ConfigError, match="give numbers of facts"):
            evaluate_bank._sizes(bad)
