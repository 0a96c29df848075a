"""Count the floating-point operations of the matmuls of a traced program."""

from __future__ import annotations

import math
from typing import Any


def matmul_flops(jaxpr: Any) -> int:
    """Return the FLOPs of every `dot_general` in a (closed) jaxpr, over all devices.

    The body of a scan counts once for each iteration; that of a `while`, whose length is unknown,
    counts once. Of the branches of a `cond` the most expensive one counts.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            total += _dot(eqn)
            continue
        inner = [matmul_flops(j) for p in eqn.params.values() for j in inner_jaxprs(p)]
        if eqn.primitive.name == "cond":
            total += max(inner, default=0)
        else:
            total += sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * depth * math.prod(eqn.outvars[0].aval.shape)


def inner_jaxprs(param: Any) -> list[Any]:
    """Return the jaxprs in a parameter of an equation."""
    if hasattr(param, "eqns") or hasattr(param, "jaxpr"):
        return [param]
    if isinstance(param, (tuple, list)):
        return [j for one in param for j in inner_jaxprs(one)]
    return []
