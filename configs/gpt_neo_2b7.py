"""MEND for GPT-Neo (2.7B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=gpt_neo_2b7.py
Hardware: a TPU slice of 8 chips of 16 GB with --config.train.edits_per_step=2 and
--config.train.accumulate=5, because 20 heads do not go into 8 (compiled for v5e-8: 2.7 GiB a chip,
see docs/tpu.md), or one accelerator of 32 GB (by size, not measured); bfloat16
Data here: world facts; with `:paper` the paper's. Paper (Table 3, Wikitext generation editing):
edit success .81, perplexity drawdown .057.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config(
        "EleutherAI/gpt-neo-2.7B", dtype="bfloat16", remat=True, task="wikitext", variant=variant
    )
