"""The soak in short: a run that is preempted three times ends as one that never was."""

import shutil

from tests.soak import differences, soak, tiny_command

STEPS, SEED = 12, 5  # of which both signals come


def test_a_run_preempted_again_and_again_ends_as_one_that_never_was(tmp_path):
    done = soak(tmp_path, tiny_command(tmp_path, STEPS), STEPS, preemptions=3, seed=SEED)
    assert done["preemptions"] == 3 and min(done["by_signal"].values()) > 0, done
    log, alone = tmp_path / "disturbed/metrics.jsonl", tmp_path / "alone"
    log.write_text(log.read_text().replace('"step": 3,', '"step": 4,'))
    shutil.rmtree(tmp_path / "disturbed/checkpoints/12/state")
    shutil.copytree(
        tmp_path / "disturbed/checkpoints/9/state", tmp_path / "disturbed/checkpoints/12/state"
    )
    found = differences(tmp_path / "disturbed", alone)
    assert found == ["metrics.jsonl", "arrays of checkpoint 12"]  # it sees what differs
