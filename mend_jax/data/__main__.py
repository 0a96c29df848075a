"""python -m mend_jax.data fetch NAME [--to=DIR]

Gets the published raw files of a data set into DIR (default MEND_DATA_DIR), reads them, and prints
the number of rows of each split and the licence. Files that are there are kept. Without a network
it says where to put which file. `python -m mend_jax.data list` names the data sets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mend_jax import data
from mend_jax.data import published_files
from mend_jax.errors import ConfigError, DataError
from mend_jax.io.command import command


@command
def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.data", description="Get the published raw files of a data set."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the data sets with published files")
    one = commands.add_parser("fetch", help="get the files of one data set")
    one.add_argument("name", help=", ".join(published_files.HOMES))
    one.add_argument("--to", default="", help="the folder of raw data (default MEND_DATA_DIR)")
    args = parser.parse_args(argv)
    return _list() if args.command == "list" else _fetch(args.name, args.to)


def _list() -> int:
    for name, files in published_files.HOMES.items():
        print(f"{name}: {', '.join(files)}")
    return 0


def _fetch(name: str, to: str) -> int:
    root = Path(to).expanduser() if to else data.data_root()
    if root is None:
        raise ConfigError("where to? give --to=DIR, or set MEND_DATA_DIR")
    files = published_files.fetch(name, root)
    for path, url in files.items():
        print(f"{path}  from {url}")
    try:
        dataset = data.load(name, root)
    except DataError as error:
        raise DataError(f"{name} cannot be read from these files: {error}") from error
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in dataset.splits.items())
    print(f"{name}: {counts} rows; licence: {dataset.license}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
