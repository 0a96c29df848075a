"""Grids of runs: what the paper's tables are made of. Started by `python -m mend_jax.main`.

A config whose `job` is "grid" names cells, each a config with settings of its own and some seeds.
Every run is a process of its own in DIR/CELL/seed_N, which resumes or is done; one that fails stops
no other but those that begin with its editor. DIR/grid.json holds a row a cell, DIR/report.html
shows them, with pictures beside it, and DIR/table.md is its table; they are written again after
every run. `python -m mend_jax.apps.join_grids` makes one table of parts that were run apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from mend_jax.apps import join_grids, run_command
from mend_jax.apps.run_processes import (
    RunProcess,
    leave_accelerators_to_runs,
    print_status,
    raise_failed_runs,
    run_all,
)
from mend_jax.errors import ConfigError, MendError, did_you_mean
from mend_jax.evaluation.reports.grid_rows import make_grid_row
from mend_jax.evaluation.reports.text_tables import grid_table
from mend_jax.evaluation.reports.values import value_at
from mend_jax.io.files import as_path
from mend_jax.training import config as configs
from mend_jax.training import config_schema
from mend_jax.training.assembly import build_editor
from mend_jax.training.config_keys import Key

CELL = {"config": str, "method": str, "settings": tuple, "seeds": tuple, "start": str}
SAME = ("editor.name", "editor.options", "model.spec", "model.last_n_blocks", "model.edit_roles")
"""What a cell and the one that it begins with must agree on: the shapes of what is learned."""
KEYS = (
    Key("job", "grid", "kind of run: a grid of editing runs", choices=("grid",)),
    Key("title", "", "title of the report"),
    Key("only", (), "names of the cells to run and to show, in their order"),
    Key("settings", (), "`key=value` for the runs of every cell, on top of their own"),
)


def cell(
    config: str, method: str, values: Mapping[str, Any], seeds: Sequence[int] = (0,),
    start: str = "",
) -> ml_collections.ConfigDict:  # fmt: skip
    """A cell of a grid.

    Args:
      config: the config of its runs, as --config takes it.
      method: what the table calls it; cells of one method make a curve.
      values: settings by dotted key, on top of that config.
      seeds: one run each.
      start: another cell, whose editor of the same seed each run begins with (`editor.init_from`);
        it runs first.
    """
    given = dict(config=config, method=method, settings=configs.as_overrides(values), start=start)
    return ml_collections.ConfigDict(given | dict(seeds=tuple(seeds)))


def new_grid(title: str, cells: Mapping[str, ml_collections.ConfigDict]) -> Any:
    """The config of a grid; its keys `only` and `settings` are for the command line.

    `only`: the names of the cells to run and show, in their order; at first all. `settings`:
    `key=value` for the runs of every cell, on top of their own.
    """
    c = ml_collections.ConfigDict()
    c.job, c.title, c.only, c.settings = "grid", title, tuple(cells), ()
    c.cells = ml_collections.ConfigDict(dict(cells))
    return c


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for what is wrong with a grid, or with the config of one of its runs."""
    cells = config.get("cells") or {}
    problems = config_schema.check_keys(config, KEYS, open_groups=("cells.",))
    problems += [] if cells and config.only else ["only: a grid needs at least one cell"]
    for name, one in cells.items():
        if not re.fullmatch(r"\w+", name):
            problems.append(f"cells.{name}: letters, digits and _ alone make the name of a cell")
        found = {key: type(value) for key, value in one.items()}
        if found != CELL:
            problems.append(f"cells.{name} has {sorted(found)}, it needs {sorted(CELL)} as typed")
        elif not one.seeds or not all(type(s) is int and s >= 0 for s in one.seeds):
            problems.append(f"cells.{name}.seeds is {one.seeds!r}: give whole numbers")
    problems += [
        f"only: {name!r} is not a cell{did_you_mean(str(name), [*cells])}"
        for name in config.get("only", ())
        if name not in cells
    ]
    config_schema.raise_problems(problems or _check_starts(cells))
    for name in config.only:
        run_config = _checked(config, name)
        if start := cells[name].start:
            first = _checked(config, start)
            if apart := [key for key in SAME if _at(run_config, key) != _at(first, key)]:
                raise ConfigError(
                    f"cell {name} begins with the editor of {start} and has another {apart}: only "
                    "an editor of the same shapes can be gone on with"
                )


