"""Edits as a page: of a ledger or one edit, to be mailed as it is; and the page that is served."""

from __future__ import annotations

import base64
import collections
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports import html_pages
from mend_jax.evaluation.reports.formatting import DASH, format_value, printable
from mend_jax.evaluation.reports.values import finite_number
from mend_jax.ledger.edit_plots import edits_png
from mend_jax.ledger.measurement_schema import is_known
from mend_jax.ledger.verdict import leaks

Shown = Mapping[str, Any]

_KINDS = {
    "prompt": "The prompt",
    "paraphrase": "Paraphrase",
    "neighbour": "Neighbour, to be left alone",
    "unrelated": "Unrelated, to be left alone",
}
# outcome -> (badge, what the filter calls it)
_OUTCOMES = {
    "good": ("✓ took, and nothing else", "Took, and moved nothing else"),
    "local": ("△ took, and moved more", "Took, and moved more"),
    "not": ("✗ did not take", "Did not take"),
    "unknown": ("not measured", "Not measured"),
}
_STATES = {"live": "In force", "reverted": "Reverted"}


def render(shown: Shown) -> str:
    """One self-contained HTML page; every text from outside is escaped.

    Args:
      shown: what `measure.shown` returns of a ledger, or `measure.measure_edit` of one edit.
    """
    if "entries" not in shown:
        facts = [(f["prompt"], f["target"]) for f in shown["facts"]]
        shown = {"entries": [unrecorded_entry(shown, facts)]}
    shown = printable(shown)
    cards = [card(entry) for entry in shown["entries"]]
    base = shown.get("base") or {}
    png = edits_png(
        {_name(e): e["measured"] for e in shown["entries"] if _known(e) and not e["reverted"]}
    )
    view = {
        "title": _title(cards, base.get("spec", "")),
        "about": _about(shown, base),
        "cards": cards,
        "choices": choices(cards),
        "picture": base64.b64encode(png).decode("ascii") if png else "",
        "DASH": DASH,
    }
    return html_pages.page_environment().get_template("edit.html.j2").render(view)


def served(state: Shown, token: str, most: int) -> str:
    """The whole page that is served.

    Args:
      state: what `session.Session.state` returns.
      token: what the page's actions are to show.
      most: characters of a text.
    """
    view = {"state": _state(state), "token": token, "most": most, "DASH": DASH}
    return html_pages.page_environment().get_template("serve.html.j2").render(view)


def bench(state: Shown) -> str:
    """The part of the served page that changes: what is proposed, and what the ledger holds."""
    template = html_pages.page_environment().get_template("bench.html.j2")
    return template.render({"state": _state(state), "DASH": DASH})


def answer(asked: Shown) -> str:
    """A prompt's continuations side by side, of `session.Session.ask`."""
    n = asked["edits"]
    after = f"with the {n} edits in force" if n > 1 else "with the edit in force" if n else ""
    if asked["proposed"]:
        after = f"{after} and the proposal" if after else "with the proposal"
    view = {"asked": printable(dict(asked)), "after_is": after or "no edit in force", "DASH": DASH}
    return html_pages.page_environment().get_template("answer.html.j2").render(view)


def served_page_policy() -> str:
    """The Content-Security-Policy that the served page is sent with."""
    return html_pages.content_security_policy("serve.js", talks=True)


