"""The bank: many scoped edits as one pytree of static shapes.

Insertion and removal write one row. A bank has room for `capacity` facts, `key_rows` keys of each
and `delta_rows` rows of each delta; where an edit does not fit, the size that is too small doubles,
so a growing bank is compiled for a number of times that grows with the logarithm of its size.

Layout. A fact takes the lowest empty row, and an empty row is all zero, so the removal of the fact
that was inserted last gives back the very arrays. In general two banks are the same if they hold
the same facts, whatever rows these take: `canonical` orders them by their ids, which are digests of
their contents, and leaves out all padding. Bit for bit, removing a fact gives a bank that is the
same as one that never held it, in whatever order the facts came.

Two facts in conflict are both kept. A position of one is in the scope of the other, and the targets
differ: the one that is inserted later is remembered to be `over` the earlier one, and wins equal
matches. Where the two are not equally near, the nearer wins, as between any facts. (To hide the
earlier one wherever both match would be wrong: with 1,000 facts and 1% of false matches every fact
is in the scope of ten others.) `insert` returns the conflicts, so that a caller can remove or
replace the earlier facts.
"""

from __future__ import annotations

import dataclasses
import functools
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from mend_jax.core.mentions import (
    NO_NAME,
    NameTable,
    answer_of,
    name_hashes,
    name_table,
    own_names,
)
from mend_jax.core.nearest_key import KeyTable, fact_scores
from mend_jax.core.scoped_edit import ScopedEdit, ScopedRows, content_id, rows_of, with_dtype
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError, did_you_mean
from mend_jax.parallel.sharding import Rule, place

BANK_RULES = (
    Rule(r"(.*/)?table/keys", ("tensor", None, None)),
    Rule(r"(.*/)?table/mask", ("tensor", None)),
    Rule(r"(.*/)?table/threshold", ("tensor", None)),
    Rule(r"(.*/)?table/(mention|active|priority)", ("tensor",)),
    Rule(r"(.*/)?names/hashes"),
    Rule(r"(.*/)?names/of_fact", ("tensor", None)),
    Rule(r"(.*/)?names/answer", ("tensor",)),
    Rule(r"(.*/)?deltas/.*/(a|b)", ("tensor", None, "fsdp")),
)
"""The facts are split over `tensor`: tokens are split over the other two axes."""
_HASHES = 4
"""Of names and answers that there is room for, a fact: more facts compile nothing anew."""


