"""launch/tpu_pod.sh and launch/gke.sh against a fake cloud (fake_gcloud.py)."""

import json
import re
import signal
import subprocess
import sys

import pytest
from support.launching import Machine, wait_for

ZONE = "--zone=us-west4-a"
ODD = [
    "a  b",
    "it's",
    '"quoted"',
    "$HOME `date`",
    "*",
    "",
    "new\nline",
    "back\\slash",
    "a;b&&c",
    "é",
]
TELLS = "import json, sys; print(json.dumps(sys.argv[1:]))"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path).installed()


def pod(machine, subcommand, *arguments):
    return machine.launch("tpu_pod.sh", subcommand, "pod", ZONE, "--poll=0", *arguments)


def worker_log(machine, worker=0):
    return (machine.cloud / f"worker{worker}/mend_jax_run/log").read_text()


# ---- single subcommands ----


def test_create_wait_push_run_logs_stop_delete(machine):
    assert pod(machine, "create").returncode == 0
    machine.states("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    waited = pod(machine, "wait")
    assert waited.returncode == 0
    assert waited.stdout == "pod: WAITING_FOR_RESOURCES\npod: PROVISIONING\npod: ACTIVE\n"
    assert pod(machine, "push").returncode == 0
    for worker in ("worker0", "worker1"):
        assert (machine.cloud / worker / "mend_jax/launch/run_tpu.sh").exists()
    command = "trap 'echo saved; exit 143' TERM; echo started; while true; do sleep 0.1; done"
    assert pod(machine, "run", "bash", "-c", command).returncode == 0
    wait_for(lambda: worker_log(machine, 0) == worker_log(machine, 1) == "started\n")
    assert pod(machine, "status").stdout == "pod: ACTIVE\nrun: running\nrun: running\n"
    assert pod(machine, "stop").returncode == 0
    assert pod(machine, "logs", "--worker=1", "--lines=1").stdout == "saved\n"
    assert pod(machine, "status").stdout == "pod: ACTIVE\nrun: exit 143\nrun: exit 143\n"
    assert pod(machine, "delete").returncode == 0
    described = ["describe"] * 4
    assert machine.steps() == [
        "create", *described, "scp", "ssh", "ssh", "describe", "ssh", "ssh", "ssh", "describe",
        "ssh", "delete",
    ]  # fmt: skip


def test_only_committed_files_are_pushed(machine):
    (machine.repo / "new.py").write_text("")
    (machine.repo / "requirements.txt").write_text("other\n")
    done = pod(machine, "push")
    assert done.returncode == 0 and "there are uncommitted changes" in done.stderr
    pushed = machine.cloud / "worker0/mend_jax"
    assert not (pushed / "new.py").exists()
    assert (pushed / "requirements.txt").read_text() == "jax\n"


def test_arguments_reach_the_workers_unchanged(machine):
    pod(machine, "push")
    done = pod(machine, "run", "--attach", "--", sys.executable, "-c", TELLS, *ODD)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [ODD, ODD]


def test_dry_run_lines_can_be_pasted(machine):
    pod(machine, "push")
    printed = pod(machine, "run", "--dry-run", "--attach", "--", sys.executable, "-c", TELLS, *ODD)
    pasted = subprocess.run(
        ["bash", "-c", printed.stdout], env=machine.env, capture_output=True, text=True
    )
    assert json.loads(pasted.stdout.splitlines()[0]) == ODD


def test_an_attached_run_has_the_status_of_the_command(machine):
    pod(machine, "push")
    assert pod(machine, "run", "--attach", "bash", "-c", "exit 6").returncode == 6


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "MISSING"])
def test_wait_gives_up_on_a_lost_tpu(machine, state):
    machine.states("PROVISIONING", state)
    done = pod(machine, "wait")
    assert done.returncode == 1
    assert f"'pod' is {state} and will not become ACTIVE; delete it" in done.stderr


def test_wait_survives_a_short_outage_and_gives_up_after_a_long_one(machine):
    machine.states("PROVISIONING", "OFFLINE", "OFFLINE", "ACTIVE")
    done = pod(machine, "wait")
    assert done.returncode == 0 and "problem connecting" in done.stderr
    machine.states("OFFLINE")
    done = pod(machine, "wait")
    assert done.returncode == 1 and "gave up after 10 tries" in done.stderr


