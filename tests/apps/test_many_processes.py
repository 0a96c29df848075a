"""One run in several processes on this machine: its results equal those of one process."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.launching import wait_for
from support.tiny import save_tiny
from test_train_and_evaluate import steady

from mend_jax.errors import ConfigError
from mend_jax.parallel import distributed

ROOT = Path(__file__).parents[2]
CONFIG = '''
"""The quickstart made tiny, without baselines."""

import ml_collections

from mend_jax.training.config import load_config


def get_config(variant=""):
    c = load_config("quickstart.py")
    c.eval.baselines = ml_collections.ConfigDict()
    return c
'''
SETTINGS = {
    "model.spec": "base", "model.last_n_blocks": 1, "model.edit_roles": "('mlp/down',)",
    "data.name": "world_facts/offline", "data.train_edits": 32, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 12, "train.steps": 9, "train.edits_per_step": 4,
    "train.val_every": 5, "train.val_edits": 6, "train.checkpoint_every": 2, "train.log_every": 1,
    "train.edit_from_paraphrase": False, "train.doctor": False, "eval.edits": 6,
    "eval.hard_neighbours": 1,
    "eval.edits_per_step": 4,
    "eval.examples": 2, "eval.max_new_tokens": 24, "editor.options.rank": 8,
    "train.keep_checkpoint": "best",
    "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a base, a config and a cache of compiled programs."""
    folder = tmp_path_factory.mktemp("processes")
    save_tiny(folder / "base", "gpt2")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@contextlib.contextmanager
def started(place, workdir, n, folders=None, each=None):
    """Start N processes of the command, with 8 devices in total; end all of them afterwards.

    Args:
      folders: where each process runs; default: `place`, the folder of the base.
      each: settings of one process each.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    processes = []
    for i in range(n):
        settings = SETTINGS | (each[i] if each else {})
        where = folders[i] if folders else place
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // n),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COMPILATION_CACHE_DIR": str(place / "cache"), "PYTHONFAULTHANDLER": "1",
            "MEND_LOST_AFTER": "15",
        }  # fmt: skip
        if n > 1:
            env |= {"MEND_COORDINATOR": f"127.0.0.1:{port}", "MEND_NUM_PROCESSES": str(n)}
            env |= {"MEND_PROCESS_ID": str(i)}
        with (place / f"log{i}").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mend_jax.main", f"--config={place}/tiny.py"]
                    + [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in settings.items())],
                    cwd=where, env=env, stdout=log, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def output(place, i):
    """Return a process's output without the lines of gloo and of XLA's compiler."""
    lines = (place / f"log{i}").read_text(errors="replace").splitlines()
    return "\n".join(x for x in lines if not re.match(r"\[Gloo\]|[IWE]\d{4} ", x))


def wait_for_ends(place, processes, seconds):
    """Return the exit statuses; every process must end within `seconds`."""
    until = time.monotonic() + seconds
    for i, process in enumerate(processes):
        try:
            process.wait(timeout=max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {i} still runs:\n{output(place, i)}") from None
    return [process.returncode for process in processes]


def wait_for_checkpoint(place, processes, workdir, step):
    """Wait for a step's checkpoint; all processes must be alive until then."""

    def checkpoint_exists():
        dead = [i for i, p in enumerate(processes) if p.poll() is not None]
        assert not dead, f"process {dead[0]} ended:\n{output(place, dead[0])}"
        return (workdir / f"checkpoints/{step}").exists()

    wait_for(checkpoint_exists, 400)


@pytest.fixture(scope="module")
def alone(place):
    """Return the folder of an uninterrupted run of one process."""
    with started(place, place / "alone", 1) as processes:
        assert wait_for_ends(place, processes, 400) == [0], output(place, 0)
    return place / "alone"