class BankedFact(NamedTuple):
    """What a bank knows of one of its scoped edits.

    Attributes:
      id: 16 hex digits, a digest of its contents.
      row: where its arrays are.
      facts: its (prompt, target) pairs.
      editor, created: as of its `Edit`.
      names: of its subject.
      over: ids of earlier facts in conflict with it, sorted.
    """

    id: str
    row: int
    facts: tuple[tuple[str, str], ...]
    editor: str
    created: str
    names: tuple[str, ...] = ()
    over: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets without surrounding spaces."""
        return tuple(target.strip() for _, target in self.facts)

    @property
    def answer(self) -> str:
        """What ends the edit where it has been written; "" for none, or several."""
        answers = {answer_of(prompt, target) for prompt, target in self.facts}
        return answers.pop() if len(answers) == 1 else ""


class Conflict(NamedTuple):
    """A fact of a bank that an inserted one contradicts.

    Attributes:
      fact: the earlier one.
      score: the largest score of the later one's keys, by the lower thresholds of the two; if they
        have a name in common it is mentioned. Above 0.
    """

    fact: BankedFact
    score: float


@flax.struct.dataclass
class Bank:
    """Scoped edits of one base and one scope.

    Attributes:
      table: keys, thresholds and priorities.
      names: of the facts' subjects, and their answers.
      deltas: a [F, N, d_in] and b [F, N, d_out] by weight name.
      base: fingerprint of the base, "" if unknown.
      scope: fingerprint of the scope that made the keys, "" if unknown.
      facts: what is in the bank, by row.
    """

    table: KeyTable
    names: NameTable
    deltas: dict[str, LowRank]
    base: str = flax.struct.field(pytree_node=False, default="")
    scope: str = flax.struct.field(pytree_node=False, default="")
    facts: tuple[BankedFact, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def capacity(self) -> int:
        """How many facts there is room for."""
        return self.table.keys.shape[-3]

    @property
    def key_rows(self) -> int:
        """How many keys of a fact there is room for."""
        return self.table.keys.shape[-2]

    @property
    def delta_rows(self) -> int:
        """How many rows of a delta there is room for."""
        return max((d.a.shape[-2] for d in self.deltas.values()), default=0)

    def find(self, prompt: str) -> tuple[BankedFact, ...]:
        """Return the facts with this prompt; spaces around it do not count."""
        return tuple(f for f in self.facts if any(p.strip() == prompt.strip() for p, _ in f.facts))

    def at_row(self, row: int) -> BankedFact | None:
        """Return the fact in a row, as a `Match` names it; None for -1 and empty rows."""
        return next((f for f in self.facts if f.row == row), None)

    def arrays_only(self) -> Bank:
        """Return the bank without what is static, of which each would be compiled for anew."""
        return Bank(self.table, self.names, self.deltas)


def empty_bank(
    weights: Mapping[str, tuple[int, int]],
    d_key: int,
    *,
    base: str = "",
    scope: str = "",
    capacity: int = 16,
    key_rows: int = 4,
    delta_rows: int = 4,
    dtype: Any = jnp.float32,
) -> Bank:
    """Return a bank without facts.

    Args:
      weights: (d_in, d_out) of the edited weights by name.
      d_key: the width of keys, of both halves.
      base, scope: fingerprints.
      dtype: of the deltas; keys are float32.

    Raises:
      ConfigError: no weights, or a size below 1.
    """
    if not weights or min(d_key, capacity, key_rows, delta_rows) < 1:
        raise ConfigError(
            f"an empty bank of {len(weights)} weights with d_key {d_key}, capacity {capacity}, "
            f"key_rows {key_rows} and delta_rows {delta_rows}: give at least one of each"
        )
    F, N = capacity, delta_rows
    table = KeyTable(
        keys=jnp.zeros((F, key_rows, d_key)),
        mask=jnp.zeros((F, key_rows), bool),
        threshold=jnp.zeros((F, 2)),
        mention=jnp.zeros((F,)),
        active=jnp.zeros((F,), bool),
        priority=jnp.zeros((F,), jnp.int32),
    )
    deltas = {
        name: LowRank(jnp.zeros((F, N, d_in), dtype), jnp.zeros((F, N, d_out), dtype))
        for name, (d_in, d_out) in sorted(weights.items())
    }
    return Bank(table, name_table([()] * F, _HASHES * F), deltas, base, scope)


def bank_of_one(
    scoped: ScopedEdit,
    names: UInt32[Array, "*batch V"] | None = None,
    answer: UInt32[Array, "*batch 1"] | None = None,
) -> Bank:
    """Return a bank of one scoped edit, or E banks of E; a pure function of arrays.

    It lets an editor be trained under its own gate: `jax.vmap` over E, and gradients flow to the
    deltas. Its static `facts` are empty.

    Args:
      names: hashes of each edit's names, filled up with `NO_NAME`; by default of `scoped.names`.
      answer: hash of each edit's answer, or `NO_NAME`.
    """
    pairs = {
        name: delta if isinstance(delta, LowRank) else delta.as_low_rank()
        for name, delta in scoped.edit.deltas.items()
    }
    lead = scoped.mention.shape
    table = KeyTable(
        keys=scoped.keys[..., None, :, :],
        mask=scoped.mask[..., None, :],
        threshold=jnp.asarray(scoped.threshold, jnp.float32)[..., None, :],
        mention=jnp.asarray(scoped.mention, jnp.float32)[..., None],
        active=jnp.ones((*lead, 1), bool),
        priority=jnp.zeros((*lead, 1), jnp.int32),
    )
    deltas: Any = jax.tree.map(lambda leaf: leaf[..., None, :, :], pairs)
    if names is None:
        own = np.asarray(name_hashes(scoped.names) or [int(NO_NAME)], np.uint32)
        names = jnp.broadcast_to(jnp.asarray(own), (*lead, len(own)))
    of_one = own_names
    for _ in lead:
        of_one = jax.vmap(of_one)
    table_of_names = of_one(names) if answer is None else of_one(names, answer)
    return Bank(table, table_of_names, deltas, scoped.edit.base, scoped.scope)


def insert(
    bank: Bank, scoped: ScopedEdit | Sequence[ScopedEdit]
) -> tuple[Bank, tuple[Conflict, ...]]:
    """Return the bank with one more fact or several, and their conflicts with earlier facts.

    An edit that is in the bank already, bit for bit, becomes the latest. Each call copies the bank,
    so several facts at once cost less.

    Raises:
      CheckpointError: an edit of another base or scope, of other weights or another width of key;
        or one that `scoped_edit.rows_of` refuses.
    """
    several = [scoped] if isinstance(scoped, ScopedEdit) else list(scoped)
    new: dict[str, tuple[ScopedRows, ScopedEdit]] = {}
    for one in several:
        _check_belongs(bank, one)
        rows = with_dtype(rows_of(one), _dtype(bank))
        id_ = content_id(rows, one.edit, one.names)
        new.pop(id_, None)  # of two alike the later counts
        new[id_] = rows, one
    for id_ in {f.id for f in bank.facts} & new.keys():
        bank = remove(bank, id_)
    if not new:
        return bank, ()
    bank = _with_room(bank, [rows for rows, _ in new.values()])
    taken = {f.row for f in bank.facts}
    empty = (row for row in range(bank.capacity) if row not in taken)
    added = [
        BankedFact(id_, next(empty), e.edit.facts, e.edit.editor, e.edit.created, e.names)
        for id_, (_, e) in new.items()
    ]
    bank = _write(bank, {f.row: new[f.id][0] for f in added})
    facts, conflicts = _resolve(bank, added)
    return _with_facts(bank, facts), conflicts


def remove(bank: Bank, id_: str) -> Bank:
    """Return the bank without one fact.

    Raises:
      CheckpointError: the bank has no fact of this id.
    """
    fact = _fact(bank, id_)
    others = (f for f in bank.facts if f.id != id_)
    facts = [f._replace(over=tuple(o for o in f.over if o != id_)) for f in others]
    arrays = _clear_row((bank.table, bank.deltas), np.int32(fact.row))
    return _with_facts(_with_arrays(bank, *arrays), facts)


def replace(bank: Bank, id_: str, scoped: ScopedEdit) -> tuple[Bank, tuple[Conflict, ...]]:
    """Return `insert` of a scoped edit into the bank without the fact `id_`.

    Raises:
      CheckpointError: as for `remove` and `insert`.
    """
    return insert(remove(bank, id_), scoped)


def grow(bank: Bank, capacity: int = 0, key_rows: int = 0, delta_rows: int = 0) -> Bank:
    """Return the bank with at least these capacities: of facts, keys and delta rows."""
    F, R = max(capacity, bank.capacity), max(key_rows, bank.key_rows)
    N = max(delta_rows, bank.delta_rows)

    def pad(leaf: jax.Array, *sizes: int) -> jax.Array:
        sizes = (*sizes, *leaf.shape[len(sizes) :])
        return jnp.pad(leaf, [(0, size - n) for size, n in zip(sizes, leaf.shape, strict=True)])

    table = bank.table
    table = KeyTable(
        keys=pad(table.keys, F, R),
        mask=pad(table.mask, F, R),
        threshold=pad(table.threshold, F),
        mention=pad(table.mention, F),
        active=pad(table.active, F),
        priority=pad(table.priority, F),
    )
    grown = _with_arrays(bank, table, jax.tree.map(lambda leaf: pad(leaf, F, N), bank.deltas))
    return _with_facts(grown, bank.facts)


def place_bank(mesh: jax.sharding.Mesh, bank: Bank) -> Bank:
    """Return the bank on a mesh, its facts split over `tensor`.

    An axis that does not divide the capacity leaves it whole; capacities are powers of two unless
    `empty_bank` was given another.
    """
    return place(mesh, bank, BANK_RULES)


def canonical(bank: Bank) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what a bank holds, whatever the order of insertion and the capacities.

    Returns:
      Arrays of n facts, ordered by id: `keys` [n, R, K], `mask` [n, R], `threshold` [n, 2],
      `mention` [n] and for each weight `NAME.a` [n, N, d_in] and `NAME.b` [n, N, d_out], with as
      few rows as needed; and JSON metadata.
    """
    facts = sorted(bank.facts, key=lambda f: f.id)
    at = np.asarray([f.row for f in facts], np.int64)
    table, deltas = jax.tree.map(lambda leaf: np.asarray(leaf)[at], (bank.table, bank.deltas))
    R = int(table.mask.sum(-1).max(initial=0))
    arrays = {"keys": table.keys[:, :R], "mask": table.mask[:, :R]}
    arrays |= {"threshold": table.threshold, "mention": table.mention}
    for name, delta in deltas.items():
        used = (delta.a != 0).any(-1) & (delta.b != 0).any(-1)
        N = int(used.sum(-1).max(initial=0))
        arrays |= {f"{name}.a": delta.a[:, :N], f"{name}.b": delta.b[:, :N]}
    metadata = {
        "base": bank.base,
        "scope": bank.scope,
        "facts": [
            {"id": f.id, "facts": [list(pair) for pair in f.facts], "editor": f.editor,
             "created": f.created, "names": list(f.names), "over": list(f.over)}
            for f in facts
        ],
    }  # fmt: skip
    return arrays, metadata


