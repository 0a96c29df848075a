"""launch/run_tpu.sh on one machine, and the --dry-run of all launch scripts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.launching import ROOT, Machine, wait_for

GOLDEN = Path(__file__).parent / "golden_launch"
SCRIPTS = ("run_tpu.sh", "tpu_pod.sh", "gke.sh", "local_pod.sh")
COMMAND = ["python", "-m", "mend_jax.main", "--config=a b.py"]
POD = ["pod", "--zone=us-west4-a"]
GKE = ["--cluster=cluster", "--zone=us-west4-a"]
DRY_RUNS = {
    "run_tpu": ["run_tpu.sh", *COMMAND],
    "run_tpu_background": ["run_tpu.sh", "--background", *COMMAND],
    "run_tpu_follow": ["run_tpu.sh", "--follow"],
    "run_tpu_stop": ["run_tpu.sh", "--stop"],
    "pod_create": ["tpu_pod.sh", "create", *POD],
    "pod_create_spot": [
        "tpu_pod.sh", "create", *POD, "--spot", "--project=p", "--node-id", "node",
        "--accelerator-type=v6e-8",
    ],
    "pod_wait": ["tpu_pod.sh", "wait", *POD],
    "pod_push": ["tpu_pod.sh", "push", *POD],
    "pod_run": ["tpu_pod.sh", "run", *POD, *COMMAND, "it's", "$HOME", ""],
    "pod_run_attach": ["tpu_pod.sh", "run", *POD, "--attach", "--", *COMMAND],
    "pod_status": ["tpu_pod.sh", "status", *POD],
    "pod_logs": ["tpu_pod.sh", "logs", *POD],
    "pod_logs_follow": ["tpu_pod.sh", "logs", *POD, "--worker=3", "--lines=5", "--follow"],
    "pod_stop": ["tpu_pod.sh", "stop", *POD],
    "pod_delete": ["tpu_pod.sh", "delete", *POD],
    "pod_train": ["tpu_pod.sh", "train", *POD, "--spot", "--delete", *COMMAND],
    "gke_cluster": ["gke.sh", "cluster", *GKE, "--spot", "--num-slices=2", "--project=p"],
    "gke_run": ["gke.sh", "run", "job", *GKE, *COMMAND],
    "gke_logs": ["gke.sh", "logs", "job", *GKE, "--follow"],
    "gke_delete": ["gke.sh", "delete", "job", *GKE],
    "gke_delete_cluster": ["gke.sh", "delete", *GKE, "--with-cluster"],
    "local_pod": ["local_pod.sh", "--devices=4", "--port=1234", "2", *COMMAND],
}  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def dry_run(machine, script, *arguments):
    """Return what the script prints for --dry-run, with names for the folders of the test."""
    at = 2 if script in ("tpu_pod.sh", "gke.sh") else 1
    arguments = [script, *arguments]
    done = machine.launch(*arguments[:at], "--dry-run", *arguments[at:])
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for folder, name in ((machine.repo, "/checkout"), (machine.home, "/home/me")):
        text = text.replace(str(folder), name)
    return text.replace(machine.env["MEND_ENV_DIR"], "/env").replace(machine.env["TMPDIR"], "/tmp")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_prints_the_commands(machine, name):
    machine.program("python3", "exit 0")  # of any version
    assert dry_run(machine, *DRY_RUNS[name]) == (GOLDEN / f"{name}.txt").read_text()
    assert not machine.calls() and not list(machine.home.iterdir())


def test_every_golden_file_is_compared():
    assert {file.stem for file in GOLDEN.iterdir()} == {*DRY_RUNS, "run_tpu_old_python"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_options(machine, script):
    help_text = machine.launch(script, "--help")
    assert help_text.returncode == 0 and "--dry-run" in help_text.stdout
    assert f"{script} " in help_text.stdout and "shellcheck" not in help_text.stdout
    arguments = ["delete"] if script in ("tpu_pod.sh", "gke.sh") else []
    unknown = machine.launch(script, *arguments, "--spott")
    assert unknown.returncode == 2 and "unknown option '--spott'" in unknown.stderr


def test_shellcheck():
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -r requirements-dev.txt")
    scripts = sorted(str(file) for file in (ROOT / "launch").glob("*.sh"))
    assert len(scripts) == len(SCRIPTS) + 1
    done = subprocess.run([program, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# ---- the environment ----


def lines(machine, *arguments):
    return dry_run(machine, "run_tpu.sh", *arguments).splitlines()


def test_later_calls_run_the_command_without_setup(machine):
    machine.installed()
    assert lines(machine, "true") == ["true"]
    assert machine.launch("run_tpu.sh", "echo", "a  b").stdout == "a  b\n"


def test_other_requirements_are_installed_into_the_same_environment(machine):
    machine.installed()
    (machine.repo / "requirements.txt").write_text("jax\nflax\n")
    pip = Path(machine.env["MEND_ENV_DIR"]) / "bin/pip"
    pip.write_text('#!/usr/bin/env bash\necho "pip $*"\n')
    pip.chmod(0o755)
    assert machine.launch("run_tpu.sh", "echo", "ran").stdout == (
        "pip install --quiet -r requirements-tpu.txt\nran\n"
    )
    assert machine.launch("run_tpu.sh", "echo", "ran").stdout == "ran\n"


def test_a_failed_setup_runs_nothing_and_is_tried_again(machine):
    machine.program("python3", '[[ $1 == -c ]] || { echo "venv failed" >&2; exit 4; }')
    for _ in range(2):
        done = machine.launch("run_tpu.sh", "echo", "ran")
        assert done.returncode == 4 and "venv failed" in done.stderr and not done.stdout


def test_an_old_python_is_not_used(machine):
    for python in ("python3", "python3.11", "python3.12", "python3.13"):
        machine.program(python, "exit 1")
    text = dry_run(machine, "run_tpu.sh", "true")
    assert text == (GOLDEN / "run_tpu_old_python.txt").read_text()


def test_the_command_replaces_the_script_so_that_signals_reach_it(machine):
    done = machine.installed().launch("run_tpu.sh", "bash", "-c", "echo $PPID; true")
    assert done.stdout == f"{os.getpid()}\n"


def test_a_call_without_a_command_is_an_error(machine):
    done = machine.launch("run_tpu.sh")
    assert done.returncode == 2 and "usage" in done.stderr


# ---- background runs ----

SAVES = "trap 'echo saved; exit 143' TERM; echo started; while true; do sleep 0.1; done"


def status(machine):
    return machine.launch("run_tpu.sh", "--status").stdout.strip()


def test_a_background_run_saves_its_state_when_stopped(machine):
    machine.installed()
    log = machine.home / "mend_jax_run/log"
    assert status(machine) == "run: none"
    assert machine.launch("run_tpu.sh", "--background", "bash", "-c", SAVES).returncode == 0
    wait_for(lambda: log.read_text() == "started\n")
    assert status(machine) == "run: running"
    again = machine.launch("run_tpu.sh", "--background", "bash", "-c", SAVES)
    assert again.returncode == 0 and "running already" in again.stderr
    other = machine.launch("run_tpu.sh", "--background", "echo", "other")
    assert other.returncode == 1 and "another command is running" in other.stderr
    stopped = machine.launch("run_tpu.sh", "--stop")
    assert stopped.returncode == 0 and "stopped; run: exit 143" in stopped.stderr
    assert log.read_text() == "started\nsaved\n"
    assert status(machine) == "run: exit 143"
    assert "no run is in progress" in machine.launch("run_tpu.sh", "--stop").stderr


def test_a_run_that_does_not_stop_is_reported(machine):
    machine.installed()
    stubborn = "trap '' TERM; echo $$; while [ ! -e end ]; do sleep 0.1; done"
    machine.launch("run_tpu.sh", "--background", "bash", "-c", stubborn)
    wait_for(lambda: (machine.home / "mend_jax_run/log").read_text())
    done = machine.launch("run_tpu.sh", "--stop", "--grace=0")
    assert done.returncode == 1 and "has not ended 0 s after SIGTERM" in done.stderr
    (machine.repo / "end").touch()
    wait_for(lambda: status(machine) == "run: exit 0")


def test_follow_shows_the_log_and_ends_with_the_status_of_the_run(machine):
    machine.installed()
    assert "no run was started" in machine.launch("run_tpu.sh", "--follow").stderr
    machine.launch("run_tpu.sh", "--background", "bash", "-c", "echo a; sleep 0.5; echo b; exit 5")
    done = machine.launch("run_tpu.sh", "--follow")
    assert (done.stdout, done.returncode) == ("a\nb\n", 5)
    machine.launch("run_tpu.sh", "--background", "echo", "second")
    assert machine.launch("run_tpu.sh", "--follow").stdout == "second\n"
    assert (machine.home / "mend_jax_run/log.previous").read_text() == "a\nb\n"


def test_a_run_without_an_exit_status_is_lost(machine):
    machine.installed()
    machine.launch("run_tpu.sh", "--background", "true")
    wait_for(lambda: status(machine) == "run: exit 0")
    (machine.home / "mend_jax_run/exit_status").unlink()  # as after a crash of the machine
    assert status(machine) == "run: lost"
    done = machine.launch("run_tpu.sh", "--follow")
    assert done.returncode == 1 and "without an exit status" in done.stderr