def unrecorded_entry(measured: Shown, facts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What was measured of an edit that is in no ledger, as an entry that has no number."""
    made = {key: measured["edit"][key] for key in ("editor", "made")}
    return {"number": None, "facts": facts, "measured": measured, "reverted": False} | made


def card(entry: Shown) -> dict[str, Any]:
    """An entry of a ledger as the page shows it; texts are not escaped yet."""
    outcome = _outcome(entry)
    known = entry["measured"] if _known(entry) else {}
    state = "reverted" if entry["reverted"] else "live"
    return {
        "number": entry["number"],
        "facts": [{"prompt": p, "target": t} for p, t in entry["facts"]],
        "origin": ", ".join(filter(None, (entry["editor"], _date(entry["made"])))),
        "outcome": outcome,
        "state": state,
        "badge": _OUTCOMES[outcome][0],
        "line": known["verdict"]["line"] if known else "",
        "thresholds": known["verdict"]["thresholds"] if known else [],
        "warnings": known.get("warnings", []),
        "tiles": _tiles(known) if known else [],
        "groups": [_group(fact, len(known["facts"]) > 1) for fact in known.get("facts", [])],
        "weights": _weights(known) if known else [],
    }


def choices(cards: Sequence[Shown]) -> dict[str, list[tuple[str, str]]]:
    """What cards can be filtered by, those that there are, with their counts."""
    found = {}
    names = {"outcome": {k: name for k, (_, name) in _OUTCOMES.items()}, "state": _STATES}
    for what, known in names.items():
        counts = collections.Counter(c[what] for c in cards)
        found[what] = [(k, f"{name} ({counts[k]})") for k, name in known.items() if k in counts]
    return found


def _known(entry: Shown) -> bool:
    return is_known(entry["measured"])


def _outcome(entry: Shown) -> str:
    if not _known(entry):
        return "unknown"
    verdict = entry["measured"]["verdict"]
    return "not" if not verdict["took"] else "good" if verdict["local"] else "local"


def _group(fact: Shown, named: bool) -> dict[str, Any]:
    """The texts of one fact; `name` where there are several facts."""
    asked = [
        {"tint": {"before": a["says_before"] and "hit", "after": a["says"] and "hit"},
         "note": f"surprise at the answer {_nats(a['nll_before'])} → {_nats(a['nll'])} nats"}
        for a in fact["asked"]
    ]  # fmt: skip
    still = [
        {"tint": {"before": "", "after": _tint(s)},
         "note": f"{'same answer' if s['same'] else 'another answer'}, KL {_nats(s['kl'])}"}
        for s in fact["still"]
    ]  # fmt: skip
    rows = [
        more | {k: line[k] for k in ("prompt", "before", "after")}
        | {"name": _KINDS[line["kind"]] + (" (made by rule)" if line["rule"] else "")}
        for line, more in zip([*fact["asked"], *fact["still"]], [*asked, *still], strict=True)
    ]  # fmt: skip
    return {"name": f"{fact['prompt']} {fact['target']}" if named else "", "rows": rows}


def _tint(still: Shown) -> str:
    """How a text is marked whose answer should have stayed."""
    return "moved hit" if leaks(still) else "" if still["same"] else "moved"


def _nats(value: Any) -> str:
    """A text of nats; what is next to nothing, as that."""
    return (
        "<\u202f0.001"
        if finite_number(value) is not None and 0 < value < 1e-3
        else format_value(value)
    )


def _tiles(measured: Shown) -> list[dict[str, str]]:
    """The numbers that matter."""
    facts = measured["facts"]
    asked = [a for fact in facts for a in fact["asked"]]
    still = [s for fact in facts for s in fact["still"]]
    first = [a for a in asked if a["kind"] == "prompt"]
    found = [_share([a["says"] for a in first], "prompts say it", "left to write on")] * (
        len(first) > 1
    )
    if len(first) == 1:
        before, after = (_nats(first[0][key]) for key in ("nll_before", "nll"))
        found.append({"value": f"{before} → {after}", "name": "surprise at the answer",
                      "note": "after the prompt, nats a token"})  # fmt: skip
    paraphrases = [a["says"] for a in asked if a["kind"] == "paraphrase"]
    neighbours, unrelated = (
        [s["same"] for s in still if s["kind"] == kind] for kind in ("neighbour", "unrelated")
    )
    kl = {key: f"KL {_nats(value)}" for key, value in measured["kl"].items()}
    found += [
        _share(paraphrases, "paraphrases follow", "left to write on"),
        _share(neighbours, "neighbours stay", kl["neighbours"]),
        _share(unrelated, "unrelated stay", kl["unrelated"]),
        {"value": format_value(measured["text"]["kept"], "percent"), "name": "of plain text stays",
         "note": f"first choices, {kl['text']}"},
    ]  # fmt: skip
    return [tile for tile in found if tile["value"]]


def _share(held: Sequence[bool], name: str, note: str) -> dict[str, str]:
    return {"value": f"{sum(held)} of {len(held)}" if held else "", "name": name, "note": note}


def _weights(measured: Shown) -> list[dict[str, str]]:
    return [
        {
            "name": w["name"],
            "rank": "dense" if w["rank"] is None else format_value(w["rank"], "count"),
            "norm": format_value(w["norm"]),
            "relative": format_value(w["relative"], "percent"),
        }
        for w in measured["edit"]["weights"]
    ]


def _date(made: str) -> str:
    return made.replace("T", " ").replace("+00:00", " UTC")


def _name(entry: Shown) -> str:
    return str(entry["number"] or "this edit")


def _title(cards: Sequence[Shown], base: str) -> str:
    if len(cards) == 1 and len(cards[0]["facts"]) == 1:
        (fact,) = cards[0]["facts"]
        return f"{fact['prompt']} {fact['target'].strip()}"
    of = f" of {base}" if base else ""
    return f"{len(cards)} edit{'s' if len(cards) != 1 else ''}{of}"


def _about(shown: Shown, base: Shown) -> list[tuple[str, str]]:
    """What the edits are of."""
    in_force = shown.get("in_force")
    rows = [
        ("Base model", f"{base['spec']} ({base['fingerprint']})" if base else ""),
        ("Ledger", shown.get("ledger", "")),
        ("In force", "" if in_force is None else ", ".join(map(str, in_force)) or "none"),
    ]
    return [(name, value) for name, value in rows if value]


def _state(state: Shown) -> dict[str, Any]:
    """What `session.Session.state` returns, as cards and plain values."""
    entries = [vars(entry) for entry in state["entries"]]
    cards = [printable(e) for e in entries]
    proposal = state["proposal"]
    made = None
    if proposal is not None:
        facts = proposal.edit.facts
        made = {
            "number": proposal.number,
            "card": card(printable(unrecorded_entry(proposal.measured, facts))),
            "together": proposal.together and _together(printable(proposal.together)),
            "clashes": proposal.clashes,
        }
    return {
        **{key: printable(state[key]) for key in ("base", "editor", "ledger")},
        "proposal": made,
        "live": [_listed(e) for e in cards if not e["reverted"]],
        "undone": [_listed(e) for e in cards if e["reverted"]][::-1],
    }


def _listed(entry: Shown) -> dict[str, Any]:
    outcome = _outcome(entry)
    dates = {key: _date(entry[key]) for key in ("made", "reverted_at")}
    return {**entry, **dates, "outcome": outcome, "badge": _OUTCOMES[outcome][0]}


def _together(measured: Shown) -> dict[str, Any]:
    """Whether the proposal holds among the edits in force, and they under it."""
    new, *old = measured["facts"]
    lost = [f for f in old if not f["asked"][0]["says"]]
    return {"took": new["took"], "local": measured["verdict"]["local"],
            "held": len(old) - len(lost), "of": len(old), "lost": lost}  # fmt: skip
