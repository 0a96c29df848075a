"""MEND for GPT-2 large (774M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=gpt2_large.py
Hardware (by size, not measured): one accelerator
Data here: world facts. The paper has no numbers for this
size; its code has the config.
"""

from mend_jax.paper import paper_config


def get_config(variant=""):
    """Variants: "" and "smoke" (a few steps of a small editor)."""
    return paper_config("openai-community/gpt2-large", variant=variant)
