"""A run that is preempted again and again must end as one that never was, bit for bit.

    python -m tests.soak --preemptions 24 --seed 0

Trains and evaluates a tiny random base by the real command: once undisturbed, once with SIGTERM or
SIGKILL at random steps, started again each time. Then compares metrics.jsonl, results.json,
edits.jsonl, examples.json and every array of the checkpoints. With --config=quickstart.py:smoke it
does so with the quickstart's own base. Steps are drawn with repetition: a run may be stopped twice
at one step. Prints one JSON object of what was done; fails where anything differs.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mend_jax.training import checkpoints
from mend_jax.training.config import load_config
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[1]
TIMES = {"seconds_per_edit", "peak_memory_bytes", "seconds_total", "seconds", "input_seconds"}
TINY = {
    "model.last_n_blocks": 1, "model.edit_roles": "('mlp/down',)", "data.train_edits": 48,
    "data.name": "world_facts/offline", "data.max_len": 96, "data.max_target": 24,
    "data.far_len": 12, "data.length_buckets": "()", "train.edit_from_paraphrase": False,
    "train.edits_per_step": 2,
    "train.doctor": False, "train.val_edits": 4, "train.val_every": 7,
    "train.checkpoint_every": 3, "train.log_every": 1,
    "train.keep_checkpoint": "best", "eval.edits": 4, "eval.edits_per_step": 4, "eval.examples": 2,
    "eval.max_new_tokens": 24, "editor.options.rank": 4,
}  # fmt: skip
CONFIG = """
import ml_collections
from mend_jax.training.config import load_config


def get_config(variant=""):
    c = load_config("quickstart.py")
    c.eval.baselines = ml_collections.ConfigDict()
    return c
"""


def tiny_command(folder, steps):
    """The command of a run of a tiny base, but for --workdir."""
    save_tiny(folder / "base", "gpt2")
    (folder / "tiny.py").write_text(CONFIG)
    settings = TINY | {"model.spec": folder / "base", "train.steps": steps}
    return [f"--config={folder}/tiny.py", *(f"--config.{k}={v}" for k, v in settings.items())]


def start(command, workdir, cache):
    """A process that runs it. A real base has enough to compute that optimising pays."""
    workdir.mkdir(exist_ok=True)
    tiny = any(flag.startswith("--config.model.spec=") for flag in command)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(tiny)), "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with (workdir / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "mend_jax.main", *command, f"--workdir={workdir}"],
            cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip


def steps_logged(workdir):
    """The last step of metrics.jsonl; 0 where there is none."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    except FileNotFoundError:
        return 0


def preempt(process, workdir, target, how):
    """Waits until a run that goes on has logged a step, then signals it; the step and its end."""
    begun = False  # until then the log is that of the run before
    while process.poll() is None:
        anew = steps_logged(workdir) == 0  # there was no checkpoint yet
        begun = begun or anew or "resuming after step" in (workdir / "said").read_text()
        if begun and steps_logged(workdir) >= target:
            process.send_signal(how)
            break
        time.sleep(0.001)
    status = process.wait()
    said = (workdir / "said").read_text()
    assert status in (143, -how), f"it ended with {status} before step {target}:\n{said}"
    return steps_logged(workdir), status


def differences(ours, theirs):
    """What differs between the folders of two finished runs.

    A run that was told to stop keeps the step where it stopped, so it may have kept other steps
    than one that was not: of the checkpoints those that both have are compared, the last among
    them.
    """
    found = []
    for name in sorted({p.name for d in (ours, theirs) for p in d.glob("*.json*")}):
        texts = [(d / name).read_text() for d in (ours, theirs)]
        if name == "results.json":
            texts = [_without_times(json.loads(text)) for text in texts]
        if texts[0] != texts[1]:
            found.append(name)
    (one, metas), (two, others) = (_checkpoints(d / "checkpoints") for d in (ours, theirs))
    if max(one) != max(two):
        found.append("the last checkpoint")
    for step in sorted({*one} & {*two}):
        if metas[step] != others[step]:
            found.append(f"meta of checkpoint {step}")
        pairs = zip(jax.tree.leaves(one[step]), jax.tree.leaves(two[step]), strict=True)
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            found.append(f"arrays of checkpoint {step}")
    return found


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return value


def _checkpoints(folder):
    """({step: arrays}, {step: meta without times}) of all that are there."""
    with checkpoints.open_manager(folder, read_only=True) as manager:
        steps = manager.all_steps()
        arrays = {
            s: manager.restore(s, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
            for s in steps
        }
        metas = {s: _without_times(checkpoints.restore_meta(manager, s)) for s in steps}
    return arrays, {s: {k: v for k, v in m.items() if k != "sha256"} for s, m in metas.items()}


def soak(folder, command, steps, preemptions, seed):
    """What was done, a JSON object; raises AssertionError where a run ended otherwise."""
    rng, began = random.Random(seed), time.monotonic()
    assert preemptions > 0 and steps > 1, "there must be something to stop"
    alone, disturbed, cache = folder / "alone", folder / "disturbed", folder / "cache"
    process = start(command, alone, cache)
    assert process.wait() == 0, (alone / "said").read_text()
    hits = []
    for target in sorted(rng.choices(range(1, steps), k=preemptions)):
        how = rng.choice((signal.SIGTERM, signal.SIGKILL))
        at, status = preempt(start(command, disturbed, cache), disturbed, target, how)
        hits.append({"signal": how.name, "step": at, "status": status})
    process = start(command, disturbed, cache)
    assert process.wait() == 0, (disturbed / "said").read_text()
    assert "resuming after step" in (disturbed / "said").read_text()
    different = differences(disturbed, alone)
    assert not different, f"{folder}: {different} differ"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "steps": steps, "preemptions": len(hits), "hits": hits, "lost": 0,
        "by_signal": {s: sum(h["signal"] == s for h in hits) for s in ("SIGTERM", "SIGKILL")},
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preemptions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="of the tiny run")
    parser.add_argument("--config", default="", help="another run than the tiny one")
    parser.add_argument("--folder", default="", help="where the runs are kept; else they are not")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(args.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        if args.config:
            steps, command = load_config(args.config).train.steps, [f"--config={args.config}"]
        else:
            steps, command = args.steps, tiny_command(folder, args.steps)
        print(json.dumps(soak(folder, command, steps, args.preemptions, args.seed)))


if __name__ == "__main__":
    main()
