"""The editor that ships with the package: MEND for SmolLM2-135M, small and trained for longer.

Commands: python -m mend_jax.main --config=shipped_smollm2.py
          python -m mend_jax.shipped --workdir=runs/shipped_smollm2 --out=FILE.safetensors
The quickstart with half the rank, so that the parameters fit 10 MB in bfloat16, and nearly twice
the steps, which the smaller network and the milder weight of success need. Data is the
default `world_facts`; nothing but the package registry is needed.
"""

from mend_jax.config import load_config


def get_config(variant=""):
    """Variants: "" and "smoke"."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":lean"}[variant])
    if variant == "":
        c.editor.options.rank = 256
        c.train.steps = 1000
        c.train.c_edit = 0.36
        c.train.val_every = 250
        c.train.checkpoint_every = 100
    return c
