"""All readers under test, by name."""

from fuzzing import data_readers, edit_readers, request_readers, run_readers, weight_readers

SUBJECTS = (weight_readers, data_readers, edit_readers, request_readers, run_readers)
READERS = {name: reader for subject in SUBJECTS for name, reader in subject.READERS.items()}
