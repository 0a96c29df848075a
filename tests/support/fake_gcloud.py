"""Fake gcloud, xpk and kubectl for the tests of launch/: fake_gcloud.py PROGRAM ARGUMENT ...

The folder $FAKE_CLOUD has `states`, one line for each answer to `queued-resources describe` (the
last one stays), `node_state`, and files `fail.WORD`, which make every command with that WORD fail.
It gets `calls`, a JSON list for each call. The folders worker0 and worker1 are the workers' homes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
HOMES = [CLOUD / "worker0", CLOUD / "worker1"]


def flag(arguments, name):
    return next(a.removeprefix(name) for a in arguments if a.startswith(name))


def homes(arguments):
    worker = flag(arguments, "--worker=")
    return HOMES if worker == "all" else [HOMES[int(worker)]]


def next_state():
    states = (CLOUD / "states").read_text().split()
    (CLOUD / "states").write_text("\n".join(states[1:] or states))
    return states[0]


def describe():
    state = next_state()
    if state == "MISSING":
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if state == "OFFLINE":
        sys.exit("ERROR: (gcloud) There was a problem connecting")
    print(state)


def delete():
    """Delete a TPU with its processes and files."""
    for home in HOMES:
        for file in home.glob("mend_jax_run/pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        while home.exists():  # a killed process may still write a file while the folder is emptied
            shutil.rmtree(home, ignore_errors=True)
        home.mkdir()


def copy(arguments):
    source, target = [a for a in arguments if not a.startswith("--")][:2]
    for home in homes(arguments):
        shutil.copyfile(
            source, home / target.partition(":")[2]
        )  # as scp, into the file that is there


def ssh(arguments):
    """Run a line as the shell of a worker would, in its home."""
    line = flag(arguments, "--command=")
    codes = [
        subprocess.run(
            ["bash", "-c", line], cwd=home, env=os.environ | {"HOME": str(home)}
        ).returncode
        for home in homes(arguments)
    ]
    sys.exit(next((code for code in codes if code), 0))


def main(program, *arguments):
    with open(CLOUD / "calls", "a") as f:
        f.write(json.dumps([program, *arguments]) + "\n")
    for file in CLOUD.glob("fail.*"):
        if file.suffix[1:] in arguments:
            sys.exit(f"ERROR: ({program}) {file.read_text()}")
    if program != "gcloud":
        return
    match arguments[2:4]:
        case ["queued-resources", "describe"]:
            describe()
        case ["queued-resources", "delete"]:
            delete()
        case ["tpu-vm", "describe"]:
            print((CLOUD / "node_state").read_text())
        case ["tpu-vm", "scp"]:
            copy(arguments[4:])
        case ["tpu-vm", "ssh"]:
            ssh(arguments[4:])


if __name__ == "__main__":
    main(*sys.argv[1:])
