"""MEND for T5-large v1.1, closed-book QA (770M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=t5_large.py
Hardware (by size, not measured): one accelerator of 16 GB
Data here: world facts; with `:paper` the paper's. The paper shows edits of it as
examples only (Table 10).
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("google/t5-large-ssm-nq", last_n_blocks=2, variant=variant)
