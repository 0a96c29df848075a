"""Banks as files: equal banks give equal bytes, whatever the order in which facts came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from mend_jax.core.bank import Bank, BankedFact, canonical, empty_bank, restore
from mend_jax.core.chunking import power_of_two
from mend_jax.core.scoped_edit import ScopedRows, content_id
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.io.files import write_bytes
from mend_jax.io.json_values import matches_type

FORMAT = "mend_jax_bank/1"
_KIND = "bank file"
_TABLE = ("keys", "mask", "threshold", "mention")


class _FactEntry(TypedDict):
    id: str
    facts: list[tuple[str, str]]
    editor: str
    created: str
    names: list[str]
    over: list[str]


class _Metadata(TypedDict):
    base: str
    scope: str
    facts: list[_FactEntry]


def save(path: str | Path, bank: Bank) -> None:
    """Write a bank atomically; see `to_bytes`."""
    write_bytes(Path(path), to_bytes(bank))


def to_bytes(bank: Bank) -> bytes:
    """Return the file of a bank: the arrays and metadata of `bank.canonical`."""
    arrays, metadata = canonical(bank)
    return array_files.encode(FORMAT, arrays, metadata)


def same_facts(x: Bank, y: Bank) -> bool:
    """Return whether two banks hold the same, bit for bit, whatever rows and room they have."""
    return to_bytes(x) == to_bytes(y)


def load(path: str | Path) -> Bank:
    """Read a bank that `save` wrote; its capacities are the least powers of two, from 16 and 4.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, one of another format, or contents
        that do not make up a bank.
    """
    file = array_files.read(Path(path), FORMAT, kind=_KIND)
    try:
        return bank_of(file.arrays, file.metadata)
    except ValueError as e:
        raise CheckpointError(
            f"{path}: the contents of this {_KIND} do not make up a bank ({e}); write it again"
        ) from e


def bank_of(arrays: Mapping[str, np.ndarray], metadata: Any) -> Bank:
    """Return the bank of what `canonical` gave; ValueError if it does not make up one."""
    if not matches_type(metadata, _Metadata):
        raise ValueError("its metadata are not base, scope and facts")
    n, shapes = _checked_shapes(arrays)
    facts = _checked_facts(metadata["facts"], n)
    entries = [(fact, _rows(arrays, shapes, fact)) for fact in facts]
    deltas = [arrays[f"{name}.a"] for name in shapes]
    empty = empty_bank(
        shapes,
        arrays["keys"].shape[-1],
        base=metadata["base"],
        scope=metadata["scope"],
        capacity=power_of_two(n, 16),
        key_rows=power_of_two(arrays["keys"].shape[1], 4),
        delta_rows=power_of_two(max(a.shape[1] for a in deltas), 4),
        dtype=deltas[0].dtype,
    )
    return restore(empty, entries)


def _checked_shapes(arrays: Mapping[str, np.ndarray]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the number of facts, and (d_in, d_out) of the weights by name."""
    if missing := [name for name in _TABLE if name not in arrays]:
        raise ValueError(f"without {missing}")
    types = [arrays[name].dtype.name for name in _TABLE]
    if types != ["float32", "bool", "float32", "float32"]:
        raise ValueError(f"{', '.join(_TABLE)} have types {types}")
    keys, *sizes = (arrays[name].shape for name in _TABLE)
    if len(keys) != 3 or sizes != [keys[:2], (keys[0], 2), keys[:1]]:
        raise ValueError(f"{', '.join(_TABLE)} have shapes {[keys, *sizes]}")
    n, shapes, dtypes = keys[0], {}, set()
    names = sorted({name.rpartition(".")[0] for name in arrays if name not in _TABLE})
    for name in names:
        leaves = [x for leaf in ("a", "b") if (x := arrays.get(f"{name}.{leaf}")) is not None]
        pair = [x.shape for x in leaves]
        if len(pair) != 2 or any(len(s) != 3 or s[:2] != (n, pair[0][1]) for s in pair):
            raise ValueError(f"arrays {pair} of {name} are not a pair for {n} facts")
        shapes[name] = (pair[0][2], pair[1][2])
        dtypes |= {x.dtype for x in leaves}
    if len(dtypes) != 1 or not jnp.issubdtype(min(dtypes, key=str), jnp.floating):
        raise ValueError(f"deltas of types {sorted(t.name for t in dtypes)}")
    if 2 * len(names) + len(_TABLE) != len(arrays):
        raise ValueError(f"arrays {sorted(arrays)}")
    return n, shapes


def _checked_facts(entries: list[_FactEntry], n: int) -> list[BankedFact]:
    """Return the facts, in row order."""
    ids = [e["id"] for e in entries]
    if len(ids) != n or len(set(ids)) != n:
        raise ValueError(f"{len(ids)} facts with {len(set(ids))} ids, and arrays of {n}")
    facts = []
    for row, e in enumerate(entries):
        pairs = tuple((prompt, target) for prompt, target in e["facts"])
        if unknown := set(e["over"]) - set(ids):
            raise ValueError(f"fact {e['id']} is over {sorted(unknown)}, which are not there")
        names, over = tuple(e["names"]), tuple(e["over"])
        facts.append(BankedFact(e["id"], row, pairs, e["editor"], e["created"], names, over))
    return facts


def _rows(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any], fact: BankedFact
) -> ScopedRows:
    """Return the arrays of one fact; ValueError if its id is not that of its contents."""
    deltas = {}
    for name in shapes:
        a, b = arrays[f"{name}.a"][fact.row], arrays[f"{name}.b"][fact.row]
        used = (a != 0).any(-1) & (b != 0).any(-1)
        deltas[name] = LowRank(a[used], b[used])
    mask = arrays["mask"][fact.row]
    row = fact.row
    rows = ScopedRows(
        arrays["keys"][row][mask], arrays["threshold"][row], arrays["mention"][row], deltas
    )
    edit = Edit({}, facts=fact.facts, editor=fact.editor, created=fact.created)
    if content_id(rows, edit, fact.names) != fact.id:
        raise ValueError(f"fact {fact.id} has other contents than its id says")
    return rows
