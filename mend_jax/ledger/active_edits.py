"""Measure all active edits of a ledger at once: what its users get."""

from __future__ import annotations

from typing import Any

from mend_jax.errors import DataError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger.edit_ledger import Ledger
from mend_jax.ledger.evaluation_prompts import entry_prompts
from mend_jax.ledger.measure import measure_edit
from mend_jax.ledger.open_ledger import report_progress

MAX_MEASURED = 64
"""The number of facts of active edits, the latest ones, that are measured together."""


def measure_active(model: LanguageModel, ledger: Ledger) -> dict[str, Any] | None:
    """Return the measurement of all active edits at once, on the prompts of each.

    Each may hold alone and fail among the others. None, with a line that says so, where no edit is
    active, and where a text of one fact has no room for another's answer.
    """
    entries = ledger.active()
    edit = ledger.composed()
    if edit is None:
        report_progress("no edit is active: nothing is measured")
        return None
    prompts = [p for entry in entries for p in entry_prompts(entry)]
    some = "" if len(prompts) <= MAX_MEASURED else f", on the latest {MAX_MEASURED} facts"
    what = "the active edit" if len(entries) == 1 else f"the {len(entries)} active edits together"
    report_progress(f"measuring {what}{some}")
    try:
        earlier = [entry.measured for entry in entries]
        return measure_edit(model, edit, prompts[-MAX_MEASURED:], earlier=earlier)
    except DataError as e:
        report_progress(f"WARNING: the active edits could not be measured together: {e}")
        return None
