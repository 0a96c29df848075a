"""MEND for BART-base (139M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=bart_base.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts; with `:paper` the paper's. Paper (Table 4, zsRE question answering):
edit success .98, accuracy drawdown .002.
The paper starts from a BART that was fine-tuned on zsRE; give such a checkpoint as
--config.model.spec.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("facebook/bart-base", last_n_blocks=2, variant=variant)
