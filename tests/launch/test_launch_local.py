"""launch/local_pod.sh with small commands instead of JAX programs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.launching import Machine, wait_for

# Writes "ready" and waits; the rest of the script handles signals.
WAITS = "echo ready; while true; do sleep 0.1; done"


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.env.pop("XLA_FLAGS", None)  # the tests' own
    return machine


def local_pod(machine, *arguments):
    return machine.launch("local_pod.sh", f"--log-dir={machine.home}/logs", *arguments)


def log(machine, process):
    file = machine.home / f"logs/process_{process}.log"
    return file.read_text() if file.exists() else ""


# A shell starts its background jobs with SIGINT ignored, and a script cannot undo that: tests that
# run in the background must not hand it down.
HEED_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def start(machine, *arguments):
    command = machine.arguments("local_pod.sh", f"--log-dir={machine.home}/logs", *arguments)
    return subprocess.Popen(
        [sys.executable, "-c", HEED_SIGINT, *command],
        env=machine.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_each_process_gets_its_index_in_the_job(machine):
    done = local_pod(machine, "--devices=4", 3, "bash", "-c", "env; echo the end")
    assert done.returncode == 0, done.stderr
    environments = [
        dict(line.split("=", 1) for line in log(machine, i).splitlines() if "=" in line)
        for i in range(3)
    ]
    assert [e["MEND_PROCESS_ID"] for e in environments] == ["0", "1", "2"]
    assert {e["MEND_NUM_PROCESSES"] for e in environments} == {"3"}
    assert len({e["MEND_COORDINATOR"] for e in environments}) == 1
    host, port = environments[0]["MEND_COORDINATOR"].split(":")
    assert host == "127.0.0.1" and 1024 < int(port) < 65536
    assert {e["JAX_PLATFORMS"] for e in environments} == {"cpu"}
    assert {e["XLA_FLAGS"] for e in environments} == {"--xla_force_host_platform_device_count=4"}
    assert {e["PJRT_NPROC"] for e in environments} == {"64"}
    assert done.stdout == log(machine, 0) and done.stdout.endswith("the end\n")


def test_variables_that_are_set_already_are_kept(machine):
    machine.env |= {"JAX_PLATFORMS": "tpu", "XLA_FLAGS": "--xla_dump_to=d"}
    shown = 'echo "$JAX_PLATFORMS $XLA_FLAGS"'
    assert local_pod(machine, 1, "bash", "-c", shown).stdout == "tpu --xla_dump_to=d\n"
    flags = local_pod(machine, "--devices=2", 1, "bash", "-c", shown).stdout
    assert flags == "tpu --xla_dump_to=d --xla_force_host_platform_device_count=2\n"


def test_the_processes_communicate_through_the_coordinator_port(machine):
    """Process 0 listens on it and process 1 connects, as in a JAX job."""
    code = """
import os, socket, sys, time
host, port = os.environ["MEND_COORDINATOR"].split(":")
if os.environ["MEND_PROCESS_ID"] == "0":
    print(socket.create_server((host, int(port))).accept()[0].recv(100).decode())
else:
    for _ in range(100):
        try:
            sys.exit(socket.create_connection((host, int(port))).sendall(b"hello"))
        except ConnectionRefusedError:
            time.sleep(0.1)
"""
    done = local_pod(machine, 2, sys.executable, "-SE", "-c", code)
    assert (done.stdout, done.returncode) == ("hello\n", 0)


def test_arguments_are_passed_unchanged(machine):
    odd = ["a  b", "it's", '"', "$HOME", "", "new\nline"]
    done = local_pod(machine, 1, sys.executable, "-c", "import sys; print(sys.argv[1:])", *odd)
    assert done.stdout == f"{odd}\n"


def test_a_failure_ends_the_others_and_is_the_exit_status(machine):
    command = f'[[ $MEND_PROCESS_ID != 1 ]] || {{ echo "it broke"; exit 7; }}; {WAITS}'
    done = local_pod(machine, "--grace=1", 3, "bash", "-c", command)
    assert done.returncode == 7
    assert "process 1 ended with status 7" in done.stderr and "it broke" in done.stderr


def test_others_may_end_themselves_within_the_grace_period(machine):
    command = "[[ $MEND_PROCESS_ID == 1 ]] && exit 7; sleep 1; echo saved; exit 8"
    began = time.monotonic()
    done = local_pod(machine, "--grace=60", 2, "bash", "-c", command)
    assert done.returncode == 7 and done.stdout == "saved\n"
    assert time.monotonic() - began < 30


def test_the_others_get_sigterm_and_then_sigkill(machine):
    command = f"[[ $MEND_PROCESS_ID == 1 ]] && exit 7; trap 'echo no' TERM; {WAITS}"
    done = local_pod(machine, "--grace=1", 2, "bash", "-c", command)
    assert (done.returncode, done.stdout) == (7, "ready\nno\n")


def test_a_process_killed_by_a_signal_is_a_failure(machine):
    command = f"[[ $MEND_PROCESS_ID == 0 ]] && kill -KILL $$; {WAITS}"
    assert local_pod(machine, "--grace=0", 2, "bash", "-c", command).returncode == 137


def test_an_unknown_command_is_a_failure(machine):
    done = local_pod(machine, "--grace=0", 2, "no-such-command")
    assert done.returncode == 127 and "no-such-command" in done.stderr


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_signals_are_passed_on_to_all(machine, name):
    process = start(machine, 2, "bash", "-c", f"trap 'echo saved; exit 0' {name}; {WAITS}")
    wait_for(lambda: log(machine, 0) == log(machine, 1) == "ready\n")
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "ready\nsaved\n", err
    assert log(machine, 1) == "ready\nsaved\n"


def test_after_a_signal_the_exit_status_is_that_of_the_processes(machine):
    process = start(machine, "--grace=1", 2, "bash", "-c", WAITS)
    wait_for(lambda: log(machine, 0) == log(machine, 1) == "ready\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def is_gone(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split(")")[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_no_process_is_left_running(machine):
    """Not even the processes of a process that was killed."""
    command = "sleep 300 & echo $!; [[ $MEND_PROCESS_ID == 1 ]] && exit 7; wait"
    assert local_pod(machine, "--grace=0", 2, "bash", "-c", command).returncode == 7
    for process in range(2):
        child = log(machine, process).split()[0]
        wait_for(lambda child=child: is_gone(child))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "how many processes?"),
        (["python"], "'python' is not a number"),
        (["0", "true"], "how many processes?"),
        (["2"], "no command"),
        (["--devices=x", "2", "true"], "--devices=x is not a whole number"),
    ],
)
def test_wrong_arguments_are_named(machine, arguments, message):
    done = machine.launch("local_pod.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr
