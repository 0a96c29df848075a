"""A ledger as text: what `show`, `log` and `apply` print."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports.formatting import DASH, printable
from mend_jax.ledger.measurement_schema import is_known
from mend_jax.ledger.store import Entry, Ledger
from mend_jax.ledger.verdict import leaks

_NARROWEST, _WIDEST, _NO_TERMINAL = 80, 160, 120
_KIND, _NUMBERS = 13, 25  # columns


def shown(ledger: Ledger, entries: Sequence[Entry]) -> dict[str, Any]:
    """What there is to show of some entries; `measure` says what it holds."""
    return {
        "ledger": str(ledger.path),
        "base": dataclasses.asdict(ledger.base) | {"edit_roles": list(ledger.base.edit_roles)},
        "entries": [
            dataclasses.asdict(entry) | {"facts": [list(fact) for fact in entry.facts]}
            for entry in entries
        ],
        "in_force": [entry.number for entry in ledger.active()],
    }


def page(found: Mapping[str, Any], width: int = 0) -> str:
    """All of `shown` as text, `width` columns wide (0: as the terminal is)."""
    width = width or _columns()
    base = found["base"]
    numbers = ", ".join(map(str, found["in_force"])) or "none"
    lines = [
        f"ledger {found['ledger']}, base {base['spec']} ({base['fingerprint']}), "
        f"edits in force: {numbers}"
    ]
    for entry in found["entries"]:
        lines += ["", *format_entry(entry, width)]
    return "\n".join(lines)


def format_entry(entry: Mapping[str, Any], width: int) -> list[str]:
    """One entry: its facts before and after, what it did elsewhere, its size, the verdict."""
    state = f"reverted {entry['reverted_at']}" if entry["reverted"] else "in force"
    facts = [printable(f"{prompt} => {target}") for prompt, target in entry["facts"]]
    lines = [
        f"edit {entry['number']} ({state}): {'; '.join(facts)}",
        f"  by {entry['editor'] or 'an unknown editor'}, {entry['made']}",
    ]
    measured = entry["measured"]
    if not is_known(measured):
        what = "what was measured is not of this version's form" if measured else ""
        return [*lines, f"  {what or 'nothing was measured of it'}"]
    lines.append("  alone on the unedited base, greedily:")
    for fact in measured["facts"]:
        lines += ["", *_table(fact, width)]
    lines.append("")
    if any(line["rule"] for f in measured["facts"] for line in f["asked"] + f["still"]):
        lines.append("  * made by rule")
    text = measured["text"]
    below = [
        f"plain text: KL {_said(text['kl'], '.3f')} nats a token, arg max kept at "
        f"{_said(text['kept'], '.1%')} of {text['tokens']} tokens",
        f"size: {_size(measured['edit'])}; strength {_said(measured['strength'], 'g')}",
        f"verdict: {measured['verdict']['line']}",
        *(f"({threshold})" for threshold in measured["verdict"]["thresholds"]),
        *(f"WARNING: {printable(warning)}" for warning in measured["warnings"]),
    ]
    for sentence in below:
        lines += textwrap.wrap(sentence, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _table(fact: Mapping[str, Any], width: int) -> list[str]:
    cell = max((width - _KIND - _NUMBERS - 8) // 3, 12)
    head = _row(("", "text", "before", "after", ""), cell)
    rows = [head, "  " + "-" * (len(head) - 2)]
    for line in fact["asked"]:
        numbers = f"{'yes' if line['says'] else 'NO '}  nll {_nll(line)}"
        rows.append(_row((_kind(line), *_texts(line), numbers), cell))
    for line in fact["still"]:
        kept = "LEAKS" if leaks(line) else "same" if line["same"] else "CHANGED"
        rows.append(
            _row((_kind(line), *_texts(line), f"{kept:<8}KL {_said(line['kl'], '.3f')}"), cell)
        )
    return rows


def _row(cells: Sequence[str], cell: int) -> str:
    kind, *texts, numbers = cells
    cut = [_cut(text, cell) for text in texts]
    return (f"  {kind:<{_KIND}}" + "  ".join(cut) + f"  {numbers}").rstrip()


def _texts(line: Mapping[str, Any]) -> list[str]:
    return [printable(line[key].strip(" ")) for key in ("prompt", "before", "after")]


def _cut(text: str, cell: int) -> str:
    short = text if len(text) <= cell else text[: cell - 1] + "…"
    return f"{short:<{cell}}"


def _kind(line: Mapping[str, Any]) -> str:
    return line["kind"] + ("*" if line["rule"] else "")


def _nll(line: Mapping[str, Any]) -> str:
    return " > ".join(_said(line[k], ".2f") for k in ("nll_before", "nll"))


def _said(value: float | None, form: str) -> str:
    """A number, or a dash for one that was not finite."""
    return DASH if value is None else format(value, form)


def _size(edit: Mapping[str, Any]) -> str:
    weights = edit["weights"]
    ranks = [w["rank"] for w in weights if w["rank"] is not None]
    shares = [w["relative"] for w in weights if w["relative"] is not None]
    parts = [f"norm {_said(edit['norm'], '.3g')}"]
    if shares:
        parts.append(f"{min(shares):.2%} to {max(shares):.2%} of each weight's")
    parts.append(f"rank {min(ranks)} to {max(ranks)}" if ranks else "dense")
    return ", ".join(parts) + f", {len(weights)} weights of {', '.join(edit['blocks'])}"


def log(entries: Sequence[Entry]) -> str:
    """All entries, a line each."""
    rows = [("", "state", "made", "editor", "took", "local", "KL unrelated", "facts")]
    for entry in entries:
        measured = entry.measured if is_known(entry.measured) else {}
        verdict, kl = measured.get("verdict"), measured.get("kl", {}).get("unrelated")
        rows.append(
            (
                str(entry.number),
                "reverted" if entry.reverted else "in force",
                entry.made[:16].replace("T", " "),
                entry.editor,
                DASH if verdict is None else "yes" if verdict["took"] else "NO",
                DASH if verdict is None else "good" if verdict["local"] else "BAD",
                _said(kl, ".3f"),
                printable("; ".join(f"{p} => {t}" for p, t in entry.facts)),
            )
        )
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, the last one cut at the end of the line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    widths[-1] = max(min(widths[-1], _columns() - before), 20)
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(_cut(*cell) for cell in line).rstrip() for line in lines)


def _columns() -> int:
    if not sys.stdout.isatty():
        return _NO_TERMINAL
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
