"""The key-value cache: which ones can be cut back to accepted paths, and the cutting itself.

Places are counted in tokens of a row, padding included. A row holds its tokens at places 0 to its length; a
pass puts its nodes behind the longest row, at the same places in all rows; what stands between a shorter
row's length and there is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from retrieval_spec.errors import UnsupportedModel

Path = Sequence[int]
_DYNAMIC = (DynamicLayer, DynamicSlidingWindowLayer)
_STATIC = (StaticLayer, StaticSlidingWindowLayer)


def check_cache(cache: Any) -> None:
    """Refuses a cache whose entries are not one plain row a token.

    Raises:
        UnsupportedModel: a quantised or offloaded cache, or a recurrent layer in it.
    """
    if type(cache) not in (DynamicCache, StaticCache) or cache.offloading:
        raise UnsupportedModel(
            "draft trees need a plain cache",
            got=type(cache).__name__ + (", offloaded" if getattr(cache, "offloading", False) else ""),
            expected="a DynamicCache or a StaticCache that is not offloaded",
            remedy="leave cache_implementation out",
        )
    check_layers(cache.layers)


def check_layers(layers: list[Any]) -> None:
    """Refuses cache layers that cannot go back to an accepted path.

    Raises:
        UnsupportedModel: a layer with recurrent state or a form that this version does not know.
    """
    for index, layer in enumerate(layers):
        if type(layer) not in _DYNAMIC + _STATIC:
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


def capacity_tokens(cache: Any) -> int | None:
    """Returns how many keys a row may have, or None for a cache that grows."""
    sizes = [layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer)]
    return min(sizes, default=None)


@dataclass(slots=True)
class Kind:
    """Layers that see the same keys.

    Attributes:
        window_tokens: a token sees those less than so many tokens before it; None if it sees all.
        layers: their indices.
        first: place of the first key that they still hold.
    """

    window_tokens: int | None
    layers: list[int]
    first: int = 0


class PathCache:
    """A cache after the prompt's pass, in which the rows of a batch go different ways.

    Args:
        cache: a cache that passed `check_cache` and holds the prompts.
        windows: of every layer of the model, None for one that sees everything.
        num_rows: sequences.
        length: tokens that every row holds.
        is_seen_later: whether the caller gets the cache: then all rows stay whole to the end.

    Attributes:
        lengths: of every row; 0 for one that is finished and that nobody looks at.
        kinds: the layers by what they see.
    """

    def __init__(
        self, cache: Any, windows: Sequence[int | None], num_rows: int, length: int, is_seen_later: bool
    ) -> None:
        self._cache = cache
        self._is_seen_later = is_seen_later
        self._replaced: dict[int, Any] = {}
        self.capacity = capacity_tokens(cache)
        self.lengths = [length] * num_rows
        self.kinds = [
            Kind(window, [index for index, own in enumerate(windows) if own == window])
            for window in dict.fromkeys(windows)
        ]
        for kind in self.kinds:
            self._keep_more_than_the_window(kind, length)

    @property
    def end(self) -> int:
        """The place of a pass's first node."""
        return max(self.lengths)

    def width(self, kind: Kind, num_nodes: int) -> int:
        """Returns how many keys the host's attention finds in a pass over so many nodes."""
        layer = self._cache.layers[kind.layers[0]]
        return layer.max_cache_len if self.capacity is not None else self.end - kind.first + num_nodes

    def keep(self, paths: Sequence[Path | None], num_nodes: int, finished: Sequence[int] = ()) -> None:
        """Cuts all rows to what they held before the pass and the nodes of their accepted paths.

        Args:
            paths: the accepted nodes of every row, the root first, ascending; None leaves a row as it was.
            num_nodes: nodes of the pass.
            finished: rows that nobody continues.
        """
        end = self.end
        moves = _moves(paths, self.lengths, end)
        for row, path in enumerate(paths):
            self.lengths[row] += len(path or ())
        for row in () if self._is_seen_later else finished:
            self.lengths[row] = 0
        new_end = self.end
        if new_end == 0:
            return
        if not moves and new_end == end + num_nodes and self.capacity is None and not self._trims:
            return
        for kind in self.kinds:
            _move(self._layers(kind), moves, len(paths), kind.first)
            if self.capacity is None:
                self._cut(kind, new_end)
        if self.capacity is not None:
            self._set_length(new_end)

    def give_back(self) -> None:
        """Gives layers with a window the form in which the host left them."""
        for index, window in self._replaced.items():
            held = self._cache.layers[index]
            layer = DynamicSlidingWindowLayer(window)
            layer.lazy_initialization(held.keys, held.values)
            layer.keys, layer.values = held.keys[:, :, 1 - window :], held.values[:, :, 1 - window :]
            layer.cumulative_length = self.end
            self._cache.layers[index] = layer
        self._replaced = {}

    @property
    def _trims(self) -> bool:
        return bool(self._replaced)

    def _layers(self, kind: Kind) -> list[Any]:
        return [self._cache.layers[index] for index in kind.layers]

    def _keep_more_than_the_window(self, kind: Kind, length: int) -> None:
        """Replaces layers that would forget keys which a shorter path or row still needs."""
        for index in kind.layers:
            layer = self._cache.layers[index]
            if type(layer) is not DynamicSlidingWindowLayer:
                continue
            held = DynamicLayer()
            held.lazy_initialization(layer.keys, layer.values)
            held.keys, held.values = layer.keys, layer.values
            kind.first = length - layer.keys.shape[-2]
            self._replaced[index] = layer.sliding_window
            self._cache.layers[index] = held

    def _cut(self, kind: Kind, end: int) -> None:
        """Drops what stands behind all rows, and before everything that a window still reaches."""
        start = 0
        if kind.window_tokens is not None and kind.layers[0] in self._replaced:
            shortest = min([length for length in self.lengths if length], default=end)
            start = max(shortest - kind.window_tokens + 1 - kind.first, 0)
        for layer in self._layers(kind):
            layer.keys = layer.keys.narrow(-2, start, end - kind.first - start)
            layer.values = layer.values.narrow(-2, start, end - kind.first - start)
        kind.first += start

    def _set_length(self, length: int) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(length)
            if type(layer) is StaticSlidingWindowLayer:
                layer.cumulative_length_int = length


def _moves(paths: Sequence[Path | None], lengths: Sequence[int], end: int) -> list[tuple[int, int, int]]:
    """Returns row, place and new place of every accepted node that is not where it belongs."""
    return [
        (row, end + node, length + depth)
        for row, (path, length) in enumerate(zip(paths, lengths, strict=True))
        for depth, node in enumerate(path or ())
        if end + node != length + depth
    ]


def _move(layers: list[Any], moves: list[tuple[int, int, int]], num_rows: int, first: int) -> None:
    if not moves:
        return
    device = layers[0].keys.device
    rows, sources, targets = torch.tensor(moves, device=device).unbind(1)
    sources, targets = sources - first, targets - first
    for layer in layers:
        for states in (layer.keys, layer.values):
            # The pass has just written `states`: nobody else holds it, and only its tail moves.
            if num_rows == 1:
                states.index_copy_(-2, targets, states.index_select(-2, sources))
            else:
                states[rows, :, targets] = states[rows, :, sources]


def cut_back(cache: Any, num_tokens: int) -> None:
    """Cuts a growing cache of one row to its first `num_tokens` keys."""
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        layer.keys = layer.keys.narrow(-2, 0, num_tokens)
        layer.values = layer.values.narrow(-2, 0, num_tokens)
        if layer.is_sliding:
            layer.cumulative_length = num_tokens
