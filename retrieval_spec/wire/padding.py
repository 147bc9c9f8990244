"""Answers of one size: columns over nodes filled up, so that the size does not tell how much was drafted."""

from __future__ import annotations

import numpy as np

from retrieval_spec.v1.draft_pb2 import DraftStepResult
from retrieval_spec.wire.columns import INT32

NODE_BYTES = {"token_ids": 4, "parents": 4, "probs": 4, "sources": 2}
"""Columns over nodes, and the size of an entry."""


def pad(result: DraftStepResult, num_nodes: int) -> None:
    """Fills the columns over nodes up to so many."""
    for name, size in NODE_BYTES.items():
        setattr(result, name, getattr(result, name).ljust(size * num_nodes, b"\0"))


def unpad(result: DraftStepResult) -> None:
    """Cuts off what `pad` filled in; `read_result` checks what is left."""
    counts = np.frombuffer(result.node_counts[: len(result.node_counts) // 4 * 4], INT32)
    num_nodes = max(0, int(counts.sum(dtype=np.int64)))
    for name, size in NODE_BYTES.items():
        setattr(result, name, getattr(result, name)[: size * num_nodes])
