"""The launch script says exactly what it would do."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "launch/run_tpu.sh"


def dry_run(tmp_path, *arguments):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_the_first_call_sets_up_and_runs(tmp_path):
    done = dry_run(tmp_path, "--dry-run", "python", "-m", "mend_jax.main", "--config=a b.py")
    env = f"{tmp_path}/mend_jax_env"
    assert [line.strip() for line in done.stdout.splitlines()] == [
        f"python3 -m venv {env}",
        f"{env}/bin/pip install --quiet -r requirements.txt jax\\[tpu\\]",
        f"touch {env}/.ready",
        r"python -m mend_jax.main --config=a\ b.py",
    ]
    assert not Path(env).exists()


def test_later_calls_only_run(tmp_path):
    (tmp_path / "mend_jax_env").mkdir()
    (tmp_path / "mend_jax_env/.ready").touch()
    assert dry_run(tmp_path, "--dry-run", "true").stdout.split() == ["true"]
    assert dry_run(tmp_path, "echo", "ran").stdout == "ran\n"


def test_no_command_is_refused(tmp_path):
    done = dry_run(tmp_path)
    assert done.returncode == 2 and "usage" in done.stderr
