"""The target model in one generation: prefill, one pass over draft trees, cutting the cache to the paths.

The only module that calls the model; knows nothing of drafting or of how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from retrieval_spec.verifier.cache import PathCache, check_cache
from retrieval_spec.verifier.layout import Layout
from retrieval_spec.verifier.mask import additive, tree_mask


class Target:
    """A model, its cache and where the next tokens stand; owned by one generation of some rows.

    Args:
        model: a model that passed `support.check_model`.
        model_inputs: what the host prepared for its forward pass beside the token ids, and that passed
            `support.check_request`.
        is_cache_seen: whether the caller gets the cache afterwards.
    """

    def __init__(self, model: Any, model_inputs: dict[str, Any], is_cache_seen: bool = True) -> None:
        self.cache = model_inputs["past_key_values"]
        self._model = model
        self._inputs = model_inputs
        self._is_cache_seen = is_cache_seen
        self._config = model.config.get_text_config(decoder=True)
        self._is_eager = self._config._attn_implementation == "eager"
        layers = DynamicCache(config=self._config).layers
        self._windows = [getattr(layer, "sliding_window", None) for layer in layers]
        mask = model_inputs.get("attention_mask")
        self._padding = None if mask is None else mask.bool().cpu().numpy()
        # Padding shifts positions against places in the cache.
        positions = model_inputs["position_ids"]
        self._position_shifts = (positions[:, -1] + 1 - positions.shape[1]).tolist()
        self._paths: PathCache | None = None

    def prefill(self, input_ids: Any, chunk_tokens: int | None) -> Any:
        """Forwards the prompts' tokens that are not in the cache yet; returns logits[rows, vocab_size]."""
        num_rows, length = input_ids.shape
        start = int(self.cache.get_seq_length())
        step = chunk_tokens or length - start
        for begin in range(start, length, step):
            end = min(begin + step, length)
            mask = self._inputs.get("attention_mask")
            logits = self._forward(
                input_ids[:, begin:end],
                self._inputs["position_ids"][:, begin:end],
                None if mask is None else mask[:, :end].to(self._model.device),
                {"logits_to_keep": 1} if "logits_to_keep" in self._inputs else {},
            )
        check_cache(self.cache)  # a cache made by hand gets its layers in the first pass
        self._paths = PathCache(self.cache, self._windows, num_rows, length, self._is_cache_seen)
        self._position_shifts *= num_rows // len(self._position_shifts)
        return logits[:, -1]

    @property
    def max_nodes(self) -> int:
        """Nodes beside the root that the cache has room for."""
        assert self._paths is not None
        return 2**31 - 1 if self._paths.capacity is None else self._paths.capacity - self._paths.end - 1

    def verify(self, layouts: Sequence[Layout | None]) -> Any:
        """Forwards every row's root and draft tree; returns logits[rows, n, vocab_size]."""
        assert self._paths is not None
        num_nodes = max(len(layout) for layout in layouts if layout is not None)
        tokens, positions = [], []
        for row, layout in enumerate(layouts):
            base = self._paths.lengths[row] + self._position_shifts[row]
            fill = [0] * (num_nodes - (0 if layout is None else len(layout)))
            tokens.append(fill if layout is None else layout.token_ids + fill)
            positions.append(fill if layout is None else [base + depth for depth in layout.depths] + fill)
        return self._forward(torch.tensor(tokens), torch.tensor(positions), self._masks(layouts), {})

    def keep(self, paths: Sequence[Sequence[int] | None], num_nodes: int, finished: Sequence[int]) -> None:
        """Cuts the cache to the accepted paths of the last pass, and forgets rows that are finished."""
        assert self._paths is not None
        self._paths.keep(paths, num_nodes, finished)

    def finish(self) -> None:
        """Gives the cache the form that the host knows."""
        if self._paths is not None and self._is_cache_seen:
            self._paths.give_back()

    def _masks(self, layouts: Sequence[Layout | None]) -> Any:
        """Returns what the host takes: None, one mask, or one for each type of layers."""
        paths = self._paths
        assert paths is not None
        num_nodes = max(len(layout) for layout in layouts if layout is not None)
        if len(layouts) == num_nodes == 1 and self._padding is None and self._sees_all():
            return None  # the plain pass of the host
        masks = {}
        for kind in paths.kinds:
            mask = tree_mask(
                layouts,
                paths.lengths,
                paths.width(kind, num_nodes),
                first=kind.first,
                window_tokens=kind.window_tokens,
                padding=self._padding,
            )
            mask = additive(mask, self._model.dtype) if self._is_eager else mask
            masks[kind.window_tokens] = mask.to(self._model.device)
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {
            name: masks[window] for name, window in zip(self._config.layer_types, self._windows, strict=True)
        }

    def _sees_all(self) -> bool:
        """Whether one more token sees every key that is held, in all layers alike."""
        paths = self._paths
        assert paths is not None
        if paths.capacity is not None or len(paths.kinds) > 1:
            return False
        window, held = paths.kinds[0].window_tokens, paths.end - paths.kinds[0].first
        return window is None or held < window

    def _forward(self, input_ids: Any, position_ids: Any, mask: Any, extra: dict[str, Any]) -> Any:
        device = self._model.device
        outputs = self._model(
            input_ids=input_ids.to(device),
            position_ids=position_ids.to(device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **extra,
        )
        return outputs.logits
