"""Edits as HTML: a self-contained page for a ledger or one edit, and the page of `serve`."""

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
from mend_jax.ledger.text_view import describe_entry
from mend_jax.ledger.verdict import EDIT_KINDS, leaks

View = Mapping[str, Any]

_KINDS = {
    "prompt": "Prompt",
    "paraphrase": "Paraphrase",
    "neighbour": "Neighbour, should not change",
    "unrelated": "Unrelated, should not change",
}
# outcome -> (badge, name in the filter)
_OUTCOMES = {
    "good": ("✓ succeeded, nothing else changed", "Succeeded, nothing else changed"),
    "local": ("△ succeeded, other texts changed", "Succeeded, other texts changed"),
    "not": ("✗ failed", "Failed"),
    "unknown": ("not measured", "Not measured"),
}
_STATES = {"active": "Active", "reverted": "Reverted"}


def render_ledger(view: View) -> str:
    """Return one self-contained HTML page; every text from outside is escaped.

    Args:
      view: of a ledger (`text_view.describe_ledger`), or of one edit (`measure.measure_edit`).
    """
    if "entries" not in view:
        facts = [[fact["prompt"], fact["target"]] for fact in view["facts"]]
        view = {"entries": [unrecorded_entry(view, facts)]}
    view = printable(view)
    entries, base = view["entries"], view.get("base") or {}
    cards = [edit_card(entry) for entry in entries]
    png = edits_png(
        {
            str(entry["number"] or "this edit"): entry["measured"]
            for entry in entries
            if is_known(entry["measured"]) and not entry["reverted"]
        }
    )
    return _render(
        "ledger.html.j2",
        title=_title(cards, base.get("spec", "")),
        about=_about(view, base),
        cards=cards,
        choices=filter_choices(cards),
        picture=base64.b64encode(png).decode("ascii") if png else "",
    )


def render_served_page(state: View, token: str, max_length: int) -> str:
    """Return the whole page of `serve`.

    Args:
      state: of the session, `session.Session.state`.
      token: the token that the page sends with every action.
      max_length: of a text, in characters.
    """
    return _render("serve.html.j2", state=_state(state), token=token, max_length=max_length)


def render_workspace(state: View) -> str:
    """Return the part of the served page that changes: the proposal, and the ledger's edits."""
    return _render("workspace.html.j2", state=_state(state))


def render_comparison(comparison: View) -> str:
    """Return a prompt's two continuations side by side; see `session.Session.compare`."""
    n = comparison["edits"]
    applied = [f"the {n} active edits" if n > 1 else "the active edit"] if n else []
    applied += ["the proposal"] if comparison["proposed"] else []
    return _render(
        "comparison.html.j2",
        comparison=printable(dict(comparison)),
        after=f"with {' and '.join(applied)}" if applied else "no active edit",
    )


def served_page_policy() -> str:
    """Return the Content-Security-Policy of the served page."""
    return html_pages.content_security_policy("serve.js", talks=True)


def _render(template: str, **values: Any) -> str:
    return html_pages.page_environment().get_template(template).render(DASH=DASH, **values)


