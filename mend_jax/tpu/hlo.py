"""Read the text of a compiled program: its collectives, how often they run, what they move."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALL = re.compile(r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_OP = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(-start)?\(")

_SEND = re.compile(r"= (\(.*?\)) send\(")
_PART_OF = re.compile(r'_xla_host_transfer_rendezvous="([a-z-]+)')


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      shapes: dtype and shape of each result, on one chip.
      runs: how often it runs in one call of the program.
      bytes: bytes of its results in one run, on one chip.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    runs: int
    bytes: int


def collectives(text: str) -> list[Collective]:
    """Return every collective of an optimised program (`compiled.as_text()`).

    One in the body of a loop counts once for each iteration, if the compiler knows the number.
    """
    bodies = _computations(text)
    runs = _runs(text, bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            if runs[name] and (match := _OP.search(line)):
                shapes = tuple(_shapes(match[1]))
                if match[3]:  # a start lists its operands before its results
                    shapes = _results_of_start(match[2], shapes)
                found.append(Collective(match[2], shapes, runs[name], sum(map(_size, shapes))))
    return found


def sent_between_slices(text: str) -> list[Collective]:
    """Return what one device sends over the network between slices.

    The compiler turns a collective over several slices into collectives within each, and a transfer
    between them, whose name says what it was part of.
    """
    bodies = _computations(text)
    runs = _runs(text, bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            if runs[name] and (match := _SEND.search(line)) and (part_of := _PART_OF.search(line)):
                shapes = tuple(_shapes(match[1]))[:1]  # then a context and a token
                found.append(Collective(part_of[1], shapes, runs[name], sum(map(_size, shapes))))
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Return, for each kind, how many run in a call and the bytes of their results on one chip."""
    totals: dict[str, dict[str, int]] = {}
    for one in found:
        entry = totals.setdefault(one.kind, {"count": 0, "bytes": 0})
        entry["count"] += one.runs
        entry["bytes"] += one.runs * one.bytes
    return dict(sorted(totals.items()))


def loops(text: str) -> list[int | None]:
    """Return the number of iterations of each loop; None if it is unknown."""
    bodies = _computations(text)
    return [_trips(line, bodies) for line in text.splitlines() if " while(" in line]


def _trips(line: str, bodies: Mapping[str, list[str]]) -> int | None:
    """Return the iterations of a loop: the compiler's note, or the one limit in its condition.

    Loops here are scans, which count up from 0 by 1.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], []) if condition else []
    limits = [int(m[1]) for line in lines if (m := _LIMIT.search(line))]
    compares = any("compare(" in line and "direction=LT" in line for line in lines)
    return limits[0] if len(limits) == 1 and compares else None


def _computations(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation."""
    bodies: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = bodies.setdefault(match[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies


def _runs(text: str, bodies: Mapping[str, list[str]]) -> collections.Counter[str]:
    """Return how often each computation runs in one call of the program."""
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    runs: collections.Counter[str] = collections.Counter()
    todo = [(entry[1], 1)] if entry else []
    while todo:
        name, times = todo.pop()
        runs[name] += times
        for line in bodies.get(name, ()):
            each = (_trips(line, bodies) or 1) if " while(" in line else 1
            todo += [(called, times * each) for called in _called(line)]
    return runs


def _called(line: str) -> Iterator[str]:
    for match in _CALL.finditer(line):
        yield match[1]
    for match in _BRANCHES.finditer(line):
        yield from (name.strip().lstrip("%") for name in match[1].split(","))


def _shapes(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, dims in _SHAPE.findall(text):
        yield dtype, tuple(int(d) for d in dims.split(",") if d)


def _results_of_start(
    kind: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the results of a `-start`, whose shapes are operands, results, contexts.

    An all-reduce-start has results alone.
    """
    real = [s for s in shapes if not (s[0] in ("u32", "s32") and not s[1])]
    if kind == "all-reduce":
        return tuple(real)
    return tuple(real[len(real) // 2 :])


def _size(shape: tuple[str, tuple[int, ...]]) -> int:
    dtype, dims = shape
    width = _BYTES.get(dtype)
    if width is None:
        width = 1 if dtype.startswith("f8") else -(-int(re.sub(r"\D", "", dtype)) // 8)
    return width * math.prod(dims)
