"""Values as pages show them: numbers with their units, text with invisible signs replaced."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from mend_jax.evaluation.reports.values import finite_number
from mend_jax.io.progress import format_duration

DASH = "–"
_DISPLAY_NAMES = {"mend": "MEND", "fine_tune": "fine-tuning"}
_REORDERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def format_value(value: Any, unit: str = "plain") -> str:
    """Return a value as text; units are percent, points (of percent), plain, count, time, bytes."""
    x = finite_number(value)
    if x is None:
        return value if unit == "plain" and isinstance(value, str) and value else DASH
    texts = {
        "percent": f"{100 * x:.1f}%",
        "points": f"{100 * x:.1f}",
        "count": f"{round(x):,}".replace(",", "\u202f"),
        "time": format_duration(x) if x >= 60 else f"{x:.3g} s",
        "bytes": f"{x / 1e9:.2f} GB" if x >= 1e9 else f"{x / 1e6:.0f} MB",
        "plain": f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}",
    }
    return texts.get(unit, texts["plain"]).replace("-", "\u2212")


def display_name(name: Any) -> str:
    """Return an identifier in words."""
    return _DISPLAY_NAMES.get(str(name), str(name).replace("_", " "))


def printable(value: Any) -> Any:
    """Return a value whose strings show line ends, and replace other invisible characters."""
    if isinstance(value, str):
        value = value.replace("\n", "⏎").replace("\t", " ")
        odd = {c for c in value if c in _REORDERING or unicodedata.category(c) in ("Cc", "Cs")}
        return "".join("\ufffd" if c in odd else c for c in value)
    if isinstance(value, Mapping):
        return {printable(k): printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list) else value


def starts_with(output: Any, answer: Any) -> bool:
    """Return whether a text begins with an answer, ignoring case and leading spaces."""
    head = str(output or "").lstrip(" ⏎").casefold()
    return bool(answer) and head.startswith(str(answer).strip().casefold())
