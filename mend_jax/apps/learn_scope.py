"""python -m mend_jax.apps.learn_scope --config=NAME.py [--workdir=DIR] [--config.KEY=VALUE]

Learns the scope of a config's base on the config's data: which texts are about a fact. Writes
DIR/scope.safetensors (default DIR runs/NAME). The base is loaded with the blocks that the config
edits; the scope reads the states below them and belongs to every editor of these blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mend_jax.apps.run_command import parse
from mend_jax.errors import ConfigError, MendError, report_error

FILE = "scope.safetensors"
_PLAIN_TEXTS = 500


def learn(config: ConfigDict, workdir: str | Path) -> Path:
    """Learn the scope of a config's base; return the file that was written.

    Raises:
      ConfigError: the data set has no relations, or the folder has a scope already.
      DataError, WeightsError: what cannot be loaded or learned from.
    """
    from mend_jax import data
    from mend_jax.core import scope_file
    from mend_jax.parallel.mesh import make_mesh
    from mend_jax.training.assembly import build_model, text_lengths
    from mend_jax.training.scope_training import ScopeOptions, learn_scope

    path = Path(workdir) / FILE
    if path.exists():
        raise ConfigError(f"{path} exists: give another --workdir, or move it away")
    model = build_model(config, make_mesh(dict(config.mesh)))
    dataset = data.load(config.data.name, config.data.dir or None, model=model)
    train, validation = dataset.split("train"), dataset.split("validation")
    if not any(row["relation"] for row in train):
        raise ConfigError(
            f"data.name {config.data.name!r} has no relations, so no neighbours to tell apart: "
            "choose another data set"
        )
    plain = [row["far"] for row in train[:_PLAIN_TEXTS] if row["far"]]
    learned = learn_scope(
        model, train, validation, plain, text_lengths(config), ScopeOptions(seed=config.seed)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    scope_file.save(path, learned)
    found = learned.description["validation"]
    print(
        f"threshold {learned.threshold:.3f}: {found['found']:.3f} of {found['n_inside']} "
        f"paraphrases match, {found['false_rate']:.3f} of {found['n_outside']} neighbours"
    )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    try:
        config, workdir, _ = parse(argv)
        print(f"scope: {learn(config, workdir)}")
    except MendError as e:
        return report_error(e)
    return 0


if __name__ == "__main__":
    sys.exit(main())
