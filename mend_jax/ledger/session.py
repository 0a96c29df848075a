"""One person at work on a ledger: a fact is proposed, looked at, and kept or discarded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact
from mend_jax.errors import LedgerError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger.compare import written
from mend_jax.ledger.measure import measure_edit
from mend_jax.ledger.store import Entry, Ledger
from mend_jax.ledger.test_prompts import TestPrompts, make_test_prompts

AT_ONCE = 8
"""Facts of edits in force, the latest, that are asked again under a proposal."""
ANSWER_TOKENS = 24


class MakesEdits(Protocol):
    """What a session needs of an editor; `mend_jax.Editor` is one."""

    @property
    def id(self) -> str: ...

    def edit(self, facts: Sequence[Fact | tuple[str, str]]) -> Edit: ...


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An edit that is not in the ledger.

    Attributes:
      number: 1, 2, ... in the order of proposing.
      edit: on the unedited base.
      measured: of it alone, see `measure.measure_edit`.
      together: the same of it and all edits in force at once, asked about its fact and the latest
        of theirs; None where there are none.
      clashes: numbers of edits in force of the same prompt; what is in force is the sum of both.
    """

    number: int
    edit: Edit
    measured: dict[str, Any]
    together: dict[str, Any] | None
    clashes: tuple[int, ...]


class Session:
    """Proposals for a ledger, at most one at a time. Not to be used by two threads at once.

    The ledger is read anew each time, so other programs may append to it meanwhile.

    Attributes:
      model: the unedited base.
      editor: makes the edits, scaled by `strength`.
      ledger: of this base.
      proposal: what was proposed last, unless it was kept or discarded.
    """

    def __init__(
        self, model: LanguageModel, editor: MakesEdits, ledger: Ledger, strength: float = 1.0
    ) -> None:
        self.model, self.editor, self.ledger = model.with_edit(None), editor, ledger
        self.strength = strength
        self.proposal: Proposal | None = None
        self._proposed = 0
        self._in_force: tuple[tuple[str, ...], Edit | None] = ((), None)

    def propose(self, fact: Fact) -> Proposal:
        """Makes an edit of the fact and measures it, in place of what was proposed before.

        Raises:
          DataError: the fact cannot be edited in, or does not fit the model's context.
        """
        edit = self.editor.edit([fact])
        measured = measure_edit(self.model, edit, [make_test_prompts(fact)], self.strength)
        together = None
        if live := self.ledger.active():
            pairs = [pair for entry in live for pair in entry.facts][-AT_ONCE:]
            probes = [make_test_prompts(fact), *(_prompt_alone(*pair) for pair in pairs)]
            everything = self.in_force().compose(edit)
            together = measure_edit(self.model, everything, probes, self.strength)
        clashes = tuple(e.number for e in live if fact.prompt in [p for p, _ in e.facts])
        self._proposed += 1
        self.proposal = Proposal(self._proposed, edit, measured, together, clashes)
        return self.proposal

    def keep(self, number: int) -> Entry:
        """Appends the proposal of this number to the ledger; once it returns, it is on disk.

        Raises:
          LedgerError: it is not what is proposed, or could not be recorded (it can be kept later).
        """
        proposal = self._proposal(number)
        entry = self.ledger.append(proposal.edit, proposal.measured)
        self.proposal = None
        return entry

    def discard(self, number: int) -> None:
        """Forgets the proposal of this number.

        Raises:
          LedgerError: it is not what is proposed.
        """
        self._proposal(number)
        self.proposal = None

    def revert(self, number: int) -> Entry:
        """Takes an edit of the ledger out of force.

        Raises:
          LedgerError: no such edit, it is reverted already, or that could not be recorded.
        """
        return self.ledger.revert(number)

    def ask(self, prompt: str) -> dict[str, Any]:
        """What the base writes after a prompt, and what it writes under all that is in force.

        Returns:
          `prompt`, `before`, `after`, and of how many edits after is: `edits` of the ledger, and
          whether the proposal too (`proposed`).
        """
        edit, live = self.in_force(), len(self._in_force[0])
        proposed = self.proposal is not None
        if proposed:
            edit = self.proposal.edit if edit is None else edit.compose(self.proposal.edit)
        if edit is None:
            before = after = self.model.generate(prompt, ANSWER_TOKENS)
        else:
            ((before, after),) = written(self.model, edit, [prompt], ANSWER_TOKENS)
        return {"prompt": prompt, "before": before, "after": after, "edits": live,
                "proposed": proposed}  # fmt: skip

    def in_force(self) -> Edit | None:
        """The live edits of the ledger at once; None where there is none."""
        key = tuple(entry.sha256 for entry in self.ledger.active())
        if key != self._in_force[0]:
            self._in_force = (key, self.ledger.composed())
        return self._in_force[1]

    def state(self) -> dict[str, Any]:
        """What there is to show: base, editor, ledger, the proposal, all entries."""
        return {
            "base": self.model.spec,
            "editor": self.editor.id,
            "ledger": str(self.ledger.path),
            "proposal": self.proposal,
            "entries": self.ledger.entries(),
        }

    def _proposal(self, number: int) -> Proposal:
        if self.proposal is None or self.proposal.number != number:
            raise LedgerError(
                f"proposal {number} is no longer there: it was kept, discarded or followed by "
                "another; propose the fact again"
            )
        return self.proposal


def _prompt_alone(prompt: str, target: str) -> TestPrompts:
    """A fact that is asked for by its prompt and by nothing else."""
    probes = make_test_prompts(Fact(prompt, target))
    return dataclasses.replace(probes, paraphrases=(), neighbours=(), unrelated=())
