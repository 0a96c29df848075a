"""How fast training steps are, as lines of speed.jsonl, and a profile of some of them.

Times stay out of metrics.jsonl, which is the same to the last bit for two equal runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.io.json_lines import JsonLines
from mend_jax.parallel.distributed import print_once

Clock = Callable[[], float]


class StepSpeed:
    """Writes the mean speed of the steps since the last line, every few steps.

    A line has `step`, `seconds` a step, `facts_per_second` and `tokens_per_second` (real tokens of
    all texts, without padding) of all processes, `input_share` (of the time: loading a batch and
    moving it to the devices) and, where the accelerator reports it, `memory_bytes`, the peak of one
    device. The first step, which is compiled, has a line of its own: `first_step_seconds`.
    """

    def __init__(self, log: JsonLines, every: int, clock: Clock = time.monotonic) -> None:
        self._log, self._every, self._clock = log, every, clock
        self._began = clock()
        self._is_first = True
        self._reset()

    def _reset(self) -> None:
        self._steps = self._facts = self._tokens = 0
        self._input_seconds = 0.0

    def after_step(self, number: int, batch: Mapping[str, Any], input_seconds: float) -> None:
        """Count a step that has ended; the batch is this process's part."""
        now = self._clock()
        if self._is_first:
            self._log.append({"step": number, "first_step_seconds": now - self._began})
            self._is_first, self._began = False, now
            return
        n_processes = jax.process_count()
        texts = [value for value in batch.values() if isinstance(value, TokenBatch)]
        self._steps += 1
        self._facts += n_processes * int(np.prod(batch["edit"].batch_shape))
        self._tokens += n_processes * sum(int(np.asarray(t.mask).sum()) for t in texts)
        self._input_seconds += input_seconds
        if number % self._every == 0:
            self._log.append({"step": number, **self._line(now - self._began)})
            self._began = now
            self._reset()

    def pause(self) -> Callable[[], None]:
        """Stop counting time, for a validation or a checkpoint; the result goes on with it."""
        paused = self._clock()

        def go_on() -> None:
            self._began += self._clock() - paused

        return go_on

    def _line(self, seconds: float) -> dict[str, float]:
        stats = jax.local_devices()[0].memory_stats() or {}
        memory = (
            {"memory_bytes": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}
        )
        seconds = max(seconds, 1e-9)
        return {
            "seconds": seconds / self._steps,
            "facts_per_second": self._facts / seconds,
            "tokens_per_second": self._tokens / seconds,
            "input_share": self._input_seconds / seconds,
            **memory,
        }


class StepProfile:
    """Writes a profile of the steps START to STOP (both included) to a folder, for TensorBoard.

    The steps before START, the compiled one among them, are not in it.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path) -> None:
        """Args: steps: (START, STOP), or () for no profile."""
        self._steps, self._folder = steps, folder
        self._is_running = False

    def before_step(self, number: int) -> None:
        """Start at START."""
        if self._steps and number == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def after_step(self, number: int, metrics: Any) -> None:
        """End after STOP, once its metrics are computed."""
        if self._is_running and number >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """End a profile that is still being written, when training ends before STOP."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
            print_once(f"profile of steps {self._steps[0]} to {self._steps[1]}: {self._folder}")
