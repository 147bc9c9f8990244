"""Drafts from a draft model: the most probable paths of its own next-token distributions.

The model is an object of whoever opens the drafter (`model_tree.DraftModel`), so that no model library
is needed here; `verifier.HuggingFaceDraftModel` is one.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.drafters.base import Budget
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.model_tree import (
    THROUGH_TEXT,
    DraftModel,
    Growth,
    Predictions,
    check_same_ids,
    fingerprint_of,
    grow,
)
from retrieval_spec.tree import TOKEN, DraftTree, Float32s, Tokens

_NO_PROBS: Float32s = np.zeros(0, np.float32)


class ModelDrafter:
    """A draft model as a source of drafts, its own probabilities as `probs`; shares the model."""

    def __init__(self, model: DraftModel, growth: Growth) -> None:
        self._model = model
        self._growth = growth

    @classmethod
    def open(
        cls,
        vocab_size: int,
        model: DraftModel | None = None,
        growth: Growth | None = None,
        tokenizer_fingerprint: str = "",
    ) -> ModelDrafter:
        """Returns the drafter.

        Args:
            vocab_size: the target model's.
            model: draws up the distributions; its ids mean the target's tokens.
            growth: when a tree is deep enough.
            tokenizer_fingerprint: the target model's, if known.

        Raises:
            InvalidRequest: no model, or one with a larger vocabulary.
            TokenizerMismatch: its ids are known to mean other text.
        """
        if model is None:
            raise InvalidRequest(
                "the source needs a draft model", remedy="pass a preset made with one: preset=opt_tree(model)"
            )
        check_same_ids(fingerprint_of(model), tokenizer_fingerprint)
        if model.vocab_size > vocab_size:
            raise InvalidRequest(
                "the draft model has a larger vocabulary than the target model",
                got=model.vocab_size,
                expected=f"<= {vocab_size}",
                remedy=THROUGH_TEXT,
            )
        return cls(model, growth or Growth())

    def start(self, context: Tokens, namespace: str = "default") -> ModelCursor:
        """Returns a cursor that has observed `context`."""
        return ModelCursor(self._model, self._growth, context)


class ModelCursor:
    """One session's predictions; owned by that session, not thread-safe.

    Attributes:
        first_probs: float32[v]  the model's distribution of the next token at the last draft; empty
            where the model was not asked.
    """

    __slots__ = ("_growth", "_is_empty", "_predictions", "_vocab_size", "first_probs")

    def __init__(self, model: DraftModel, growth: Growth, context: Tokens) -> None:
        self._vocab_size = model.vocab_size
        self._growth = growth
        self._predictions: Predictions = model.start()
        self._is_empty = True
        self.first_probs = _NO_PROBS
        self.observe(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Notes committed tokens; the model reads them when it is asked."""
        if tokens.shape[0]:
            self._is_empty = False
            self._predictions.observe(tokens.astype(TOKEN))

    def close(self) -> None:
        """Does nothing: the predictions end with the cursor."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths.

        Raises:
            InvalidDistribution: the model's numbers are no probabilities.
        """
        self.first_probs = _NO_PROBS
        if budget.max_nodes <= 0 or self._is_empty:
            return DraftTree.empty()
        depth_nodes = min(self._growth.max_depth_nodes, budget.max_depth_nodes)
        growth = Growth(self._growth.min_gain_tokens, depth_nodes)
        grown = grow(self._predictions, self._vocab_size, budget.max_nodes, growth)
        self.first_probs = grown.first_probs
        return grown.tree
