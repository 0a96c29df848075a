"""The time of a training step by kind of operation and by part of the model.

    python -m benchmarks.profile --model=smollm2 --edits=8
    python -m benchmarks.profile --model=smollm2 --edits=8 --cached --json

Runs the compiled step under the profiler and sums the times of the program's instructions.
Instructions can run in parallel, so the shares are of their sum, not of the wall clock.
"""

from __future__ import annotations

import collections
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.stages import Steps, with_trunk_states
from benchmarks.step import make_parser, parse_workload
from benchmarks.workload import Built, build

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLS = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LIBRARY_PRODUCT = re.compile(r'custom_call_target="__cublas')  # of a GPU
_CONTAINERS = ("while", "call", "conditional")  # their time is that of their contents
_PRODUCTS = ("dot", "convolution")
_MOVES = ("copy", "transpose", "gather", "scatter", "slice", "concatenate", "pad", "reshape")
_PARTS = (  # the first whose words are in the name of the operation's source
    ("trunk", ("run_trunk",)),
    ("head", (".head", "unembed")),
    ("top blocks", ("run_top",)),
    ("optimiser", ("jit(_where)", "scale_by", "clip", "apply_updates", "optax")),
)


class Instruction(NamedTuple):
    """One instruction of a compiled program: its kind, and the name of its source."""

    kind: str
    source: str


def instructions(text: str) -> dict[str, Instruction]:
    """Return the instructions of `compiled.as_text()` by name.

    Kinds: "matrix products" (also fused with what follows), "elementwise", "moving data", "other".
    """
    opcodes: dict[str, set[str]] = collections.defaultdict(set)
    lines, inside = [], ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            inside = match[1]
        elif match := _INSTRUCTION.match(line):
            opcode = "dot" if _LIBRARY_PRODUCT.search(line) else match[2]
            opcodes[inside].add(opcode)
            lines.append((match[1], opcode, line))
    by_name = {}
    for name, opcode, line in lines:
        called = _CALLS.search(line)
        within = {opcode, *(opcodes[called[1]] if called else ())}
        source = _SOURCE.search(line)
        by_name[name] = Instruction(_kind(opcode, within), source[1] if source else "")
    return by_name


def _kind(opcode: str, within: set[str]) -> str:
    if opcode in _CONTAINERS:
        return "container"
    if within & set(_PRODUCTS):
        return "matrix products"
    if opcode in ("fusion", "reduce", "broadcast", "select", "exponential", "add", "multiply"):
        return "elementwise"
    if any(word in opcode for word in _MOVES):
        return "moving data"
    return "other"


def part_of(source: str) -> str:
    """Return the part of a training step that an operation belongs to, by its source's name."""
    part = next(
        (p for p, words in _PARTS if any(w in source for w in words)), "editor, losses, rest"
    )
    if part in ("head", "top blocks"):
        part += ", backward" if "transpose(" in source else ", forward"
    return part


def seconds_by_instruction(folder: Path, calls: int) -> dict[str, float]:
    """Return each instruction's seconds per call, from the folder of a profile of `calls`."""
    (path,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [p for p in planes if p.name.startswith("/device:")]  # none where the host computes
    total: collections.Counter[str] = collections.Counter()
    for plane in devices or planes:
        lines = list(plane.lines)
        # An accelerator lists the same operations in several lines.
        operations = [line for line in lines if line.name == "XLA Ops"]
        for line in operations or lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name is not None:
                    total[str(name)] += event.duration_ns
    return {name: ns * 1e-9 / calls for name, ns in total.items()}


def profile(b: Built, calls: int) -> dict[str, Any]:
    """Return a step's seconds by kind of operation and by part, and its longest operations."""
    step = Steps(b)
    known = instructions(step.compiled.as_text() or "")
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(step())
        seconds = seconds_by_instruction(Path(folder), calls)
    return summary(seconds, known)


def summary(
    seconds: Mapping[str, float], known: Mapping[str, Instruction], n_longest: int = 12
) -> dict[str, Any]:
    """Return the sums for `profile`."""
    kinds: dict[str, float] = collections.defaultdict(float)
    parts: dict[str, float] = collections.defaultdict(float)
    single = []
    for name, s in seconds.items():
        one = known.get(name, Instruction("other", ""))
        if one.kind != "container":
            kinds[one.kind] += s
            parts[part_of(one.source)] += s
            single.append((s, name, one.kind, one.source))
    single.sort(reverse=True)
    return {
        "seconds": sum(kinds.values()), "kinds": _largest_first(kinds),
        "parts": _largest_first(parts),
        "longest": [dict(zip(("seconds", "name", "kind", "source"), s, strict=True))
                    for s in single[:n_longest]],
    }  # fmt: skip


def _largest_first(seconds: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def describe(found: Mapping[str, Any]) -> str:
    """Return the sums as lines of text."""
    total = found["seconds"]
    lines = [f"{total:.3f} s of instructions a step"]
    for what in ("kinds", "parts"):
        lines += [f"  {s / total:6.1%}  {s:.3f} s  {name}" for name, s in found[what].items()]
        lines.append("")
    for one in found["longest"]:
        lines.append(f"  {one['seconds']:.3f} s  {one['name']} ({one['kind']})  {one['source']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser("benchmarks.profile", __doc__)
    parser.add_argument("--cached", action="store_true", help="with a trunk cache")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    b = build(parse_workload(args))
    found = profile(with_trunk_states(b) if args.cached else b, args.repeats)
    print(json.dumps(found) if args.json else describe(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