@pytest.mark.parametrize(
    "accelerator_type, runtime_version",
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_runtime_version_follows_the_accelerator_type(machine, accelerator_type, runtime_version):
    pod(machine, "create", f"--accelerator-type={accelerator_type}")
    assert f"--runtime-version={runtime_version}" in machine.calls()[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "unknown subcommand ''"),
        (["destroy"], "unknown subcommand 'destroy'"),
        (["create"], "create: which TPU?"),
        (["create", "pod"], "create pod: which zone? give --zone=ZONE"),
        (["create", "pod", "--zone"], "--zone needs a value"),
        (["create", "My_pod", ZONE], "'My_pod' is not a valid name"),
        (["create", "pod", ZONE, "--accelerator-type=v9-8"], "give --runtime-version=VERSION"),
        (["create", "pod", ZONE, "python"], "create pod takes no command, but got 'python'"),
        (["run", "pod", ZONE], "run pod: no command"),
        (["train", "pod", ZONE, "--retries=many", "true"], "--retries=many is not a whole number"),
    ],
)
def test_wrong_arguments_are_named(machine, arguments, message):
    done = machine.launch("tpu_pod.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and not machine.calls()


# ---- train ----

# Appends the number of its TPU to the file $0, as in a --workdir on a mounted bucket, and ends at
# once on the second TPU. On the first it may be killed before it has written anything.
NUMBER = """n=$(grep -c 'resources", "create' "$FAKE_CLOUD/calls"); """  # TPUs created
RESUMES = NUMBER + 'echo "$n" >> "$0"; ((n > 1)) || sleep 300'


def test_train_creates_runs_and_deletes(machine):
    machine.states("MISSING", "PROVISIONING", "ACTIVE")
    done = pod(machine, "train", "--delete", "sleep", "0.5")
    assert done.returncode == 0, done.stderr
    steps = machine.steps()
    assert steps[:7] == ["describe", "create", "describe", "describe", "scp", "ssh", "ssh"]
    assert steps[-1] == "delete" and steps.count("create") == 1


def test_train_reports_that_the_tpu_still_costs_money(machine):
    machine.states("MISSING", "ACTIVE")
    done = pod(machine, "train", "true")
    assert done.returncode == 0 and "delete" not in machine.steps()
    assert f"costs money until: tpu_pod.sh delete pod {ZONE}" in done.stderr


@pytest.mark.parametrize("gone", ["SUSPENDED", "SUSPENDING", "FAILED", "MISSING"])
def test_train_starts_again_after_preemption(machine, tmp_path, gone):
    machine.states("MISSING", "ACTIVE", "ACTIVE", gone, "MISSING", "ACTIVE")
    done = pod(machine, "train", "--spot", "bash", "-c", RESUMES, tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert f"'pod' is {gone}; retry 1 of 10" in done.stderr
    steps = [step for step in machine.steps() if step in ("create", "scp", "delete")]
    assert steps == ["create", "scp", "delete", "create", "scp"]
    tpus = (tmp_path / "state").read_text().split()
    assert tpus.count("2") == 2 and set(tpus) <= {"1", "2"}  # two workers
    spot = [call for call in machine.calls() if "create" in call]
    assert all("--spot" in call for call in spot)


def test_a_preempted_run_that_ends_before_the_state_changes_is_not_a_failure(machine, tmp_path):
    machine.states("MISSING", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING", "MISSING", "ACTIVE")
    ends = NUMBER + "((n > 1)) || exit 143"
    done = pod(machine, "train", "bash", "-c", ends, tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert "retry 1 of 10" in done.stderr


def test_a_preempted_node_is_noticed_when_the_workers_do_not_answer(machine):
    machine.states("MISSING", "ACTIVE")
    (machine.cloud / "fail.ssh").write_text("no route")
    (machine.cloud / "node_state").write_text("PREEMPTED")
    done = pod(machine, "train", "--retries=0", "true")
    assert done.returncode == 1 and "now PREEMPTED; gave up" in done.stderr


def test_train_gives_up_after_its_retries(machine):
    machine.states("MISSING", "ACTIVE", "SUSPENDED", "MISSING", "SUSPENDED", "MISSING", "SUSPENDED")
    done = pod(machine, "train", "--retries=2", "sleep", "300")
    assert done.returncode == 1
    assert "was preempted or failed 3 time(s), now SUSPENDED; gave up after" in done.stderr
    assert machine.steps().count("create") == 3


@pytest.mark.parametrize(
    "status, message",
    [
        (2, "the command failed on a worker of 'pod' (run: exit 2)"),
        (143, "the command was stopped, and train continues it on a worker of 'pod'"),
    ],
)
def test_an_error_of_the_user_and_a_stop_end_train(machine, status, message):
    machine.states("MISSING", "ACTIVE")
    done = pod(machine, "train", "bash", "-c", f"exit {status}")
    assert done.returncode == status and message in done.stderr
    assert machine.steps().count("create") == 1 and "delete" not in machine.steps()


@pytest.mark.parametrize("status", [1, 137, 139])
def test_any_other_end_is_tried_again_on_the_same_tpu(machine, tmp_path, status):
    machine.states("MISSING", "ACTIVE")
    # Each worker ends so the first time, and well the second.
    ends = f"[[ -e ~/seen ]] && exit 0; touch ~/seen; [[ $PWD != *worker0* ]] || exit {status}"
    done = pod(machine, "train", "bash", "-c", ends)
    assert done.returncode == 0, done.stderr
    assert f"the command ended with 'run: exit {status}'; retry 1 of 10 on the same" in done.stderr
    assert machine.steps().count("create") == 1 and "delete" not in machine.steps()


def test_a_command_that_always_fails_ends_after_the_retries(machine):
    machine.states("MISSING", "ACTIVE")
    done = pod(machine, "train", "--retries=2", "bash", "-c", "exit 1")
    assert done.returncode == 1
    assert "the command ended 3 time(s) on 'pod', the last with 'run: exit 1'" in done.stderr
    assert machine.steps().count("create") == 1


def test_further_flags_reach_gcloud_and_xpk(machine):
    assert pod(machine, "create", "--create-flags=--reserved --network=mine").returncode == 0
    assert {"--reserved", "--network=mine"} < set(machine.calls()[0])
    assert gke(machine, "run", "job", "--xpk-flags=--env-file=f --x", "true").returncode == 0
    call = machine.calls()[-1]
    assert call[call.index("--command") - 2 : call.index("--command")] == ["--env-file=f", "--x"]


def test_secrets_reach_the_workers_by_a_file_alone(machine, tmp_path):
    (tmp_path / "secrets").write_text("HF_TOKEN='two words'\n")
    machine.states("MISSING", "ACTIVE")
    told = ["bash", "-c", 'echo "token $HF_TOKEN"']
    done = pod(machine, "train", f"--env-file={tmp_path}/secrets", *told)
    assert done.returncode == 0, done.stderr
    assert worker_log(machine) == "token two words\n"
    copied = machine.cloud / "worker1/mend_jax_env_file"
    assert copied.stat().st_mode & 0o077 == 0
    assert "two words" not in (machine.cloud / "calls").read_text() + done.stdout + done.stderr
    missing = pod(machine, "push", "--env-file=none")
    assert missing.returncode == 2 and "--env-file=none cannot be read" in missing.stderr


@pytest.mark.parametrize("word, message", [("create", "cannot create"), ("scp", "cannot start")])
def test_an_error_of_gcloud_ends_train(machine, word, message):
    machine.states("MISSING", "ACTIVE")
    (machine.cloud / f"fail.{word}").write_text("quota exceeded")
    done = pod(machine, "train", "true")
    assert done.returncode == 1 and f"{message}" in done.stderr and "quota" in done.stderr


def test_train_called_again_continues_with_the_same_run(machine, tmp_path):
    machine.states("MISSING", "ACTIVE")
    command = ["bash", "-c", f'echo >> "$0"; until [ -e {tmp_path}/end ]; do sleep 0.1; done']
    arguments = ["train", "pod", ZONE, "--poll=0", *command, tmp_path / "state"]
    first = subprocess.Popen(
        machine.arguments("tpu_pod.sh", *arguments), env=machine.env, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "state").exists() and len((tmp_path / "state").read_text()) == 2)
    first.send_signal(signal.SIGTERM)
    assert "the TPU and its run continue" in first.communicate(timeout=60)[1]
    assert first.returncode == 130
    (tmp_path / "end").touch()
    again = machine.launch("tpu_pod.sh", *arguments)
    assert again.returncode == 0, again.stderr
    assert "'pod' exists already (ACTIVE)" in again.stderr
    assert machine.steps().count("create") == 1


# ---- gke.sh ----


def gke(machine, subcommand, *arguments):
    return machine.launch("gke.sh", subcommand, "--cluster=c", ZONE, *arguments)


def test_gke_subcommands_call_the_right_programs(machine):
    for arguments in (["cluster"], ["run", "job", "true"], ["logs", "job"], ["delete", "job"]):
        assert gke(machine, *arguments).returncode == 0
    assert [call[:3] for call in machine.calls()] == [
        ["xpk", "cluster", "create"],
        ["xpk", "workload", "create"],
        ["gcloud", "container", "clusters"],
        ["kubectl", "logs", machine.calls()[3][2]],
        ["xpk", "workload", "delete"],
    ]
    assert not list((machine.home.parent).glob("mend_jax-job*"))


def test_gke_arguments_reach_the_container_unchanged(machine):
    assert gke(machine, "run", "job", "--", sys.executable, "-c", TELLS, *ODD).returncode == 0
    (call,) = machine.calls()
    line = call[call.index("--command") + 1]
    # As xpk wraps it, in the folder of the image.
    done = subprocess.run(
        ["bash", "-c", f"({line}) & wait $!"], env=machine.env, cwd=machine.repo,
        capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ODD


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["start"], "unknown subcommand 'start'"),
        (["run"], "run: which workload?"),
        (["delete"], "delete what?"),
        (["run", "job"], "run job: no command"),
        (["delete", "../x"], "'../x' is not a valid name"),
        (["cluster", "c"], "cluster takes no command, but got 'c'"),
    ],
)
def test_gke_wrong_arguments_are_named(machine, arguments, message):
    done = gke(machine, *arguments)
    assert done.returncode == 2 and message in done.stderr and not machine.calls()
    assert re.search("which cluster", machine.launch("gke.sh", "cluster", ZONE).stderr)
