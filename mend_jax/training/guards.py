"""Warnings while an editor trains: diverging numbers, and an editor that cannot learn.

They use numbers that training fetches anyway, one step late, so that no step waits for the host.
Training ends only for parameters that never receive a gradient (`Guards.dead_groups`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROUP_NORM = "grad_norm/"
"""Prefix of the metrics that hold the norm of a parameter group's meta-gradient."""

RECENT = 50  # steps in the running median of gradient norms
FEWEST = 20  # steps before a norm is compared with the median
NORM_TIMES = 30.0  # a larger multiple of the median is a warning
QUIET = 50  # steps before the same warning is repeated
DEAD_AFTER = 10  # updates without a gradient, from the first on, that end training
SIZE_TIMES = (1e-3, 1e2)  # bounds of a step size relative to its initial value
EDIT_NORMS = (1e-7, 1.0)  # bounds of |dW| / |W|: nothing is edited, or W is overwritten
MOST_KL = 2.0  # nats a scored token of the locality texts
LEAST_AGREEMENT = 0.25  # of arg maxes kept on a set of locality texts
SAME_LOSS = 1e-5  # relative difference up to which validation losses are equal
SAME_TIMES = 3  # equal validation losses that are a warning


class GuardAlert(NamedTuple):
    """A warning: the guard's name, the number, its bound, and what happened and how to fix it."""

    guard: str
    value: float
    bound: float
    text: str


_STORED_AS = {
    "recent_norms": "norms", "groups_with_gradient": "alive", "finite_steps": "seen",
    "initial_step_sizes": "sizes", "recent_losses": "losses", "silent_until": "quiet",
    "warning_counts": "told",
}  # fmt: skip


@dataclasses.dataclass
class Guards:
    """The guards' memory; stored in checkpoints, so that a resumed run warns alike.

    Attributes:
      recent_norms: gradient norms of the last `RECENT` finite steps.
      groups_with_gradient: parameter groups whose meta-gradient was once not zero.
      finite_steps: finite steps so far.
      initial_step_sizes: by name.
      recent_losses: the last `SAME_TIMES` validation losses.
      silent_until: by guard, the step up to which its warning is not repeated.
      warning_counts: by guard.
    """

    recent_norms: list[float] = dataclasses.field(default_factory=list)
    groups_with_gradient: list[str] = dataclasses.field(default_factory=list)
    finite_steps: int = 0
    initial_step_sizes: dict[str, float] = dataclasses.field(default_factory=dict)
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    silent_until: dict[str, int] = dataclasses.field(default_factory=dict)
    warning_counts: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Guards:
        """Return the guards of a checkpoint's meta."""
        return cls(**{name: stored[key] for name, key in _STORED_AS.items() if key in stored})

    def to_stored(self) -> dict[str, Any]:
        """Return the guards as JSON values."""
        return {key: getattr(self, name) for name, key in _STORED_AS.items()}

    def after_step(self, step: int, norm: float, groups: Mapping[str, float]) -> list[GuardAlert]:
        """Check a finite step: its gradient's norm, of all parameters and by parameter group."""
        with_gradient = (name for name, n in groups.items() if n)
        self.groups_with_gradient = sorted({*self.groups_with_gradient, *with_gradient})
        self.finite_steps += 1
        alerts = []
        if len(self.recent_norms) >= FEWEST:
            bound = NORM_TIMES * statistics.median(self.recent_norms)
            if norm > bound:
                alerts.append(GuardAlert(
                    "gradient_norm", norm, bound,
                    f"the gradient norm {norm:.3g} is more than {NORM_TIMES:g} times its running "
                    "median; if the loss rises too, lower train.lr, train.step_size_lr or "
                    "train.clip",
                ))  # fmt: skip
        self.recent_norms = [*self.recent_norms, norm][-RECENT:]
        return self._not_silent(step, alerts)

    def dead_groups(self, groups: Mapping[str, float], accumulate: int = 1) -> list[str]:
        """Return the groups whose meta-gradient was exactly zero in each of the first updates.

        Args:
          accumulate: steps an update. A part behind one that starts at zero receives its first
            gradient after the first update.
        """
        if self.finite_steps < DEAD_AFTER * accumulate:
            return []
        return sorted(set(groups) - set(self.groups_with_gradient))

    def after_validation(
        self, step: int, scores: Mapping[str, float], step_sizes: Mapping[str, float]
    ) -> list[GuardAlert]:
        """Check the scores of a validation, and the learned step sizes by name."""
        self.initial_step_sizes = dict(step_sizes) | self.initial_step_sizes
        alerts = [
            *_locality_alerts(scores),
            *self._step_size_alerts(step_sizes),
            *_edit_norm_alerts(scores),
        ]
        self.recent_losses = [*self.recent_losses, scores["loss"]][-SAME_TIMES:]
        spread = max(self.recent_losses) - min(self.recent_losses)
        bound = SAME_LOSS * abs(self.recent_losses[-1])
        if len(self.recent_losses) == SAME_TIMES and spread <= bound:
            alerts.append(GuardAlert(
                "stalled", spread, bound,
                f"the last {SAME_TIMES} validation losses are equal, {scores['loss']:.6g}: the "
                "editor no longer learns; stop, or raise train.lr in another --workdir",
            ))  # fmt: skip
        return self._not_silent(step, alerts)

    def count(self, guard: str) -> None:
        """Count one warning of a guard."""
        self.warning_counts = {**self.warning_counts, guard: self.warning_counts.get(guard, 0) + 1}

    def _step_size_alerts(self, step_sizes: Mapping[str, float]) -> list[GuardAlert]:
        for name, size in step_sizes.items():
            initial = self.initial_step_sizes[name]
            ratio = size / initial if initial else 1.0
            if not SIZE_TIMES[0] < ratio < SIZE_TIMES[1]:
                how = "has changed its sign" if ratio < 0 else f"is {ratio:.3g} times its start"
                return [GuardAlert(
                    "step_size", size, initial * SIZE_TIMES[ratio > 1],
                    f"the learned step size {name} {how}, {size:.3g}: lower train.step_size_lr, or "
                    "learn its logarithm (log_step_size) in another --workdir",
                )]  # fmt: skip
        return []

    def _not_silent(self, step: int, alerts: list[GuardAlert]) -> list[GuardAlert]:
        """Return, and count, the alerts that were not reported recently."""
        new = [alert for alert in alerts if step > self.silent_until.get(alert.guard, -1)]
        for alert in new:
            self.silent_until = {**self.silent_until, alert.guard: step + QUIET}
            self.count(alert.guard)
        return new


