"""Every editor under one harness, one fact an edit (paper, Table 4; zsRE on SmolLM2-135M).

Command: python -m mend_jax.main --config=paper_table4.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md. Selected cells:
--config.only=mend,ke; other settings for all: --config.settings="('eval.edits=500',)".
Cost: on two cores of 241 GFLOP/s, most beside another cell: MEND, MALMEN and KE 8 to 13
minutes a run, ENN and its relatives 14 to 18, RLEdit 19, fine-tuning 13 to 21 (in an l-infinity
ball 39), ROME 79, MEMIT 24, point repair 9, what is not trained and does not search 4 to 8. About
30 runs, hours in total; the table resumes cell by cell.
Measured (n = 200): docs/results/README.md.
The paper's numbers (success / accuracy drawdown, BART-base): FT .96 / <.001, FT+KL .89 / <.001,
ENN .99 / <.001, KE .98 / <.001, MEND .98 / .002.
"""

from mend_jax.apps import paper_tables


def get_config(variant=""):
    """Variants: "" and "smoke" (a dozen steps a cell, to see that every editor runs)."""
    return paper_tables.table4({"": "", "smoke": "smoke"}[variant])
