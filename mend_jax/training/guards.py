"""What is watched while an editor trains: numbers that run off, and an editor that cannot learn.

All of it is told by numbers that training fetches anyway, one step late, so no step waits for the
host. Most findings are warnings; training ends only where nothing can come of it (`dead`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROUP_NORM = "grad_norm/"
"""Before the name of a parameter group, what a step calls the norm of its meta-gradient."""

RECENT = 50  # steps whose gradient norms make the running median
FEWEST = 20  # of them, before a norm is judged by it
NORM_TIMES = 30.0  # the median: a gradient beyond it is told
QUIET = 50  # steps in which a warning is not given again
DEAD_AFTER = 10  # updates without any gradient, from the first on: no chance is left
SIZE_TIMES = (1e-3, 1e2)  # a step size by its start: below and above it has run off
EDIT_NORMS = (1e-7, 1.0)  # |dW| / |W|: below it nothing is edited, above it W is overwritten
MOST_KL = 2.0  # nats a scored token, of the locality texts: the edited model is another one
LEAST_AGREEMENT = 0.25  # of arg maxes kept on a set of locality texts
SAME_LOSS = 1e-5  # relative: validation losses nearer than this do not differ ...
SAME_TIMES = 3  # ... and so many in a row are a standstill


class GuardAlert(NamedTuple):
    """One warning: which guard, the number and its bound, and a sentence with the mend."""

    guard: str
    value: float
    bound: float
    text: str


@dataclasses.dataclass
class Guards:
    """What the guards remember; kept in checkpoints, so that a resumed run warns alike.

    Attributes:
      norms: the gradient norms of the last `RECENT` finite steps.
      alive: parameter groups whose meta-gradient was once not zero.
      seen: finite steps so far.
      sizes: the step sizes at the first look, by name.
      losses: the last `SAME_TIMES` validation losses.
      quiet: by guard, the step up to which it is not told again.
      told: by guard, how many warnings there were.
    """

    norms: list[float] = dataclasses.field(default_factory=list)
    alive: list[str] = dataclasses.field(default_factory=list)
    seen: int = 0
    sizes: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: list[float] = dataclasses.field(default_factory=list)
    quiet: dict[str, int] = dataclasses.field(default_factory=dict)
    told: dict[str, int] = dataclasses.field(default_factory=dict)

    def after_step(self, step: int, norm: float, groups: Mapping[str, float]) -> list[GuardAlert]:
        """Takes in a finite step: its gradient's norm, in all and by parameter group."""
        self.alive = sorted({*self.alive, *(name for name, n in groups.items() if n)})
        self.seen += 1
        found = []
        if len(self.norms) >= FEWEST:
            bound = NORM_TIMES * statistics.median(self.norms)
            if norm > bound:
                found.append(GuardAlert(
                    "gradient_norm", norm, bound,
                    f"the gradient norm {norm:.3g} is more than {NORM_TIMES:g} times its running "
                    "median; if the loss follows, lower train.lr, train.step_size_lr or train.clip",
                ))  # fmt: skip
        self.norms = [*self.norms, norm][-RECENT:]
        return self._news(step, found)

    def dead(self, groups: Mapping[str, float], accumulate: int = 1) -> list[str]:
        """The groups whose meta-gradient was exactly zero in each of the first updates.

        Args:
          accumulate: steps an update takes. A part behind one that starts at zero sees its first
            gradient after the first update.
        """
        if self.seen < DEAD_AFTER * accumulate:
            return []
        return sorted(set(groups) - set(self.alive))

    def after_validation(
        self, step: int, scores: Mapping[str, float], sizes: Mapping[str, float]
    ) -> list[GuardAlert]:
        """Takes in the numbers of a validation and the step sizes (`step_sizes`)."""
        self.sizes = dict(sizes) | self.sizes
        found = [*self._collapse(scores), *self._run_off(scores, sizes)]
        self.losses = [*self.losses, scores["loss"]][-SAME_TIMES:]
        spread = max(self.losses) - min(self.losses)
        bound = SAME_LOSS * abs(self.losses[-1])
        if len(self.losses) == SAME_TIMES and spread <= bound:
            found.append(GuardAlert(
                "stalled", spread, bound,
                f"the last {SAME_TIMES} validation losses are the same, {scores['loss']:.6g}: "
                "nothing is learned any more; stop, or raise train.lr in another --workdir",
            ))  # fmt: skip
        return self._news(step, found)

    def count(self, guard: str) -> None:
        self.told = {**self.told, guard: self.told.get(guard, 0) + 1}

    def _collapse(self, scores: Mapping[str, float]) -> list[GuardAlert]:
        found, kl = [], scores.get("kl", 0.0)
        if kl > MOST_KL:
            found.append(GuardAlert(
                "locality_kl", kl, MOST_KL,
                f"locality KL {kl:.3g} nats a token: edits change what they should leave "
                "alone; lower train.c_edit or editor.options' step size, or train longer",
            ))  # fmt: skip
        agreements = {k: v for k, v in scores.items() if k.startswith("agree_")}
        for name, agreement in sorted(agreements.items()):
            if agreement < LEAST_AGREEMENT:
                found.append(GuardAlert(
                    f"locality_{name}", agreement, LEAST_AGREEMENT,
                    f"only {agreement:.3f} of the first choices on the "
                    f"{name.removeprefix('agree_')} texts are those of the base: the edited model "
                    "is another one; raise train.c_loc or that set's share (train.near_share)",
                ))  # fmt: skip
        return found

    def _run_off(self, scores: Mapping[str, float], sizes: Mapping[str, float]) -> list[GuardAlert]:
        found = []
        for name, size in sizes.items():
            ratio = size / self.sizes[name] if self.sizes[name] else 1.0
            if not SIZE_TIMES[0] < ratio < SIZE_TIMES[1]:
                bound = self.sizes[name] * SIZE_TIMES[ratio > 1]
                how = "has changed its sign" if ratio < 0 else f"is {ratio:.3g} times its start"
                found.append(GuardAlert(
                    "step_size", size, bound,
                    f"the learned step size {name} {how}, {size:.3g}: lower train.step_size_lr, or "
                    "learn its logarithm (log_step_size) in another --workdir",
                ))  # fmt: skip
                break  # one is enough to say so
        norm = scores.get("edit_norm")
        if norm is not None and not EDIT_NORMS[0] < norm < EDIT_NORMS[1]:
            large = norm >= EDIT_NORMS[1]
            found.append(GuardAlert(
                "edit_norm", norm, EDIT_NORMS[large],
                f"edits are {norm:.3g} of the norm of the weights they change: "
                + ("they overwrite them; lower" if large else "next to nothing; raise")
                + " the editor's step size (step_size in editor.options) in another --workdir",
            ))  # fmt: skip
        return found

    def _news(self, step: int, found: list[GuardAlert]) -> list[GuardAlert]:
        """Those findings that were not told lately."""
        news = [f for f in found if step > self.quiet.get(f.guard, -1)]
        for finding in news:
            self.quiet = {**self.quiet, finding.guard: step + QUIET}
            self.count(finding.guard)
        return news


def dead_gradient_message(groups: list[str]) -> str:
    """What to say of parameter groups that never saw a gradient."""
    return (
        f"the meta-gradient of {', '.join(groups)} was exactly zero in each of the first "
        f"{DEAD_AFTER} updates: this part of the editor cannot learn. Look for an activation whose "
        "derivative is 0 where it starts (a ReLU at zero), for an edited weight that the answer "
        "does not depend on (model.edit_roles), or for numbers too small for their dtype "
        "(model.dtype, step_size in editor.options); mend it and train in another --workdir"
    )


def group_of(path: tuple[Any, ...]) -> str:
    """The parameter group of a leaf: the part of the editor, and the weight or shape in it."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path[:2])


def group_norms(grads: Any) -> dict[str, jax.Array]:
    """The norm of a gradient by parameter group, each under `GROUP_NORM` and its name."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        name = GROUP_NORM + group_of(path)
        square = jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        squares[name] = squares[name] + square if name in squares else square
    return {name: jnp.sqrt(square) for name, square in squares.items()}
