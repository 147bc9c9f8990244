"""The target model in one generation: prefill, one pass over a draft tree, cutting the cache to the path.

The only module that calls the model; knows nothing of drafting or of how tokens are chosen.
"""

from __future__ import annotations

from typing import Any

import torch

from retrieval_spec.verifier.cache import check_cache, keep_path
from retrieval_spec.verifier.layout import Layout
from retrieval_spec.verifier.mask import additive, tree_mask


class Target:
    """A model, its cache and where the next token stands; owned by one generation.

    Args:
        model: a model that passed `support.check_model`.
        model_inputs: what the host prepared for its forward pass beside the token ids, and that passed
            `support.check_request`.
    """

    def __init__(self, model: Any, model_inputs: dict[str, Any]) -> None:
        self.cache = model_inputs["past_key_values"]
        self._model = model
        self._inputs = model_inputs
        self._is_eager = model.config.get_text_config(decoder=True)._attn_implementation == "eager"
        mask = model_inputs.get("attention_mask")
        self._padding = None if mask is None else mask[0].bool().cpu()
        # Padding shifts positions against cache rows.
        self._position_shift = (
            int(model_inputs["position_ids"][0, -1]) + 1 - self._inputs["position_ids"].shape[1]
        )
        self.past_tokens = 0

    def prefill(self, input_ids: Any, chunk_tokens: int | None) -> Any:
        """Forwards the prompt's tokens that are not in the cache yet; returns logits[1, vocab_size]."""
        length = input_ids.shape[1]
        start = self.cache.get_seq_length()
        step = chunk_tokens or length - start
        for begin in range(start, length, step):
            end = min(begin + step, length)
            mask = self._inputs.get("attention_mask")
            logits = self._forward(
                input_ids[:, begin:end],
                self._inputs["position_ids"][:, begin:end],
                None if mask is None else mask[:, :end],
                {"logits_to_keep": 1} if "logits_to_keep" in self._inputs else {},
            )
        check_cache(self.cache)  # a cache made by hand gets its layers in the first pass
        self.past_tokens = length
        return logits[-1:]

    def verify(self, layout: Layout) -> Any:
        """Forwards the root and its draft tree; returns logits[n, vocab_size]."""
        base = self.past_tokens + self._position_shift
        return self._forward(
            torch.tensor([layout.token_ids]),
            torch.tensor([[base + depth for depth in layout.depths]]),
            self._mask(layout),
            {},
        )

    def keep(self, path: list[int], num_nodes: int) -> None:
        """Cuts the cache to the accepted path of the last pass."""
        keep_path(self.cache, self.past_tokens, path, num_nodes)
        self.past_tokens += len(path)

    def _mask(self, layout: Layout) -> Any:
        padding = self._padding
        if len(layout) == 1 and padding is None:
            return None  # one token sees everything: the plain pass of the host
        if padding is not None:
            grown = torch.ones(self.past_tokens, dtype=torch.bool)
            grown[: padding.shape[0]] = padding
            padding = grown
        mask = tree_mask(layout, self.past_tokens, padding)
        return additive(mask, self._model.dtype) if self._is_eager else mask

    def _forward(self, input_ids: Any, position_ids: Any, mask: Any, extra: dict[str, Any]) -> Any:
        device = self._model.device
        outputs = self._model(
            input_ids=input_ids.to(device),
            position_ids=position_ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **extra,
        )
        return outputs.logits[0]
