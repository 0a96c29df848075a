"""The speed of steps, by a clock that the test turns, and profiles of some of them."""

import json

import jax
import numpy as np
import pytest
from support.tiny import random_sequences

from mend_jax.apps.run_command import parse
from mend_jax.errors import ConfigError
from mend_jax.io.json_lines import JsonLines
from mend_jax.training.config_check import check_editing_config
from mend_jax.training.step_watch import StepProfile, StepSpeed


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def batch():
    edit = random_sequences(0, E=4, n=2, T=5)
    near = random_sequences(1, E=4, n=1, T=7)
    mask = np.zeros((4, 1, 7), bool)
    mask[..., :3] = True
    return {"edit": edit.replace(mask=np.ones((4, 2, 5), bool)), "near": near.replace(mask=mask),
            "index": np.zeros((4, 2))}  # fmt: skip


def test_lines_have_the_means_of_the_steps_since_the_last_line(tmp_path):
    clock, log = Clock(), JsonLines(tmp_path / "speed.jsonl")
    speed = StepSpeed(log, 2, clock)
    clock.now += 50  # the first step is compiled
    speed.after_step(1, batch(), 9.0)
    for number in (2, 3):
        clock.now += 2
        speed.after_step(number, batch(), 0.5)
    go_on = speed.pause()
    clock.now += 1000  # a validation
    go_on()
    clock.now += 2
    speed.after_step(4, batch(), 1.5)
    first, second, third = log.read()
    assert first == {"step": 1, "first_step_seconds": 50}
    tokens = 4 * 2 * 5 + 4 * 3  # of a step, without padding
    assert second | {"memory_bytes": 0} == {
        "step": 2, "seconds": 2, "facts_per_second": 8 / 2, "tokens_per_second": tokens / 2,
        "input_share": 0.25, "memory_bytes": 0,
    }  # fmt: skip
    assert third["step"] == 4 and third["seconds"] == 2 and third["input_share"] == 2 / 4


def test_a_profile_has_the_steps_that_it_names(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def steps(profile, last):
        calls.clear()
        for number in range(1, last + 1):
            profile.before_step(number)
            calls.append(number)
            profile.after_step(number, {})
        profile.close()
        return list(calls)

    folder = str(tmp_path)
    assert steps(StepProfile((2, 3), tmp_path), 4) == [1, folder, 2, 3, "stop", 4]
    assert steps(StepProfile((2, 9), tmp_path), 3) == [1, folder, 2, 3, "stop"]  # it ended before
    assert steps(StepProfile((), tmp_path), 2) == [1, 2]


@pytest.mark.parametrize("text", ["5", "5:3", "0:2", "a:b", "1:2:3", "-1:2"])
def test_a_profile_of_no_steps_is_refused(text):
    with pytest.raises(ConfigError, match="give the first and the last step"):
        parse(["--config=quickstart.py", f"--profile={text}"])


def test_the_flag_sets_the_key(tmp_path):
    config, *_ = parse(["--config=quickstart.py", "--profile=2:3"])
    assert config.train.profile_steps == (2, 3)
    check_editing_config(config)
    config.train.profile_steps = (2, 3000)
    with pytest.raises(ConfigError, match="first and the last step, of 560"):
        check_editing_config(config)
    with pytest.raises(ConfigError, match="only editing runs have it, not job 'grid'"):
        parse(["--config=paper_table4.py", "--profile=2:3"])
    assert json.loads(json.dumps(config.train.to_dict()))["profile_steps"] == [2, 3000]
