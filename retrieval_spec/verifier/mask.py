"""Attention mask of draft trees, in the two forms that the host's attention code takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_spec.verifier.layout import Layout


def ancestors(parents: list[int]) -> NDArray[np.bool_]:
    """Returns bool[n, n]: which nodes lie on the path from the root to each node, itself included.

    parents = [-1, 0, 1, 1] gives

        1 0 0 0
        1 1 0 0
        1 1 1 0
        1 1 0 1
    """
    visible = np.eye(len(parents), dtype=np.bool_)
    for node in range(1, len(parents)):
        visible[node] |= visible[parents[node]]
    return visible


def tree_mask(
    layouts: Sequence[Layout | None],
    lengths: Sequence[int],
    width: int,
    *,
    first: int = 0,
    window_tokens: int | None = None,
    padding: Any = None,
) -> Any:
    """Returns bool[rows, 1, n, width]: True where a node attends to a key; n nodes has the largest tree.

    A row's keys are its `lengths[row]` tokens; the nodes stand behind the longest row's. Nodes that only
    fill a row up see themselves, so that their softmax has something to sum.

    Args:
        layouts: the nodes of every row; None for a row without any.
        lengths: tokens that every row has in the cache.
        width: keys that the attention finds.
        first: place of the first of these keys.
        window_tokens: a token sees those less than so many places before it.
        padding: bool[rows, m], False at padded ones of the first m tokens, or None where there are none.
    """
    num_nodes = max(len(layout) for layout in layouts if layout is not None)
    mask = np.zeros((len(layouts), num_nodes, width), np.bool_)
    own = max(lengths) - first
    for row, layout in enumerate(layouts):
        known_nodes = 0 if layout is None else len(layout)
        if layout is not None:
            past = mask[row, :known_nodes, : lengths[row] - first]
            past[:] = True
            if padding is not None and padding.shape[1] > first:
                past[:, : padding.shape[1] - first] &= padding[row, first:]
            tree = mask[row, :known_nodes, own : own + known_nodes]
            tree[:] = ancestors(layout.parents)
            if window_tokens is not None:
                _hide(past, tree, np.array(layout.depths), lengths[row] - first, window_tokens)
        fill = np.arange(known_nodes, num_nodes)
        mask[row, fill, own + fill] = True
    return torch.from_numpy(mask)[:, None]


def _hide(
    past: NDArray[np.bool_],
    tree: NDArray[np.bool_],
    depths: NDArray[np.int64],
    length: int,
    window_tokens: int,
) -> None:
    """Hides keys outside the window: counted in places of the path, not in places of the pass."""
    oldest = length + depths - window_tokens + 1
    past &= np.arange(past.shape[1]) >= oldest[:, None]
    tree &= depths[:, None] - depths < window_tokens


def additive(mask: Any, dtype: Any) -> Any:
    """Returns the mask as eager attention wants it: 0 to attend, the lowest number of `dtype` to not.

    Eager attention adds whatever it gets to the scores: a boolean mask would be silently wrong.
    """
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)