def scoped_edits_of(bank: Bank) -> list[ScopedEdit]:
    """Return the scoped edits of a bank, on the host, in the order of its rows."""
    table, deltas = jax.device_get((bank.table, bank.deltas))
    return [
        ScopedEdit(
            Edit(
                {n: LowRank(d.a[f.row], d.b[f.row]) for n, d in deltas.items()},
                bank.base, f.facts, f.editor, f.created,
            ),
            table.keys[f.row], table.mask[f.row], table.threshold[f.row], table.mention[f.row],
            bank.scope, f.names,
        )
        for f in bank.facts
    ]  # fmt: skip


def restore(bank: Bank, entries: Sequence[tuple[BankedFact, ScopedRows]]) -> Bank:
    """Return an empty bank filled with the entries of another, each in the row that it names."""
    if not entries:
        return bank
    bank = _write(bank, {fact.row: rows for fact, rows in entries})
    return _with_facts(bank, [fact for fact, _ in entries])


def _fact(bank: Bank, id_: str) -> BankedFact:
    for fact in bank.facts:
        if fact.id == id_:
            return fact
    ids = [f.id for f in bank.facts]
    raise CheckpointError(
        f"the bank has no fact {id_!r} among its {len(ids)}{did_you_mean(id_, ids)}: take an id "
        "from bank.facts"
    )


