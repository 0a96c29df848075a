"""MEND on matrices of attention instead of those of the MLP (paper, Table 9; SmolLM2-135M).

Command: python -m mend_jax.main --config=paper_table9.py --config.settings="('data.dir=DATA',)"
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Cost: two cells of seven to ten minutes on two cores. It resumes cell by cell. Measured:
docs/results/README.md.
The paper's numbers (success / drawdown, attention): GPT-Neo 2.7B .73 / .068, GPT-J .54 / .122,
T5-XL .63 / .001, T5-XXL .78 / <.001; the MLP was always better.
"""

from mend_jax.apps import paper_tables


def get_config(variant=""):
    """Variants: "" and "smoke" (a dozen steps a cell)."""
    return paper_tables.table9({"": "", "smoke": "smoke"}[variant])
