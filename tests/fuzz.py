"""python -m tests.fuzz [--reader=all] [--count=20000] [--seed=0] [--out=DIR]

Read damaged files with every reader of the project. Each input must be read correctly or refused by
a named error, within seconds and in little memory. Anything else is a fault: its input is saved as
DIR/READER-NUMBER.bin, next to a report of what happened. The same seed gives the same inputs. A
separate process reads; if it dies, that is a fault too, and another process continues after it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzzing.guard import Outcome

_HERE = Path(__file__).resolve().parent
_SIGNS = {"read": "r", "refused": "x", "fault": "f"}


@dataclasses.dataclass
class Tally:
    """The outcomes of one reader's inputs."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0  # seconds of one input
    grown: int = 0  # bytes by which one input raised the peak memory


def shares(readers: Mapping[str, float], count: int) -> dict[str, int]:
    """Divide `count` inputs among the readers; each gets at least one."""
    total = sum(readers.values())
    return {name: max(1, round(count * share / total)) for name, share in readers.items()}


def fuzz(names: Sequence[str], count: int, seed: int, out: Path) -> dict[str, Tally]:
    """Read `count` inputs in total with these readers, and save faults in `out`."""
    from fuzzing.readers import READERS

    plan = shares({name: READERS[name].share for name in names}, count)
    queue = [(name, i) for name, n in plan.items() for i in range(n)]
    tallies = {name: Tally() for name in names}
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    while done < len(queue):
        job = {"plan": plan, "from": done, "seed": seed, "out": str(out)}
        done += _run_process(job, queue[done:], tallies)
    return tallies


def _run_process(
    job: Mapping[str, object], queue: Sequence[tuple[str, int]], tallies: Mapping[str, Tally]
) -> int:
    """Start a process that reads a queue; return how many it read, a fatal one included."""
    command = [sys.executable, str(_HERE / "fuzz.py"), "--job", json.dumps(job)]
    errors = Path(str(job["out"]), "process.txt")
    with errors.open("wb") as err:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err,
            env=os.environ | {"PYTHONPATH": str(_HERE.parent), "JAX_PLATFORMS": "cpu"},
        ) as process:  # fmt: skip
            signs = process.stdout.read().decode()
    status = process.returncode
    for (name, i), sign in zip(queue, signs, strict=False):
        tally = tallies[name]
        tally.inputs += 1
        tally.read += sign == "r"
        tally.refused += sign == "x"
        if sign == "f":
            tally.faults.append(_stem(name, i))
    output = errors.read_text(errors="replace")
    errors.unlink()
    with contextlib.suppress(OSError, ValueError):
        for name, (slowest, grown) in json.loads(_stats(job).read_text()).items():
            tallies[name].slowest = max(tallies[name].slowest, slowest)
            tallies[name].grown = max(tallies[name].grown, grown)
        _stats(job).unlink()
    if status == 0 and len(signs) == len(queue):
        return len(queue)
    if not signs and not Path(str(job["out"]), "began").exists():
        raise SystemExit(f"the process that reads does not start:\n{output}")
    name, i = queue[len(signs)]
    tallies[name].inputs += 1
    tallies[name].faults.append(_stem(name, i))
    data = make_input(name, i, int(str(job["seed"])))
    _save(Path(str(job["out"])), _stem(name, i), data, f"the process ended with {status}\n{output}")
    return len(signs) + 1


def make_input(name: str, number: int, seed: int) -> bytes:
    """Return one input of a reader; the first ones are undamaged."""
    from fuzzing.readers import READERS

    reader = READERS[name]
    seeds = reader.seeds()
    rng = Random(f"{seed}/{name}/{number}")
    whole = seeds[number % len(seeds)]
    return whole if number < len(seeds) else reader.damage(rng, whole)


