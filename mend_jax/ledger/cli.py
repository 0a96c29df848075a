"""python -m mend_jax.edit COMMAND ...: edits of a language model that are kept, shown and undone.

  apply --model SPEC --fact "PROMPT => TARGET" --ledger DIR    makes edits, measures, records them
  show --ledger DIR                    what the edits in force changed, before and after
  log --ledger DIR                     every edit, a line each
  revert N --ledger DIR                takes an edit back; the others stay, bit for bit
  combine --ledger DIR                 all edits at once, in several ways, measured side by side
  export N|all --ledger DIR --to DIR --as peft|merged
  serve --ledger DIR                   a local page to try, keep and undo edits

0 when all is well, 2 for an error that the message explains, 1 with `apply --strict` where an edit
did not take or changed what it should not.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

from mend_jax.errors import ConfigError, MendError, report_error

# The module that implements each command, in a function of the command's name. It is imported only
# when the command runs: importing jax takes seconds.
COMMANDS = {
    "apply": "apply_command", "show": "show_commands", "log": "show_commands",
    "revert": "show_commands", "combine": "combine_command", "export": "export_command",
    "serve": "serve_command",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}; see `python -m mend_jax.edit {self._of()} -h`")

    def _of(self) -> str:
        return self.prog.split()[-1] if self.prog.split()[-1] in COMMANDS else ""


def parser() -> argparse.ArgumentParser:
    """The flags of every command."""
    whole = _Parser(
        prog="python -m mend_jax.edit", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str, *aliases: str) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name, aliases=aliases, help=what, description=what, allow_abbrev=False
        )
        one.set_defaults(command=name)  # also where it was called by an alias
        one.add_argument("--ledger", required=True, metavar="DIR", help="the folder of the ledger")
        return one

    apply = command("apply", "make edits of facts, measure them, record them in the ledger")
    apply.add_argument("--fact", action="append", default=[], metavar='"PROMPT => TARGET"')
    apply.add_argument(
        "--facts", action="append", default=[], metavar="FILE",
        help="a line a fact, as --fact or JSON with prompt, target, and if wanted subject, "
        "paraphrases, neighbours; - for standard input",
    )  # fmt: skip
    _about_base(apply)
    _about_editor(apply)
    apply.add_argument("--together", action="store_true", help="all facts in one edit, not each")
    apply.add_argument("--strict", action="store_true", help="exit with 1 where a verdict is bad")
    apply.add_argument("--json", action="store_true")

    show = command("show", "what the edits in force changed, as measured when they were applied")
    show.add_argument("--entry", type=int, metavar="N", help="this edit alone, reverted or not")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--html", metavar="FILE", help="write a page instead")

    log = command("log", "every edit, a line each")
    log.add_argument("--json", action="store_true")

    revert = command("revert", "take an edit back")
    revert.add_argument("number", type=int, metavar="N")

    what = "all edits in force at once, in several ways, measured side by side"
    combine = command("combine", what, "stack")  # "stack" was its name before
    _about_editor(combine)
    combine.add_argument("--json", action="store_true")

    export = command("export", "an edit, or all in force, for other programs")
    export.add_argument("which", metavar="N|all")
    export.add_argument("--to", required=True, metavar="DIR")
    export.add_argument(
        "--as", dest="form", required=True, choices=("peft", "merged"),
        help="a LoRA adapter, or a whole checkpoint",
    )  # fmt: skip

    serve = command("serve", "a local page to try, keep and undo edits")
    _about_base(serve)
    _about_editor(serve)
    serve.add_argument("--port", type=int, default=0, help="0: any that is free")
    return whole


def _about_base(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="", metavar="SPEC", help="the base of a new ledger")
    command.add_argument("--dtype", default="float32", help="of a new ledger's base")
    command.add_argument(
        "--last_n_blocks", type=int, default=3, metavar="N",
        help="of a new ledger: how many of the last blocks can be edited",
    )  # fmt: skip


def _about_editor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--editor", default="", metavar="NAME",
        help="the folder of a run, or an editor that needs no training, such as fine_tune; "
        "by default the one that is shipped for the base",
    )  # fmt: skip
    command.add_argument(
        "--option", action="append", default=[], type=_option, metavar="KEY=VALUE",
        help="of an editor that needs no training",
    )  # fmt: skip
    command.add_argument(
        "--strength", type=float, default=1.0, metavar="S",
        help="scales the edit: less gives up success for locality",
    )  # fmt: skip


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every folder it opens
    try:
        args = parser().parse_args(argv)
        module = importlib.import_module(f"mend_jax.ledger.{COMMANDS[args.command]}")
        return getattr(module, args.command)(args)
    except MendError as e:
        return report_error(e)
    except BrokenPipeError:  # `show | head`
        sys.stdout = None
        return 0


if __name__ == "__main__":
    sys.exit(main())
