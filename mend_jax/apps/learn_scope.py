"""python -m mend_jax.apps.learn_scope --config=NAME.py [--workdir=DIR] [--config.KEY=VALUE]

Learns the scope of a config's base on the config's data: which texts are about a fact. Writes
DIR/scope.safetensors (default DIR runs/NAME). The base is loaded with the blocks that the config
edits; the scope reads the states below them and belongs to every editor of these blocks. The keys
`scope.*` of the config say how it is learned. A run with scope.learn does this first.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mend_jax.apps.run_command import parse
from mend_jax.core.scope_file import LearnedScope
from mend_jax.errors import ConfigError, MendError, report_error
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.command import command
from mend_jax.training.run_folder import SCOPE_FILE

_PLAIN_TEXTS = 500
_LEAST_LENGTH = 40


def learn(config: ConfigDict, workdir: str | Path) -> Path:
    """Learn the scope of a config's base; return the file that was written.

    Raises:
      ConfigError: a data set has no relations, or the folder has a scope already.
      DataError, WeightsError: what cannot be loaded or learned from.
    """
    from mend_jax.core import scope_file
    from mend_jax.parallel.mesh import make_mesh
    from mend_jax.training.assembly import build_model

    path = Path(workdir) / SCOPE_FILE
    if path.exists():
        raise ConfigError(f"{path} exists: give another --workdir, or move it away")
    learned = learn_for(config, build_model(config, make_mesh(dict(config.mesh))))
    path.parent.mkdir(parents=True, exist_ok=True)
    scope_file.save(path, learned)
    return path


def scope_of_run(
    config: ConfigDict, workdir: Path
) -> Callable[[LanguageModel], LearnedScope | None] | None:
    """Return what gives the scope of a run in a folder: read there, or learned and written there.

    None if the run's edits are plain.
    """
    from mend_jax.core import scope_file
    from mend_jax.parallel.distributed import is_writer
    from mend_jax.training import pretrained_scopes
    from mend_jax.training.assembly import uses_scope

    def scope(model: LanguageModel) -> LearnedScope | None:
        path, given = workdir / SCOPE_FILE, config.scope.file
        if path.exists():
            return scope_file.load(path)
        learned = pretrained_scopes.load(given, model) if given else learn_for(config, model)
        if is_writer() and learned is not None:
            scope_file.save(path, learned)
        return learned

    return scope if uses_scope(config) else None


def learn_for(config: ConfigDict, model: LanguageModel) -> LearnedScope:
    """Return a scope learned for a loaded base; prints what its thresholds do.

    Raises:
      ConfigError: a data set has no relations.
      DataError: what cannot be loaded or learned from.
    """
    from mend_jax import data
    from mend_jax.training.assembly import text_lengths
    from mend_jax.training.scope_options import ScopeData, ScopeOptions
    from mend_jax.training.scope_training import learn_scope

    lengths = text_lengths(config)  # an editor may see shorter texts than a gate
    lengths = dataclasses.replace(lengths, max_len=max(lengths.max_len, _LEAST_LENGTH))
    sources = []
    for name in (config.data.name, *config.scope.data_sets):
        dataset = data.load(name, config.data.dir or None, model=model)
        train, validation = dataset.split("train"), dataset.split("validation")
        if not any(row["relation"] for row in train):
            raise ConfigError(
                f"data set {name!r} has no relations, so no neighbours to tell apart: choose "
                "another one"
            )
        plain = [row["far"] for row in train[:_PLAIN_TEXTS] if row["far"]]
        sources.append(ScopeData(train, validation, plain, lengths))
    c = config.scope
    options = ScopeOptions(
        facts=c.facts, wordings=c.wordings, steps=c.steps, validation_facts=c.validation_facts,
        false_rate=c.false_rate, question_rate=c.question_rate, seed=config.seed,
    )  # fmt: skip
    learned = learn_scope(model, sources, options)
    _print(learned)
    return learned


def _print(learned: LearnedScope) -> None:
    rates = learned.description["matches"]
    shares = ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())
    subject, question = learned.threshold
    print(
        f"scope: thresholds {subject:.3f} of the subject and {question:.3f} of the question, "
        f"weight of a mention {learned.mention:.3f}; validation texts that match: {shares}"
    )


@command
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
