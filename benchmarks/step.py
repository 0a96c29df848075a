"""Time one training step, one edit and an evaluation, and compare them with the machine's rate.

    python -m benchmarks.step --model=smollm2 --edits=32
    python -m benchmarks.step --suite=peer --json
    python -m benchmarks.step --suite=accelerator

One process measures the machine's matrix product and bandwidth, then the step, then (with --stages)
its parts. A suite runs each row in a separate process, so that peak memory is that row's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine, required_flops
from benchmarks.original_times import ORIGINAL_TIMES, RATE, OriginalTimes
from benchmarks.stages import PROGRAMS, time_stages, time_training, train_step, with_trunk_states
from benchmarks.workload import ACCELERATOR, MODELS, Workload, build
from mend_jax.evaluation.edit_costs import peak_memory_bytes
from mend_jax.models.abstract_model import DTYPES
from mend_jax.tpu.flops import matmul_flops

STEP, CACHED = "training step", "with trunk cache"
ALONE = ("edit alone", "forward", "evaluation")
BESIDE = (CACHED, *ALONE)
SUITES = ("peer", "accelerator")


def measure(w: Workload, repeats: int, names: Sequence[str] = BESIDE) -> dict[str, Any]:
    """Return all figures of one workload on this machine.

    `utilisation` is required operations / seconds / the machine's own rate.

    Args:
      names: what to time beside the training step, of `CACHED` and `stages.PROGRAMS`.
    """
    rate = machine.matmul_rate(DTYPES[w.dtype])
    b = build(w)
    training, b = time_training(b, repeats)
    peak = peak_memory_bytes()
    step, arguments = train_step(b)
    counted = matmul_flops(jax.make_jaxpr(step)(*arguments))
    parts = required_flops.training_step(w, b.model)
    seconds = {STEP: training["seconds"]}
    if CACHED in names:
        cached, kept = time_training(with_trunk_states(b), repeats)
        seconds[CACHED], b = cached["seconds"], dataclasses.replace(b, state=kept.state)
    seconds |= time_stages(b, repeats, [name for name in names if name != CACHED])
    operations = {
        STEP: sum(parts.values()),
        CACHED: sum(parts.values()) - parts["trunk"],
        "edit alone": required_flops.edit_alone(w, b.model),
        "forward": required_flops.forward(w, b.model),
    }
    return {
        "model": w.model, "edits": w.edits, "independent": w.independent, "dtype": w.dtype,
        "rank": w.rank, "layers": w.layers, "machine": machine.describe(), "matmul_rate": rate,
        "bandwidth": machine.bandwidth(), "seconds": seconds, "operations": operations,
        "operations_by_part": parts, "operations_counted": counted,
        "utilisation": {k: operations[k] / seconds[k] / rate for k in operations if k in seconds},
        "peak_memory_bytes": peak, "program_bytes": training["program_bytes"],
        "compiling_seconds": training["compiling"],
        "repeats": repeats,
    }  # fmt: skip


def measure_in_subprocess(flags: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one workload, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.step", "--json", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def workload_flags(w: Workload) -> list[str]:
    """Return the flags of a workload that differ from the defaults."""
    values = {f.name: (getattr(w, f.name), f.default) for f in dataclasses.fields(w)}
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, (value, default) in values.items()
        if value != default
    ]


def compare_with_original(found: Mapping[str, Any], original: OriginalTimes) -> dict[str, Any]:
    """Return the figures with the original's times and the aims, scaled to this machine."""
    scale = RATE / found["matmul_rate"]
    seconds = found["seconds"]
    return {
        **found,
        "original": {STEP: original.step * scale, "edit alone": original.edit * scale,
                     "peak_memory_bytes": original.megabytes * 1e6},
        "aim": {STEP: original.aim_step * scale, CACHED: original.aim_cached * scale,
                "edit alone": original.aim_edit * scale,
                "peak_memory_bytes": original.aim_megabytes * 1e6},
        "times_faster": {STEP: original.step * scale / seconds[STEP],
                         "edit alone": original.edit * scale / seconds["edit alone"]},
    }  # fmt: skip


