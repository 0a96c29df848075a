"""python -m mend_jax.training.pretrained_scopes --scope=FILE --out=NAME.safetensors

Shipped scopes: learned scopes that come with the package, one for a base, and the command that
writes such a file from one that `mend-jax learn-scope` wrote. Its matrices are float16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mend_jax.core import scope_file
from mend_jax.core.scope import first_site
from mend_jax.core.scope_file import LearnedScope
from mend_jax.errors import MendError, report_error
from mend_jax.io.command import command
from mend_jax.parallel.distributed import print_once

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

FOLDER = Path(__file__).parent / "pretrained_scope_files"
SHIPPED = "shipped"
"""The value of `scope.file` that stands for the shipped scope of the base, if there is one."""


def find(model: LanguageModel) -> LearnedScope | None:
    """Return the scope that is shipped for a base and the blocks that it was loaded with, or None.

    Raises:
      CheckpointError: its file is damaged.
    """
    for path in sorted(FOLDER.glob("*.safetensors")):
        if scope_file.base_of(path) == model.fingerprint:
            learned = scope_file.load(path)
            return learned if learned.scope.site == first_site(model.module) else None
    return None


def load(name: str, model: LanguageModel) -> LearnedScope | None:
    """Return a scope for a base.

    Args:
      name: "shipped" or a file. Without a shipped scope for this base and its editable blocks the
        result is None, and a line says so.

    Raises:
      CheckpointError: a damaged file.
    """
    if name != SHIPPED:
        return scope_file.load(name)
    learned = find(model)
    if learned is None:
        print_once(
            f"no scope is shipped for {model.spec} with edits from block "
            f"{first_site(model.module).block} on: edits apply to all texts; learn one with "
            "`mend-jax learn-scope`"
        )
    return learned


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the file is written, 2 for an error with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.training.pretrained_scopes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--scope", required=True, help="a file that learn-scope wrote")
    parser.add_argument("--out", required=True, help="the file, NAME.safetensors")
    args = parser.parse_args(argv)
    try:
        scope_file.save(args.out, scope_file.load(args.scope), half=True)
    except MendError as e:
        return report_error(e)
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
