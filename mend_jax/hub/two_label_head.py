"""A BERT classifier of two labels as one of a single logit, which gives the same probability.

softmax(z)[t] = sigmoid(z[t] - z[f]): the head's row for the true label minus its other row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mend_jax.errors import WeightsError
from mend_jax.hub.export_common import ONE_LABEL
from mend_jax.hub.stored_tensor import StoredTensor

_HEAD = ("classifier.weight", "classifier.bias")


def label_names(config: Mapping[str, Any]) -> list[str]:
    """Return the labels of a classifier's config.json, in the order of their logits."""
    names = config.get("id2label")
    if isinstance(names, dict) and all(str(k).isdigit() for k in names):
        return [str(names[k]) for k in sorted(names, key=lambda k: int(str(k)))]
    count = config.get("num_labels")
    return [f"LABEL_{i}" for i in range(count)] if isinstance(count, int) and count < 1000 else []


def true_row(config: Mapping[str, Any], true_label: str) -> int:
    """Return which row of a head of two labels is the label `true_label`.

    Raises:
      WeightsError: the config has other labels.
    """
    labels = label_names(config)
    if len(labels) != 2:
        raise WeightsError(
            f"--true_label={true_label}: config.json names {len(labels)} labels; only a head of "
            "two labels can become one logit. Leave the option out."
        )
    if true_label in labels:
        return labels.index(true_label)
    if true_label in ("0", "1"):
        return int(true_label)
    raise WeightsError(
        f"--true_label={true_label!s:.80} is none of the labels of config.json: give "
        f"{labels[0]} or {labels[1]}, the one that says a claim is true."
    )


def one_label_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the same classifier with one logit."""
    return {**config, **ONE_LABEL}


def one_label_head(stored: Mapping[str, StoredTensor], row: int) -> dict[str, StoredTensor]:
    """Return the tensors with a head of one logit: its row `row` minus the other one.

    Raises:
      WeightsError: the head is missing or has not two rows.
    """
    made = dict(stored)
    for name in _HEAD:
        tensor = stored.get(name)
        if tensor is None or not tensor.shape or tensor.shape[0] != 2 or not tensor.is_float:
            found = "not there" if tensor is None else tensor.describe()
            raise WeightsError(
                f"the head of a classifier of two labels has {name} with 2 rows; it is {found}: "
                "the config belongs to other weights."
            )
        made[name] = _difference(tensor, row)
    return made


def _difference(tensor: StoredTensor, row: int) -> StoredTensor:
    def read() -> np.ndarray:
        rows = tensor.read()
        wide = np.float64 if rows.dtype == np.float64 else np.float32
        difference = rows[row].astype(wide) - rows[1 - row].astype(wide)
        return difference[None].astype(rows.dtype)

    shape = (1, *tensor.shape[1:])
    return dataclasses.replace(
        tensor, shape=shape, read=read, read_slice=lambda box: read()[box], memory=None
    )
