"""MEND for distilGPT-2 (82M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=distilgpt2.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts; with `:paper` the paper's. Paper (Table 4, Wikitext generation editing):
edit success .86, perplexity drawdown .225.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("distilbert/distilgpt2", task="wikitext", variant=variant)
