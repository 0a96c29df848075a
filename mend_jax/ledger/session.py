"""One person's work on a ledger: a fact is proposed, inspected, and kept or discarded."""

from __future__ import annotations

import dataclasses
from typing import Any

from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact, prompt_key
from mend_jax.errors import LedgerError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger.compare import generate_both
from mend_jax.ledger.edit_ledger import Entry, Ledger
from mend_jax.ledger.evaluation_prompts import EvaluationPrompts, make_prompts
from mend_jax.ledger.measure import check_prompts, measure_edit
from mend_jax.training.restored_editor import Editor

MAX_RECHECKED = 8
"""The number of facts of active edits, the latest ones, that are measured again with a proposal."""
ANSWER_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An edit that is not in the ledger yet.

    Attributes:
      number: 1, 2, ... in the order of proposing.
      edit: on the unedited base.
      measured: this edit alone, see `measurement_schema`.
      together: this edit and all active edits at once, measured on its fact and the latest of
        theirs; None if there are no active edits.
      clashes: the numbers of the active edits of the same prompt, which the proposal would not
        replace.
    """

    number: int
    edit: Edit | GatedBank
    measured: dict[str, Any]
    together: dict[str, Any] | None
    clashes: tuple[int, ...]


class Session:
    """Proposals for a ledger, at most one at a time. It is not thread-safe.

    The ledger is read again each time, so that other programs may append to it.

    Attributes:
      model: the unedited base.
      editor: makes the edits, scaled by `strength`; scoped where it has a scope, unless `plain`.
      ledger: of this base.
      proposal: the last proposal, unless it was kept or discarded.
    """

    def __init__(
        self, model: LanguageModel, editor: Editor, ledger: Ledger, strength: float = 1.0,
        plain: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.editor, self.ledger = model.with_edit(None), editor, ledger
        self.strength, self.plain = strength, plain
        self.proposal: Proposal | None = None
        self._n_proposed = 0
        self._active: tuple[tuple[str, ...], Edit | GatedBank | None] = ((), None)

    def propose(self, fact: Fact) -> Proposal:
        """Make an edit of the fact and measure it; it replaces the previous proposal.

        Raises:
          DataError: the fact cannot be edited in, or does not fit the model's context.
        """
        (fact,) = self.editor.check([fact], plain=self.plain)
        prompts = make_prompts(fact, self.model.tokenizer.is_chat(fact.prompt))
        check_prompts(self.model, [prompts])
        edit = self.editor.edit([fact], plain=self.plain)
        measured = measure_edit(self.model, edit, [prompts], self.strength)
        entries, active, together = self.ledger.active(), self.active_edit(), None
        if active is not None:
            pairs = [pair for entry in entries for pair in entry.facts][-MAX_RECHECKED:]
            rechecked = [_prompt_only(*pair) for pair in pairs]
            everything = self._with_proposal(active, edit)
            earlier = [measured, *(entry.measured for entry in entries)]
            together = measure_edit(
                self.model, everything, [prompts, *rechecked], self.strength, earlier
            )
        clashes = tuple(e.number for e in entries if _holds(e, fact.prompt))
        self._n_proposed += 1
        self.proposal = Proposal(self._n_proposed, edit, measured, together, clashes)
        return self.proposal

    def keep(self, number: int) -> Entry:
        """Append the proposal of this number to the ledger; when it returns, it is on disk.

        Raises:
          LedgerError: it is not the current proposal, or could not be recorded (then it can be kept
            later).
        """
        proposal = self._current(number)
        entry = self.ledger.append(proposal.edit, proposal.measured, self.editor.scope)
        self.proposal = None
        return entry

    def discard(self, number: int) -> None:
        """Discard the proposal of this number.

        Raises:
          LedgerError: it is not the current proposal.
        """
        self._current(number)
        self.proposal = None

    def revert(self, number: int) -> Entry:
        """Revert an edit of the ledger; see `Ledger.revert`."""
        return self.ledger.revert(number)

    def compare(self, prompt: str) -> dict[str, Any]:
        """Continue a prompt with the base, and with all active edits and the proposal.

        Returns:
          `prompt`, the continuations `before` and `after`, `edits`: the number of active edits, and
          `proposed`: whether there is a proposal.
        """
        edit, n_active = self.active_edit(), len(self._active[0])
        if self.proposal is not None:
            proposed = self.proposal.edit
            edit = proposed if edit is None else self._with_proposal(edit, proposed)
        if edit is None:
            before = after = self.model.generate(prompt, ANSWER_TOKENS)
        else:
            ((before, after),) = generate_both(self.model, edit, [prompt], ANSWER_TOKENS)
        return {"prompt": prompt, "before": before, "after": after, "edits": n_active,
                "proposed": self.proposal is not None}  # fmt: skip

    def _with_proposal(
        self, active: Edit | GatedBank, proposed: Edit | GatedBank
    ) -> Edit | GatedBank:
        """Return what would be active with a proposal."""
        if isinstance(proposed, Edit):
            together = self.ledger.composed(proposed)
            assert together is not None  # the proposal at least
            return together
        return active.compose(proposed)

    def active_edit(self) -> Edit | GatedBank | None:
        """Return the ledger's active edits as one; None if there are none."""
        key = tuple(entry.sha256 for entry in self.ledger.active())
        if key != self._active[0]:
            self._active = (key, self.ledger.composed())
        return self._active[1]

    def state(self) -> dict[str, Any]:
        """Return what the page displays: base, editor, ledger, the proposal and all entries."""
        return {
            "base": self.model.spec,
            "editor": self.editor.id,
            "ledger": str(self.ledger.path),
            "proposal": self.proposal,
            "entries": self.ledger.entries(),
        }

    def _current(self, number: int) -> Proposal:
        if self.proposal is None or self.proposal.number != number:
            raise LedgerError(
                f"proposal {number} no longer exists: it was kept, discarded or replaced by "
                "another; propose the fact again"
            )
        return self.proposal


def _holds(entry: Entry, prompt: str) -> bool:
    return prompt_key(prompt) in [prompt_key(own) for own, _ in entry.facts]


def _prompt_only(prompt: str, target: str) -> EvaluationPrompts:
    return EvaluationPrompts(prompt, target, "", (), (), (), ())
