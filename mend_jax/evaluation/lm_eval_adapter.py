"""A model under an edit, as the programs of lm-eval (EleutherAI) see models. Needs `lm-eval`.

    import lm_eval
    from mend_jax.evaluation.lm_eval_adapter import EditedModel

    edited = EditedModel(model.with_edit(bank))
    print(lm_eval.simple_evaluate(model=edited, tasks=["arc_easy"])["results"])

Texts, tokens and scores are those of lm-eval's own model of transformers; a test compares them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.chunking import round_up
from mend_jax.core.weight_edit import AppliedEdit, variables
from mend_jax.errors import ConfigError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.models.editable_model import EditableModel, Inputs, make_inputs
from mend_jax.models.params import Params
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as e:
    raise ConfigError(f"{e}: install lm-eval, or mend_jax with its extra `lm-eval`") from e

_NEW_TOKENS = 256  # lm-eval's own default
_LENGTHS, _ANSWERS = 32, 8  # lengths are multiples of these, so that few programs are compiled
Request = tuple[Any, list[int], list[int]]
"""What lm-eval tells the request by, the tokens of the context and of its continuation."""


class EditedModel(TemplateLM):
    """A causal `LanguageModel` with its edit."""

    def __init__(
        self, model: LanguageModel, batch_size: int = 8, max_length: int = 0, add_bos: bool = False
    ) -> None:
        """Wrap a model.

        Args:
          model: with an edit or without.
          batch_size: texts that are scored at once.
          max_length: tokens of a text, of which the last ones count; 0: the model's context.
          add_bos: whether texts begin with the tokenizer's first token. lm-eval leaves it out by
            default, so published numbers are without it.

        Raises:
          ConfigError: the model is not a causal one.
        """
        super().__init__()
        if model.module.kind != "causal":
            raise ConfigError(f"{model.spec} is a {model.module.kind} model: give a causal one")
        self.model, self.batch_size, self.add_bos = model, batch_size, add_bos
        self.max_length = max_length or model.config.n_positions

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which lm-eval puts before a text without a context."""
        return self.model.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests is named after."""
        return f"{self.model.spec} {self.model.tokenizer.fingerprint}".replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the tokens of a text."""
        del kwargs
        first = self.add_bos if add_special_tokens is None else add_special_tokens
        before, _ = self.model.tokenizer.boundary_tokens
        return [*(before if first else []), *self.model.tokenizer.encode(string)]

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the text that the model was trained on."""
        return self.model.tokenizer.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (log probability, whether greedy decoding writes it) of each continuation."""
        del kwargs
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # The longest first, so that texts of a batch are of about one length.
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i][1:])))
        progress = Progress("lm-eval", len(requests), writer=not disable_tqdm)
        for done, chosen in _in_groups(order, self.batch_size):
            pairs = [(requests[i][1], requests[i][2]) for i in chosen]
            for i, score in zip(chosen, self._score(pairs), strict=True):
                found[i] = score
                self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
            progress.update(done, force=done == len(requests))
        return found

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[float, bool]]:
        """Yield the scores of at most `batch_size` continuations."""
        n, most = self.batch_size, self.max_length
        texts = [(context + answer)[-(most + 1) :] for context, answer in pairs]
        length = min(round_up(max(map(len, texts)) - 1, _LENGTHS), most)
        width = round_up(max(len(answer) for _, answer in pairs), _ANSWERS)
        tokens = np.full((n, length), self.model.tokenizer.pad_id, np.int32)
        mask = np.zeros((n, length), bool)
        mask[:, 0] = True  # a row that only fills up the batch has one token
        rows, target = np.zeros((2, n, width), np.int32)
        for i, (ids, (_, answer)) in enumerate(zip(texts, pairs, strict=True)):
            tokens[i, : len(ids) - 1] = ids[:-1]
            mask[i, : len(ids) - 1] = True
            k = min(len(answer), len(ids) - 1)
            rows[i, :k] = np.arange(len(ids) - 1 - k, len(ids) - 1)
            target[i, :k] = ids[-k:]
        model = self.model
        edit = None if model.edit is None else model.edit.arrays_only()
        with use_mesh(mesh_of_arrays(model.params)):
            scored = _log_probs_of(
                model.module, model.params, edit, make_inputs(tokens, mask), rows, target
            )
        log_probs, greedy = (np.asarray(x) for x in scored)
        for i, (ids, (_, answer)) in enumerate(zip(texts, pairs, strict=True)):
            k = min(len(answer), len(ids) - 1)
            yield float(log_probs[i, :k].sum(dtype=np.float64)), bool(greedy[i, :k].all())

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log probability of each whole text, in windows of the context's length."""
        found = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1,
            )  # fmt: skip
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(parts, disable_tqdm=True)
            found.append(sum(score for score, _ in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each prompt, up to the first of its stop texts."""
        found = [""] * len(requests)
        progress = Progress("lm-eval, texts", len(requests), writer=not disable_tqdm)
        written = 0
        settings = [_Generation.of(request.args[1]) for request in requests]
        for setting in dict.fromkeys(settings):
            own = [i for i, other in enumerate(settings) if other == setting]
            for done, chosen in _in_groups(own, self.batch_size):
                prompts = [self._fitting(requests[i].args[0], setting.tokens) for i in chosen]
                texts = self.model.generate(prompts, setting.tokens, setting.temperature)
                for i, text in zip(chosen, texts, strict=True):
                    found[i] = setting.cut(text)
                    self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
                progress.update(written + done)
            written += len(own)
        return found

    def _fitting(self, prompt: str, new: int) -> str:
        """Return the end of a prompt that fits the context with so many new tokens."""
        before, _ = self.model.tokenizer.boundary_tokens
        room = self.max_length - new - len(before)
        if room < 1:
            raise ConfigError(
                f"{new} new tokens do not fit a context of {self.max_length}: set max_gen_toks"
            )
        ids = self.model.tokenizer.encode(prompt)
        return prompt if len(ids) <= room else self.model.tokenizer.decode(ids[-room:])


class _Generation(NamedTuple):
    """How a text is generated.

    Attributes:
      tokens: at most.
      temperature: 0: greedy.
      stops: texts that end it.
    """

    tokens: int
    temperature: float
    stops: tuple[str, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> _Generation:
        """Return what a request of lm-eval says."""
        stops = options.get("until") or ()
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
        return cls(int(options.get("max_gen_toks") or _NEW_TOKENS), temperature, stops)

    def cut(self, text: str) -> str:
        """Return the text before the first stop text."""
        found = [at for stop in self.stops if stop and (at := text.find(stop)) >= 0]
        return text[: min(found, default=len(text))]


def _in_groups(items: Sequence[int], size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield (number of items up to the end of the group, group)."""
    for start in range(0, len(items), size):
        group = items[start : start + size]
        yield start + len(group), group


@functools.partial(jax.jit, static_argnums=0)
def _log_probs_of(
    module: EditableModel, params: Params, edit: AppliedEdit | None, inputs: Inputs,
    rows: Int[Array, "B S"], target: Int[Array, "B S"],
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:  # fmt: skip
    """Return the log probability of each target after its row, and whether it is the arg max."""

    def logits(module: EditableModel, inputs: Inputs, rows: Array) -> Array:
        return module.head(module.run_top(module.run_trunk(inputs), inputs, rows))

    found: Any = module.apply(variables(params, edit), inputs, rows, method=logits)
    found = jax.nn.log_softmax(found.astype(jnp.float32))
    picked = jnp.take_along_axis(found, target[..., None], axis=-1)[..., 0]
    return picked, found.argmax(-1) == target
