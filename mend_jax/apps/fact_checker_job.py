"""The fine-tuning job: makes a fact checker from an encoder, the base for claim edits.

Trains the head, the pooler and the top blocks on the claims of a data set (task `fc`) and their
true labels. The trunk is frozen and runs once for each batch, without a gradient. DIR gets model/
(a Hugging Face folder that `load_model` reads), results.json, metrics.jsonl and config.json. An
interrupted job starts again from its beginning: it takes only minutes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mend_jax import data, hub
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.claims import encode_claims
from mend_jax.data.rows import SPLITS
from mend_jax.errors import ConfigError
from mend_jax.evaluation.claim_scores import score_claims, summarise_claims
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.hub.merged_export import save_parameters
from mend_jax.io.files import is_remote, write_json, write_text
from mend_jax.io.json_lines import JsonLines
from mend_jax.models.params import count_params, unstack_trunk
from mend_jax.models.single_stack import CLASSIFIER_HEAD
from mend_jax.parallel import distributed
from mend_jax.parallel.distributed import print_once
from mend_jax.training import config as configs
from mend_jax.training.assembly import choose_rows
from mend_jax.training.config_check import check_keys, raise_problems
from mend_jax.training.fact_checker import KEYS, train
from mend_jax.training.provenance import code_fingerprint, hardware, versions
from mend_jax.training.run_folder import locked_folder, prepare_folder, read_finished_results


def finetune(config: ConfigDict, workdir: str | Path, config_name: str = "") -> dict[str, Any]:
    """Run a config in a folder, and return the content of results.json.

    For a finished folder it only prints the results.

    Raises:
      MendError: a bad config, base, data set or folder, before compute starts; or a loss that is
        not finite.
    """
    started = time.monotonic()
    check_fact_checker_config(config)
    if jax.process_count() > 1:
        raise ConfigError("fine-tuning runs in one process: start it on one host")
    folder = prepare_folder(workdir)
    if is_remote(folder):
        raise ConfigError(f"--workdir {folder}: fine-tuning needs a local folder, for its model")
    with locked_folder(folder):
        results = read_finished_results(folder, lambda: config)
        if results is not None:
            print_once(f"{folder} is finished")
        else:
            results = _finetune(config, folder, config_name, started)
        print_once(headline(results))
        print_once(f"model: {folder / 'model'}")
        return results


def _finetune(config: ConfigDict, folder: Path, config_name: str, started: float) -> dict[str, Any]:
    model = load_base(config)
    dataset = data.load(config.data.name, config.data.dir or None, model=model)
    texts = encode_splits(config, dataset, model)
    counts = ", ".join(f"{len(batch.tokens)} {name}" for name, batch in texts.items())
    print_once(f"base {model.spec} ({model.fingerprint}); {dataset.name}: {counts}")
    write_text(folder / "config.json", configs.to_json(config) + "\n")
    log = JsonLines(folder / "metrics.jsonl")
    log.rewind(-1)
    training_started = time.monotonic()
    with distributed.StopRequest() as stop:
        best, steps = train(config, model, texts, log, stop)
    training = {
        "steps": steps, "kept_step": best.step, "trained_parameters": count_params(best.params),
        "seconds": time.monotonic() - training_started,
    }  # fmt: skip
    params = {**model.params, **jax.device_get(best.params)}
    save_parameters(folder / "model", model, params)
    evaluation = {
        name: summarise_claims(score_claims(model.module, params, batch, config.eval.batch_size))
        for name, batch in texts.items()
        if name != "learned"
    }
    results = {
        "config_name": config_name,
        "config": configs.to_json_dict(config),
        "base": {"spec": model.spec, "fingerprint": model.fingerprint},
        "model": {"fingerprint": hub.fingerprint(unstack_trunk(params))},
        "data": {
            "name": dataset.name, "fingerprint": dataset.fingerprint, "license": dataset.license,
            "notes": dataset.notes,
        },
        "code": code_fingerprint(),
        "hardware": hardware(),
        "versions": versions(),
        "training": training,
        "eval": evaluation,
        "seconds_total": time.monotonic() - started,
    }  # fmt: skip
    write_json(folder / "results.json", results)
    return results


def load_base(config: ConfigDict) -> LanguageModel:
    """Return the encoder to train, with a fresh classifier head."""
    c = config.model
    return load_model(c.spec, last_n_blocks=c.last_n_blocks, new_parameters=CLASSIFIER_HEAD)


def check_fact_checker_config(config: ConfigDict) -> None:
    """Raise a ConfigError that names every key that is unknown, missing or out of range."""
    raise_problems(check_keys(config, KEYS))


def encode_splits(
    config: ConfigDict, dataset: data.DataSet, model: LanguageModel
) -> dict[str, TokenBatch]:
    """Return the claims of each split with their true labels, [N, ...].

    `learned` is trained on. The others are scored: `train` is a part of `learned`, and
    `test_paraphrase` has the paraphrases of the test claims.
    """
    if dataset.task != "fc":
        raise ConfigError(f"data set {dataset.name} has no claims: use one such as fever")
    c = config.data
    encode_rows = functools.partial(encode_claims, tokenizer=model.tokenizer, max_len=c.max_len)
    train = choose_rows(dataset.split("train"), c.train_rows)
    fields = ("prompt", "rephrase") if c.rephrases else ("prompt",)
    validation, test = (choose_rows(dataset.split(n), config.eval.rows) for n in SPLITS[1:])
    return {
        "learned": encode_rows(train, fields),
        "train": encode_rows(choose_rows(train, len(test)), ("prompt",)),
        "validation": encode_rows(validation, ("prompt",)),
        "test": encode_rows(test, ("prompt",)),
        "test_paraphrase": encode_rows(test, ("rephrase",)),
    }


def headline(results: Mapping[str, Any]) -> str:
    """Return the final scores in a line."""
    return "; ".join(
        f"{name} accuracy {e['accuracy']:.3f} [{e['accuracy_ci95'][0]:.3f}, "
        f"{e['accuracy_ci95'][1]:.3f}] nll {e['nll']:.3f} (n = {e['n']})"
        for name, e in results["eval"].items()
    )
