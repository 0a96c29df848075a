"""Configs: found by name, checked, overridden; every config in the project loads."""

from pathlib import Path

import pytest

from mend_jax.apps import fact_checker_job
from mend_jax.apps.run_command import main, parse
from mend_jax.data import DATA_SETS
from mend_jax.errors import ConfigError
from mend_jax.training import config as configs
from mend_jax.training.assembly import build_editor, build_optimizer
from mend_jax.training.config_check import check_editing_config
from mend_jax.training.config_keys import (
    KEYS,
    RENAMED_KEYS,
    default_config,
    key_value,
    markdown,
    with_added_keys,
)

FOLDER = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("variant", ["", ":smoke"])
@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.py")))
def test_every_config_loads_checks_and_builds(name, variant):
    config = configs.load_config(name + variant)
    if config.job == "finetune":
        fact_checker_job.check_fact_checker_config(config)
        return
    if config.job == "grid":
        return  # `test_grid` checks them
    check_editing_config(config)
    build_editor(config)
    build_optimizer(config)
    assert configs.to_json_dict(config)["editor"]["name"]


@pytest.mark.parametrize(
    "name, task, far",
    [("bart_base", "zsre/mend", ""), ("t5_xl", "zsre/mend", ""), ("bert_base", "fever", ""),
     ("gptj", "wikitext_gen", "wikitext"), ("distilgpt2", "wikitext_gen", "wikitext")],
)  # fmt: skip
def test_the_papers_models_use_the_papers_data(name, task, far):
    config = configs.load_config(f"{name}.py:paper")
    check_editing_config(config)
    assert (config.data.name, config.data.far_source) == (task, far)
    assert config.data.name.partition("/")[0] in DATA_SETS and config.train.near_share == 0


def test_a_config_is_found_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text((FOLDER / "quickstart.py").read_text())
    config, workdir, name = parse([f"--config={path}:smoke", "--config.train.steps=7"])
    assert (config.train.steps, workdir, name) == (7, "runs/mine-smoke", f"{path}:smoke")


def test_overrides_keep_their_type():
    config, workdir, _ = parse(
        ["--config=quickstart.py", "--workdir=w", "--config.train.lr=1", "--config.seed=3",
         "--config.model.spec=x/y", "--config.train.decay=false",
         "--config.model.edit_roles=mlp/up,mlp/down", "--config.editor.options.rank=16"]
    )  # fmt: skip
    assert workdir == "w"
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float)
    assert config.seed == 3 and config.model.spec == "x/y" and config.train.decay is False
    assert config.model.edit_roles == ("mlp/up", "mlp/down")
    assert config.editor.options.rank == 16


def test_a_group_is_replaced_as_a_whole():
    values = {
        "editor.name": "fine_tune", "editor.options": {"lr": 1e-3, "only": ("mlp/down",)},
        "eval.baselines": {}, "data.length_buckets": (16, 20), "data.far_source": "",
        "train.lr": 1e-5,
    }  # fmt: skip
    flags = [f"--config.{setting}" for setting in configs.as_overrides(values)]
    config, _, _ = parse(["--config=quickstart.py", *flags, "--config.editor.options.lr=1"])
    assert config.editor.options.to_dict() == {"lr": 1.0, "only": ("mlp/down",)}
    assert config.data.length_buckets == (16, 20) and config.train.lr == 1e-5
    assert not config.eval.baselines
    check_editing_config(config)
    build_editor(config)
    with pytest.raises(AttributeError, match="locked"):
        config.editor.options.rank = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=quikstart.py"], "no config 'quikstart.py'.*did you mean 'quickstart.py'"),
        (["--config=quickstart.py:smok"], "unknown variant or key 'smok'"),
        (["--config=quickstart.py", "--config.train.stesp=1"], "did you mean 'train.steps'"),
        (["--config=quickstart.py", "--config.lr=1"], "no key 'lr' .did you mean 'train.lr'"),
        (["--config=quickstart.py", "--config.train.steps=many"], "expected int such as"),
        (["--config=quickstart.py", "--config.train.steps=1.5"], "expected int such as"),
        (["--config=quickstart.py", "--config.train=1"], "is a group of keys.*all of it, as in"),
        (["--config=quickstart.py", "--config.train={"], "is a group of keys"),
        (["--config=quickstart.py", "--config.train={1: 2}"], "is a group of keys"),
        (["--config=quickstart.py", "--config.train.steps"], "write --config.KEY=VALUE"),
        (["--config=quickstart.py", "--workdri=x"], "unknown argument.*did you mean '--workdir'"),
        (["--config=quickstart.py", "--config.train.steps=None"], "expected int such as"),
        (["--config=quickstart.py", "--config.job=edti"], "job is 'edti' .did you mean 'edit'"),
        (["--config=/etc/hostname"], "/etc/hostname is not a config"),
        ([], "--config"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    import re

    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps=-1", "train.steps is -1"),
        ("train.lr=0.0", "train.lr is 0.0, more than 0 is needed"),
        ("train.c_loc=-2.0", "train.c_loc is -2.0, at least 0 is needed"),
        (
            "train.keep_checkpoint=first",
            "train.keep_checkpoint is 'first', one of .'best', 'last'. is needed",
        ),
        ("eval.max_new_tokens=2", "no room to write a target"),
        ("eval.edits=0", "eval.edits is 0"),
    ],
)
def test_values_out_of_range_are_named(setting, message):
    config, _, _ = parse(["--config=quickstart.py", f"--config.{setting}"])
    with pytest.raises(ConfigError, match=message):
        check_editing_config(config)


