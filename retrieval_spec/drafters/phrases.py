"""Drafts from a pool of phrases: what followed the last tokens in text, in rejected drafts, or elsewhere.

Three things fill a pool: committed text, the target's own tokens along drafts that it rejected, and phrases
that a verifier found by other means, such as the n-grams of a Jacobi window.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.phrase_pool import Key, PhrasePool, VerifiedTree
from retrieval_spec.drafters.rows import Row, survival, tree_of_rows
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import DraftTree, Tokens

MAX_KEYS = 65_536
"""Keys that one pool remembers."""
MAX_LEARNED_TOKENS = 16_384
"""Newest tokens of a prompt, or of one commit, that a pool learns: the time to open a session is bounded."""

MAX_PHRASE_TOKENS = 16

# Measured on recorded outputs of 8 kinds of text, by tokens in the key: P(one of its phrases begins with
# the next token), and P(a phrase that was right so far is right once more), which comes near its limit
# as the match grows.
_KEY_WORTH = (0.36, 0.47, 0.85)
_GOES_ON = ((0.41, 0.48, 0.64, 0.72), (0.48, 0.61, 0.70, 0.76), (0.86, 0.90, 0.93, 0.95))
_SURVIVAL = tuple(map(survival, _GOES_ON))


@dataclass(frozen=True, slots=True)
class Suffixes:
    """Ouroboros' draft: phrases joined end to end, and then several ways to go on (arXiv 2402.13720).

    Attributes:
        chain_tokens: newest phrases are joined until the chain has as many tokens.
        num_phrases: newest phrases that continue the chain, or the context if the pool knows no further.
    """

    chain_tokens: int = 12
    num_phrases: int = 3


@dataclass(frozen=True, slots=True)
class Pooling:
    """What fills a pool and how it answers.

    Attributes:
        key_tokens: phrases are kept for the last 1 to so many tokens, and asked for with the most first.
        phrase_tokens: tokens in a phrase at most.
        min_phrase_tokens: shorter phrases are not learned.
        max_phrases: phrases a key.
        from_text: whether committed text, prompts included, fills the pool.
        from_rejected: whether the target's tokens along rejected drafts do.
        suffixes: draft as Ouroboros does, with keys of one token.
        scope: who shares a pool.
    """

    key_tokens: int = 3
    phrase_tokens: int = 8
    min_phrase_tokens: int = 2
    max_phrases: int = 7
    from_text: bool = True
    from_rejected: bool = True
    suffixes: Suffixes | None = None
    scope: Literal["namespace", "session"] = "namespace"

    def check(self) -> Pooling:
        """Returns the rule itself if its numbers make sense.

        Raises:
            InvalidRequest: one is out of range.
        """
        bounds = (
            ("key_tokens", self.key_tokens, 1, 1 if self.suffixes else 3),
            ("phrase_tokens", self.phrase_tokens, 1, MAX_PHRASE_TOKENS),
            ("min_phrase_tokens", self.min_phrase_tokens, 1, self.phrase_tokens),
            ("max_phrases", self.max_phrases, 1, 64),
            ("chain_tokens", self.suffixes.chain_tokens if self.suffixes else 0, 0, 32),
        )
        for name, value, lowest, highest in bounds:
            expect_range(name, value, lowest, highest)
        return self


@dataclass(frozen=True, eq=False)  # without slots: what is forgotten is counted by a weak reference
class SharedPool:
    """A pool and the lock that its users hold."""

    pool: PhrasePool
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return self.pool.num_bytes


class PhrasesDrafter:
    """Pools of phrases, one a namespace or one a session; safe to share between threads.

    Attributes:
        wanted_topk: 1 if the target's most probable tokens are of use, else 0.
    """

    def __init__(self, rule: Pooling) -> None:
        self._rule = rule
        self.namespaces = Namespaces(self._fresh)
        self.wanted_topk = int(rule.from_rejected or rule.suffixes is not None)

    @classmethod
    def open(cls, vocab_size: int, rule: Pooling | None = None) -> PhrasesDrafter:
        """Returns the drafter; any vocabulary will do, since phrases hold ids that were seen.

        Raises:
            InvalidRequest: a rule whose numbers are out of range.
        """
        return cls((rule or Pooling()).check())

    def start(self, context: Tokens, namespace: str = "default") -> PhrasesCursor:
        """Returns a cursor whose pool has learned the prompt `context`, if it learns text."""
        shared = self._fresh() if self._rule.scope == "session" else self.namespaces.of(namespace)
        cursor = PhrasesCursor(self._rule, shared)
        cursor.observe(context)
        return cursor

    def _fresh(self) -> SharedPool:
        return SharedPool(PhrasePool(MAX_KEYS, self._rule.max_phrases))


class PhrasesCursor:
    """One session's last tokens and the pool that it uses. Owned by that session, not thread-safe."""

    __slots__ = ("_rule", "_shared", "_tail")

    def __init__(self, rule: Pooling, shared: SharedPool) -> None:
        self._rule = rule
        self._shared = shared
        self._tail: list[int] = []  # phrases that are not yet complete, and their keys

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Learns committed text and what the verifier tells of the step, as far as the rule says."""
        newest = tokens[-MAX_LEARNED_TOKENS:].tolist()
        before = self._tail if tokens.shape[0] == len(newest) else []
        with self._shared.lock:
            if feedback is not None:
                self._learn_step(newest, feedback)
            text = before + newest
            if self._rule.from_text:
                self._learn_text(text, len(newest))
        self._tail = text[-(self._rule.key_tokens + self._rule.phrase_tokens) :]

    def close(self) -> None:
        """Does nothing: text was learned as it came."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the phrases of the longest known key, the newest ones as the most probable."""
        if budget.max_nodes <= 0 or not self._tail:
            return DraftTree.empty()
        with self._shared.lock:
            rows, key_tokens = self._rows()
        return tree_of_rows(rows, _KEY_WORTH[key_tokens - 1], _SURVIVAL[key_tokens - 1], budget)

    def _rows(self) -> tuple[list[Row], int]:
        """Returns what is drafted, the newest first, and how many tokens of the context led to it."""
        if self._rule.suffixes is not None:
            chain, guesses = self._guesses(self._rule.suffixes)
            return [chain + guess for guess in guesses], 1
        for key_tokens in range(min(self._rule.key_tokens, len(self._tail)), 0, -1):
            rows = self._unfinished(key_tokens)
            key = tuple(self._tail[-key_tokens:])
            rows += self._shared.pool.newest(key, self._rule.max_phrases)
            if rows:
                return rows[: self._rule.max_phrases], key_tokens
        return [], 1

    def _unfinished(self, key_tokens: int) -> list[Row]:
        """Returns phrases of the last tokens that the text has begun but not completed, the newest first."""
        if not self._rule.from_text:
            return []
        tail, size = self._tail, len(self._tail)
        first = max(key_tokens, size - self._rule.phrase_tokens + 1)
        starts = range(size - self._rule.min_phrase_tokens, first - 1, -1)
        key = tail[-key_tokens:]
        return [tuple(tail[start:]) for start in starts if tail[start - key_tokens : start] == key]

    def _guesses(self, suffixes: Suffixes) -> tuple[Row, list[Row]]:
        """Returns a chain of newest phrases, and the newest phrases of its last token, the newest first."""
        chain: Row = ()
        guesses = self._newest(self._tail[-1], suffixes)
        while guesses and len(chain) < suffixes.chain_tokens:
            following = self._newest(guesses[0][-1], suffixes)
            if not following:
                break
            chain, guesses = chain + guesses[0], following
        return chain, guesses

    def _newest(self, token: int, suffixes: Suffixes) -> list[Row]:
        return self._shared.pool.newest((token,), suffixes.num_phrases)

    def _learn_text(self, text: list[int], num_new: int) -> None:
        """Adds the phrases that the newest tokens complete."""
        size, max_key = self._rule.phrase_tokens, self._rule.key_tokens
        add = self._shared.pool.add
        for end in range(max(len(text) - num_new + 1, size + 1), len(text) + 1):
            start = end - size
            phrase = tuple(text[start:end])
            for first in range(start - 1, max(start - max_key, 0) - 1, -1):
                add(tuple(text[first:start]), phrase)

    def _learn_step(self, committed: list[int], feedback: Feedback) -> None:
        step = VerifiedTree(feedback) if feedback.topk_ids.size else None
        verified = self._verified(step) if step and self._rule.suffixes else []
        self._learn_rows(feedback)
        if step and self._rule.from_rejected:
            self._learn_rejected(step, committed)
        for key, guess, better in verified:
            self._shared.pool.replace(key, guess, better)

    def _learn_rows(self, feedback: Feedback) -> None:
        """Adds the verifier's own phrases, divided after each number of tokens that a key may have."""
        rule = self._rule
        for row in feedback.phrases.tolist() if feedback.phrases.size else ():
            for key_tokens in range(1, min(rule.key_tokens, len(row) - rule.min_phrase_tokens) + 1):
                phrase = tuple(row[key_tokens : key_tokens + rule.phrase_tokens])
                self._shared.pool.add(tuple(row[:key_tokens]), phrase)

    def _learn_rejected(self, step: VerifiedTree, committed: list[int]) -> None:
        """Adds what the target would have written after tokens that it did not accept."""
        rule = self._rule
        accepted = set(step.walk(committed))
        runs = step.runs(rule.phrase_tokens)
        endings = step.endings(tuple(self._tail[-rule.key_tokens : -1]), rule.key_tokens)
        for node, (ending, run) in enumerate(zip(endings, runs, strict=True)):
            if node not in accepted and len(run) >= rule.min_phrase_tokens:
                for key_tokens in range(1, len(ending) + 1):
                    self._shared.pool.add(ending[-key_tokens:], run)

    def _verified(self, step: VerifiedTree) -> list[tuple[Key, Row, Row]]:
        """Returns (key, guess, the target's tokens in its place) of guesses that were verified whole."""
        if not self._tail or self._rule.suffixes is None:
            return []
        chain, guesses = self._guesses(self._rule.suffixes)
        key: Key = (chain[-1] if chain else self._tail[-1],)
        verified = []
        for guess in reversed(guesses):
            nodes = step.walk(chain + guess)
            if len(nodes) == len(chain) + len(guess) + 1:
                better = tuple(step.argmax[node] for node in nodes[len(chain) : -1])
                verified.append((key, guess, better))
        return verified
