"""python -m mend_jax.edit COMMAND ...: make edits of a language model, inspect and revert them.

  apply --model SPEC --fact "PROMPT => TARGET" --ledger DIR    make, measure and record edits
  show --ledger DIR [--prompt TEXT]    what the active edits changed; what a text matches
  log --ledger DIR                     every edit, one per line
  revert N --ledger DIR                revert edit N; the others stay, bit for bit
  combine --ledger DIR                 combine the active edits in several ways, and compare these
  export N|all --ledger DIR --to DIR --as torch|peft|merged
  serve --ledger DIR                   a local page to try, keep and revert edits

Exit status: 0 for success; 2 for an error, which the message explains; 1 with `apply --strict` if
an edit failed or changed answers to neighbours or to unrelated prompts.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mend_jax.errors import ConfigError, MendError, report_error
from mend_jax.io.command import command

# The module that implements each command, in a function of the command's name. It is imported only
# when the command runs: importing jax takes seconds.
COMMANDS = {
    "apply": "apply_command", "show": "show_commands", "log": "show_commands",
    "revert": "show_commands", "combine": "combine_command", "export": "export_command",
    "serve": "serve_command",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see `{self.prog} -h`")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main_parser = _Parser(
        prog="python -m mend_jax.edit", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *aliases: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, aliases=aliases, help=text, description=text, allow_abbrev=False
        )
        added.set_defaults(command=name)  # also when called by an alias
        added.add_argument("--ledger", required=True, metavar="DIR", help="the ledger's folder")
        return added

    apply = command("apply", "make edits from facts, measure them, and record them in the ledger")
    apply.add_argument(
        "--fact", action="append", default=[], metavar='"PROMPT => TARGET"',
        help="a fact; can be repeated",
    )  # fmt: skip
    apply.add_argument(
        "--facts", action="append", default=[], metavar="FILE",
        help="a file with one fact per line, as for --fact, or a JSON object with prompt, target, "
        "and optionally subject, aliases, paraphrases, neighbours; - reads standard input",
    )  # fmt: skip
    _add_base_flags(apply)
    _add_editor_flags(apply)
    apply.add_argument("--plain", action="store_true", help=_PLAIN)
    apply.add_argument("--together", action="store_true", help="one edit for all facts")
    apply.add_argument(
        "--strict", action="store_true",
        help="exit with status 1 if an edit failed or its locality is bad",
    )  # fmt: skip
    apply.add_argument("--json", action="store_true", help="print JSON")

    show = command("show", "show what the active edits changed, as measured by apply")
    show.add_argument("--entry", type=int, metavar="N", help="only edit N, even if reverted")
    show.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT",
        help="say which scoped edit this text matches, how surely, and what the model writes with "
        "and without it; can be repeated",
    )  # fmt: skip
    show.add_argument(
        "--picture", metavar="FILE", help="with --prompt: also draw what is written, as a PNG"
    )
    show.add_argument(
        "--measure", action="store_true",
        help="load the model and measure all active edits together, as after a revert",
    )  # fmt: skip
    _add_place_flag(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--html", metavar="FILE", help="write an HTML page")

    log = command("log", "list every edit, one per line")
    log.add_argument("--json", action="store_true", help="print JSON")

    revert = command("revert", "revert an edit")
    revert.add_argument("number", type=int, metavar="N", help="the edit's number")

    text = "combine the active edits in several ways, measure each, and compare them"
    combine = command("combine", text, "stack")  # its old name
    _add_place_flag(combine)
    _add_editor_flags(combine)
    combine.add_argument("--json", action="store_true", help="print JSON")

    export = command("export", "export one edit, or all active edits, for other programs")
    export.add_argument("which", metavar="N|all")
    _add_place_flag(export)
    export.add_argument("--to", required=True, metavar="DIR", help="the folder to write")
    export.add_argument(
        "--as", dest="form", required=True, choices=("torch", "peft", "merged"),
        help="scoped edits for PyTorch, a LoRA adapter, or a whole checkpoint",
    )  # fmt: skip
    export.add_argument(
        "--plain", action="store_true",
        help="export scoped edits as peft or merged, without their scope",
    )  # fmt: skip

    export.add_argument(
        "--float32", action="store_true",
        help="with --as merged: write the edited tensors in float32, so that rounding to the type "
        "of the base loses nothing of a small edit",
    )  # fmt: skip

    serve = command("serve", "serve a local page to try, keep and revert edits")
    _add_base_flags(serve)
    _add_editor_flags(serve)
    serve.add_argument("--plain", action="store_true", help=_PLAIN)
    serve.add_argument("--port", type=int, default=0, help="0 (the default): any free port")
    return main_parser


_PLAIN = "change the weights for all texts, also where the base has a learned scope"


def _add_place_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="", metavar="SPEC", help="the base model, if it was moved"
    )
    _add_mesh_flag(command)


def _add_mesh_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--mesh", default="", metavar="DATA,FSDP,TENSOR",
        help="devices along each axis on which the base is placed; by default one device, of "
        "several accelerators all along fsdp",
    )  # fmt: skip


def _add_base_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="", metavar="SPEC",
        help="the base model; needed for a new ledger, and where the base was moved",
    )  # fmt: skip
    command.add_argument("--dtype", help="of a new ledger's base model; float32 by default")
    command.add_argument(
        "--last_n_blocks", type=int, metavar="N",
        help="for a new ledger: how many of the last blocks edits may change; by default 3, or as "
        "many as the editor needs (rome and memit edit the middle)",
    )  # fmt: skip
    _add_mesh_flag(command)


def _add_editor_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--editor", default="", metavar="NAME",
        help="the folder of a training run, or an editor that needs no training, such as "
        "fine_tune; by default the editor shipped for the base model",
    )  # fmt: skip
    command.add_argument(
        "--option", action="append", default=[], type=_option, metavar="KEY=VALUE",
        help="an option of an editor that needs no training; can be repeated",
    )  # fmt: skip
    command.add_argument(
        "--strength", type=float, default=1.0, metavar="S",
        help="scale the edit: below 1, success falls and locality improves",
    )  # fmt: skip


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every folder it opens
    try:
        args = parser().parse_args(argv)
        module = importlib.import_module(f"mend_jax.ledger.{COMMANDS[args.command]}")
        return getattr(module, args.command)(args)
    except MendError as e:
        return report_error(e)
    except BrokenPipeError:  # `show | head`
        sys.stdout = None  # so that the exit does not flush it again
        return 0


if __name__ == "__main__":
    sys.exit(main())
