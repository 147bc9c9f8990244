"""SuffixDecoding's two sources: the context itself, and what the sessions of the namespace write.

Both draft by count shares from the suffix that scores best (`kernels.suffix_draft`). The context's own
end counts as an occurrence without a continuation, as published: one earlier occurrence has the share 0.5.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.suffix_draft import draft, scratch_words
from retrieval_spec.structures.recent_texts import RecentText, RecentTexts
from retrieval_spec.structures.shared_automaton import SharedAutomaton
from retrieval_spec.tree import DraftTree, Tokens

MAX_LENGTH_TOKENS = 4_096
MIN_BYTES = 1 << 20
_MAX_CONTEXT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Suffix:
    """How SuffixDecoding drafts.

    Attributes:
        max_length_tokens: of a suffix with the draft after it.
        factor: tokens that may be drafted for each token of the suffix.
        offset: tokens that may be drafted beside those.
        min_prob: path probability of every node at least.
        shape: the most frequent continuation alone, or all that are probable enough.
    """

    max_length_tokens: int = 64
    factor: float = 1.0
    offset: float = 0.0
    min_prob: float = 0.1
    shape: Literal["tree", "path"] = "tree"

    def __post_init__(self) -> None:
        expect_range("max_length_tokens", self.max_length_tokens, 1, MAX_LENGTH_TOKENS)
        expect_range("factor", self.factor, 0, MAX_LENGTH_TOKENS)
        expect_range("offset", self.offset, -MAX_LENGTH_TOKENS, MAX_LENGTH_TOKENS)
        expect_range("min_prob", self.min_prob, 0, 1)
        if self.shape not in ("tree", "path"):
            raise InvalidRequest("unknown shape of a draft", got=self.shape, expected="tree or path")


class ContextSuffixDrafter:
    """Drafts from the session's own prompt and output; holds nothing itself and is safe to share."""

    def __init__(self, rule: Suffix) -> None:
        self._rule = rule

    @classmethod
    def open(cls, vocab_size: int, rule: Suffix | None = None) -> ContextSuffixDrafter:
        """Returns the drafter; any vocabulary will do."""
        return cls(rule or Suffix())

    def start(self, context: Tokens, namespace: str = "default") -> ContextSuffixCursor:
        """Returns a cursor that has observed `context`."""
        return ContextSuffixCursor(self._rule, context)


