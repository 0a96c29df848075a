"""The grid that judges the shipped editor and its rivals: which cells, with what settings."""

from mend_jax.apps import grid, judged_editors
from mend_jax.apps.run_command import parse
from mend_jax.editors import make_editor
from mend_jax.training import config as configs


def run_config(config, name):
    return parse(grid.run_flags(config, name, 0)).config


def test_nothing_is_trained_and_all_cells_judge_the_same_facts():
    for variant in ("", ":smoke"):
        config = configs.load_config(f"judge_smollm2.py{variant}")
        grid.check_grid_config(config)
        made = {name: run_config(config, name) for name in config.only}
        assert {c.train.steps for c in made.values()} == {0}
        keys = ("name", "max_len", "max_target", "template", "append_eos")
        assert len({tuple(c.data[k] for k in keys) for c in made.values()}) == 1
        assert len({(c.eval.edits, c.eval.hard_neighbours) for c in made.values()}) == 1
        assert all(c.eval.hard_edits == 0 for c in made.values())  # all have neighbours
        assert not any(c.eval.baselines for c in made.values())


def test_the_shipped_editor_is_judged_with_its_scope_and_without():
    config = configs.load_config("judge_smollm2.py")
    assert set(judged_editors.RIVALS) < set(config.only)
    scoped, plain = (run_config(config, f"shipped_{how}") for how in ("scoped", "plain"))
    assert scoped.editor.init_from == plain.editor.init_from == "shipped"
    assert (scoped.scope.file, plain.scope.file) == ("shipped", "")
    assert run_config(config, "fine_tune_lora_scoped").scope.file == "shipped"
    for name in judged_editors.RIVALS:
        c = run_config(config, name)
        assert not c.scope.file
        assert not make_editor(c.editor.name, c.editor.options.to_dict()).trainable
