"""Grids of runs, such as the paper's tables; started by `python -m mend_jax.main`.

A config whose `job` is "grid" has cells: a config, settings and seeds. Every run is a process in
DIR/CELL/seed_N, which resumes or is finished; a failed run stops only those that begin with its
editor. After every run DIR gets grid.json (a row for each cell), table.md, and report.html with its
pictures. `python -m mend_jax.apps.join_grids` joins parts that were run apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict

from mend_jax.apps import join_grids, run_command
from mend_jax.apps.run_processes import (
    RunProcess,
    leave_accelerators_to_runs,
    print_status,
    raise_failed_runs,
    run_all,
)
from mend_jax.errors import ConfigError, MendError, did_you_mean
from mend_jax.evaluation.reports.grid_rows import GridRow, make_grid_row
from mend_jax.evaluation.reports.text_tables import grid_table
from mend_jax.evaluation.reports.values import value_at
from mend_jax.io.files import as_path
from mend_jax.training import config as configs
from mend_jax.training import config_check
from mend_jax.training.assembly import build_editor
from mend_jax.training.config_keys import Key

CELL = {"config": str, "method": str, "settings": tuple, "seeds": tuple, "start": str}
SAME_SHAPES = (
    "editor.name", "editor.options", "model.spec", "model.last_n_blocks", "model.edit_roles"
)  # fmt: skip
"""Keys that a cell and its `start` must share, so that their editors have the same shapes."""
KEYS = (
    Key("job", "grid", "kind of run: a grid of editing runs", choices=("grid",)),
    Key("title", "", "title of the report"),
    Key("only", (), "names of the cells to run and show, in their order"),
    Key("settings", (), "`key=value` for the runs of every cell, after their own"),
)


def cell(
    config: str, method: str, values: Mapping[str, Any], seeds: Sequence[int] = (0,),
    start: str = "",
) -> ConfigDict:  # fmt: skip
    """Return a cell of a grid.

    Args:
      config: the config of its runs, as --config names it.
      method: its name in the table; cells of one method form a curve.
      values: settings by dotted key, which override the config's.
      seeds: one run each.
      start: another cell, which runs first; each run begins with its editor of the same seed
        (`editor.init_from`).
    """
    settings = configs.as_overrides(values)
    return ConfigDict(
        dict(config=config, method=method, settings=settings, seeds=tuple(seeds), start=start)
    )


def new_grid(title: str, cells: Mapping[str, ConfigDict]) -> ConfigDict:
    """Return the config of a grid; see `KEYS` for the keys to set on the command line."""
    c = ConfigDict()
    c.job, c.title, c.only, c.settings = "grid", title, tuple(cells), ()
    c.cells = ConfigDict(dict(cells))
    return c


def check_grid_config(config: ConfigDict) -> None:
    """Raise a ConfigError for a grid, or a config of its runs, that cannot be used."""
    cells = config.get("cells") or {}
    problems = config_check.check_keys(config, KEYS, open_groups=("cells.",))
    problems += [] if cells and config.only else ["only: a grid needs at least one cell"]
    for name, one in cells.items():
        problems += _cell_problems(name, one)
    problems += [
        f"only: {name!r} is not a cell{did_you_mean(str(name), [*cells])}"
        for name in config.get("only", ())
        if name not in cells
    ]
    config_check.raise_problems(problems or _start_problems(cells))
    for name in config.only:
        run_config = _checked_config(config, name)
        if start := cells[name].start:
            first = _checked_config(config, start)
            if different := [k for k in SAME_SHAPES if _value(run_config, k) != _value(first, k)]:
                raise ConfigError(
                    f"cell {name} begins with the editor of {start} but has another {different}: "
                    "a cell can begin only with an editor of the same shapes"
                )


def _cell_problems(name: str, one: ConfigDict) -> list[str]:
    problems = []
    if not re.fullmatch(r"\w+", name):
        problems.append(f"cells.{name}: a cell's name has only letters, digits and _")
    types = {key: type(value) for key, value in one.items()}
    if types != CELL:
        problems.append(f"cells.{name} has {sorted(types)}, it needs {sorted(CELL)} as typed")
    elif not one.seeds or not all(type(s) is int and s >= 0 for s in one.seeds):
        problems.append(f"cells.{name}.seeds is {one.seeds!r}: give whole numbers")
    return problems


def _start_problems(cells: Mapping[str, Any]) -> list[str]:
    """Return the problems of cells that begin with others."""
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
        at, chain = name, []
        while at and at not in chain:
            chain.append(at)
            at = cells[at].start
        if at:
            return [f"cells.{at}.start: {' begins with '.join([*chain, at])}"]
    return []


def _checked_config(config: ConfigDict, name: str) -> ConfigDict:
    """Return the config of a cell's first run; raise a ConfigError if it cannot be run."""
    try:
        run_config = run_command.parse(run_flags(config, name, config.cells[name].seeds[0])).config
        if run_config.job != "edit":
            raise ConfigError(f"its job is {run_config.job!r}, but a grid has editing runs")
        config_check.check_editing_config(run_config)
        build_editor(run_config)
    except MendError as e:
        raise ConfigError(f"cell {name}: {e}") from e
    return run_config