def test_keys_of_a_config_file_are_checked_as_well():
    config, _, _ = parse(["--config=quickstart.py"])
    with config.unlocked():
        config.train.stesp = 5
        del config.train["warmup"]
        config.train.lr = None
    message = "train.warmup is missing; train.lr is None.*train.stesp is not a key .did you mean"
    with pytest.raises(ConfigError, match=message):
        check_editing_config(config)


@pytest.mark.parametrize(
    "setting", ["options.layer_lr=0.5", "options.log_layer_lr=False", "options={'layer_lr': 0.5}"]
)
def test_old_names_of_editor_options_are_accepted(setting):
    config, _, _ = parse(["--config=quickstart.py", f"--config.editor.{setting}"])
    options = config.editor.options.to_dict()
    assert not options.keys() & {"layer_lr", "log_layer_lr"}
    assert options["step_size"] == 0.5 or options["log_step_size"] is False
    build_editor(config)


OLD_NAMES = sorted(RENAMED_KEYS)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_key_is_accepted_with_a_warning_that_names_the_new_one(old, capsys):
    config = default_config()
    value = key_value(config, RENAMED_KEYS[old])
    different = {str: "last", bool: True, int: 7, float: 0.25, tuple: ("a",)}[type(value)]
    configs.apply_overrides(config, configs.as_overrides({old: different}))
    assert key_value(config, RENAMED_KEYS[old]) == different
    assert f"--config.{old} is now --config.{RENAMED_KEYS[old]}" in capsys.readouterr().err


def test_a_stored_config_under_old_names_is_the_same_config():
    stored = configs.to_json_dict(default_config())
    for old, new in RENAMED_KEYS.items():
        group, name = new.split(".")
        stored[group][old.split(".")[1]] = stored[group].pop(name)
    assert with_added_keys(stored) == configs.to_json_dict(default_config())


def test_the_error_for_an_old_key_in_a_config_file_names_the_new_one(tmp_path):
    path = tmp_path / "mine.py"
    text = "from mend_jax.training.config import load_config\n\n\ndef get_config(variant):\n"
    path.write_text(text + "    c = load_config('quickstart.py')\n    c.data.far = 'x'\n")
    with pytest.raises(ConfigError, match=r"mine\.py.*data\.far is now data\.far_source"):
        configs.load_config(str(path))
    config = default_config()
    config.data.far = "x"
    with pytest.raises(ConfigError, match=r"data\.far is now data\.far_source: rename it"):
        check_editing_config(config)


def test_defaults_are_in_range_and_every_key_is_explained():
    for key in KEYS:
        assert not key.problem(key.default) and key.doc and "\n" not in key.doc, key.name
        assert key.absent is None or not key.problem(key.absent), key.name
    names = [name for key in KEYS for name in (key.name, *key.old_names)]
    assert len(names) == len(set(names))


def test_the_table_of_config_keys_is_current():
    """Otherwise: `python -m mend_jax.training.config_keys > docs/config.md`."""
    path = Path(__file__).parents[2] / "docs/config.md"
    assert path.read_text(encoding="utf-8") == markdown()


def test_quickstart_has_every_key():
    config, _, _ = parse(["--config=quickstart.py"])
    assert {key.name for key in KEYS} <= set(configs.flat_keys(config))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("v_init=xaviar", "v_init 'xaviar'"),
        ("rank=-4", "rank -4"),
        ("step_size=-1.0", "step_size -1.0 has no logarithm"),
    ],
)
def test_options_of_the_editor_are_checked(setting, message):
    config, _, _ = parse(["--config=quickstart.py", f"--config.editor.options.{setting}"])
    with pytest.raises(ConfigError, match=message):
        build_editor(config)
