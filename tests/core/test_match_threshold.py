"""The threshold of a scope from validation scores."""

import numpy as np
import pytest

from mend_jax.core.match_threshold import choose_threshold
from mend_jax.errors import ConfigError, DataError


def test_as_many_false_matches_as_allowed_and_no_more():
    rng = np.random.default_rng(0)
    bad, good = rng.uniform(-1, 0.6, 1000), rng.uniform(0.4, 1, 200)
    found = choose_threshold(bad, good, 0.01)
    assert (bad > found.threshold).sum() == 10 and found.false_rate == 0.01
    assert found.found == (good > found.threshold).mean() and found.note == ""
    assert (found.n_outside, found.n_inside) == (1000, 200)
    looser = choose_threshold(bad, good, 0.1)
    assert looser.threshold < found.threshold and looser.found > found.found


def test_the_upper_end_of_the_interval_covers_the_rate():
    """With no false match of n it is 1 - 0.05^(1/n); of 1,000 draws at 5% it misses about 50."""
    none = choose_threshold(np.zeros(20), [1.0], 0.0)
    np.testing.assert_allclose(none.false_rate_upper, 1 - 0.05 ** (1 / 20), rtol=1e-9)
    assert choose_threshold([0.0], [1.0], 1.0).false_rate_upper == 1.0


def test_the_threshold_is_halfway_to_the_next_score():
    assert choose_threshold([0.1, 0.2], [0.6], 0.0).threshold == pytest.approx(0.4)
    assert choose_threshold([0.1, 0.2, 0.3], [0.6], 0.34).threshold == pytest.approx(0.25)
    assert choose_threshold([0.5], [0.2], 0.0).threshold == 0.5  # nothing above: no match at it


def test_equal_scores_are_on_one_side():
    found = choose_threshold([0.5] * 10 + [0.1] * 10, [0.9], 0.25)
    assert found.threshold == pytest.approx(0.7) and found.false_rate == 0
    assert found.note == "equal scores: 0 instead of 5 of 20 match outside of scope"
    close = np.nextafter(np.float32(0.5), np.float32(1))
    found = choose_threshold([0.5], [float(close)], 0.0)
    assert 0.5 <= found.threshold < close and found.found == 1


def test_few_samples_say_what_they_cannot_show():
    found = choose_threshold([0.1, 0.2, 0.3], [0.5], 0.01)
    assert found.false_rate == 0 and found.found == 1
    assert "3 scores outside of scope cannot show a rate of 0.01" in found.note
    assert "give at least 100" in found.note
    assert found.false_rate_upper > 0.5


def test_what_cannot_be_found_is_said():
    silent = choose_threshold([0.9] * 100, [0.1, 0.2], 0.01)
    assert silent.found == 0 and "the edits would be silent" in silent.note
    unknown = choose_threshold([0.9] * 100, [], 0.0)
    assert np.isnan(unknown.found) and "what the threshold finds is unknown" in unknown.note
    everything = choose_threshold([-1.0, 0.5], [0.1], 1.0)
    assert everything.false_rate == 1 and everything.found == 1


def test_bad_scores_and_rates_are_named():
    with pytest.raises(DataError, match="no scores outside of scope"):
        choose_threshold([], [1.0], 0.1)
    with pytest.raises(DataError, match="1 of 2 scores inside of scope are not finite"):
        choose_threshold([0.1], [1.0, np.nan], 0.1)
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(ConfigError, match="give a share in"):
            choose_threshold([0.1], [1.0], rate)
