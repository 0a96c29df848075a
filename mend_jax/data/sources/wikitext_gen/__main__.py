"""Prepare the rows of `wikitext_gen` for a base model ahead of a run, and write them to a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mend_jax.data import prepared_files, raw_files
from mend_jax.data.sources import wikitext_gen
from mend_jax.data.sources.wikitext_gen import SIZES, recipe
from mend_jax.errors import MendError, report_error
from mend_jax.hub.language_model import load_model
from mend_jax.io.command import command
from mend_jax.io.files import write_text
from mend_jax.models.abstract_model import DTYPES


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the rows are prepared, 2 after an error message."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.data.sources.wikitext_gen", description=wikitext_gen.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--model", required=True, metavar="SPEC", help="the base model, as model.spec"
    )
    parser.add_argument("--config", default="default", choices=sorted(SIZES))
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="as model.dtype")
    parser.add_argument(
        "--data_dir", default="", help=f"as data.dir; default {raw_files.DATA_DIR_VARIABLE}"
    )
    parser.add_argument("--out", default="", metavar="FILE.jsonl", help="also write the rows here")
    args = parser.parse_args(argv)
    try:
        model = load_model(args.model, dtype=args.dtype)
        dataset = prepared_files.load(
            recipe(args.config, raw_files.data_root(args.data_dir), model)
        )
        for split, part in dataset.splits.items():
            print(f"{split}: {len(part)} rows; left out: {dataset.notes['left_out'][split]}")
        if args.out:
            lines = [{"split": s, **row} for s, part in dataset.splits.items() for row in part]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(Path(args.out), text)
            print(f"rows: {args.out}")
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
