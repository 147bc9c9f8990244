"""A Hugging Face model as a draft model: its distributions after drafted paths, one pass a layer of the tree.

Behind the context's keys the cache holds those of the drafted nodes, until the next draft begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.model_tree import Path
from retrieval_spec.tree import Float32s, Tokens
from retrieval_spec.verifier.cache import cut_back, window_tokens
from retrieval_spec.verifier.mask import additive
from retrieval_spec.verifier.support import check_model


class HuggingFaceDraftModel:
    """A small causal model; shared by sessions of one thread.

    Its ids are the target's, unless it drafts through text (`drafters.text_model`).

    Args:
        model: the model, in evaluation mode, with sdpa or eager attention.
        temperature: divides the logits; where children are drawn at random, the target's is a good choice.
        tokenizer_fingerprint: of the model's tokenizer, if known: then it is compared with the target's.

    Raises:
        UnsupportedModel: no causal model, or one whose cache cannot go back.
        InvalidRequest: a temperature that is not positive.
    """

    def __init__(self, model: Any, temperature: float = 1.0, tokenizer_fingerprint: str = "") -> None:
        check_model(model)
        if not temperature > 0:
            raise InvalidRequest("a draft model needs a positive temperature", got=temperature)
        self.model = model
        self.temperature = temperature
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.config = model.config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int:
        """Its distributions have that many entries."""
        return int(self.config.vocab_size)

    def start(self) -> HuggingFacePredictions:
        """Returns predictions for a session that has observed nothing."""
        return HuggingFacePredictions(self)


class HuggingFacePredictions:
    """One session's cache of a draft model; owned by that session, not thread-safe."""

    def __init__(self, draft_model: HuggingFaceDraftModel) -> None:
        self._model = draft_model.model
        self._temperature = draft_model.temperature
        self._is_eager = draft_model.config._attn_implementation == "eager"
        self._cache = DynamicCache(config=draft_model.config)
        limits = (window_tokens(self._cache.layers), draft_model.config.max_position_embeddings)
        self._limit_tokens = min(limit for limit in limits if limit is not None)
        accepted = inspect.signature(self._model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._tokens: list[int] = []
        self._read_tokens = 0
        self._places: dict[Path, int] = {}  # path -> its node's place behind the context's keys
        self._first_probs: Float32s = np.zeros((0, 0), np.float32)

    def observe(self, tokens: Tokens) -> None:
        """Notes committed tokens; the next draft reads them."""
        self._tokens.extend(tokens.tolist())

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` observed tokens."""
        del self._tokens[length:]
        if self._read_tokens >= length:
            # The last token is read again: what follows it is no longer known.
            self._read_tokens = max(length - 1, 0)
            cut_back(self._cache, self._read_tokens)
            self._places = {}

    def next_probs(self, paths: Sequence[Path]) -> Float32s:
        """Returns float32[n, vocab_size], the next-token distribution after the context and each path.

        Raises:
            LimitExceeded: the context is longer than the model can read.
        """
        with torch.inference_mode():
            if paths[0] == ():
                self._read_context()
                return self._first_probs
            return self._read_layer(paths)

    def _read_context(self) -> None:
        """Drops the last draft's nodes and reads what was committed since."""
        if self._places:
            cut_back(self._cache, self._read_tokens)
            self._places = {}
        positions = range(self._read_tokens, len(self._tokens))
        if not positions:
            return
        self._check_room(positions.stop)
        logits = self._forward(self._tokens[positions.start :], positions, None, **self._only_last)
        self._read_tokens = positions.stop
        self._first_probs = self._softmax(logits[-1:])

    def _read_layer(self, paths: Sequence[Path]) -> Float32s:
        positions = [self._read_tokens + len(path) - 1 for path in paths]
        self._check_room(max(positions) + 1)
        known_nodes = len(self._places)
        self._places.update({path: known_nodes + index for index, path in enumerate(paths)})
        visible = np.zeros((len(paths), self._read_tokens + len(self._places)), np.bool_)
        visible[:, : self._read_tokens] = True
        for row, path in enumerate(paths):
            for length in range(1, len(path) + 1):
                visible[row, self._read_tokens + self._places[path[:length]]] = True
        mask = torch.from_numpy(visible)[None, None]
        return self._softmax(self._forward([path[-1] for path in paths], positions, mask))

    def _check_room(self, num_tokens: int) -> None:
        if num_tokens > self._limit_tokens:
            raise LimitExceeded(
                "the context is too long for the draft model",
                got=f"{num_tokens} tokens",
                expected=f"<= {self._limit_tokens}",
            )

    def _forward(self, token_ids: Sequence[int], positions: Sequence[int], mask: Any, **options: Any) -> Any:
        device = self._model.device
        if mask is not None and self._is_eager:
            mask = additive(mask, self._model.dtype)
        outputs = self._model(
            input_ids=torch.tensor([list(token_ids)], device=device),
            position_ids=torch.tensor([list(positions)], device=device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **options,
        )
        return outputs.logits[0]

    def _softmax(self, logits: Any) -> Float32s:
        probs: Float32s = torch.softmax(logits.float() / self._temperature, dim=-1).cpu().numpy()
        return probs
