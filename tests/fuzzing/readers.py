"""Every reader that is fuzzed, by name."""

from fuzzing import of_data, of_edits, of_requests, of_runs, of_weights

SUBJECTS = (of_weights, of_data, of_edits, of_requests, of_runs)
READERS = {name: reader for subject in SUBJECTS for name, reader in subject.READERS.items()}
