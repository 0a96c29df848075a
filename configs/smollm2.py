"""MEND for SmolLM2-135M-Instruct, with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=smollm2.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts. Not measured with these settings:
quickstart.py trains the same model in minutes, with settings and numbers of its own.
"""

from mend_jax.paper import paper_config


def get_config(variant=""):
    """Variants: "" and "smoke" (a few steps of a small editor)."""
    return paper_config("HuggingFaceTB/SmolLM2-135M-Instruct", variant=variant)
