"""The peer suite: times of the original PyTorch program, and the aims for the same sizes.

They were measured on two CPU cores whose 2048^3 float32 product in jax runs at 410 GFLOP/s; times
and aims are scaled to the speed of this machine.
"""

from __future__ import annotations

from typing import NamedTuple

RATE = 410e9


class OriginalTimes(NamedTuple):
    """The original's times for one workload, and this project's aims.

    Attributes:
      model, edits: of the workload.
      step, edit, megabytes: the original's training step and edit in seconds, and peak memory.
      aim_step, aim_cached, aim_edit, aim_megabytes: the aims; cached: with the trunk cache.
    """

    model: str
    edits: int
    step: float
    edit: float
    megabytes: int
    aim_step: float
    aim_cached: float
    aim_edit: float
    aim_megabytes: int


ORIGINAL_TIMES = (
    OriginalTimes("distilgpt2", 1, 3.32, 0.46, 2914, 0.90, 0.80, 0.08, 2000),
    OriginalTimes("gpt2", 1, 4.34, 0.58, 3367, 1.05, 0.80, 0.09, 2200),
    OriginalTimes("smollm2", 1, 3.97, 0.54, 3109, 1.00, 0.60, 0.09, 2000),
    OriginalTimes("distilgpt2", 8, 5.31, 1.51, 3309, 1.5, 1.4, 0.30, 2400),
    OriginalTimes("distilgpt2", 32, 13.1, 5.5, 4633, 3.2, 3.0, 1.1, 3000),
    OriginalTimes("smollm2", 32, 13.1, 6.1, 5218, 3.2, 2.0, 1.1, 3000),
)
