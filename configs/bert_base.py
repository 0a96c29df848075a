"""MEND for BERT-base with a fact-checking head (110M), with the hyper-parameters of the paper.

Command: python -m mend_jax.main --config=bert_base.py
Hardware (by size, not measured): one accelerator or a CPU
Data here: world facts; with `:paper` the paper's. Paper (Table 4, FEVER fact checking):
edit success above .99, accuracy drawdown below .001.
The paper starts from a BERT that was fine-tuned on FEVER; give such a checkpoint, with one label,
as --config.model.spec: the head of the plain model is missing from its files.
"""

from mend_jax.training.paper_settings import paper_config


def get_config(variant=""):
    """Variants: "", "paper" (its data, see docs/data.md), "smoke" (a few steps, small editor)."""
    return paper_config("google-bert/bert-base-uncased", task="fever", variant=variant)
