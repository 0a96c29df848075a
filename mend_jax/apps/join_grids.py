"""python -m mend_jax.apps.join_grids DIR GRID.json [GRID.json ...]

One table of parts of a grid that were run apart: on several machines, or on several days. DIR gets
grid.json, report.html with its pictures, and table.md, as a grid's own folder has them. Of a cell
that several parts have the last finished row counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, TypedDict

from mend_jax.errors import DataError, MendError, report_error
from mend_jax.evaluation.reports import grid_markdown, grid_report
from mend_jax.evaluation.reports.grid_rows import GridRow
from mend_jax.evaluation.results_migration import migrate_grid
from mend_jax.io.files import as_path, write_json, write_text
from mend_jax.io.json_values import matches_type, parse_json


class Grid(TypedDict):
    """What grid.json holds; see `grid.run_grid`."""

    title: str
    config_name: str
    config: dict[str, Any]
    rows: list[GridRow]
    failed: dict[str, str]


def read(path: Any) -> Grid:
    """What a grid left.

    Raises:
      DataError: there is no such file, or it is not the table of a grid.
    """
    path = as_path(path)
    try:
        found = migrate_grid(parse_json(path.read_bytes()))
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read as a grid's grid.json ({e})") from e
    if not matches_type(found, Grid):
        keys = ", ".join(Grid.__annotations__)
        raise DataError(
            f"{path}: not a grid's grid.json, which has {keys}, and rows of one cell each"
        )
    return found


def join(parts: Sequence[Grid]) -> Grid:
    """The rows of all parts, in the order of the last one's config, then as they come.

    Raises:
      DataError: the parts are of different tables.
    """
    titles = sorted({part["title"] for part in parts})
    if len(titles) > 1:
        raise DataError(f"these are parts of different tables: {titles}; join those of one")
    rows: dict[str, GridRow] = {}
    for part in parts:
        for row in part["rows"]:
            if not row["missing"] or row["cell"] not in rows:
                rows[row["cell"]] = row
    last = parts[-1]
    cells = [c for c in last["config"].get("cells", {}) if c in rows]
    order = dict.fromkeys([*cells, *rows])
    failed = {name: why for part in parts for name, why in part["failed"].items()}
    done = {name for name, row in rows.items() if not row["missing"]}
    return {
        **last,
        "rows": [rows[name] for name in order],
        "failed": {k: why for k, why in failed.items() if k.split(",")[0] not in done},
    }


def write(folder: Any, found: Grid) -> Any:
    """grid.json, table.md and report.html with its pictures; returns the page's path."""
    folder = as_path(folder)
    write_json(folder / "grid.json", found)
    write_text(folder / "table.md", grid_markdown.table(found))
    return grid_report.write(folder, found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it wrote the table, 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.apps.join_grids", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("parts", metavar="GRID.json", nargs="+")
    given = parser.parse_args(argv)
    try:
        print(write(given.folder, join([read(part) for part in given.parts])))
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
