"""How many cases the tests try: fewer by default than under `python -m pytest --full`."""

import os

FULL = bool(os.environ.get("MEND_FULL_COUNTS"))  # set by --full in tests/conftest.py
FUZZED_INPUTS = 60_000 if FULL else 3_000
KILLS = 200 if FULL else 40  # of processes that write a ledger
ALL_MESHES = FULL
