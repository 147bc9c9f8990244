"""When a generation ends: the host's own criteria, asked after every single token."""

from __future__ import annotations

from typing import Any

from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList


class StopRule:
    """The host's stopping criteria; the two that every run has are answered without a tensor.

    Args:
        criteria: what the host prepared.

    Attributes:
        end_ids: tokens that end the generation wherever they come.
        max_length_tokens: length of prompt and output together.
    """

    def __init__(self, criteria: Any) -> None:
        self.end_ids: frozenset[int] = frozenset()
        self.max_length_tokens = 2**31 - 1
        self._others = StoppingCriteriaList()
        for criterion in criteria:
            # Subclasses may mean something else.
            if type(criterion) is EosTokenCriteria:
                self.end_ids |= frozenset(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is MaxLengthCriteria:
                self.max_length_tokens = min(self.max_length_tokens, criterion.max_length)
            else:
                self._others.append(criterion)

    @property
    def has_others(self) -> bool:
        """Whether anything but length and end-of-sequence tokens may end the generation."""
        return bool(self._others)

    def stops(self, token_id: int, context: Any, scores: Any) -> bool:
        """Returns whether `token_id`, the last of `context`, is the last token.

        Args:
            token_id: the token decided last.
            context: the `ContextBuffer` that ends with it.
            scores: processed scores of all decided tokens, if they are kept.
        """
        if token_id in self.end_ids or context.length >= self.max_length_tokens:
            return True
        return bool(self._others) and bool(self._others(context.ids(), scores).all())
