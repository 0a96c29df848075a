"""mend-jax COMMAND ...: every command of the package under one name.

A command is imported when it is chosen, so that `mend-jax --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import mend_jax
from mend_jax.errors import ConfigError, MendError, did_you_mean, report_error
from mend_jax.io.command import command


class Command(NamedTuple):
    """A command of `mend-jax`.

    Attributes:
      module: the module whose `main(argv)` runs it.
      summary: one line of `mend-jax --help`.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("mend_jax.apps.run_command", "train and evaluate an editor: --config=NAME.py"),
    "edit": Command("mend_jax.edit", "edit facts, and show, export or revert edits of a ledger"),
    "evaluate-shipped": Command(
        "mend_jax.apps.evaluate_shipped", "evaluate the editor that is shipped for a base"
    ),
    "evaluate-bank": Command(
        "mend_jax.apps.evaluate_bank", "evaluate many scoped edits in one bank"
    ),
    "judge": Command(
        "mend_jax.evaluation.judge", "let another model judge what edited models wrote"
    ),
    "learn-scope": Command(
        "mend_jax.apps.learn_scope", "learn which texts are about a fact, for scoped edits"
    ),
    "doctor": Command("mend_jax.doctor", "check a config, its base and its data before a run"),
    "grid": Command("mend_jax.apps.run_command", "run every cell of a table of runs"),
    "join-grids": Command("mend_jax.apps.join_grids", "join parts of a grid into one table"),
    "seeds": Command("mend_jax.apps.multi_seed", "run one config with several seeds"),
    "replay": Command("mend_jax.apps.replay_step", "repeat a training step that was not finite"),
    "config-keys": Command(
        "mend_jax.training.config_keys", "list every config key: default, range, meaning"
    ),
    "data": Command("mend_jax.data.__main__", "get the published raw files of a data set"),
    "prepare-wikitext": Command(
        "mend_jax.data.sources.wikitext_gen.__main__",
        "write a base's own continuations of Wikipedia passages",
    ),
    "hub": Command(
        "mend_jax.hub.__main__", "convert a published model to safetensors: hub convert SRC DST"
    ),
    "export-editor": Command("mend_jax.training.pretrained", "write a run's editor as one file"),
    "scaling": Command("mend_jax.tpu.scaling", "estimate a training step on any slice"),
    "shardings": Command("mend_jax.tpu.sharding_report", "report how arrays are split"),
}  # fmt: skip


def usage() -> str:
    """Return the help text: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mend-jax COMMAND [ARGUMENT ...]",
            "",
            "Learn to edit language models, in JAX.",
            "",
            *lines,
            "",
            "`mend-jax COMMAND --help` describes a command; `mend-jax --version` prints the",
            "version of the package.",
        ]
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, or 2 for an error that the message explains."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("--version", "version"):
        print(f"mend_jax {mend_jax.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        error = ConfigError(
            f"mend-jax has no command {name!r}{did_you_mean(name, list(COMMANDS))}; "
            f"its commands are {', '.join(COMMANDS)}"
        )
        return report_error(error)
    try:
        return importlib.import_module(COMMANDS[name].module).main(rest) or 0
    except MendError as error:
        return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
