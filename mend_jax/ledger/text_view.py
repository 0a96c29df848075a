"""A ledger in a terminal: what `apply`, `show`, `log` and `combine` print."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mend_jax.evaluation.reports.formatting import DASH, printable
from mend_jax.ledger.edit_ledger import Entry, Ledger
from mend_jax.ledger.measurement_schema import is_known
from mend_jax.ledger.verdict import leaks

_NARROWEST, _WIDEST, _NO_TERMINAL = 80, 160, 120  # columns
_BAD = "bold red"


def describe_ledger(ledger: Ledger, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return entries of a ledger as JSON values; `show --json` prints them.

    `entries` are the given ones (see `describe_entry`), `in_force` the numbers of all active edits.
    """
    return {
        "ledger": str(ledger.path),
        "base": dataclasses.asdict(ledger.base) | {"edit_roles": list(ledger.base.edit_roles)},
        "entries": [describe_entry(entry) for entry in entries],
        "in_force": [entry.number for entry in ledger.active()],
    }


def describe_entry(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON values, named as in the ledger's log."""
    fields = dataclasses.asdict(entry)
    fields["made"] = fields.pop("created")
    return fields | {"facts": [list(fact) for fact in entry.facts]}


def print_ledger(view: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print what `describe_ledger` returns."""
    view, console = printable(view), _console(file)
    base = view["base"]
    numbers = ", ".join(map(str, view["in_force"])) or "none"
    console.print(
        f"ledger {view['ledger']}, base {base['spec']} ({base['fingerprint']}), active edits: "
        f"{numbers}",
        soft_wrap=True,
    )
    for entry in view["entries"]:
        console.print()
        for part in _entry_parts(entry):
            console.print(part)
    if together := view.get("together"):
        console.print()
        for part in _together_parts(together):
            console.print(part)


def print_matches(views: Sequence[Mapping[str, Any]], file: IO[str] | None = None) -> None:
    """Print what `match_view.match_prompts` returns."""
    console = _console(file)
    for view in printable(list(views)):
        console.print(f"\n{view['prompt']}", style="bold")
        if view["nearest"] is None:
            console.print("  the bank is empty")
        else:
            fact = " => ".join(view["nearest"])
            found = "matches" if view["fact"] else "no match; the nearest is"
            console.print(f"  {found} {fact}: score {view['score']:+.3f}")
        console.print(f"  before: {view['before'].strip()!r}")
        console.print(f"  after:  {view['after'].strip()!r}")


def print_log(entries: Sequence[Entry], file: IO[str] | None = None) -> None:
    """Print entries as a table, one per line."""
    rows = []
    for entry in entries:
        measured = entry.measured if is_known(entry.measured) else {}
        verdict, kl = measured.get("verdict"), measured.get("kl", {}).get("unrelated")
        rows.append(
            (
                str(entry.number),
                "reverted" if entry.reverted else "active",
                entry.created[:16].replace("T", " "),
                entry.editor,
                _yes_or_no(verdict and verdict["took"], "yes", "NO"),
                _yes_or_no(verdict and verdict["local"], "good", "BAD"),
                _format_number(kl, ".3f"),
                "; ".join(f"{prompt} => {target}" for prompt, target in entry.facts),
            )
        )
    head = ("", "state", "made", "editor", "success", "locality", "KL unrelated", "facts")
    print_table(head, rows, file)


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str | Text]], file: IO[str] | None = None
) -> None:
    """Print a table; its last column is cut where the line ends."""
    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for *cells, last in rows:
        cells = [printable(cell) if isinstance(cell, str) else cell for cell in cells]
        table.add_row(*cells, _one_line(printable(last)))
    _console(file).print(table)


def _console(file: IO[str] | None) -> Console:
    """Return a console for plain text; it has colours only in a terminal."""
    console = Console(file=file, markup=False, highlight=False, emoji=False, force_jupyter=False)
    console.width = (
        min(max(console.width, _NARROWEST), _WIDEST) if console.is_terminal else _NO_TERMINAL
    )
    return console


def _entry_parts(entry: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield an entry's facts before and after, its effect on other texts, size and verdict."""
    state = f"reverted {entry['reverted_at']}" if entry["reverted"] else "active"
    facts = "; ".join(f"{prompt} => {target}" for prompt, target in entry["facts"])
    yield f"edit {entry['number']} ({state}): {facts}"
    yield _indented(f"by {entry['editor'] or 'an unknown editor'}, {entry['made']}")
    measured = entry["measured"]
    if not is_known(measured):
        yield _indented(
            "measured by another version, which can show it" if measured else "not measured"
        )
        return
    yield _indented("this edit alone on the unedited base, greedy decoding:")
    for fact in measured["facts"]:
        yield ""
        yield Padding(_fact_table(fact), (0, 0, 0, 2))  # as wide as the console
    yield ""
    if any(line["rule"] for fact in measured["facts"] for line in fact["asked"] + fact["still"]):
        yield _indented("* generated by a rule")
    text = measured["text"]
    yield _indented(
        f"plain text: KL {_format_number(text['kl'], '.3f')} nats per token, most likely token "
        f"unchanged at {_format_number(text['kept'], '.1%')} of {text['tokens']} tokens"
    )
    strength = _format_number(measured["strength"], "g")
    yield _indented(f"size: {_format_size(measured['edit'])}; strength {strength}")
    yield _indented(Text(f"verdict: {measured['verdict']['line']}", "bold"))
    for threshold in measured["verdict"]["thresholds"]:
        yield _indented(f"({threshold})")
    for warning in measured["warnings"]:
        yield _indented(Text(f"WARNING: {warning}", _BAD))


def _together_parts(measured: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the verdict on all active edits at once."""
    yield "all active edits together:"
    yield _indented(Text(f"verdict: {measured['verdict']['line']}", "bold"))
    for warning in measured["warnings"]:
        yield _indented(Text(f"WARNING: {warning}", _BAD))


def _indented(part: RenderableType) -> Padding:
    return Padding.indent(part, 2)


def _fact_table(fact: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True)
    table.add_column("", no_wrap=True)
    for name in ("text", "before", "after"):
        table.add_column(name, ratio=1)
    table.add_column("", no_wrap=True)
    for line in fact["asked"]:
        nll = " > ".join(_format_number(line[key], ".2f") for key in ("nll_before", "nll"))
        table.add_row(*_cells(line), _yes_or_no(line["says"], "yes", "NO").append(f"  nll {nll}"))
    for line in fact["still"]:
        kept = "LEAKS" if leaks(line) else "same" if line["same"] else "CHANGED"
        kl = f"{'':<{8 - len(kept)}}KL {_format_number(line['kl'], '.3f')}"
        table.add_row(*_cells(line), Text(kept, "" if line["same"] else _BAD).append(kl, ""))
    return table


def _cells(line: Mapping[str, Any]) -> list[str | Text]:
    texts = [_one_line(line[key].strip(" ")) for key in ("prompt", "before", "after")]
    return [line["kind"] + ("*" if line["rule"] else ""), *texts]


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _yes_or_no(value: bool | None, yes: str, no: str) -> Text:
    return Text(DASH) if value is None else Text(yes) if value else Text(no, _BAD)


def _format_number(value: float | None, form: str) -> str:
    """Format a number, or None for one that was not finite."""
    return DASH if value is None else format(value, form)


def format_range(values: Collection[int]) -> str:
    """Return "2 to 5", or "2" where all values are equal."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _format_size(edit: Mapping[str, Any]) -> str:
    weights = edit["weights"]
    ranks = [w["rank"] for w in weights if w["rank"] is not None]
    shares = [w["relative"] for w in weights if w["relative"] is not None]
    parts = [f"norm {_format_number(edit['norm'], '.3g')}"]
    if shares:
        parts.append(f"{min(shares):.2%} to {max(shares):.2%} of each weight's")
    parts.append(f"rank {format_range(ranks)}" if ranks else "dense")
    return ", ".join(parts) + f", {len(weights)} weights in {', '.join(edit['blocks'])}"
