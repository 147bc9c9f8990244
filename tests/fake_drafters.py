"""Small real drafters for tests of the layers above: simple enough to predict by hand."""

from __future__ import annotations

import numpy as np

from retrieval_spec.drafters.base import Budget
from retrieval_spec.feedback import Feedback
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree, Tokens


class CountingDrafter:
    """Drafts the context's last token plus 1, plus 2, ... as one chain of probability `prob`."""

    def __init__(self, vocab_size: int, prob: float = 0.5) -> None:
        self.vocab_size = vocab_size
        self.prob = prob

    def start(self, context: Tokens, namespace: str = "default") -> CountingCursor:
        cursor = CountingCursor(self)
        cursor.observe(context)
        return cursor


class CountingCursor:
    def __init__(self, drafter: CountingDrafter) -> None:
        self.drafter = drafter
        self.seen: list[int] = []

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        self.seen.extend(tokens.tolist())

    def close(self) -> None:
        pass

    def propose(self, budget: Budget) -> DraftTree:
        if not self.seen:
            return DraftTree.empty()
        length = min(budget.max_nodes, budget.max_depth_nodes)
        chain = (self.seen[-1] + 1 + np.arange(length)) % self.drafter.vocab_size
        return DraftTree.chain(chain.tolist(), [self.drafter.prob] * length)


class TaughtDrafter:
    """Drafts what the newest feedback said of its last node, then its hidden state and phrases as tokens."""

    wanted_topk = 2
    projection = Projection(
        np.zeros(5, np.float32), np.ones(5, np.float32), np.eye(3, 5, dtype=np.float32), "a model"
    )

    def start(self, context: Tokens, namespace: str = "default") -> TaughtCursor:
        return TaughtCursor()


class TaughtCursor:
    def __init__(self) -> None:
        self.chain: list[int] = []

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        feedback = feedback or Feedback()
        parts = (feedback.topk_ids[-1:], feedback.topk_logprobs < 0, feedback.hidden_state, feedback.phrases)
        self.chain = [int(value) for part in parts for value in part.ravel()]

    def close(self) -> None:
        pass

    def propose(self, budget: Budget) -> DraftTree:
        return DraftTree.chain(self.chain[: budget.max_nodes], [0.9] * len(self.chain[: budget.max_nodes]))
