"""A run that is preempted many times must end bit for bit like an undisturbed run.

    python -m tests.soak --preemptions 24 --seed 0

Train and evaluate a tiny random base with the real command: once undisturbed, once with SIGTERM or
SIGKILL at random steps and a restart each time. Then compare metrics.jsonl, results.json,
edits.jsonl, examples.json and every array of the checkpoints. --config=quickstart.py:smoke uses the
quickstart's base. Steps are drawn with repetition: a run may be stopped twice at one step. Print
one JSON object that summarises the kills; fail if anything differs.
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
TIMES = {
    "seconds_per_edit", "seconds_per_fact", "peak_memory_bytes", "seconds_total", "seconds",
    "input_seconds",
}  # fmt: skip
TINY = {
    "model.last_n_blocks": 1, "model.edit_roles": "('mlp/down',)", "data.train_edits": 48,
    "data.name": "world_facts/offline", "data.max_len": 96, "data.max_target": 24,
    "data.far_len": 12, "data.length_buckets": "()", "train.edit_from_paraphrase": False,
    "train.edits_per_step": 2,
    "train.doctor": False, "train.val_edits": 4, "train.val_every": 7,
    "train.checkpoint_every": 3, "train.log_every": 1,
    "train.keep_checkpoint": "best", "eval.edits": 4, "eval.edits_per_step": 4, "eval.examples": 2,
    "eval.max_new_tokens": 24, "eval.hard_neighbours": 0, "editor.options.rank": 4,
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
    """Return the command of a run of a tiny base, without --workdir."""
    save_tiny(folder / "base", "gpt2")
    (folder / "tiny.py").write_text(CONFIG)
    settings = TINY | {"model.spec": folder / "base", "train.steps": steps}
    return [f"--config={folder}/tiny.py", *(f"--config.{k}={v}" for k, v in settings.items())]


def start(command, workdir, cache):
    """Start the command. Only a real base computes enough that compiler optimisation pays."""
    workdir.mkdir(exist_ok=True)
    tiny = any(flag.startswith("--config.model.spec=") for flag in command)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(tiny)), "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with (workdir / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "mend_jax.main", *command, f"--workdir={workdir}"],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def steps_logged(workdir):
    """Return the last step in metrics.jsonl, or 0."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    except FileNotFoundError:
        return 0


def preempt(process, workdir, target, how):
    """Signal a run when it has logged a step; return the last step and the exit status."""
    resumed = False  # before that, the log is the previous run's
    while process.poll() is None:
        fresh = steps_logged(workdir) == 0  # there was no checkpoint yet
        resumed = resumed or fresh or "resuming after step" in (workdir / "output.txt").read_text()
        if resumed and steps_logged(workdir) >= target:
            process.send_signal(how)
            break
        time.sleep(0.001)
    status = process.wait()
    output = (workdir / "output.txt").read_text()
    assert status in (143, -how), f"it ended with {status} before step {target}:\n{output}"
    return steps_logged(workdir), status


def differences(ours, theirs):
    """Return the differences between the folders of two finished runs.

    A run that stops on SIGTERM keeps a checkpoint of that step, so the two runs may have kept
    different steps. The checkpoints that both have are compared, including the last.
    """
    different = []
    for name in sorted({p.name for d in (ours, theirs) for p in d.glob("*.json*")}):
        texts = [(d / name).read_text() for d in (ours, theirs)]
        if name == "results.json":
            texts = [_without_times(json.loads(text)) for text in texts]
        if texts[0] != texts[1]:
            different.append(name)
    (one, metas), (two, others) = (_checkpoints(d / "checkpoints") for d in (ours, theirs))
    if max(one) != max(two):
        different.append("the last checkpoint")
    for step in sorted({*one} & {*two}):
        if metas[step] != others[step]:
            different.append(f"meta of checkpoint {step}")
        pairs = zip(jax.tree.leaves(one[step]), jax.tree.leaves(two[step]), strict=True)
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            different.append(f"arrays of checkpoint {step}")
    return different


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return value


def _checkpoints(folder):
    """Return ({step: arrays}, {step: meta without times}) of all checkpoints."""
    with checkpoints.open_manager(folder, read_only=True) as manager:
        steps = manager.all_steps()
        arrays = {
            s: manager.restore(s, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
            for s in steps
        }
        metas = {s: _without_times(checkpoints.restore_meta(manager, s)) for s in steps}
    return arrays, {s: {k: v for k, v in m.items() if k != "sha256"} for s, m in metas.items()}


def soak(folder, command, steps, preemptions, seed):
    """Run the test, and return a summary as JSON; raise an AssertionError if the runs differ."""
    rng, began = random.Random(seed), time.monotonic()
    assert preemptions > 0 and steps > 1, "there must be a run to stop"
    alone, disturbed, cache = folder / "alone", folder / "disturbed", folder / "cache"
    process = start(command, alone, cache)
    assert process.wait() == 0, (alone / "output.txt").read_text()
    kills = []
    for target in sorted(rng.choices(range(1, steps), k=preemptions)):
        how = rng.choice((signal.SIGTERM, signal.SIGKILL))
        at, status = preempt(start(command, disturbed, cache), disturbed, target, how)
        kills.append({"signal": how.name, "step": at, "status": status})
    process = start(command, disturbed, cache)
    assert process.wait() == 0, (disturbed / "output.txt").read_text()
    assert "resuming after step" in (disturbed / "output.txt").read_text()
    different = differences(disturbed, alone)
    assert not different, f"{folder}: {different} differ"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "steps": steps, "preemptions": len(kills), "kills": kills, "lost": 0,
        "by_signal": {s: sum(h["signal"] == s for h in kills) for s in ("SIGTERM", "SIGKILL")},
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preemptions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="of the tiny run")
    parser.add_argument("--config", default="", help="a config to run in place of the tiny run")
    parser.add_argument("--folder", default="", help="keep the runs in this folder")
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