def _check_starts(cells: Mapping[str, Any]) -> list[str]:
    """What is wrong with the cells that others begin with."""
    problems = []
    for name, one in cells.items():
        if one.start and one.start not in cells:
            near = did_you_mean(one.start, [*cells])
            problems.append(f"cells.{name}.start: {one.start!r} is not a cell{near}")
        elif one.start and (lacks := sorted(set(one.seeds) - set(cells[one.start].seeds))):
            problems.append(f"cells.{name}.start: {one.start} has no seed {lacks}")
    if problems:
        return problems
    for name in cells:
        at, seen = name, []
        while at and at not in seen:
            seen.append(at)
            at = cells[at].start
        if at:
            return [f"cells.{at}.start: {' begins with '.join([*seen, at])}"]
    return []


def _checked(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The config of a cell's first run; a ConfigError if it cannot be run."""
    try:
        run_config, _, _ = run_command.parse(run_flags(config, name, config.cells[name].seeds[0]))
        if run_config.job != "edit":
            raise ConfigError(f"its job is {run_config.job!r}, a grid is made of editing runs")
        config_schema.check(run_config)
        build_editor(run_config)
    except MendError as e:
        raise ConfigError(f"cell {name}: {e}") from e
    return run_config


def _at(config: ml_collections.ConfigDict, key: str) -> Any:
    return value_at(configs.to_json_dict(config), key)


def run_flags(
    config: ml_collections.ConfigDict, name: str, seed: int, start: Any = ""
) -> list[str]:
    """The command line of one run of a cell, which begins with the editor of the folder `start`."""
    one = config.cells[name]
    settings = [*one.settings, *config.settings, f"seed={seed}"]
    settings += [f"editor.init_from={start}"] if start else []
    return [f"--config={one.config}", *(f"--config.{setting}" for setting in settings)]


def grid_runs(config: ml_collections.ConfigDict, workdir: Any) -> dict[str, list[RunProcess]]:
    """The runs of every chosen cell."""

    def run(name: str, seed: int) -> RunProcess:
        start = config.cells[name].start
        first = run(start, seed) if start else None
        flags = run_flags(config, name, seed, first.folder if first else "")
        return RunProcess(
            f"{name}, seed {seed}", tuple(flags), workdir / name / f"seed_{seed}", first
        )

    return {
        name: [run(name, seed) for seed in config.cells[name].seeds]
        for name in dict.fromkeys(config.only)
    }


def in_start_order(runs: Sequence[RunProcess]) -> list[RunProcess]:
    """The runs, each behind the one that it begins with.

    Raises:
      ConfigError: one begins with a run that is neither among them nor finished.
    """
    known, found = {run.name: run for run in runs}, {}
    for run in runs:
        line = [run]
        while line[-1].after is not None and line[-1].after.name in known:
            line.append(line[-1].after)
        first = line[-1].after
        if first is not None and first.results() is None:
            raise ConfigError(
                f"{line[-1].name} begins with the editor of {first.name}, which is neither among "
                f"`only` nor finished in {first.folder}: add its cell to `only`"
            )
        found |= {one.name: known[one.name] for one in reversed(line)}
    return list(found.values())


def run_grid(
    config: ml_collections.ConfigDict, workdir: str | Path, config_name: str = ""
) -> dict[str, Any]:
    """Runs what is not finished yet, and returns what grid.json holds.

    Raises:
      ConfigError, CheckpointError: before anything runs.
      MendError: some runs failed, when all others are done; it names them.
    """
    leave_accelerators_to_runs()
    check(config)
    workdir = as_path(workdir)
    cells = grid_runs(config, workdir)
    runs = in_start_order([run for of_cell in cells.values() for run in of_cell])
    failed: dict[str, str] = {}

    def table() -> dict[str, Any]:
        rows = [
            make_grid_row(name, config.cells[name], [(run, run.results()) for run in of_cell])
            for name, of_cell in cells.items()
        ]
        return {
            "config_name": config_name,
            "config": configs.to_json_dict(config),
            "title": config.title,
            "rows": rows,
            "failed": failed,
        }

    def keep() -> dict[str, Any]:
        found = table()
        join_grids.write(workdir, found)
        return found

    failed = run_all(runs, after=keep)
    found = keep()
    print_status(grid_table(found))
    print_status(f"report: {workdir / 'report.html'}")
    raise_failed_runs(failed, len(runs))
    return found