def _value(config: ConfigDict, key: str) -> Any:
    return value_at(configs.to_json_dict(config), key)


def run_flags(config: ConfigDict, name: str, seed: int, init_from: Any = "") -> list[str]:
    """Return the command line of one run of a cell, which begins with the editor of a folder."""
    one = config.cells[name]
    settings = [*one.settings, *config.settings, f"seed={seed}"]
    settings += [f"editor.init_from={init_from}"] if init_from else []
    return [f"--config={one.config}", *(f"--config.{setting}" for setting in settings)]


def grid_runs(config: ConfigDict, workdir: Path) -> dict[str, list[RunProcess]]:
    """Return the runs of every chosen cell."""

    def run(name: str, seed: int) -> RunProcess:
        start = config.cells[name].start
        first = run(start, seed) if start else None
        flags = run_flags(config, name, seed, first.folder if first else "")
        folder = workdir / name / f"seed_{seed}"
        return RunProcess(f"{name}, seed {seed}", tuple(flags), folder, first)

    return {
        name: [run(name, seed) for seed in config.cells[name].seeds]
        for name in dict.fromkeys(config.only)
    }


def in_start_order(runs: Sequence[RunProcess]) -> list[RunProcess]:
    """Return the runs, each after the one that it begins with.

    Raises:
      ConfigError: a run begins with one that is neither among them nor finished.
    """
    known = {run.name: run for run in runs}
    ordered: dict[str, RunProcess] = {}
    for run in runs:
        chain = [run]
        while (first := chain[-1].after) is not None and first.name in known:
            chain.append(first)
        if first is not None and first.results() is None:
            raise ConfigError(
                f"{chain[-1].name} begins with the editor of {first.name}, which is neither among "
                f"`only` nor finished in {first.folder}: add its cell to `only`"
            )
        ordered |= {one.name: known[one.name] for one in reversed(chain)}
    return list(ordered.values())


def run_grid(config: ConfigDict, workdir: str | Path, config_name: str = "") -> join_grids.Grid:
    """Run what is not finished, and return the content of grid.json.

    Raises:
      ConfigError, CheckpointError: before any run starts.
      MendError: some runs failed, after all others; the message names them.
    """
    leave_accelerators_to_runs()
    check_grid_config(config)
    folder = as_path(workdir)
    cells = grid_runs(config, folder)
    runs = in_start_order([run for cell_runs in cells.values() for run in cell_runs])

    def write_table(failed: dict[str, str]) -> join_grids.Grid:
        rows = [
            make_grid_row(name, config.cells[name], [(run, run.results()) for run in cell_runs])
            for name, cell_runs in cells.items()
        ]
        table: join_grids.Grid = {
            "config_name": config_name,
            "config": configs.to_json_dict(config),
            "title": config.title,
            "rows": cast(list[GridRow], rows),
            "failed": failed,
        }
        join_grids.write(folder, table)
        return table

    failed = run_all(runs, after_each=lambda: write_table({}))
    table = write_table(failed)
    print_status(grid_table(table))
    print_status(f"report: {folder / 'report.html'}")
    raise_failed_runs(failed, len(runs))
    return table
