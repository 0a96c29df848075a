"""The shipped editor and its rivals, judged under three protocols, for SmolLM2-135M.

Command: python -m mend_jax.main --config=judge_smollm2.py
Hardware and time: two cores; an hour (ROME and MEMIT need 12 minutes each), smoke three minutes.
Nothing is trained; the table resumes cell by cell. --config.only=shipped_scoped,rome selects cells,
--config.settings="('data.name=counterfact','data.dir=DATA')" other facts.
Expected: the table "Three protocols" ranks the editors in another order under each; see
docs/results/judged.md.
"""

from mend_jax.apps import judged_editors


def get_config(variant=""):
    """Variants: "" and "smoke" (eight facts and two cells; most of it is compiling)."""
    return judged_editors.judged_editors({"": "", "smoke": "smoke"}[variant])
