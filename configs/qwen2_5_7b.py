"""MEND for Qwen2.5 (7B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=qwen2_5_7b.py
Hardware (by size, not measured): a TPU slice of 8 chips or one accelerator of 40 GB, bfloat16
Data here: world facts; with `:paper` the paper's. Not measured: the paper is older
than the model.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", remat=True, variant=variant)
