"""MEND without its parts: sharing, normalisation, identity, sides (paper, Table 6; SmolLM2-135M).

Command: python -m mend_jax.main --config=paper_table6.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Cost: nine cells of about eight minutes on two cores of 241 GFLOP/s. It resumes cell by cell.
Measured: docs/results/README.md.
The paper's numbers (success / drawdown, BART-base on zsRE; distilGPT-2 on Wikitext): MEND >.99 /
.001; .86 / .225. No sharing >.99 / .001; .86 / .195. No norm .97 / <.001; .02 / .370. No identity
.94 / <.001; .27 / .898. Only u .98 / .002; .63 / .559. Only delta .99 / .001; .80 / .445. Only the
smaller .98 / .002; .80 / .593. No norm or no identity also trained ten times as long.
"""

from mend_jax.apps import paper_tables


def get_config(variant=""):
    """Variants: "" and "smoke" (a dozen steps a cell)."""
    return paper_tables.table6({"": "", "smoke": "smoke"}[variant])
