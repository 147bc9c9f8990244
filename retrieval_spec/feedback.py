"""`Feedback`: what only a verifier knows of a step, and may leave out. Knows numpy and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidFeedback, InvalidTokens
from retrieval_spec.tree import TOKEN, Float32s, Int32s, Tokens, as_tokens

MAX_NODES = 4096
MAX_TOPK = 64
MAX_PHRASES = 1024
"""No verifier has more to say of one step."""

_NO_TOKENS: Tokens = np.zeros(0, TOKEN)
_NO_ROWS: Int32s = np.zeros((0, 0), TOKEN)


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """One verified step, as far as the verifier tells: every part may be missing.

    Node 0 is the root, the token that stood last when the draft was asked for; the others are the
    drafted nodes that went through the target model, accepted or not.

    Attributes:
        node_token_ids: int32[m]  the nodes' tokens.
        node_parents: int32[m]  index of each node's parent, smaller than its own; -1 for the root.
        topk_ids: int32[m, k]  the target's most probable next tokens after each node, best first.
        topk_logprobs: float32[m, k]  their natural log-probabilities; shape (0, 0) if not told.
        hidden_state: float32[d]  projected state of the target at the last accepted node, the state that
            decided the newest committed token; empty if not told.
        phrases: int32[p, n]  token sequences that the target found likely by other means, such as the
            n-grams of a Jacobi window.
    """

    node_token_ids: Tokens = field(default_factory=lambda: _NO_TOKENS)
    node_parents: Int32s = field(default_factory=lambda: _NO_TOKENS)
    topk_ids: Int32s = field(default_factory=lambda: _NO_ROWS)
    topk_logprobs: Float32s = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    hidden_state: Float32s = field(default_factory=lambda: np.zeros(0, np.float32))
    phrases: Int32s = field(default_factory=lambda: _NO_ROWS)

    def check(self, vocab_size: int, state_dimensions: int = 0, max_topk: int = MAX_TOPK) -> Feedback:
        """Returns the feedback itself if every source can rely on it.

        Args:
            vocab_size: ids lie in `0 .. vocab_size - 1`.
            state_dimensions: of the hidden state that a source expects; 0 if none does.
            max_topk: ids a node at most.

        Raises:
            InvalidFeedback: shapes that do not fit each other, an id outside the vocabulary, a parent that
                does not precede its node, a hidden state of another size, or a number that is not finite.
        """
        self._check_shapes(max_topk)
        self._check_parents()
        try:
            for ids in (self.node_token_ids, self.topk_ids.ravel(), self.phrases.ravel()):
                as_tokens(ids, vocab_size)
        except InvalidTokens as error:
            raise InvalidFeedback(f"feedback: {error}") from error
        if np.isnan(self.topk_logprobs).any() or (self.topk_logprobs > 1e-3).any():
            raise InvalidFeedback("feedback: a log-probability is no such thing", expected="<= 0")
        self._check_hidden_state(state_dimensions)
        return self

    def _check_shapes(self, max_topk: int) -> None:
        num_nodes = self.node_token_ids.shape[0] if self.node_token_ids.ndim == 1 else -1
        width = self.topk_ids.shape[1] if self.topk_ids.ndim == 2 else -1
        _expect("node_token_ids", self.node_token_ids, TOKEN, (num_nodes,), MAX_NODES)
        _expect("node_parents", self.node_parents, np.int32, (num_nodes,), MAX_NODES)
        if self.topk_ids.size:
            _expect("topk_ids", self.topk_ids, TOKEN, (num_nodes, width), MAX_NODES)
        if width > max_topk:
            raise InvalidFeedback("feedback: too many ids a node", got=width, expected=f"<= {max_topk}")
        if self.topk_logprobs.size:
            _expect("topk_logprobs", self.topk_logprobs, np.float32, (num_nodes, width), MAX_NODES)
        if self.phrases.size:
            length = self.phrases.shape[-1]
            _expect("phrases", self.phrases, TOKEN, (self.phrases.size // length, length), MAX_PHRASES)

    def _check_parents(self) -> None:
        parents = self.node_parents
        if parents.size == 0:
            return
        late = (parents >= np.arange(parents.shape[0])) | (parents < 0)
        late[0] = parents[0] != -1
        if late.any():
            node = int(np.flatnonzero(late)[0])
            raise InvalidFeedback(
                f"feedback: the parent of node {node} does not precede it",
                got=int(parents[node]),
                expected="-1" if node == 0 else f"0 to {node - 1}",
            )

    def _check_hidden_state(self, dimensions: int) -> None:
        state = self.hidden_state
        if state.size == 0 or dimensions == 0:
            return
        _expect("hidden_state", state, np.float32, (dimensions,), dimensions)
        if not np.isfinite(state).all():
            raise InvalidFeedback("feedback: the hidden state holds a number that is not finite")


def _expect(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, ...], max_rows: int) -> None:
    if array.dtype != dtype or array.shape != shape or array.shape[0] > max_rows:
        raise InvalidFeedback(
            f"feedback: {name} has another type or shape",
            got=f"{array.dtype}{array.shape}",
            expected=f"{np.dtype(dtype)}{shape}, at most {max_rows} rows",
        )