def work(job: Mapping[str, object]) -> None:
    """Read in this process: print one letter per outcome, and save faults in `out`."""
    signs = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the output of readers goes to standard error
    from fuzzing import guard
    from fuzzing.readers import READERS

    plan, out, seed = dict(job["plan"]), Path(str(job["out"])), int(str(job["seed"]))
    (out / "began").touch()
    queue = [(name, i) for name, n in plan.items() for i in range(n)][int(str(job["from"])) :]
    stats: dict[str, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory(prefix="mend-fuzz-") as scratch:
        os.environ["MEND_CACHE_DIR"] = str(Path(scratch, "cache"))
        for name, inputs in itertools.groupby(queue, key=lambda x: x[0]):
            seeds = READERS[name].seeds()
            # Once without limits: imports, caches and JAX's threads do not count as reading.
            for whole in seeds:
                _attempt(name, Path(scratch), whole)
            with guard.limited_memory():
                for _, i in inputs:
                    data = make_input(name, i, seed)
                    outcome = _attempt(name, Path(scratch), data, undamaged=i < len(seeds))
                    if outcome.kind == guard.FAULT:
                        _save(out, _stem(name, i), data, outcome.text)
                    slowest, grown = stats.get(name, (0.0, 0))
                    stats[name] = max(slowest, outcome.seconds), max(grown, outcome.grown)
                    signs.write(_SIGNS[outcome.kind].encode())
    _stats(job).write_text(json.dumps(stats))


def _attempt(name: str, scratch: Path, data: bytes, undamaged: bool = False) -> Outcome:
    """Return the outcome of an input; an undamaged one must not be refused."""
    from fuzzing import guard
    from fuzzing.readers import READERS

    outcome = guard.attempt(lambda: _read(READERS[name], scratch, data))
    if undamaged and outcome.kind == guard.REFUSED:
        return outcome._replace(kind=guard.FAULT, text="an undamaged input is refused")
    return outcome


def _read(reader, scratch: Path, data: bytes) -> None:
    folder = scratch / "input"
    folder.mkdir()
    try:
        reader.read(folder, data)
    finally:
        shutil.rmtree(folder)


def _save(out: Path, stem: str, data: bytes, text: str) -> None:
    """Save the input of a fault, and what happened."""
    (out / f"{stem}.bin").write_bytes(data)
    (out / f"{stem}.txt").write_text(text, errors="replace")


def _stats(job: Mapping[str, object]) -> Path:
    return Path(str(job["out"]), "stats.json")


def _stem(name: str, number: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}-{number}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--reader", default="all", help="names, comma-separated, or all")
    parser.add_argument("--count", type=int, default=20000, help="inputs in total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the inputs of faults")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        work(json.loads(args.job))
        return 0
    from fuzzing.readers import READERS

    names = list(READERS) if args.reader == "all" else args.reader.split(",")
    if unknown := set(names) - set(READERS):
        parser.error(f"no reader {sorted(unknown)}; known: {', '.join(READERS)}")
    out = args.out or Path(tempfile.mkdtemp(prefix="mend-fuzz-faults-"))
    tallies = fuzz(names, args.count, args.seed, out)
    heads = ("inputs", "read", "refused", "faults")
    print(f"{'reader':<22}" + "".join(f"{h:>9}" for h in heads) + f"{'slowest':>11}{'grown':>10}")
    for name, t in tallies.items():
        print(f"{name:<22}{t.inputs:>9}{t.read:>9}{t.refused:>9}{len(t.faults):>9}"
              f"{1000 * t.slowest:>8.0f} ms{t.grown / 2**20:>6.0f} MiB")  # fmt: skip
    every = [sum(getattr(t, k) for t in tallies.values()) for k in ("inputs", "read", "refused")]
    faults = [fault for t in tallies.values() for fault in t.faults]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{'all':<22}" + "".join(f"{n:>9}" for n in (*every, len(faults))))
    print(f"seed {args.seed}; {used.ru_utime + used.ru_stime:.0f} CPU-seconds")
    if faults:
        print(f"inputs of the faults: {out}")
    return 1 if faults else 0


# Without pytest, only the folder of the command is on the path.
sys.path[:0] = [str(p) for p in (_HERE, _HERE / "evaluation") if str(p) not in sys.path]

if __name__ == "__main__":
    sys.exit(main())
