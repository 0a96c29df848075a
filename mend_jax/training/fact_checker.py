"""Fine-tunes the top of an encoder to classify claims: last blocks, pooler and head."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.losses import correct_tokens, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.claims import shuffled_batches, take_trimmed
from mend_jax.errors import ConfigError, Preempted, TrainingError
from mend_jax.evaluation.claim_scores import score_claims, summarise_claims
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.progress import Progress
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import BLOCK, Params
from mend_jax.parallel.distributed import StopRequest
from mend_jax.training.config_keys import Key

KEYS = (
    Key("job", "finetune", "kind of run: fine-tune a fact checker", choices=("finetune",)),
    Key("seed", 0, "seed of the head's initial parameters and of the order of the claims", least=0),
    Key("model.spec", "", "base model, an encoder"),
    Key("model.last_n_blocks", 4, "blocks that are trained, with pooler and head", least=1),
    Key("data.name", "fever", "data set of claims"),
    Key("data.dir", "", 'folder of raw data; "": MEND_DATA_DIR', may_differ=True),
    Key("data.max_len", 48, "longest claim, in tokens", least=3),
    Key("data.train_rows", 0, "training claims to use; 0: all", least=0),
    Key("data.rephrases", True, "whether their paraphrases are trained on as well"),
    Key("train.epochs", 1, "passes over the claims; with more of them validation falls again",
        least=1),
    Key("train.batch_size", 32, "claims a step", least=1),
    Key("train.lr", 1e-4, "learning rate", above=0.0),
    Key("train.clip", 1.0, "largest global gradient norm", above=0.0),
    Key("train.warmup", 50, "steps over which the learning rate rises; then it falls to 0 along a "
        "cosine", least=0),
    Key("train.log_every", 10, "steps between lines of metrics.jsonl", least=1),
    Key("train.val_every", 50, "steps between validations", least=1),
    Key("train.patience", 0,
        "steps without a better validation accuracy that end training; 0: no early stopping",
        least=0),
    Key("eval.batch_size", 64, "claims scored at once", least=1),
    Key("eval.rows", 0, "claims of validation and of test that are scored; 0: all", least=0),
)  # fmt: skip


@flax.struct.dataclass
class FineTuningState:
    """What a training step reads and writes; `params` are the trained ones."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


class Best(NamedTuple):
    """The parameters of the best validation so far."""

    step: int
    accuracy: float
    params: Any


def split_params(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (frozen, trained) parameters: trunk and embeddings, top and head."""
    top = {k for k in params if BLOCK.match(f"{k}/") or k in ("pooler", "classifier")}
    return {k: params[k] for k in params if k not in top}, {k: params[k] for k in top}


@functools.cache  # one object for the same numbers: the step is compiled once for each
def make_fact_checker_optimizer(
    lr: float, clip: float, warmup: int, steps: int
) -> optax.GradientTransformation:
    """Clip by the global norm, then Adam; the rate rises over `warmup` and falls to 0 (cosine)."""
    rate = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    module: EditableModel,
    tx: optax.GradientTransformation,
    state: FineTuningState,
    frozen: Params,
    claims: TokenBatch,
) -> tuple[FineTuningState, dict[str, jax.Array]]:
    """Take one step of Adam on the mean nll of a batch of claims [B, ...]."""
    h_BxTxD = trunk_states(module, frozen, claims)

    def loss_function(trained: Params) -> tuple[jax.Array, jax.Array]:
        logits_Bx1x2 = top_logits(module, {**frozen, **trained}, h_BxTxD, claims)
        accuracy = correct_tokens(logits_Bx1x2, claims.target).astype(jnp.float32).mean()
        return token_nll(logits_Bx1x2, claims.target).mean(), accuracy

    grad_function = jax.value_and_grad(loss_function, has_aux=True)
    (loss, accuracy), grads = grad_function(state.params)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32 and mixes in floats
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = FineTuningState(state.step + 1, params, opt_state)
    return new, {"loss": loss, "accuracy": accuracy}


def train(
    config: ConfigDict,
    model: LanguageModel,
    texts: Mapping[str, TokenBatch],
    log: JsonLines,
    stop: StopRequest,
) -> tuple[Best, int]:
    """Train to the last epoch, or until validation no longer improves.

    Returns:
      The best trained parameters by validation accuracy, and the number of steps.

    Raises:
      TrainingError: a loss that is not finite.
      Preempted: a stop was requested.
    """
    c, claims = config.train, texts["learned"]
    batches = list(shuffled_batches(claims, c.batch_size, c.epochs, config.seed))
    if not batches:
        raise ConfigError(
            f"train.batch_size is {c.batch_size}, more than the {len(claims.tokens)} claims to "
            "train on"
        )
    frozen, trained = split_params(model.params)
    tx = make_fact_checker_optimizer(c.lr, c.clip, c.warmup, len(batches))
    trained = jax.tree.map(jnp.array, trained)  # copies, because each step reuses their memory
    state = FineTuningState(jnp.zeros((), jnp.int32), trained, tx.init(trained))
    best, progress = Best(0, -1.0, None), Progress("fine-tune", len(batches))
    for step, index in enumerate(batches, start=1):
        state, metrics = train_step(model.module, tx, state, frozen, take_trimmed(claims, index))
        validates = step % c.val_every == 0 or step == len(batches)
        if step % c.log_every == 0 or step % c.val_every == 0:
            values = _finite_metrics(metrics, step)
            log.append({"step": step, "kind": "train", **values})
            progress.update(step, f"loss {values['loss']:.4f}")
        if validates:
            params = {**frozen, **state.params}
            scores = summarise_claims(
                score_claims(model.module, params, texts["validation"], config.eval.batch_size)
            )
            log.append({"step": step, "kind": "validation", **scores})
            progress.update(step, f"validation accuracy {scores['accuracy']:.4f}", force=True)
            if scores["accuracy"] > best.accuracy:
                best = Best(step, scores["accuracy"], jax.device_get(state.params))
            elif c.patience and step - best.step >= c.patience:
                break
        if stop.after_step(step):
            raise Preempted(f"stop requested at step {step}: the same command starts again")
    return best, step


def _finite_metrics(metrics: Mapping[str, jax.Array], step: int) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not np.isfinite(values["loss"]):
        raise TrainingError(
            f"step {step}: the loss is {values['loss']}; lower train.lr and start again"
        )
    return values
