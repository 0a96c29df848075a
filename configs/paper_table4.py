"""Every editor under one harness, one fact an edit (paper, Table 4; zsRE on SmolLM2-135M).

Command: python -m mend_jax.main --config=paper_table4.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md. Some cells alone:
--config.only=mend,ke; other settings for all: --config.settings="('eval.edits=500',)".
Cost: counted, not measured: a cell at most about ten minutes on two cores, MEND thrice (3 seeds);
some three hours in all. It resumes cell by cell.
The paper's numbers (success / accuracy drawdown, BART-base): FT .96 / <.001, FT+KL .89 / <.001,
ENN .99 / <.001, KE .98 / <.001, MEND .98 / .002.
"""

from mend_jax import tables


def get_config(variant=""):
    """Variants: "" and "smoke" (a dozen steps a cell, to see that every editor runs)."""
    return tables.table4({"": "", "smoke": "smoke"}[variant])
