"""Scoped edits of a Hugging Face language model, in PyTorch alone.

This file needs torch and safetensors and nothing else; it is written beside an exported bank.

    import transformers
    from mend_bank import apply_bank

    model = transformers.AutoModelForCausalLM.from_pretrained("FOLDER_OF_THE_BASE")
    bank = apply_bank(model, "bank.safetensors")
    ...                                   # model.generate(...) as ever
    bank.remove()                         # the base again

A token takes the edit of the fact whose key is nearest to its states in two layers below the edited
ones, if both are near enough; after a mention of the fact's subject in the same sentence less is
enough. The edit ends where the fact's answer has been written. All other tokens are computed by the
base's own weights, from keys and values of the base: no later token sees an edit. Texts of a batch
may be padded on either side, with an attention mask; generation with a cache must begin with an
empty one.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from safetensors import safe_open

FORMAT = "mend_jax_torch_bank/1"
MAX_TOKENS = 12
SENTENCES = 8
TIE = 1e-3
_BITS = (1 << 32) - 1
_NEVER = 1 << 31
_PROJECTION = ("center", "spread", "w1", "b1", "w2", "b2")
_CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")


class _KeptKeys:
    """A layer's cache that gives the keys and values of the base's pass a second time."""

    def __init__(self, cache: Any):
        self._cache = cache
        self._found: Any = None
        self.again = False

    def update(self, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.again:
            found = key, value
            if self._cache is not None:
                found = self._cache.update(key, value, *args, **kwargs)
            self._found = found
        return self._found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class ScopedBank:
    """The hooks of a bank on a model; `match` [B, T] is the fact that each token took, or -1."""

    def __init__(self, model: Any, arrays: dict[str, torch.Tensor], metadata: dict[str, Any]):
        self.facts = metadata["facts"]
        self.match: Any = None
        self._arrays = {name: array.to(model.device) for name, array in arrays.items()}
        self._tokens: Any = None
        self._real: Any = None
        self._question: Any = None
        self._edited: Any = None  # the edited stream's states, between two layers
        self._is_editing = False
        self._handles = [
            model.register_forward_pre_hook(self._read_tokens, with_kwargs=True),
            model.get_submodule(metadata["question"]).register_forward_pre_hook(
                self._read_question, with_kwargs=True
            ),
            model.get_submodule(metadata["site"]).register_forward_pre_hook(
                self._find_match, with_kwargs=True
            ),
        ]
        parent, _, first = metadata["site"].rpartition(".")
        layers = list(model.get_submodule(parent))[int(first) :]
        for layer in layers:
            signature = inspect.signature(layer.forward)
            cache = next(name for name in _CACHE_NAMES if name in signature.parameters)
            self._handles += [
                layer.register_forward_pre_hook(
                    self._keep_keys(signature, cache), with_kwargs=True
                ),
                layer.register_forward_hook(
                    self._edited_stream(signature, cache, layer is layers[-1]), with_kwargs=True
                ),
            ]
        for name in metadata["modules"]:
            hook = self._edit(f"{name}.a", f"{name}.b")
            self._handles.append(model.get_submodule(name).register_forward_hook(hook))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _read_tokens(self, module: Any, args: Any, kwargs: Any) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            raise ValueError("scoped edits read tokens: call the model with input_ids")
        cache = kwargs.get("past_key_values")  # its name up to transformers 5
        cache = kwargs.get("cache") if cache is None else cache
        length = cache.get_seq_length() if cache is not None else 0
        if not length:
            self._tokens = tokens
        elif self._tokens is None or self._tokens.shape[1] != length:
            raise ValueError("the cache was filled without these hooks: begin with an empty one")
        else:
            self._tokens = torch.cat([self._tokens, tokens], 1)
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            mask = torch.ones_like(self._tokens)
        self._real = mask[:, : self._tokens.shape[1]].bool()

    def _read_question(self, module: Any, args: Any, kwargs: Any) -> None:
        self._question = args[0] if args else kwargs["hidden_states"]

    def _find_match(self, module: Any, args: Any, kwargs: Any) -> None:
        z, a = args[0] if args else kwargs["hidden_states"], self._arrays
        keys = a["keys"].chunk(2, -1)
        subject = self._cosines("subject", z, keys[0]) - a["threshold"][:, :1]
        mentioned, answered = self._mentioned(z.shape[1])
        bonus = torch.where(mentioned, a["mention"], 0.0)
        subject = subject + torch.where(answered, -torch.inf, bonus)[..., None]
        question = self._cosines("question", self._question, keys[1]) - a["threshold"][:, 1:]
        scores = torch.where(a["mask"], torch.minimum(subject, question), -torch.inf).amax(-1)
        matching = torch.where(scores > 0, scores, -torch.inf)
        best = matching.amax(-1, keepdim=True)
        equal = (matching > best - TIE) & (matching > -torch.inf)
        priority = torch.where(equal, self._arrays["priority"], -1)
        first = equal & (priority == priority.amax(-1, keepdim=True))
        row = torch.where(first, matching, -torch.inf).argmax(-1)
        self.match, self._edited = torch.where(best[..., 0] > -torch.inf, row, -1), None

    def _keep_keys(self, signature: inspect.Signature, cache: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.arguments[cache] = _KeptKeys(bound.arguments.get(cache))
            return bound.args, bound.kwargs

        return hook

    def _edited_stream(self, signature: inspect.Signature, cache: str, is_last: bool) -> Any:
        """A layer's second pass, under the edits, with the keys and values of the first."""

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            if not (self.match >= 0).any():
                return output
            bound = signature.bind(*args, **kwargs)
            if self._edited is not None:
                bound.arguments["hidden_states"] = self._edited
            bound.arguments[cache].again = self._is_editing = True
            edited = module.forward(*bound.args, **bound.kwargs)
            self._is_editing = False
            self._edited = edited[0] if isinstance(edited, tuple) else edited
            if not is_last:
                return output
            states = output[0] if isinstance(output, tuple) else output
            states = torch.where((self.match >= 0)[..., None], self._edited, states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    def _cosines(self, head: str, z: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Cosines of each projected state with the keys of each fact [B, T, F, R]."""
        f = {name: self._arrays[f"{head}.{name}"] for name in _PROJECTION}
        x = (z.float() - f["center"]) / f["spread"]
        x = torch.nn.functional.gelu(x @ f["w1"] + f["b1"]) @ f["w2"] + f["b2"]
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)
        return torch.einsum("btk,frk->btfr", x, keys)

    def _mentioned(self, n_new: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each of the last tokens comes after a name of each fact's subject [B, T, F].

        Both are in one sentence. And whether the fact's answer, where its edit ends, ends there or
        at the token before.
        """
        a, tokens, real = self._arrays, self._tokens, self._real
        tokens = tokens.clamp(max=len(a["whole"]) - 1)  # ids that the tokenizer does not have
        batch, size = tokens.shape
        place = torch.arange(size, device=tokens.device)
        at = torch.where(real, real.cumsum(1) - 1, size)
        ordered = torch.zeros(batch, size + 1, dtype=tokens.dtype, device=tokens.device)
        ordered = ordered.scatter(1, at, tokens)[:, :size]
        count = real.sum(1, keepdim=True)
        ends = self._runs(ordered) & (place < count)[..., None]  # [B, S, U]
        after = torch.roll(ordered, -1, 1)
        goes_on = a["continues"][after] & a["is_open"][ordered]
        closed = ~goes_on | (place + 1 >= count)
        stops = a["stops"][ordered] & a["starts"][after]
        sentence = (stops.cumsum(1) - stops.long()).clamp(max=SENTENCES - 1)  # [B, S]
        position = at[:, -n_new:].clamp(max=size - 1)
        own = sentence.gather(1, position)[..., None]  # [B, T, 1]
        known = torch.zeros_like(ends[:, :1])  # [B, T, U]
        for number in range(SENTENCES):
            inside = ends & (closed & (sentence == number))[..., None]
            first = torch.where(inside, place[:, None] + 1, _NEVER).amin(1, keepdim=True)
            known = known | ((own == number) & (first <= position[..., None]))
        here = ends.gather(1, position[..., None].expand(-1, -1, ends.shape[-1]))
        known = known | here
        own = a["of_fact"]  # [F, V]
        answer = a["answer"]  # [F]
        before = ends.gather(
            1, (position - 1).clamp(min=0)[..., None].expand(-1, -1, ends.shape[-1])
        )
        before = here | (before & (position > 0)[..., None])
        answered = before[..., answer.clamp(min=0)] & (answer >= 0)
        return (known[..., own.clamp(min=0)] & (own >= 0)).any(-1), answered

    def _runs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whether a run of tokens with the text of each name ends at each token [B, S, U]."""
        a = self._arrays
        place = torch.arange(tokens.shape[1], device=tokens.device)
        rest, power = torch.zeros_like(tokens), torch.ones_like(tokens)
        ends = torch.zeros(*tokens.shape, len(a["names"]), dtype=torch.bool, device=tokens.device)
        for length in range(1, min(MAX_TOKENS, tokens.shape[1]) + 1):
            start, before = torch.roll(tokens, length - 1, 1), torch.roll(tokens, length, 1)
            begins = ~(a["continues"][start] & a["is_open"][before]) | (place == length - 1)
            text = (a["bare"][start] * power + rest) & _BITS
            real = begins & (place >= length - 1)
            ends |= (text[..., None] == a["names"]) & real[..., None]
            rest = (a["whole"][start] * power + rest) & _BITS
            power = (power * a["power"][start]) & _BITS
        return ends

    def _edit(self, a_name: str, b_name: str) -> Any:
        def hook(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
            match, x = self.match, args[0]
            if not self._is_editing:
                return y
            row = match.clamp(min=0)
            a, b = (self._arrays[name][row].to(x.dtype) for name in (a_name, b_name))
            change = torch.einsum("btn,btno->bto", torch.einsum("btd,btnd->btn", x, a), b)
            return torch.where((match >= 0)[..., None], y + change, y)

        return hook


def apply_bank(model: Any, path: str) -> ScopedBank:
    """Put the hooks of an exported bank onto a model, and return them."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: format {metadata.get('format')!r} is not {FORMAT!r}")
    return ScopedBank(model, arrays, metadata)
