"""MEND for GPT-J (6B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=gptj.py
Hardware: a TPU slice of 8 chips of 16 GB (compiled for v5e-8: 2.5 GiB a chip, see docs/tpu.md), or
one accelerator of 40 GB (by size, not measured); bfloat16
Data here: world facts; with `:paper` the paper's. Paper (Table 3, Wikitext generation editing):
edit success .88, perplexity drawdown .031.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config(
        "EleutherAI/gpt-j-6b", dtype="bfloat16", remat=True, task="wikitext", variant=variant
    )