def _dtype(bank: Bank) -> Any:
    return next(iter(bank.deltas.values())).a.dtype


def _check_belongs(bank: Bank, scoped: ScopedEdit) -> None:
    """Raise CheckpointError if the bank cannot hold the edit."""
    for what, ours, theirs in (
        ("base", bank.base, scoped.edit.base), ("scope", bank.scope, scoped.scope)
    ):  # fmt: skip
        if ours and theirs and ours != theirs:
            raise CheckpointError(
                f"the scoped edit is for {what} {theirs}, the bank for {what} {ours}: make the "
                f"edit again with the {what} of the bank"
            )
    width, shapes = bank.table.keys.shape[-1], scoped.edit.weight_shapes()
    if scoped.keys.shape[-1] != width:
        raise CheckpointError(
            f"the scoped edit has keys of width {scoped.keys.shape[-1]}, the bank {width}: make "
            "the edit again with the scope of the bank"
        )
    held = {name: delta.shape for name, delta in bank.deltas.items()}
    if unknown := {n: s for n, s in shapes.items() if held.get(n) != s}:
        raise CheckpointError(
            f"the scoped edit changes {unknown}, the bank holds {held}: use an editor of the same "
            "weights, or another bank"
        )


def _with_room(bank: Bank, rows: Sequence[ScopedRows]) -> Bank:
    """Return the bank with room for more facts; a size that is too small is doubled."""

    def doubled(size: int, needed: int) -> int:
        while size < needed:
            size *= 2
        return size

    deltas = [delta for r in rows for delta in r.deltas.values()]
    sizes = (
        doubled(bank.capacity, len(bank.facts) + len(rows)),
        doubled(bank.key_rows, max(len(r.keys) for r in rows)),
        doubled(bank.delta_rows, max((len(d.a) for d in deltas), default=0)),
    )
    return bank if sizes == (bank.capacity, bank.key_rows, bank.delta_rows) else grow(bank, *sizes)


def _write(bank: Bank, rows: Mapping[int, ScopedRows]) -> Bank:
    """Return the bank with the arrays of scoped edits in some rows."""
    k, R, N, K = len(rows), bank.key_rows, bank.delta_rows, bank.table.keys.shape[-1]
    keys, mask = np.zeros((k, R, K), np.float32), np.zeros((k, R), bool)
    deltas: Any = jax.tree.map(
        lambda leaf: np.zeros((k, N, leaf.shape[-1]), leaf.dtype), bank.deltas
    )
    for i, one in enumerate(rows.values()):
        keys[i, : len(one.keys)], mask[i, : len(one.keys)] = one.keys, True
        for name, delta in one.deltas.items():
            for leaf, x in vars(delta).items():
                getattr(deltas[name], leaf)[i, : len(x)] = x
    table: Any = dict(
        keys=keys, mask=mask, threshold=np.asarray([r.threshold for r in rows.values()]),
        mention=np.asarray([r.mention for r in rows.values()]),
        active=np.ones(k, bool), priority=np.zeros(k, np.int32),
    )  # fmt: skip
    at: Any = np.asarray(list(rows), np.int32)
    new = _set_rows((bank.table, bank.deltas), at, (KeyTable(**table), deltas))
    return _with_arrays(bank, *new)


