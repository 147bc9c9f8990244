"""What a cursor lends to a kernel: scratch memory, and columns for the nodes that it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.drafters.base import own_source
from retrieval_spec.tree import TOKEN, DraftTree, Float32s, Int32s, Tokens

Columns = tuple[Tokens, Int32s, Float32s]
"""Token ids, parents and probabilities, one of each a node."""


def new_columns(max_nodes: int) -> Columns:
    """Returns room for so many nodes."""
    return np.empty(max_nodes, TOKEN), np.empty(max_nodes, np.int32), np.empty(max_nodes, np.float32)


def tree_of(columns: Columns, size: int) -> DraftTree:
    """Returns the first `size` nodes as a cursor proposes them; costs no copy."""
    token_ids, parents, probs = columns
    if size < token_ids.shape[0]:
        token_ids, parents, probs = token_ids[:size], parents[:size], probs[:size]
    return DraftTree(token_ids, parents, probs, own_source(size))


def with_room(scratch: NDArray[Any], num_words: int) -> NDArray[Any]:
    """Returns scratch memory of at least so many words: the same if it has them, else other, empty one."""
    return scratch if scratch.shape[0] >= num_words else np.empty(num_words, scratch.dtype)
