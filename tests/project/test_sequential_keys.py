"""The figures of `benchmarks.sequential_keys` against cases by hand."""

import numpy as np
import pytest

from benchmarks.sequential_keys import directions, mean_cosine, whitened


def test_cosines_are_means_over_pairs_of_different_facts():
    keys = np.asarray([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    assert mean_cosine(keys) == pytest.approx(1 / 3)  # of three pairs one is parallel
    assert mean_cosine(np.ones((4, 8))) == pytest.approx(1.0)


def test_whitening_takes_out_what_all_keys_share():
    rng = np.random.default_rng(0)
    common = 10 * np.eye(6)[0]
    keys = common + rng.normal(size=(200, 6))
    moment = keys.T @ keys / len(keys)
    assert mean_cosine(keys) > 0.9 > 0.5 > mean_cosine(whitened(keys, moment))


def test_directions_count_energies():
    entropy, most = directions(np.eye(5))
    assert entropy == pytest.approx(5.0) and most == 5
    entropy, most = directions(np.ones((7, 5)))
    assert entropy == pytest.approx(1.0) and most == 1