@pytest.fixture(scope="module")
def disturbed(place):
    """Return the folder of a run of two processes: one was stopped, later one was killed."""
    workdir = place / "two"
    with started(place, workdir, 2) as processes:
        wait_for_checkpoint(place, processes, workdir, 2)
        processes[1].send_signal(signal.SIGTERM)
        assert wait_for_ends(place, processes, 120) == [143, 143], output(place, 0)
        for i in range(2):
            assert "Preempted: stop requested: the state after step" in output(place, i)
    with started(place, workdir, 2) as processes:
        wait_for_checkpoint(place, processes, workdir, 6)
        assert "resuming after step" in output(place, 0)
        processes[1].kill()
        statuses = wait_for_ends(place, processes, 90)
        assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, 2, 143), output(place, 0)
    assert not (workdir / "results.json").exists()
    with started(place, workdir, 2) as processes:
        assert wait_for_ends(place, processes, 400) == [0, 0], output(place, 0) + output(place, 1)
        assert "resuming after step" in output(place, 0)
    return workdir


def numbers(tree):
    """Return [(path, leaf)] of nested JSON."""
    if isinstance(tree, dict):
        return [(f"{k}/{p}", v) for k in sorted(tree) for p, v in numbers(tree[k])]
    if isinstance(tree, list):
        return [(f"{k}/{p}", v) for k, item in enumerate(tree) for p, v in numbers(item)]
    return [("", tree)]


def assert_equal(ours, theirs):
    """Check equality up to the order of sums.

    The perplexity drawdown is a difference of numbers near the size of the vocabulary, 300.
    """
    ours, theirs = numbers(ours), numbers(theirs)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if isinstance(a, float) and isinstance(b, float):
            atol = 3e-3 if "perplexity" in path else 1e-5
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=path)
        else:
            assert a == b, path


@pytest.mark.full
def test_a_stopped_and_killed_run_of_two_processes_equals_one_of_one(alone, disturbed):
    for name in ("metrics.jsonl", "results.json", "examples.json", "config.json"):
        texts = [(folder / name).read_text() for folder in (disturbed, alone)]
        if name == "metrics.jsonl":
            texts = [f"[{','.join(text.splitlines())}]" for text in texts]
        assert_equal(*(steady(json.loads(text)) for text in texts))
    data = [
        json.loads((folder / f"checkpoints/{step}/meta/metadata").read_text())["data_state"]
        for folder in (disturbed, alone)
        for step in (9,)
    ]
    assert data[0] == data[1] == {"next_index": 9}


@pytest.mark.full
def test_both_runs_have_the_same_files_and_one_process_writes(alone, disturbed, place):
    names = {p.name for p in alone.iterdir()}
    assert {p.name for p in disturbed.iterdir()} == names and "report.html" in names
    assert "evaluate mend 6/6" in output(place, 0)
    assert "train" not in output(place, 1) and "evaluate" not in output(place, 1)


@pytest.mark.slow
def test_processes_with_different_configs_end_and_name_the_key(place):
    other = [{}, {"train.lr": 0.5}]
    with started(place, place / "disagree", 2, each=other) as processes:
        assert wait_for_ends(place, processes, 120) == [2, 2], output(place, 0) + output(place, 1)
    for i in range(2):
        assert "ConfigError: the config of process 1 differs from that of process 0" in output(
            place, i
        )
    assert '"lr": 0.5' in output(place, 1)


@pytest.mark.slow
def test_a_process_that_cannot_load_ends_all(place, tmp_path):
    """The base is a relative path, which does not exist in the folder of process 1."""
    with started(place, place / "lacks", 2, folders=[place, tmp_path]) as processes:
        assert wait_for_ends(place, processes, 120) == [2, 2], output(place, 0) + output(place, 1)
    assert "WeightsError: cannot get 'base': there is no local folder" in output(place, 1)
    log = output(place, 0)
    assert "PeerError" in log and "process 1: WeightsError: cannot get 'base'" in log


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_an_error(place, tmp_path):
    with started(place, "mine", 2, folders=[place, tmp_path]) as processes:
        assert wait_for_ends(place, processes, 120) == [2, 2], output(place, 0) + output(place, 1)
    assert "ConfigError: --workdir mine is another folder here than for process 0" in output(
        place, 1
    )
    assert "process 1: ConfigError: --workdir mine is another folder" in output(place, 0)


@pytest.mark.parametrize("name, value, message", [
    ("MEND_LOST_AFTER", "soon", "MEND_LOST_AFTER is 'soon'"),
    ("MEND_PROCESS_ID", "1", "not set, though others are"),
])  # fmt: skip
def test_an_error_names_a_wrong_environment_variable(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.initialize()
