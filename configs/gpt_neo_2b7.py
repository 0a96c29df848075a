"""MEND for GPT-Neo (2.7B), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=gpt_neo_2b7.py
Hardware (by size, not measured): one accelerator of 32 GB, bfloat16
Data here: world facts. Paper (Table 3, Wikitext generation editing):
edit success .81, perplexity drawdown .057.
"""

from mend_jax.paper import paper_config


def get_config(variant=""):
    """Variants: "" and "smoke" (a few steps of a small editor)."""
    return paper_config("EleutherAI/gpt-neo-2.7B", dtype="bfloat16", remat=True, variant=variant)
