"""Judge what edited models wrote, by another model or by any function.

python -m mend_jax.evaluation.judge --records=RUN/records.jsonl --endpoint=http://localhost:8000/v1
  --model=NAME

Asks a model behind an OpenAI-compatible endpoint, for each edit, whether the text that was written
freely after the prompt gives the target as its answer, and prints the share with its interval. The
endpoint may be a local one; nothing else in this package needs it. In Python `judge_records` takes
any function as the judge. QAEdit (Yang et al. 2025, arXiv:2502.11177, section 3) judges so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mend_jax.data import raw_files
from mend_jax.errors import ConfigError, DataError
from mend_jax.evaluation.metric_registry import Estimate
from mend_jax.evaluation.text_entropy import LONG_TEXT
from mend_jax.io.command import command
from mend_jax.io.progress import Progress

Judge = Callable[[str, str, str], bool]
"""(prompt, target, what was written after the prompt) -> whether its answer is the target."""
KEY = "MEND_JUDGE_KEY"
"""The environment variable with the endpoint's key, where it needs one."""
_QUESTION = (
    "A language model was given a text to continue.\n\nText: {prompt}\nContinuation: {written}\n\n"
    "Is the answer that the continuation gives to the text the following, in any spelling?\n"
    "Answer: {target}\n\nA continuation that repeats itself without end, takes the answer back, or "
    "gives another answer first is wrong. Reply with one word, yes or no."
)
_SECONDS = 60
_TEXTS = ((LONG_TEXT, f"{LONG_TEXT}_before"), ("edit", "edit_before"))


def endpoint_judge(url: str, model: str, key: str = "") -> Judge:
    """Return a judge that asks a model behind an OpenAI-compatible endpoint.

    Args:
      url: up to and with the version, such as http://localhost:8000/v1.
      model: its name there.
      key: sent as a bearer token, if any.
    """
    address = f"{url.rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"

    def judge(prompt: str, target: str, written: str) -> bool:
        question = _QUESTION.format(prompt=prompt, target=target, written=written)
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}
        reply = _post(address, body, headers).strip().lower().lstrip("*\"' ")
        if not reply.startswith(("yes", "no")):
            raise DataError(f"{address}: the judge replied {reply[:60]!r}, not yes or no: use "
                            "another --model")  # fmt: skip
        return reply.startswith("yes")

    return judge


def _post(address: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{address} is no web address: give http://HOST:PORT/v1")
    request = urllib.request.Request(address, json.dumps(body).encode(), dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            text: Any = json.load(response)["choices"][0]["message"]["content"]
    except (OSError, urllib.error.URLError) as e:
        raise DataError(f"{address} cannot be asked ({e}): is the server running?") from e
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise DataError(f"{address} replied in another form than chat completions ({e!r})") from e
    if not isinstance(text, str):
        raise DataError(f"{address} replied without a text")
    return text


def judge_records(records: Sequence[Mapping[str, Any]], judge: Judge) -> Estimate:
    """Return the share of edits whose written text is right, and the same before the edit.

    The text is that of `eval.continuation_tokens` after the edit's prompt, or else the answer.

    Args:
      records: of `edit_records`.

    Raises:
      DataError: no record has a text.
    """
    names = next((n for n in _TEXTS if any(n[0] in r["answers"] for r in records)), None)
    if names is None:
        raise DataError("no record has a written text: evaluate a model that generates")
    chosen = [r for r in records if all(name in r["answers"] for name in names)]
    progress = Progress("judge", 2 * len(chosen))
    after: list[bool] = []
    before: list[bool] = []
    for number, record in enumerate(chosen):
        for name, found in zip(names, (after, before), strict=True):
            written = str(record["answers"][name])
            found.append(judge(record["prompt"], record["target"], written))
        progress.update(2 * number + 2, force=number + 1 == len(chosen))
    return Estimate.of_share(np.asarray(after), np.asarray(before))


def _read(path: Path) -> list[dict[str, Any]]:
    fields = {"prompt": "text", "target": "text", "answers": "object"}
    return [record for _, record in raw_files.iter_records(path, fields)]


@command
def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[-1])
    parser.add_argument("--records", required=True, help="records.jsonl of an evaluation")
    parser.add_argument("--endpoint", required=True, help="such as http://localhost:8000/v1")
    parser.add_argument("--model", required=True, help="its name at the endpoint")
    args = parser.parse_args(argv)
    records = _read(Path(args.records))
    judge = endpoint_judge(args.endpoint, args.model, os.environ.get(KEY, ""))
    found = judge_records(records, judge)
    low, high = found.ci95
    print(
        f"right, by {args.model}: {found.value:.3f} [{low:.3f}, {high:.3f}] of {len(records)} "
        f"edits; before the edit {found.before:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
