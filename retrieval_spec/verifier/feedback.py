"""What a verified step teaches the sources: the target's most probable tokens at every node.

The selection runs where the logits are; only ids travel. Knows no source and no session.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import TOKEN
from retrieval_spec.verifier.layout import Layout


class FeedbackCollector:
    """Collects what the sources of one generation ask for.

    Args:
        wanted_topk: ids a node; 0 collects nothing.
    """

    def __init__(self, wanted_topk: int) -> None:
        self._wanted_topk = wanted_topk

    def of(self, layout: Layout, logits: Any) -> Feedback | None:
        """Returns the feedback on one pass over `layout`, given its logits[n, vocab_size]."""
        if not self._wanted_topk:
            return None
        k = min(self._wanted_topk, logits.shape[-1])
        topk_ids = logits.topk(k, dim=-1).indices.to("cpu").numpy().astype(TOKEN)
        parents = np.array(layout.parents, np.int32)
        return Feedback(np.array(layout.token_ids, TOKEN), parents, topk_ids)
