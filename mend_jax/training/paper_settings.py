"""The paper's hyper-parameters, as configs of its models and tasks."""

from __future__ import annotations

import ml_collections

from mend_jax.training.config_keys import default_config

PAPER_DATA = {
    "zsre": dict(name="zsre/mend"),
    "fever": dict(name="fever", max_len=64, max_target=1, append_eos=False, far_len=64),
    "wikitext": dict(
        name="wikitext_gen", far_source="wikitext", max_len=200, max_target=12, append_eos=False,
        far_len=200,
    ),
}  # fmt: skip
"""The paper's tasks, as settings of `data`."""


def paper_config(
    spec: str,
    *,
    task: str = "zsre",
    last_n_blocks: int = 3,
    dtype: str = "float32",
    remat: bool = False,
    variant: str = "",
) -> ml_collections.ConfigDict:
    """Return the config of MEND as in the paper, for one base model.

    Source: section 5 and appendix A; the released code where the paper gives no value.

    Rank 1920, one hidden layer, networks shared by shape, V ~ N(0, 1), alpha from 1e-4 learned at
    1e-4, Adam 1e-6, batches of 10 by accumulation, gradients clipped at 100, c_edit 0.1, early
    stopping after 20,000 steps without a better loss on 500 validation edits.

    Args:
      spec: the base model.
      last_n_blocks: of every stack, edited: 3 for one stack, 2 + 2 for an encoder-decoder.
      task: the paper's task for this model, one of `PAPER_DATA`: the data of variant "paper".
      variant: "" (world facts, which need no raw data), "paper" (the paper's data, see
        docs/data.md) or "smoke" (a few steps on world facts with an editor of rank 16).

    Raises:
      KeyError: another variant.
    """
    c = default_config()
    c.model.update(dict(spec=spec, last_n_blocks=last_n_blocks, dtype=dtype, remat=remat))
    if variant == "smoke":
        c.editor.options.rank = 16
        c.data.train_edits = 64
        c.train.update(dict(steps=4, accumulate=1, edits_per_step=2, log_every=1, val_every=2))
        c.train.update(dict(val_edits=4, checkpoint_every=2, doctor=False))
        c.eval.update(dict(edits=4, edits_per_step=2, examples=2))
        c.eval.baselines.fine_tune.update(dict(max_steps=2, edits=4, edits_per_step=2))
    elif variant == "paper":
        c.data.update(PAPER_DATA[task])
        c.train.near_share = c.train.c_after = 0.0  # the paper scores unrelated texts alone
        if task == "fever":
            c.train.far_scored_tokens = c.eval.max_new_tokens = 1
    elif variant:
        raise KeyError(variant)
    return c
