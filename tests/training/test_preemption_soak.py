"""Runs that are stopped again and again end like uninterrupted ones. All with `--full` only."""

import shutil

import pytest

from tests.soak import differences, soak, tiny_command

STEPS, SEED = 12, 0  # SIGKILL at step 9, SIGTERM at 10


@pytest.mark.full
def test_a_run_that_is_preempted_24_times_ends_like_an_uninterrupted_one(tmp_path):
    done = soak(tmp_path, tiny_command(tmp_path, 60), 60, preemptions=24, seed=SEED)
    assert done["preemptions"] == 24 and min(done["by_signal"].values()) > 5


@pytest.mark.full
def test_a_repeatedly_preempted_run_ends_like_an_uninterrupted_one(tmp_path):
    done = soak(tmp_path, tiny_command(tmp_path, STEPS), STEPS, preemptions=2, seed=SEED)
    assert done["preemptions"] == 2 and done["by_signal"] == {"SIGTERM": 1, "SIGKILL": 1}
    disturbed = tmp_path / "disturbed"
    log, kept = disturbed / "metrics.jsonl", disturbed / "checkpoints"
    log.write_text(log.read_text().replace('"step": 3,', '"step": 4,'))
    earlier = min(kept.iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(kept / "12/state")
    shutil.copytree(earlier / "state", kept / "12/state")
    found = differences(disturbed, tmp_path / "alone")
    assert found == ["metrics.jsonl", "arrays of checkpoint 12"]  # it sees what differs
