"""MEND for Llama 3 (8B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=llama3_8b.py
Hardware: a TPU slice of 8 chips of 16 GB (compiled for v5e-8: 2.8 GiB a chip, see docs/tpu.md), or
one accelerator of 40 GB (by size, not measured); bfloat16
Data here: world facts; with `:paper` the paper's. Not measured: the paper is older
than the model.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config(
        "meta-llama/Meta-Llama-3-8B-Instruct", dtype="bfloat16", remat=True, variant=variant
    )
