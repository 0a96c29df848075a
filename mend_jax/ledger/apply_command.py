"""The command `apply`: make an edit from each fact, measure it, and record it in a ledger.

All facts are checked before the first edit is made. A fact that an active edit holds already is not
made again. After the last edit all active edits are measured together: each may hold alone and fail
among the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mend_jax.data.facts import Fact, prompt_key
from mend_jax.errors import ConfigError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger import text_view
from mend_jax.ledger.active_edits import measure_active
from mend_jax.ledger.edit_ledger import Entry, Ledger
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.evaluation_prompts import EvaluationPrompts, make_prompts
from mend_jax.ledger.fact_arguments import collect_facts
from mend_jax.ledger.measure import check_prompts, measure_edit, require_text_model
from mend_jax.ledger.open_ledger import load_base, report_progress
from mend_jax.training.restored_editor import Editor


def apply(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
      1 with --strict if an edit failed or its locality is bad, or all active edits together did;
      else 0.
    """
    given = collect_facts(args.fact, args.facts)
    model, base = load_base(
        args.ledger, args.model, args.dtype, args.last_n_blocks, args.editor, args.mesh
    )  # fmt: skip
    require_text_model(model)
    editor = choose_editor(model, args.editor, args.strength, dict(args.option), report_progress)
    if editor.is_scoped and args.together and not args.plain:
        raise ConfigError("--together is of plain edits: a scoped edit has one fact; add --plain")
    facts = editor.check(given, plain=args.plain)
    _tell_inferred(given, facts)
    check_prompts(model, _prompts(model, facts))
    ledger = Ledger.open_or_create(args.ledger, base)
    held, facts = _already_held(ledger, facts)
    groups = [facts] if args.together and facts else [[fact] for fact in facts]
    made = _make_edits(model, editor, ledger, groups, args)
    entries = sorted([*held, *made], key=lambda entry: entry.number)
    together = measure_active(model, ledger) if len(ledger.active()) > 1 else None
    view = text_view.describe_ledger(ledger, entries) | {"together": together}
    if args.json:
        print(json.dumps(view, indent=2))
    else:
        text_view.print_ledger(view)
    measured = [*(entry.measured for entry in entries), *([together] if together else [])]
    return 1 if args.strict and not all(map(_is_good, measured)) else 0


def _make_edits(
    model: LanguageModel, editor: Editor, ledger: Ledger, groups: Sequence[Sequence[Fact]],
    args: argparse.Namespace,
) -> list[Entry]:  # fmt: skip
    """Make, measure and record one edit for each group of facts."""
    made: list[Entry] = []
    with _telling_what_is_recorded(made, len(groups)):
        for number, group in enumerate(groups, start=1):
            count = f" {number} of {len(groups)}" if len(groups) > 1 else ""
            report_progress(f"making edit{count} with {editor.name} and measuring it")
            edit = editor.edit(group, plain=args.plain)
            earlier = [entry.measured for entry in ledger.entries()]
            measured = measure_edit(model, edit, _prompts(model, group), args.strength, earlier)
            made.append(ledger.append(edit, measured, editor.scope))
    return made


def _prompts(model: LanguageModel, facts: Sequence[Fact]) -> list[EvaluationPrompts]:
    return [make_prompts(fact, model.tokenizer.is_chat(fact.prompt)) for fact in facts]


@contextlib.contextmanager
def _telling_what_is_recorded(made: Sequence[Entry], total: int) -> Iterator[None]:
    """Say which edits are in the ledger when an error, or Ctrl-C, ends the block."""
    try:
        yield
    except BaseException:
        numbers = ", ".join(str(entry.number) for entry in made) or "none"
        report_progress(
            f"stopped after {len(made)} of {total} edits; recorded: {numbers}. The same command "
            "again makes the others only"
        )
        raise


def _is_good(measured: dict[str, Any]) -> bool:
    verdict = measured.get("verdict", {})
    return bool(verdict.get("took") and verdict.get("local"))


def _tell_inferred(given: Sequence[Fact], checked: Sequence[Fact]) -> None:
    """Name the subjects that were inferred, because the editor needs them."""
    for before, after in zip(given, checked, strict=True):
        if after.subject != before.subject:
            report_progress(f"the subject of {after.prompt!r} is taken to be {after.subject!r}")


def _already_held(ledger: Ledger, facts: Sequence[Fact]) -> tuple[list[Entry], list[Fact]]:
    """Return the active edits that hold some of the facts already, and the other facts.

    An active edit of the same prompt and another target is named: a new edit does not replace it.
    """
    held: dict[int, Entry] = {}
    new = []
    active = ledger.active()
    for fact in facts:
        same = [
            (entry, target)
            for entry in active
            for prompt, target in entry.facts
            if prompt_key(prompt) == prompt_key(fact.prompt)
        ]
        holders = [entry for entry, target in same if target == fact.target]
        if holders:
            number = holders[0].number
            held[number] = holders[0]
            report_progress(
                f"edit {number} holds {fact.prompt!r} => {fact.target!r} already: it is not made "
                f"again; `revert {number}` first to make it anew"
            )
            continue
        new.append(fact)
        for entry, target in same:
            report_progress(
                f"WARNING: edit {entry.number} has the same prompt, {fact.prompt!r} ({target!r}), "
                f"and stays active: `revert {entry.number}` removes it"
            )
    return [*held.values()], new