class ContextSuffixCursor:
    """One session's text, counted; owned by that session, not thread-safe."""

    __slots__ = ("_automaton", "_end", "_text")

    def __init__(self, rule: Suffix, context: Tokens) -> None:
        self._end = _ContextEnd(rule)
        self._automaton = SharedAutomaton(_MAX_CONTEXT_BYTES, rule.max_length_tokens, leaps=False)
        self._text = self._automaton.new_text()
        self.observe(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Appends committed tokens; `feedback` is not used."""
        self._end.tail.append(tokens)
        self._automaton.extend(self._text, tokens)

    def close(self) -> None:
        """Does nothing: what the session wrote ends with it."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the draft of the suffix that scores best."""
        return self._end.drafted(self._automaton, budget)


class OutputsSuffixDrafter:
    """Drafts from the outputs of the namespace, also those being written; safe to share between threads.

    The oldest outputs are forgotten one by one beyond `max_outputs`, and many at a time if the byte budget
    of the namespace is spent before (`structures.recent_texts`). An output that is forgotten while it is
    written is not learned further; one that is written again after a truncation is learned again.
    """

    def __init__(self, rule: Suffix, max_outputs: int, max_bytes: int) -> None:
        self._rule = rule
        self.namespaces = Namespaces(lambda: _Outputs(rule.max_length_tokens, max_outputs, max_bytes))

    @classmethod
    def open(
        cls,
        vocab_size: int,
        rule: Suffix | None = None,
        max_outputs: int = 10_000,
        max_bytes: int = 256 << 20,
    ) -> OutputsSuffixDrafter:
        """Returns a drafter without outputs; any vocabulary will do.

        Raises:
            InvalidRequest: room for no output.
        """
        expect_range("max_outputs", max_outputs, 1)
        expect_range("max_bytes", max_bytes, MIN_BYTES)
        return cls(rule or Suffix(), max_outputs, max_bytes)

    def start(self, context: Tokens, namespace: str = "default") -> OutputsSuffixCursor:
        """Returns a cursor that has observed `context`, which is matched but not learned."""
        return OutputsSuffixCursor(self._rule, self.namespaces.of(namespace), context)


class _Output(RecentText):
    """One session's output; no longer `is_kept` once it is forgotten."""

    __slots__ = ("is_kept",)

    def __init__(self) -> None:
        super().__init__()
        self.is_kept = True


class _Outputs:
    """The newest outputs of one namespace. Whoever calls a method or uses `texts` holds `lock`."""

    def __init__(self, counted_tokens: int, max_outputs: int, max_bytes: int) -> None:
        self.lock = threading.Lock()
        self._max_outputs = max_outputs
        self._max_tokens = max_bytes // 4 // 4  # a quarter for the tokens, four bytes each
        self._num_tokens = 0
        self._kept: deque[_Output] = deque()
        self.texts = RecentTexts(max_bytes - max_bytes // 4, counted_tokens)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return self.texts.num_bytes + 4 * self._num_tokens

    def start_output(self) -> _Output:
        while len(self._kept) >= self._max_outputs:
            self._forget_oldest()
        output = _Output()
        self._kept.append(output)
        return output

    def extend(self, output: _Output, tokens: Tokens) -> None:
        if not output.is_kept:
            return
        self.texts.extend(output, tokens)
        self._num_tokens += tokens.shape[0]
        while self._num_tokens > self._max_tokens:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = self._kept.popleft()
        oldest.is_kept = False
        self._num_tokens -= oldest.num_tokens
        self.texts.remove(oldest)


class OutputsSuffixCursor:
    """One session's place among the outputs of its namespace; owned by that session, not thread-safe."""

    __slots__ = ("_end", "_output", "_outputs")

    def __init__(self, rule: Suffix, outputs: _Outputs, context: Tokens) -> None:
        self._end = _ContextEnd(rule)
        self._end.tail.append(context)
        self._outputs = outputs
        with outputs.lock:
            self._output = outputs.start_output()

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Adds output that other sessions draft from at once; `feedback` is not used."""
        self._end.tail.append(tokens)
        for begin, end in pieces(0, tokens.shape[0]):
            with self._outputs.lock:
                self._outputs.extend(self._output, tokens[begin:end])

    def close(self) -> None:
        """Does nothing: the output is learned already, and stays until it is the oldest."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the draft of the suffix that scores best."""
        with self._outputs.lock:
            return self._end.drafted(self._outputs.texts.automaton, budget)


class _ContextEnd:
    """The last tokens of one context, and the memory that a draft from them needs."""

    __slots__ = ("_place", "_rule", "_scratch", "tail")

    def __init__(self, rule: Suffix) -> None:
        self._rule = rule
        self._place = SharedAutomaton.new_place()
        self._scratch = np.empty(0, np.int64)
        self.tail = Tail(rule.max_length_tokens)

    def drafted(self, automaton: SharedAutomaton, budget: Budget) -> DraftTree:
        rule, max_nodes = self._rule, budget.max_nodes
        if max_nodes <= 0:
            return DraftTree.empty()
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        self._place[:] = 0
        # As published, a suffix is shorter than the context, and than the longest string that is counted.
        automaton.follow(self._place, self.tail.tokens[1:], rule.max_length_tokens)
        columns = new_columns(max_nodes)
        limits = (rule.factor, rule.offset, rule.min_prob, rule.shape == "path", budget.max_depth_nodes)
        size = draft(
            automaton.arena,
            self._place,
            *limits,
            rule.max_length_tokens,
            self._scratch,
            *columns,
        )
        return tree_of(columns, size)
