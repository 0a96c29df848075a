"""Every reader that is fuzzed, by name."""

from fuzzing import of_data, of_runs, of_weights

READERS = {**of_weights.READERS, **of_data.READERS, **of_runs.READERS}
