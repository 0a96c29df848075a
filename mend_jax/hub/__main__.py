"""python -m mend_jax.hub convert SRC DST: a published model as a folder that mend_jax loads.

SRC is a folder or a Hugging Face id with config.json, a tokenizer's files, and weights as
pytorch_model.bin or safetensors, in one file or in shards. DST gets safetensors, tokenizer.json and
config.json. Pickles are read without running them, and torch is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mend_jax.errors import MendError, report_error
from mend_jax.hub.conversion import MAX_SHARD_BYTES, Conversion, convert


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when DST is complete, 2 after an error message."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.hub", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("convert", help="write a published model as safetensors")
    command.add_argument("source", metavar="SRC", help="a folder, or org/name[@revision]")
    command.add_argument("destination", metavar="DST", help="a folder that is not there yet")
    command.add_argument(
        "--max_shard_bytes", type=int, default=MAX_SHARD_BYTES, metavar="N",
        help="the largest size of a file of weights; default %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--true_label", metavar="NAME",
        help="for a classifier of two labels: the one that says a claim is true",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        done = convert(args.source, args.destination, args.max_shard_bytes, args.true_label)
    except MendError as error:
        return report_error(error)
    print(_describe(done))
    return 0


def _describe(done: Conversion) -> str:
    width = max(map(len, done.files))
    lines = [f"{done.folder}: {done.tensors} tensors"]
    lines += [f"  {name:{width}}  {size} bytes" for name, size in done.files.items()]
    lines += [f"  left out: {copy}, tied to {name}" for copy, name in done.dropped.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
