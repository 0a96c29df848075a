"""A table of three runs, as a user writes one."""

import ml_collections


def cell(method, *settings, seeds=(0,)):
    return ml_collections.ConfigDict(
        dict(config="recipe.py:cell", method=method, settings=settings, seeds=seeds, start="")
    )


def get_config(variant=""):
    c = ml_collections.ConfigDict()
    c.job, c.title, c.only, c.settings = "grid", "Three runs", ("mend", "ft"), ()
    c.cells = ml_collections.ConfigDict()
    c.cells.mend = cell("MEND", seeds=(0, 1))
    fine_tune = ("train.steps=0", "editor.name=fine_tune", "editor.options={'lr': 0.1}")
    c.cells.ft = cell("FT", *fine_tune)
    return c
