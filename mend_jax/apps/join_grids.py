"""python -m mend_jax.apps.join_grids DIR GRID.json [GRID.json ...]

Joins parts of a grid, run on several machines or days, into one table. DIR gets the files of a
grid's folder: grid.json, table.md, and report.html with its pictures. If several parts have a cell,
its last finished row counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from mend_jax.errors import DataError, MendError, report_error
from mend_jax.evaluation.reports import grid_markdown, grid_report
from mend_jax.evaluation.reports.grid_rows import GridRow
from mend_jax.evaluation.results_migration import migrate_grid
from mend_jax.io.command import command
from mend_jax.io.files import as_path, write_json, write_text
from mend_jax.io.json_values import matches_type, parse_json


class Grid(TypedDict):
    """The content of grid.json; see `grid.run_grid`."""

    title: str
    config_name: str
    config: dict[str, Any]
    rows: list[GridRow]
    failed: dict[str, str]


def read(path: str | Path) -> Grid:
    """Read a grid.json.

    Raises:
      DataError: there is no such file, or it is not the table of a grid.
    """
    try:
        grid = migrate_grid(parse_json(as_path(path).read_bytes()))
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read as a grid's grid.json ({e})") from e
    if not matches_type(grid, Grid):
        keys = ", ".join(Grid.__annotations__)
        raise DataError(
            f"{path}: not a grid's grid.json, which has {keys}, and rows of one cell each"
        )
    return grid


def join(parts: Sequence[Grid]) -> Grid:
    """Join the rows of all parts: first the cells of the last config, then others as they come.

    Raises:
      DataError: the parts are of different tables.
    """
    titles = sorted({part["title"] for part in parts})
    if len(titles) > 1:
        raise DataError(
            f"these are parts of different tables: {titles}; join the parts of one table"
        )
    rows: dict[str, GridRow] = {}
    for part in parts:
        for row in part["rows"]:
            if not row["missing"] or row["cell"] not in rows:
                rows[row["cell"]] = row
    last = parts[-1]
    cells = [c for c in last["config"].get("cells", {}) if c in rows]
    order = dict.fromkeys([*cells, *rows])
    finished = {name for name, row in rows.items() if not row["missing"]}
    failed = {run: message for part in parts for run, message in part["failed"].items()}
    failed = {run: text for run, text in failed.items() if run.split(",")[0] not in finished}
    return {**last, "rows": [rows[name] for name in order], "failed": failed}


def write(folder: str | Path, grid: Grid) -> Any:
    """Write grid.json, table.md, and report.html with its pictures; return the report's path."""
    path = as_path(folder)
    write_json(path / "grid.json", grid)
    write_text(path / "table.md", grid_markdown.table(grid))
    return grid_report.write(path, grid)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.apps.join_grids", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("parts", metavar="GRID.json", nargs="+")
    args = parser.parse_args(argv)
    try:
        print(write(args.folder, join([read(part) for part in args.parts])))
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
