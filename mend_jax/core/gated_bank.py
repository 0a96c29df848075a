"""A bank in a forward pass: one lookup where the trunk ends, then one matched edit a token.

  y_t = W x_t + (x_t a_e^T) b_e,   e the fact that z_t matches;   y_t = W x_t where none matches

A model reads two collections: "gate", the lookup, called once with the trunk states of a pass
(`models.gate_site`), and "edits", one `GatedDelta` for each weight.

Where no fact matches, the token leaves the pass from the stream that has no edits: it is the base's
to the last bit, whatever matched before it in the text (`models.gate_site` has the two streams). A
text with one match has one stream, in which the result is selected from W x, not summed with zero.
What follows it is the base's too only where XLA compiles it alike: with its optimisations off, its
code for an activation depends on what else it fuses. The contract tests compare logits as XLA
compiles by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.bank import BANK_RULES, Bank, Conflict, insert, remove, scoped_edits_of
from mend_jax.core.chunking import map_chunks
from mend_jax.core.compose import sum_edits
from mend_jax.core.forward import TrunkStates, gate_matches
from mend_jax.core.mentions import TOKEN_TEXT_RULES, NameTable, TokenTexts, mentions
from mend_jax.core.nearest_key import KeyTable, Match, look_up
from mend_jax.core.scope import SCOPE_RULES, Scope, project_both
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import MIXED, AppliedEdit, Delta, Edit, LowRank, variables
from mend_jax.errors import CheckpointError
from mend_jax.models import WeightSpec
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.gate_site import GATE, GateSite, Nowhere, TextSoFar
from mend_jax.models.layers import EDITS
from mend_jax.models.params import Params, nest

GATED_BANK_RULES = (*BANK_RULES, *SCOPE_RULES, *TOKEN_TEXT_RULES)
FEW_FACTS = 8
"""A pass multiplies by all facts of a bank up to this size; of a larger one each token gathers its
own."""
_TOKENS_AT_ONCE = 64  # that gather their factors; a multiple of that many costs memory


@flax.struct.dataclass
class BankGate:
    """The lookup as the models call it.

    Attributes:
      texts: of the base's tokens; None: mentions of subjects do not count.
      is_plain: whether later tokens see what its edits do to earlier ones; None: they do not.
    """

    scope: Scope
    table: KeyTable
    names: NameTable
    texts: TokenTexts | None
    is_plain: Bool[Array, ""] | None = None

    @property
    def site(self) -> GateSite:
        """Where it reads."""
        return self.scope.site

    def __call__(self, z: Float[Array, "B T_or_1 2*D"], so_far: TextSoFar) -> Match:
        """Return the match of states at the site; no gradient flows through it."""
        keys = project_both(self.scope, jax.lax.stop_gradient(z))
        if self.texts is None:
            return jax.lax.stop_gradient(look_up(self.table, keys))
        found = mentions(self.texts, self.names, so_far)
        return jax.lax.stop_gradient(look_up(self.table, keys, self.names, found))

    def in_scope(self, match: Match) -> Bool[Array, "B T_or_1"]:
        """Return which tokens match a fact."""
        return match.fact >= 0

    def of_base_stream(self, match: Match) -> Match | Nowhere:
        """Return the match in the stream that later tokens attend to."""
        if self.is_plain is None:
            return Nowhere()
        return dataclasses.replace(match, fact=jnp.where(self.is_plain, match.fact, -1))


@flax.struct.dataclass
class GatedDelta:
    """The deltas of F facts for one weight, each for the tokens that match its fact."""

    a: Float[Array, "F N d_in"]
    b: Float[Array, "F N d_out"]

    def __call__(
        self,
        x: Float[Array, "B T d_in"],
        kernel: Float[Array, "d_in d_out"],
        match: Match,
    ) -> Float[Array, "B T d_out"]:
        """Return x W', with W' of the matched fact, and x W without a match.

        With few facts, and in training with one, all factors take part, and the products with the
        wrong facts are masked. Otherwise each token (or text, where a text has one match) gathers
        its fact's factors, matched tokens first and 64 at a time; groups without a match are
        skipped.
        """
        y = x @ kernel
        return jnp.where((match.fact >= 0)[..., None], y + self._changes(x, match.fact), y)

    def _changes(
        self, x: Float[Array, "B T d_in"], fact: Int[Array, "B T_or_1"]
    ) -> Float[Array, "B T d_out"]:
        """Return what the matched facts add; anything where none matches."""
        if self.a.shape[0] <= FEW_FACTS:
            return self._masked(x, fact)
        if fact.shape[1] == 1:
            return self._gathered(x, fact[:, 0])
        flat = self._sorted(x.reshape(-1, x.shape[-1]), fact.reshape(-1))
        return flat.reshape(*x.shape[:-1], -1)

    def _masked(self, x: Array, fact: Int[Array, "B T_or_1"]) -> Float[Array, "B T d_out"]:
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        own = fact[..., None] == jnp.arange(a.shape[0], dtype=fact.dtype)[None, None]
        h = jnp.where(own[..., None], jnp.einsum("btd,fnd->btfn", x, a), jnp.zeros((), x.dtype))
        return jnp.einsum("btfn,fno->bto", h, b)

    def _gathered(
        self, x: Float[Array, "G t d_in"], fact: Int[Array, " G"]
    ) -> Float[Array, "G t d_out"]:
        """Return the changes of groups of tokens with one fact each; anything where it is -1."""
        row = jnp.maximum(fact, 0)
        a, b = (leaf[row].astype(x.dtype) for leaf in (self.a, self.b))
        return jnp.einsum("gtn,gno->gto", jnp.einsum("gtd,gnd->gtn", x, a), b)

    def _sorted(self, x: Float[Array, "T d_in"], fact: Int[Array, " T"]) -> Float[Array, "T d_out"]:
        def change(chunk: tuple[Array, Array]) -> Array:
            x, fact = chunk
            none = jnp.zeros((len(x), self.b.shape[-1]), x.dtype)
            return jax.lax.cond(
                (fact >= 0).any(), lambda: self._gathered(x[:, None], fact)[:, 0], lambda: none
            )

        if len(fact) <= _TOKENS_AT_ONCE:
            return change((x, fact))
        order = jnp.argsort(fact < 0, stable=True)
        changes = map_chunks(change, _TOKENS_AT_ONCE, (x[order], fact[order]), axis=0)
        return jnp.zeros_like(changes).at[order].set(changes)


@flax.struct.dataclass
class GatedBank:
    """A bank with the scope that its keys are of: what a model runs under, like an `Edit`.

    Attributes:
      texts: of the base's tokens, by which mentions of subjects are found; None: they do not count.
      is_plain: in training, whether later tokens see what the edits do to earlier ones.
    """

    bank: Bank
    scope: Scope
    texts: TokenTexts | None = None
    is_plain: Bool[Array, ""] | None = None

    @property
    def base(self) -> str:
        """Fingerprint of the base, "" if unknown."""
        return self.bank.base or self.scope.base

    def collections(self) -> dict[str, Any]:
        """Return the linen collections that the model reads: the gate, and the gated deltas."""
        bank, scope = self.bank, self.scope
        gate = BankGate(scope, bank.table, bank.names, self.texts, self.is_plain)
        deltas = {f"{n}/delta": GatedDelta(d.a, d.b) for n, d in bank.deltas.items()}
        return {EDITS: nest(deltas), GATE: {"gate": gate}}

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """The (prompt, target) pairs of all facts."""
        return tuple(pair for fact in self.bank.facts for pair in fact.facts)

    @property
    def editor(self) -> str:
        """The editors that made the facts, joined by "+"."""
        return "+".join(dict.fromkeys(fact.editor for fact in self.bank.facts))

    @property
    def created(self) -> str:
        """When the latest fact was made."""
        return max((fact.created for fact in self.bank.facts), default="")

    def insert(
        self, scoped: ScopedEdit | Sequence[ScopedEdit]
    ) -> tuple[GatedBank, tuple[Conflict, ...]]:
        """Return it with more facts, and their conflicts with earlier ones; see `bank.insert`."""
        bank, conflicts = insert(self.bank, scoped)
        return dataclasses.replace(self, bank=bank), conflicts

    def compose(self, other: AppliedEdit) -> GatedBank:
        """Return the facts of both; of two facts in one scope the other's wins.

        Raises:
          CheckpointError: a plain edit, or a bank of another base or scope.
        """
        if not isinstance(other, GatedBank):
            raise CheckpointError(MIXED)
        return self.insert(scoped_edits_of(other.bank))[0]

    def scale(self, factor: float | Array) -> GatedBank:
        """Return it with every delta multiplied by `factor`; its ids are no longer those of it."""
        deltas = {name: delta.scale(factor) for name, delta in self.bank.deltas.items()}
        return dataclasses.replace(self, bank=dataclasses.replace(self.bank, deltas=deltas))

    def as_plain(self) -> Edit:
        """Return the sum of the facts' deltas, which applies to all texts; see `AppliedEdit`."""
        edits = [scoped.edit for scoped in scoped_edits_of(self.bank)]
        return sum_edits(edits)

    def save(self, path: str) -> None:
        """Write one file with the scope; `mend_jax.load_edit` reads it."""
        from mend_jax.core import gated_bank_file

        gated_bank_file.save(path, self)

    def remove(self, id_: str) -> GatedBank:
        """Return it without one fact; see `bank.remove`."""
        return dataclasses.replace(self, bank=remove(self.bank, id_))

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (d_in, d_out) of every edited weight by name."""
        return {name: delta.shape for name, delta in self.bank.deltas.items()}

    def arrays_only(self) -> GatedBank:
        """Return it without what is static except for the site: one compile for each capacity."""
        scope = Scope(self.scope.subject, self.scope.question, self.scope.site)
        return GatedBank(self.bank.arrays_only(), scope, self.texts, self.is_plain)


def deltas_of_edits(edits: Edit | GatedBank) -> dict[str, Delta]:
    """Return the deltas of E edits by weight; of E banks of one fact those of the fact."""
    if isinstance(edits, Edit):
        return dict(edits.deltas)
    deltas = edits.bank.deltas.items()
    return {name: LowRank(delta.a[:, 0], delta.b[:, 0]) for name, delta in deltas}


def gate_bank(bank: Bank, scope: Scope, texts: TokenTexts | None = None) -> GatedBank:
    """Return a bank with its scope.

    Args:
      texts: `Tokenizer.token_texts` of the base, so that mentions of subjects count.

    Raises:
      CheckpointError: the bank's keys are of another scope, or the scope is of another base.
    """
    fingerprint, width = scope.fingerprint(), bank.table.keys.shape[-1]
    if bank.scope and bank.scope != fingerprint:
        raise CheckpointError(
            f"the bank's keys are of scope {bank.scope}, this scope is {fingerprint}: give the "
            "scope that the bank was made with, or make its edits again"
        )
    if bank.base and scope.base and bank.base != scope.base:
        raise CheckpointError(
            f"the bank is for base {bank.base}, the scope for base {scope.base}: give a bank and a "
            "scope of one base"
        )
    if width != scope.d_key:
        raise CheckpointError(
            f"the bank has keys of width {width}, the scope gives {scope.d_key}: give the scope "
            "that the bank was made with"
        )
    return GatedBank(bank, scope, texts)


def check_site(site: GateSite, weights: Sequence[WeightSpec]) -> None:
    """Check that no edit of these weights changes the states at the site, and that all act.

    Raises:
      CheckpointError: a weight below the site, or one at other tokens than those that are read; a
        weight of keys or values where later tokens do not see edits.
    """
    for w in weights:
        if not site.per_text and w.role in ("attn/k", "attn/v", "attn/qkv"):
            raise CheckpointError(
                f"the bank changes {w.name}: no token attends to keys and values of an edited "
                "token, so a scoped edit of them does nothing: set model.edit_roles to other "
                "matmuls, or make plain edits"
            )
        above = w.stack == site.stack and w.block >= site.block
        if site.stack.startswith("encoder"):
            above = above or w.stack.startswith("decoder")
        elif w.role in ("cross/k", "cross/v"):  # at the source's tokens
            above = False
        if not above:
            raise CheckpointError(
                f"the bank changes {w.name}, and its scope reads {site.stack}_{site.block}, whose "
                "states that changes or whose tokens it does not see: learn a scope for a model "
                "whose editable top begins at the first edited block"
            )


def matches_of(
    model: EditableModel, params: Params, gated: GatedBank, h: TrunkStates, texts: TokenBatch
) -> Match:
    """Return which fact each token of texts matches, or each text where it has one match.

    Args:
      h: trunk states of the texts.
    """
    found: Match = gate_matches(model, variables(params, gated), h, texts)
    return found
