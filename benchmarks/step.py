"""Times one training step, one edit and an evaluation, and says how far they are from the machine.

    python -m benchmarks.step --model=smollm2 --edits=32
    python -m benchmarks.step --suite=peer --json

In one process: the machine's matrix product and bandwidth, then the step, then (with --stages) its
parts. A suite runs each of its rows in a process of its own, so that peak memory is that row's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine, needed
from benchmarks.peer import PEERS, RATE, Peer
from benchmarks.stages import time_stages, time_training, train_step
from benchmarks.workload import MODELS, Workload, build
from mend_jax.evaluate import peak_memory_bytes
from mend_jax.outline import DTYPES
from mend_jax.pods.flops import matmul_flops

ALONE = ("edit alone", "forward", "evaluation")


def measure(w: Workload, repeats: int, stages: bool) -> dict[str, Any]:
    """All figures of one workload on this machine.

    `utilisation` is needed operations over seconds over the machine's own rate.
    """
    rate = machine.matmul_rate(DTYPES[w.dtype])
    b = build(w)
    training = time_training(b, repeats)
    peak = peak_memory_bytes()
    step, arguments = train_step(b)
    counted = matmul_flops(jax.make_jaxpr(step)(*arguments))
    parts = needed.training_step(w, b.outline)
    seconds = time_stages(b, repeats, () if stages else ALONE)
    operations = {
        "training step": sum(parts.values()),
        "edit alone": needed.edit_alone(w, b.outline),
        "forward": needed.forward(w, b.outline),
    }
    seconds = {"training step": training["seconds"], **seconds}
    return {
        "model": w.model, "edits": w.edits, "independent": w.independent, "dtype": w.dtype,
        "rank": w.rank, "machine": machine.describe(), "matmul_rate": rate,
        "bandwidth": machine.bandwidth(), "seconds": seconds, "operations": operations,
        "operations_by_part": parts, "operations_counted": counted,
        "utilisation": {k: n / seconds[k] / rate for k, n in operations.items()},
        "peak_memory_bytes": peak, "compiling_seconds": training["compiling"],
        "repeats": repeats,
    }  # fmt: skip


def in_a_process(flags: Sequence[str]) -> dict[str, Any]:
    """The figures of one workload, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--json", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def beside_peer(found: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
    """The original's times and our aims, scaled to this machine."""
    scale = RATE / found["matmul_rate"]
    seconds = found["seconds"]
    return {
        **found,
        "original": {"training step": peer.step * scale, "edit alone": peer.edit * scale,
                     "peak_memory_bytes": peer.megabytes * 1e6},
        "aim": {"training step": peer.aim_step * scale, "edit alone": peer.aim_edit * scale,
                "peak_memory_bytes": peer.aim_megabytes * 1e6},
        "times_faster": {"training step": peer.step * scale / seconds["training step"],
                         "edit alone": peer.edit * scale / seconds["edit alone"]},
    }  # fmt: skip


def sentence(found: Mapping[str, Any]) -> str:
    """One workload in lines for a person."""
    seconds, used = found["seconds"], found["utilisation"]
    lines = [
        f"{found['model']}, {found['independent']} x {found['edits']} edits, {found['dtype']}, "
        f"rank {found['rank']}: step {seconds['training step']:.3f} s "
        f"({used['training step']:.0%} of {found['matmul_rate'] / 1e9:.0f} GFLOP/s), "
        f"edit {seconds['edit alone']:.3f} s ({used['edit alone']:.0%}), "
        f"forward {seconds['forward']:.3f} s ({used['forward']:.0%}), "
        f"peak {found['peak_memory_bytes'] / 1e6:.0f} MB, "
        f"compiled in {found['compiling_seconds']:.1f} s"
    ]
    if "aim" in found:
        aim, original, faster = found["aim"], found["original"], found["times_faster"]
        lines.append(
            f"  the original, scaled: {original['training step']:.2f} s, "
            f"{original['edit alone']:.2f} s, {original['peak_memory_bytes'] / 1e6:.0f} MB; "
            f"aims {aim['training step']:.2f} s, {aim['edit alone']:.3f} s, "
            f"{aim['peak_memory_bytes'] / 1e6:.0f} MB; times faster "
            f"{faster['training step']:.1f}, {faster['edit alone']:.1f}"
        )
    for name, value in seconds.items():
        if name not in (*ALONE, "training step"):
            lines.append(f"  up to {name}: {value:.3f} s")
    for name, value in found["operations_by_part"].items():
        lines.append(f"  needed for {name}: {value / 1e9:.1f} GFLOP")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    w = Workload()
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=("peer",), help="several rows, each in its own process")
    parser.add_argument("--model", choices=sorted(MODELS), default=w.model)
    parser.add_argument("--edits", type=int, default=w.edits, help="facts of an edit")
    parser.add_argument("--independent", type=int, default=w.independent, help="edits of a step")
    parser.add_argument("--rank", type=int, default=w.rank, help="of the editor")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default=w.dtype, help="of the base")
    parser.add_argument("--text_chunk", type=int, default=w.text_chunk)
    parser.add_argument("--head_chunk", type=int, default=w.head_chunk)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    parser.add_argument("--stages", action="store_true", help="also the parts of a step")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.suite:
        found = [
            beside_peer(
                in_a_process([f"--model={p.model}", f"--edits={p.edits}",
                              f"--repeats={args.repeats}", *["--stages"] * args.stages]), p
            )
            for p in PEERS
        ]  # fmt: skip
    else:
        w = Workload(
            model=args.model, edits=args.edits, independent=args.independent, rank=args.rank,
            dtype=args.dtype, text_chunk=args.text_chunk, head_chunk=args.head_chunk,
        )  # fmt: skip
        found = [measure(w, args.repeats, args.stages)]
    if args.json:
        print(json.dumps(found if args.suite else found[0]))
    else:
        print("\n".join(map(sentence, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
