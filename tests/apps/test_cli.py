"""The console script `mend-jax`: its list of commands, its errors, and its quick start."""

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mend_jax
from mend_jax.apps import cli

ROOT = Path(__file__).parents[2]


def test_the_package_installs_the_script():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["mend-jax"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_help_lists_every_command_on_one_line(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in cli.COMMANDS.items():
        assert sum(line.split()[:1] == [name] and command.summary in line for line in lines) == 1
    assert all(len(line) <= 90 for line in lines)


def test_without_a_command_it_prints_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage: mend-jax" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mend_jax {mend_jax.__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ConfigError: mend-jax has no command 'trian' (did you mean 'train'?)")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_main_that_takes_arguments(name):
    main = importlib.import_module(cli.COMMANDS[name].module).main
    assert len(inspect.signature(main).parameters) == 1


def test_arguments_and_exit_status_pass_through(monkeypatch, capsys):
    assert cli.main(["train", "--config=quikstart.py"]) == 2
    assert "no config 'quikstart.py' (did you mean 'quickstart.py'?)" in capsys.readouterr().err
    assert cli.main(["edit", "show", "--ledger", "/no/such/ledger"]) == 2
    assert "/no/such/ledger" in capsys.readouterr().err


def test_help_does_not_import_jax():
    program = "import sys; from mend_jax.apps.cli import main; main(['-h']); "
    program += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