def unrecorded_entry(measured: View, facts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a measured edit that is in no ledger as an entry without a number."""
    origin = {key: measured["edit"][key] for key in ("editor", "made")}
    return {"number": None, "facts": facts, "measured": measured, "reverted": False} | origin


def edit_card(entry: View) -> dict[str, Any]:
    """Return the values that a page displays of an entry; their texts are not escaped yet."""
    outcome = _outcome(entry)
    return {
        "number": entry["number"],
        "facts": [{"prompt": prompt, "target": target} for prompt, target in entry["facts"]],
        "origin": ", ".join(filter(None, (entry["editor"], _date(entry["made"])))),
        "outcome": outcome,
        "state": "reverted" if entry["reverted"] else "active",
        "badge": _OUTCOMES[outcome][0],
    } | (_NOT_MEASURED if outcome == "unknown" else _measured_values(entry["measured"]))


_NOT_MEASURED = {
    "line": "", "thresholds": (), "warnings": (), "tiles": (), "groups": (), "weights": (),
}  # fmt: skip


def _measured_values(measured: View) -> dict[str, Any]:
    facts = measured["facts"]
    return {
        "line": measured["verdict"]["line"],
        "thresholds": measured["verdict"]["thresholds"],
        "warnings": measured["warnings"],
        "tiles": _tiles(measured),
        "groups": [_group(fact, len(facts) > 1) for fact in facts],
        "weights": _weights(measured),
    }


def filter_choices(cards: Sequence[View]) -> dict[str, list[tuple[str, str]]]:
    """Return the values that cards can be filtered by, with their counts."""
    choices = {}
    names = {"outcome": {k: name for k, (_, name) in _OUTCOMES.items()}, "state": _STATES}
    for field, known in names.items():
        counts = collections.Counter(card[field] for card in cards)
        choices[field] = [(k, f"{name} ({counts[k]})") for k, name in known.items() if counts[k]]
    return choices


def _outcome(entry: View) -> str:
    if not is_known(entry["measured"]):
        return "unknown"
    verdict = entry["measured"]["verdict"]
    return "not" if not verdict["took"] else "good" if verdict["local"] else "local"


def _group(fact: View, named: bool) -> dict[str, Any]:
    """Return the rows of one fact, and its name if there are several facts."""
    rows = [_row(line) for line in (*fact["asked"], *fact["still"])]
    return {"name": f"{fact['prompt']} {fact['target']}" if named else "", "rows": rows}


def _row(line: View) -> dict[str, Any]:
    """Return a text before and after, with a note and CSS classes of the two boxes."""
    if line["kind"] in EDIT_KINDS:
        note = f"NLL of the target {_nats(line['nll_before'])} → {_nats(line['nll'])} nats"
        tint = ["hit" if line[key] else "" for key in ("says_before", "says")]
    else:
        note = f"{'same answer' if line['same'] else 'another answer'}, KL {_nats(line['kl'])}"
        tint = ["", "moved hit" if leaks(line) else "" if line["same"] else "moved"]
    return {
        "name": _KINDS[line["kind"]] + (" (generated)" if line["rule"] else ""),
        "note": note,
        "tint": dict(zip(("before", "after"), tint, strict=True)),
        **{key: line[key] for key in ("prompt", "before", "after")},
    }


def _nats(value: Any) -> str:
    tiny = finite_number(value) is not None and 0 < value < 1e-3
    return "<\u202f0.001" if tiny else format_value(value)


def _tiles(measured: View) -> list[dict[str, str]]:
    """Return the numbers at the top of a card."""

    def values(list_name: str, kind: str, key: str) -> list[Any]:
        lines = [line for fact in measured["facts"] for line in fact[list_name]]
        return [line[key] for line in lines if line["kind"] == kind]

    prompts = values("asked", "prompt", "says")
    kl = {key: f"KL {_nats(value)}" for key, value in measured["kl"].items()}
    if len(prompts) == 1:
        before, after = (_nats(values("asked", "prompt", k)[0]) for k in ("nll_before", "nll"))
        first = _tile(
            f"{before} → {after}", "NLL of the target", "after the prompt, nats per token"
        )
    else:
        first = _share(prompts, "prompts succeed", "free generation")
    tiles = [
        first,
        _share(values("asked", "paraphrase", "says"), "paraphrases succeed", "free generation"),
        _share(values("still", "neighbour", "same"), "neighbours unchanged", kl["neighbours"]),
        _share(values("still", "unrelated", "same"), "unrelated unchanged", kl["unrelated"]),
        _tile(
            format_value(measured["text"]["kept"], "percent"),
            "of plain text unchanged",
            f"most likely tokens, {kl['text']}",
        ),
    ]
    return [tile for tile in tiles if tile["value"]]


def _tile(value: str, name: str, note: str) -> dict[str, str]:
    return {"value": value, "name": name, "note": note}


def _share(values: Sequence[bool], name: str, note: str) -> dict[str, str]:
    return _tile(f"{sum(values)} of {len(values)}" if values else "", name, note)


def _weights(measured: View) -> list[dict[str, str]]:
    return [
        {
            "name": w["name"],
            "rank": "dense" if w["rank"] is None else format_value(w["rank"], "count"),
            "norm": format_value(w["norm"]),
            "relative": format_value(w["relative"], "percent"),
        }
        for w in measured["edit"]["weights"]
    ]


def _date(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _title(cards: Sequence[View], base: str) -> str:
    if len(cards) == 1 and len(cards[0]["facts"]) == 1:
        (fact,) = cards[0]["facts"]
        return f"{fact['prompt']} {fact['target'].strip()}"
    of_base = f" of {base}" if base else ""
    return f"{len(cards)} edit{'s' if len(cards) != 1 else ''}{of_base}"


def _about(view: View, base: View) -> list[tuple[str, str]]:
    active = view.get("in_force")
    rows = [
        ("Base model", f"{base['spec']} ({base['fingerprint']})" if base else ""),
        ("Ledger", view.get("ledger", "")),
        ("Active edits", "" if active is None else ", ".join(map(str, active)) or "none"),
    ]
    return [(name, value) for name, value in rows if value]


def _state(state: View) -> dict[str, Any]:
    """Return the session's state with printable texts, ready for the templates."""
    entries = [printable(describe_entry(entry)) for entry in state["entries"]]
    proposal = state["proposal"]
    if proposal is not None:
        entry = unrecorded_entry(proposal.measured, [list(fact) for fact in proposal.edit.facts])
        proposal = {
            "number": proposal.number,
            "card": edit_card(printable(entry)),
            "together": proposal.together and _together(printable(proposal.together)),
            "clashes": proposal.clashes,
        }
    return {
        **{key: printable(state[key]) for key in ("base", "editor", "ledger")},
        "proposal": proposal,
        "active": [_list_item(e) for e in entries if not e["reverted"]],
        "reverted": [_list_item(e) for e in entries if e["reverted"]][::-1],
    }


def _list_item(entry: View) -> dict[str, Any]:
    outcome = _outcome(entry)
    dates = {key: _date(entry[key]) for key in ("made", "reverted_at")}
    return {**entry, **dates, "outcome": outcome, "badge": _OUTCOMES[outcome][0]}


def _together(measured: View) -> dict[str, Any]:
    """Return how the proposal does beside the active edits, and which of their facts fail."""
    new, *old = measured["facts"]
    lost = [fact for fact in old if not fact["asked"][0]["says"]]
    return {"success": new["took"], "local": measured["verdict"]["local"],
            "kept": len(old) - len(lost), "of": len(old), "lost": lost}  # fmt: skip
