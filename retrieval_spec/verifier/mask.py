"""Attention mask of a draft tree, in the two forms that the host's attention code takes."""

from __future__ import annotations

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


def tree_mask(layout: Layout, past_tokens: int, padding: Any) -> Any:
    """Returns bool[1, 1, n, past_tokens + n]: True where a node attends to a key.

    Args:
        layout: the nodes of the forward pass.
        past_tokens: keys in the cache.
        padding: bool[past_tokens], False at padded keys, or None where there are none.
    """
    num_nodes = len(layout)
    mask = torch.ones((1, 1, num_nodes, past_tokens + num_nodes), dtype=torch.bool)
    mask[0, 0, :, past_tokens:] = torch.from_numpy(ancestors(layout.parents))
    if padding is not None:
        mask[0, 0, :, :past_tokens] = padding
    return mask


def additive(mask: Any, dtype: Any) -> Any:
    """Returns the mask as eager attention wants it: 0 to attend, the lowest number of `dtype` to not.

    Eager attention adds whatever it gets to the scores: a boolean mask would be silently wrong.
    """
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)
