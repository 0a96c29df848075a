"""MEND for T5-small v1.1, closed-book QA (77M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=t5_small.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts; with `:paper` the paper's. In the paper a row of Table 2
(memory); its code has the config.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("google/t5-small-ssm-nq", last_n_blocks=2, variant=variant)
