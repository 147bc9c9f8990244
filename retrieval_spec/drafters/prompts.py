"""Drafts from what earlier sessions of the namespace were asked: what followed the context's end in it.

A source of its own beside `history`: what users write continues otherwise than what models write, so
that each is worth more if its outcomes are counted apart. Prompts are learned when their session closes.
"""

from __future__ import annotations

from array import array

from retrieval_spec.drafters.history import MIN_BYTES, History, HistoryCursor
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels.blend_tables import PROMPTS
from retrieval_spec.tree import Tokens

MAX_LEARNED_TOKENS = 16_384
"""Of one prompt, its newest ones: a longer one would hold up the end of its session."""


class PromptsDrafter:
    """What all namespaces were asked; safe to share between threads.

    Args:
        max_bytes: of one namespace; the oldest prompts are forgotten (`structures.recent_texts`).
    """

    __slots__ = ("namespaces",)

    def __init__(self, max_bytes: int) -> None:
        self.namespaces = Namespaces(lambda: History(max_bytes))

    @classmethod
    def open(cls, vocab_size: int, max_bytes: int = 64 << 20) -> PromptsDrafter:
        """Returns a drafter that knows no prompt; any vocabulary will do, since drafts repeat prompts.

        Raises:
            InvalidRequest: too small a byte budget.
        """
        if max_bytes < MIN_BYTES:
            raise InvalidRequest("too little memory for prompts", got=max_bytes, expected=f">= {MIN_BYTES}")
        return cls(max_bytes)

    def start(self, context: Tokens, namespace: str = "default") -> PromptsCursor:
        """Returns a cursor that has observed `context`, which is learned when the session closes."""
        return PromptsCursor(self.namespaces.of(namespace), context)


class PromptsCursor(HistoryCursor):
    """One session's place in its namespace's prompts; owned by that session, not thread-safe."""

    __slots__ = ("_prompt",)

    kind = PROMPTS

    def __init__(self, history: History, context: Tokens) -> None:
        super().__init__(history, "close", context)
        self._prompt = array("i", context[-MAX_LEARNED_TOKENS:].tobytes())

    def close(self) -> None:
        """Lets later sessions of the namespace draft from this one's prompt."""
        prompt, self._prompt = self._prompt, array("i")
        self._learn(prompt)
