"""Shared helpers for the tests of launch/: a small checkout, and a fake cloud."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/bin:/usr/bin:/bin"


def wait_for(condition, seconds=30):
    """Return the first true value of condition(), called repeatedly."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


class Machine:
    """A checkout with launch/ in a git repository, a home, and fake programs."""

    def __init__(self, folder: Path):
        self.repo, self.home, self.bin = folder / "checkout", folder / "home", folder / "bin"
        self.cloud = folder / "cloud"
        for directory in (self.repo, self.home, self.bin, self.cloud):
            directory.mkdir()
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        (self.repo / "requirements.txt").write_text("jax\n")
        (self.repo / "requirements-tpu.txt").write_text("gcsfs\n")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(self.repo)]
        for line in ("init --quiet", "add .", "commit --quiet -m launch"):
            subprocess.run([*git, *line.split()], check=True)
        for program in ("gcloud", "xpk", "kubectl"):
            fake = [sys.executable, "-SE", str(Path(__file__).parent / "fake_gcloud.py"), program]
            self.program(program, f'exec {shlex.join(fake)} "$@"')
        for worker in ("worker0", "worker1"):
            (self.cloud / worker).mkdir()
        self.states("ACTIVE")
        (self.cloud / "node_state").write_text("READY")
        self.env = {
            "HOME": str(self.home), "PATH": f"{self.bin}:{PATH}", "TMPDIR": str(folder),
            "FAKE_CLOUD": str(self.cloud), "MEND_ENV_DIR": str(folder / "env"),
        }  # fmt: skip

    def program(self, name, body):
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def states(self, *states):
        (self.cloud / "states").write_text("\n".join(states))

    def installed(self):
        """Create the environment that run_tpu.sh leaves, without installing anything."""
        env = Path(self.env["MEND_ENV_DIR"])
        (env / "bin").mkdir(parents=True)
        files = ("requirements.txt", "requirements-tpu.txt")
        (env / ".ready").write_text("".join((self.repo / name).read_text() for name in files))
        return self

    def arguments(self, script, *arguments):
        return ["bash", str(self.repo / "launch" / script), *map(str, arguments)]

    def launch(self, script, *arguments):
        return subprocess.run(
            self.arguments(script, *arguments),
            capture_output=True, text=True, env=self.env, cwd=self.home, timeout=300,
        )  # fmt: skip

    def calls(self):
        """Return the arguments of each call of a fake program."""
        file = self.cloud / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def steps(self):
        """Return the calls in short: create, describe, scp, ssh, delete."""
        return [call[4] for call in self.calls() if call[:3] == ["gcloud", "compute", "tpus"]]
