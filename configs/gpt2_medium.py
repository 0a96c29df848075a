"""MEND for GPT-2 medium (355M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=gpt2_medium.py
Hardware (by size, not measured): one accelerator
Data here: world facts; with `:paper` the paper's. The paper has no numbers for this
size; its code has the config.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("openai-community/gpt2-medium", task="wikitext", variant=variant)