@jax.jit
def _set_rows(arrays: Any, at: Int[Array, " k"], values: Any) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[at].set(new), arrays, values)


@jax.jit
def _clear_row(arrays: Any, row: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: leaf.at[row].set(jnp.zeros((), leaf.dtype)), arrays)


def _with_arrays(bank: Bank, table: KeyTable, deltas: dict[str, LowRank]) -> Bank:
    """Return the bank with other arrays, on the devices of the old ones."""
    old = bank.table, bank.deltas
    new = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), (table, deltas), old)
    return dataclasses.replace(bank, table=new[0], deltas=new[1])


def _with_facts(bank: Bank, facts: Iterable[BankedFact]) -> Bank:
    """Return the bank with these facts, and the priorities and names that follow from them."""
    facts = tuple(sorted(facts, key=lambda f: f.row))
    priority = np.zeros(bank.capacity, np.int32)
    levels = _levels({f.id: f.over for f in facts})
    for fact in facts:
        priority[fact.row] = levels[fact.id]
    placed = jax.device_put(priority, bank.table.priority.sharding)
    table = dataclasses.replace(bank.table, priority=placed)
    names: list[tuple[str, ...]] = [()] * bank.capacity
    answers = [""] * bank.capacity
    for fact in facts:
        names[fact.row], answers[fact.row] = fact.names, fact.answer
    n_hashes = max(len(bank.names.hashes), _HASHES * bank.capacity)
    found = name_table(names, n_hashes, bank.names.of_fact.shape[-1], answers)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, bank.names)
    placed_names = jax.device_put(found, sharding)
    return dataclasses.replace(bank, table=table, names=placed_names, facts=facts)


def _levels(over: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return for each id one more than the highest level that it is over; 0 if it is over none."""
    order = graphlib.TopologicalSorter(over).static_order()
    levels: dict[str, int] = {}
    for id_ in order:
        levels[id_] = 1 + max((levels[o] for o in over[id_]), default=-1)
    return levels


def _resolve(
    bank: Bank, added: Sequence[BankedFact]
) -> tuple[list[BankedFact], tuple[Conflict, ...]]:
    """Return all facts, each new one over those that it contradicts, and the conflicts."""
    facts, conflicts = list(bank.facts), []
    mention = np.asarray(bank.table.mention)
    bonus = np.zeros((len(added), bank.capacity), np.float32)
    for i, fact in enumerate(added):
        for other in (*bank.facts, *added[:i]):
            if not _hashes(other).isdisjoint(_hashes(fact)):
                bonus[i, other.row] = mention[other.row]
    at = np.asarray([f.row for f in added])
    scores = np.asarray(_scores_between(bank.table, at, bonus))
    for fact, score in zip(added, scores, strict=True):
        found = [
            Conflict(earlier, float(score[earlier.row]))
            for earlier in facts
            if earlier.targets != fact.targets and score[earlier.row] > 0
        ]
        conflicts += sorted(found, key=lambda c: -c.score)
        facts.append(fact._replace(over=tuple(sorted(c.fact.id for c in found))))
    return facts, tuple(conflicts)


def _hashes(fact: BankedFact) -> frozenset[int]:
    return _hashes_of(fact.names)


@functools.lru_cache(maxsize=1 << 17)
def _hashes_of(names: tuple[str, ...]) -> frozenset[int]:
    return frozenset(name_hashes(names))


@jax.jit
def _scores_between(
    table: KeyTable, rows: Int[Array, " k"], bonus: Float[Array, "k F"]
) -> Float[Array, "k F"]:
    """Return the largest scores of some facts' keys, by the lower thresholds of each two facts."""

    def of_one(row: Int[Array, ""], bonus: Float[Array, " F"]) -> Float[Array, " F"]:
        lower = jnp.minimum(table.threshold, table.threshold[row][None])
        keys, real = table.keys[row], table.mask[row]
        scores = fact_scores(
            dataclasses.replace(table, threshold=lower),
            keys,
            jnp.broadcast_to(bonus, (len(keys), *bonus.shape)),
        )
        return jnp.where(real[:, None], scores, -jnp.inf).max(0)

    return jax.vmap(of_one)(rows, bonus)