def _locality_alerts(scores: Mapping[str, float]) -> list[GuardAlert]:
    alerts, kl = [], scores.get("kl", 0.0)
    if kl > MOST_KL:
        alerts.append(GuardAlert(
            "locality_kl", kl, MOST_KL,
            f"locality KL {kl:.3g} nats a token: edits change texts out of scope; lower "
            "train.c_edit or editor.options' step size, or train longer",
        ))  # fmt: skip
    agreements = {k: v for k, v in scores.items() if k.startswith("agree_")}
    for name, agreement in sorted(agreements.items()):
        if agreement < LEAST_AGREEMENT:
            alerts.append(GuardAlert(
                f"locality_{name}", agreement, LEAST_AGREEMENT,
                f"on the {name.removeprefix('agree_')} texts only {agreement:.3f} of the arg maxes "
                "are those of the base; raise train.c_loc or that set's share (train.near_share)",
            ))  # fmt: skip
    return alerts


def _edit_norm_alerts(scores: Mapping[str, float]) -> list[GuardAlert]:
    norm = scores.get("edit_norm")
    if norm is None or EDIT_NORMS[0] < norm < EDIT_NORMS[1]:
        return []
    large = not norm <= EDIT_NORMS[0]  # NaN too: the squares of a finite edit may overflow
    return [GuardAlert(
        "edit_norm", norm, EDIT_NORMS[large],
        f"edits are {norm:.3g} of the norm of the weights they change: "
        + ("they overwrite them; lower" if large else "too small to matter; raise")
        + " the editor's step size (step_size in editor.options) in another --workdir",
    )]  # fmt: skip


def dead_gradient_message(groups: list[str]) -> str:
    """Return the error message for parameter groups that never received a gradient."""
    return (
        f"the meta-gradient of {', '.join(groups)} was exactly zero in each of the first "
        f"{DEAD_AFTER} updates: this part of the editor cannot learn. Look for an activation whose "
        "derivative is 0 at its initial value (a ReLU at zero), for an edited weight that the "
        "target does not depend on (model.edit_roles), or for numbers too small for their dtype "
        "(model.dtype, step_size in editor.options); fix it and train in another --workdir"
    )


def group_name(path: tuple[Any, ...]) -> str:
    """Return the parameter group of a leaf: the editor's link, and the weight or shape in it."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path[:2])


def group_norms(grads: Any) -> dict[str, jax.Array]:
    """Return the gradient's norm by parameter group, each under `GROUP_NORM` and its name."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        name = GROUP_NORM + group_name(path)
        square = jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        squares[name] = squares[name] + square if name in squares else square
    return {name: jnp.sqrt(square) for name, square in squares.items()}