def describe(found: Mapping[str, Any]) -> str:
    """Return the figures of one workload as lines of text."""
    seconds, used = found["seconds"], found["utilisation"]
    times = [
        f"{name} {seconds[name]:.3f} s" + (f" ({used[name]:.0%})" if name in used else "")
        for name in (STEP, *BESIDE) if name in seconds
    ]  # fmt: skip
    lines = [
        f"{found['model']}, {found['independent']} x {found['edits']} edits, {found['dtype']}, "
        f"rank {found['rank']}, at {found['matmul_rate'] / 1e9:.0f} GFLOP/s: "
        f"{', '.join(times)}, "
        f"peak {found['peak_memory_bytes'] / 1e6:.0f} MB of the process, "
        f"{found['program_bytes'] / 1e6:.0f} MB of the program, "
        f"compiled in {found['compiling_seconds']:.1f} s"
    ]
    facts = found["independent"] * found["edits"]
    paces = [(STEP, "facts a second trained on"), ("edit alone", "edited")]
    lines.append(
        "  " + ", ".join(f"{facts / seconds[n]:.3g} {what}" for n, what in paces if n in seconds)
    )
    if "aim" in found:
        aim, original, faster = found["aim"], found["original"], found["times_faster"]
        lines.append(
            f"  the original, scaled: {original[STEP]:.2f} s, "
            f"{original['edit alone']:.2f} s, {original['peak_memory_bytes'] / 1e6:.0f} MB; "
            f"aims {aim[STEP]:.2f} s, {aim[CACHED]:.2f} s with trunk cache, "
            f"{aim['edit alone']:.3f} s, "
            f"{aim['peak_memory_bytes'] / 1e6:.0f} MB; times faster "
            f"{faster[STEP]:.1f}, {faster['edit alone']:.1f}"
        )
    for name, value in seconds.items():
        if name not in (STEP, *BESIDE):
            lines.append(f"  up to {name}: {value:.3f} s")
    for name, value in found["operations_by_part"].items():
        lines.append(f"  required for {name}: {value / 1e9:.1f} GFLOP")
    return "\n".join(lines)


def make_parser(prog: str, doc: str) -> argparse.ArgumentParser:
    """Return a parser with a flag for each attribute of `Workload`, --repeats and --json."""
    parser = argparse.ArgumentParser(prog=prog, description=doc.split("\n")[0])
    choices = {"model": sorted(MODELS), "dtype": sorted(DTYPES)}
    for f in dataclasses.fields(Workload):
        if isinstance(f.default, bool):
            parser.add_argument(f"--{f.name}", action="store_true")
        else:
            kind = type(f.default)
            parser.add_argument(
                f"--{f.name}", type=kind, default=f.default, choices=choices.get(f.name)
            )
    parser.add_argument(
        "--repeats", type=int, default=5, help="number of timed calls; the median counts"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def parse_workload(args: argparse.Namespace) -> Workload:
    """Return the workload of parsed flags."""
    return Workload(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Workload)})


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.step", __doc__)
    parser.add_argument("--suite", choices=SUITES, help="several rows, each in a separate process")
    parser.add_argument("--brief", action="store_true", help="the training step alone")
    parser.add_argument("--stages", action="store_true", help="also the parts of a step")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = parse(sys.argv[1:] if argv is None else argv)
    flags = [f"--repeats={args.repeats}"]
    flags += [f"--{name}" for name in ("brief", "stages") if getattr(args, name)]
    results = []
    if args.suite == "peer":
        for original in ORIGINAL_TIMES:
            size = [f"--model={original.model}", f"--edits={original.edits}"]
            results.append(compare_with_original(measure_in_subprocess([*size, *flags]), original))
    elif args.suite == "accelerator":
        results = [measure_in_subprocess([*workload_flags(w), *flags]) for w in ACCELERATOR]
    else:
        names = () if args.brief else (CACHED, *(PROGRAMS if args.stages else ALONE))
        results = [measure(parse_workload(args), args.repeats, names)]
    if args.json:
        print(json.dumps(results if args.suite else results[0]))
    else:
        print("\n".join(map(describe, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
