"""The key-value cache: which ones can be cut back to an accepted path, and the cutting itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from retrieval_spec.errors import UnsupportedModel


def check_cache(cache: Any) -> None:
    """Refuses a cache whose entries are not one plain row a token.

    Raises:
        UnsupportedModel: a static, quantised or offloaded cache, or a recurrent layer in it.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        raise UnsupportedModel(
            "draft trees need the plain dynamic cache",
            got=type(cache).__name__,
            expected="a DynamicCache that is not offloaded",
            remedy="leave cache_implementation out",
        )
    check_layers(cache.layers)


def check_layers(layers: list[Any]) -> None:
    """Refuses cache layers that cannot go back to an accepted path.

    Raises:
        UnsupportedModel: a layer with recurrent state or a form that this version does not know.
    """
    for index, layer in enumerate(layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedModel(
                f"the cache of layer {index} cannot be cut back to an accepted path",
                got=type(layer).__name__,
                expected="attention with one key a token in every layer",
                remedy="generate with this model without drafts",
            )


def window_tokens(layers: list[Any]) -> int | None:
    """Returns the smallest attention window of the layers, or None where all see everything."""
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    return min(windows, default=None)


def keep_path(cache: Any, past_tokens: int, path: list[int], num_nodes: int) -> None:
    """Cuts the cache to what it held before the pass and the nodes of the accepted path.

    Args:
        cache: a cache that passed `check_cache`, in which the pass left its nodes.
        past_tokens: keys before the pass.
        path: the accepted nodes, the root first, ascending.
        num_nodes: nodes of the pass.
    """
    if len(path) == num_nodes:
        return
    end = past_tokens + len(path)
    rows = None if path[-1] == len(path) - 1 else torch.tensor(path)
    for layer in cache.layers:
        if not layer.is_initialized:
            continue  # shares the keys of another layer
        layer.keys = _kept(layer.keys, past_tokens, end, rows)
        layer.values = _kept(layer.values, past_tokens, end, rows)
        if layer.is_sliding:
            layer.cumulative_length = end


def cut_back(cache: Any, num_tokens: int) -> None:
    """Cuts the cache to its first `num_tokens` keys."""
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        layer.keys = _kept(layer.keys, 0, num_tokens, None)
        layer.values = _kept(layer.values, 0, num_tokens, None)
        if layer.is_sliding:
            layer.cumulative_length = num_tokens


def _kept(states: Any, start: int, end: int, rows: Any) -> Any:
    if rows is not None:
        # The pass has just concatenated `states`: nobody else holds it, and only the tail moves.
        tail = states.narrow(-2, start, states.shape[-2] - start)
        states.narrow(-2, start, end - start).copy_(tail.index_select(-2, rows.to(states.device)))
    return states.narrow(-2, 0, end)
