"""MEND for SmolLM2-135M-Instruct, with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=smollm2.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts; with `:paper` the paper's. Not measured with these settings:
quickstart.py trains the same model in minutes, with settings and numbers of its own.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("HuggingFaceTB/SmolLM2-135M-Instruct", variant=variant)
