"""What a verified step teaches the sources: the target's most probable tokens, and the state it ended in.

The selection and the projection run where the model runs; only a few numbers travel. Knows no
session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_spec.errors import InvalidFeedback, ServiceUnavailable
from retrieval_spec.feedback import Feedback
from retrieval_spec.target_states import StateTap, model_fingerprint
from retrieval_spec.tree import TOKEN, Float32s
from retrieval_spec.verifier.layout import Layout

if TYPE_CHECKING:
    from retrieval_spec.client import DraftSource
    from retrieval_spec.projection import Projection

_NO_STATE: Float32s = np.zeros(0, np.float32)


class FeedbackCollector:
    """Collects what the sources of one generation ask for; `close` it after the generation.

    Args:
        model: the target.
        wanted_topk: ids a node; 0 collects none.
        projection: how a source of hidden states wants them; None collects none.

    Raises:
        ModelMismatch: the projection was made for another model.
    """

    def __init__(self, model: Any, wanted_topk: int, projection: Projection | None) -> None:
        self._wanted_topk = wanted_topk
        self._projection = projection
        self._tap: StateTap | None = None
        if projection is not None:
            projection.check_model(model_fingerprint(model))
            self._tap = StateTap(model)

    @classmethod
    def of_source(cls, model: Any, source: DraftSource) -> FeedbackCollector:
        """Returns a collector of what the source asks for; of nothing, if it does not answer.

        Raises:
            ModelMismatch: its projection was made for another model.
        """
        try:
            return cls(model, source.wanted_topk, source.projection)
        except ServiceUnavailable:
            return cls(model, 0, None)  # nothing can be drafted either, and the session says so

    def of(
        self, layout: Layout, logits: Any, last_node: int, row: int = 0, num_nodes: int | None = None
    ) -> Feedback | None:
        """Returns the feedback on one pass over `layout`.

        Args:
            layout: the nodes that went through the target.
            logits: float[n, vocab_size]  theirs.
            last_node: the accepted node that decided the newest token.
            row: which row of the batch they are.
            num_nodes: nodes of every row in the pass, the row's own where nothing is said.
        """
        if not self._wanted_topk and self._tap is None:
            return None
        state = self._state(row, last_node - (num_nodes or len(layout)))
        if not self._wanted_topk:
            return Feedback(hidden_state=state)
        k = min(self._wanted_topk, logits.shape[-1])
        scores = logits.float()
        best = scores.topk(k, dim=-1)
        logprobs = (best.values - scores.logsumexp(-1, keepdim=True)).clamp(max=0.0)
        return Feedback(
            np.array(layout.token_ids, TOKEN),
            np.array(layout.parents, np.int32),
            best.indices.to("cpu").numpy().astype(TOKEN),
            logprobs.to("cpu").numpy(),
            hidden_state=state,
        )

    def close(self) -> None:
        """Stops listening to the model."""
        if self._tap is not None:
            self._tap.close()

    def _state(self, row: int, place: int) -> Float32s:
        if self._tap is None or self._projection is None:
            return _NO_STATE
        # Counted from the end: a prompt's pass may keep all its states, and its one node is the last.
        state = self._tap.states[row, place]
        try:
            return self._projection.apply(state.float().cpu().numpy())
        except InvalidFeedback:
            return _NO_STATE  # a target that overflows still decides its token
