"""What an edit costs: seconds and memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.evaluation.scoring import make_edit
from mend_jax.hub.language_model import LanguageModel
from mend_jax.parallel.distributed import gather


def time_edits(
    editor: EditTransform, params: EditorParams, state: EditorState, model: LanguageModel,
    batch: Mapping[str, Any], repeats: int = 10, within: float = 30.0,
) -> float:  # fmt: skip
    """Return the median seconds to make one edit of all its facts from tokens, once compiled.

    The trunk pass is included. The first edit only warms up, unless it alone takes more than
    `within` seconds; further edits are made until `repeats` or `within` is reached.
    """
    edits = gather(batch["edit"])
    n = edits.batch_shape[0]
    ones = [jax.tree.map(lambda a, at=i: a[at : at + 1], edits) for i in range(n)]
    fixed = (editor, model.module, model.weights)
    make = make_edit.lower(*fixed, params, state, model.params, ones[0]).compile()
    seconds: list[float] = []
    for i in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(make(params, state, model.params, ones[i % n]))
        seconds.append(time.perf_counter() - began)
        if seconds[0] > within or sum(seconds[1:]) > within:
            break
    return statistics.median(seconds[1:] or seconds)


def peak_memory_bytes() -> int:
    """Return the peak memory of the accelerator where it reports it, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
