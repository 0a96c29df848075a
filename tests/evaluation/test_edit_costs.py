"""The time of an edit: compiled, warmed up, and measured once if it is slow."""

from types import SimpleNamespace

import numpy as np
import pytest

from mend_jax.core.token_batch import TokenBatch
from mend_jax.evaluation import edit_costs


class Clock:
    """A fake `make_edit` and clock; each edit advances the clock by the next of `durations`."""

    def __init__(self, durations):
        self.now, self.left, self.made, self.compiled = 0.0, list(durations), [], 0

    def perf_counter(self):
        return self.now

    def lower(self, *_):
        return self

    def compile(self):
        self.compiled += 1
        return self.make

    def make(self, params, state, base, one):
        assert self.compiled == 1 and one.batch_shape == (1, 2)
        self.made.append(int(one.target[0, 0, 0]))
        self.now += self.left.pop(0)


@pytest.mark.parametrize(
    "durations, expected, made",
    [
        ([9.0, 1.0, 5.0, 2.0, 3.0, 4.0], 3.0, 6),  # the first warms up; the median of the others
        ([9.0, 20.0, 11.0], 15.5, 3),  # no more than go into the time
        ([31.0], 31.0, 1),  # slow: what it took to warm up does not count
    ],
)
def test_the_time_of_an_edit_is_the_median_after_a_warm_up(monkeypatch, durations, expected, made):
    clock = Clock(durations)
    monkeypatch.setattr(edit_costs, "make_edit", clock)
    monkeypatch.setattr(edit_costs, "time", clock)
    shape = (3, 2, 4)  # three edits of two facts
    target = np.broadcast_to(np.arange(3)[:, None, None], shape)
    ones = np.ones(shape, bool)
    batch = {"edit": TokenBatch(target, ones, target, target, ones)}
    model = SimpleNamespace(module=None, weights=(), params={})
    found = edit_costs.time_edits(SimpleNamespace(), {}, {}, model, batch, repeats=5, within=30.0)
    assert found == expected and clock.made == [i % 3 for i in range(made)]
