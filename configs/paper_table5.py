"""Many facts in one edit, trained and evaluated at that size (paper, Table 5; SmolLM2-135M).

1, 5, 25, 75 and 125 facts on zsRE, for MALMEN and UltraEdit 500 as well. Trained editors start
from their cell of a smaller size (`paper_tables._BY_SIZE`), which runs first. Variant "sequential":
sequences of 1, 10, 100 and 500 edits of one fact on one model. Variant "causes": the same hundred
facts in 1, 10 and 100 turns, with one suspected cause of collapse changed at a time.
Command: python -m mend_jax.main --config=paper_table5.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Cost: on two cores of 241 GFLOP/s a cell of MALMEN took 16 minutes of training at 1 fact, 14 at 25
and 21 at 125, and 10 GB there; of "sequential" MEND's took 15 in total. The whole table was not
run. It resumes cell by cell. Measured so far: docs/results/README.md.
The paper's numbers (success, ENN / MEND, BART-base): 1 .99 / .98, 5 .94 / .97, 25 .35 / .89,
75 .16 / .78, 125 .11 / .67.
"""

from mend_jax.apps import collapse_causes, paper_tables


def get_config(variant=""):
    """Variants: "", "sequential", "causes", and "smoke", "smoke_sequential" and "smoke_causes" (a
    dozen steps a cell)."""
    if variant.endswith("causes"):
        return collapse_causes.collapse_causes({"causes": "", "smoke_causes": "smoke"}[variant])
    known = ("", "sequential", "smoke", "smoke_sequential")
    return paper_tables.table5({name: name for name in known}[variant])
