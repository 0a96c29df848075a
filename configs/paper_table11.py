"""MEND against look-up in a cache, at three thresholds (paper, Table 11; zsRE on SmolLM2-135M).

The cache answers from the nearest edited fact within eps: e*, half of it, double; e* is chosen on
64 validation rows. In-context editing, the fact before every text, is also measured.
Command: python -m mend_jax.main --config=paper_table11.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Cost: ten minutes on two cores for MEND, about three for each of the others. Measured:
docs/results/README.md.
The paper's numbers (success / drawdown, BART-base on zsRE): MEND .98 / .002, cache at e* = 3 >.99 /
.002, at half .70, at double 1.00 / .22.
"""

from mend_jax.apps import paper_tables


def get_config(variant=""):
    """Variants: "" and "smoke" (a dozen steps)."""
    return paper_tables.table11({"": "", "smoke": "smoke"}[variant])
