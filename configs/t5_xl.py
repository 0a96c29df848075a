"""MEND for T5-XL v1.1, closed-book QA (2.8B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=t5_xl.py
Hardware: a TPU slice of 8 chips of 16 GB (compiled for v5e-8: 1.3 GiB a chip, see docs/tpu.md), or
one accelerator of 32 GB (by size, not measured); bfloat16
Data here: world facts; with `:paper` the paper's. Paper (Table 3, zsRE question answering):
edit success .88, accuracy drawdown .001.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config(
        "google/t5-xl-ssm-nq", last_n_blocks=2, dtype="bfloat16", remat=True, variant=variant
    )
