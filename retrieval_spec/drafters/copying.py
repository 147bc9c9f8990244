"""Published copying: one chain, the tokens that followed the last tokens of the context before.

A rule of the `session` source (`drafters.session`), in place of its own tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget, own_source
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.text import Text
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels import automaton_copy as kernels
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens

Occurrence = Literal["first", "last", "commonest"]
IfShort = Literal["keep", "wrap", "climb", "require"]


@dataclass(frozen=True, slots=True)
class Copy:
    """How a published system copies from its own context.

    The match is the longest suffix of the context that occurred before. Among the published systems that
    are a configuration of it:

        prompt lookup decoding       Copy(max_match_tokens=3, if_short="require")
        transformers, prompt lookup  Copy(max_match_tokens=2)
        vLLM, n-gram                 Copy(min_match_tokens=MIN, max_match_tokens=MAX, chain_tokens=K)
        MaxGram (arXiv 2312.11462)   Copy(), without its bigram table for the places that stay empty

    Attributes:
        occurrence: of the match, the `first` one, the `last` one, or at every step the token that came most
            often (`commonest`, ties to the smaller id).
        min_match_tokens: no shorter match is considered.
        max_match_tokens: nor a longer one; None for any.
        chain_tokens: the length of the chain, and its bound where it grows with the match.
        chain_tokens_per_match_token: where set, the chain has `int(this * match length)` tokens.
        if_short: what happens where the text ends before the chain: `keep` what there is; `wrap` around to
            where the copy began, as periodic text does; `climb` to shorter matches until one has the
            whole chain, and keep what the shortest has if none does; or `require` the whole chain of one of
            them. Only the first occurrence can climb, and the commonest tokens always keep.
    """

    occurrence: Occurrence = "first"
    min_match_tokens: int = 1
    max_match_tokens: int | None = None
    chain_tokens: int = 10
    chain_tokens_per_match_token: float | None = None
    if_short: IfShort = "keep"

    def __post_init__(self) -> None:
        longest = inf if self.max_match_tokens is None else self.max_match_tokens
        expect_range("min_match_tokens", self.min_match_tokens, 1, longest)
        expect_range("chain_tokens", self.chain_tokens, 1, MAX_DEPTH_NODES)
        allowed = {
            "first": ("keep", "wrap", "climb", "require"),
            "last": ("keep", "wrap"),
            "commonest": ("keep",),
        }
        if self.if_short not in allowed.get(self.occurrence, ()):
            raise InvalidRequest(
                "no such way to copy",
                got=f"occurrence {self.occurrence!r} and if_short {self.if_short!r}",
                expected="; ".join(f"{of}: {' or '.join(ways)}" for of, ways in allowed.items()),
            )

    def chain_length(self, match_length: int) -> int:
        """Returns how many tokens the chain after a match shall have."""
        if self.chain_tokens_per_match_token is None:
            return self.chain_tokens
        return min(self.chain_tokens, int(self.chain_tokens_per_match_token * match_length))

    def start(self, context: Tokens) -> CopyCursor:
        """Returns a cursor that has observed `context`, which may be empty."""
        return CopyCursor(self, context)


def _chain_reliability() -> Float32s:
    """Returns float32[..], P(a copied token is right) by how many tokens match before it."""
    measured = reliability_by_match_length()
    table = np.concatenate([measured, np.repeat(measured[-1:], MAX_DEPTH_NODES)])
    table.setflags(write=False)
    return table


_RELIABILITY = _chain_reliability()
_LAST_MEASURED = _RELIABILITY.shape[0] - 1 - MAX_DEPTH_NODES
_CHAIN_PARENTS: Int32s = np.arange(-1, MAX_DEPTH_NODES - 1, dtype=np.int32)
_CHAIN_PARENTS.setflags(write=False)


def chain_after_match(token_ids: Tokens, match_length: int) -> DraftTree:
    """Returns copied tokens as a tree, each as probable as the match up to it makes it.

    Published chains carry no probabilities; these keep their order.
    """
    size = token_ids.shape[0]
    begin = min(match_length, _LAST_MEASURED)
    return DraftTree(token_ids, _CHAIN_PARENTS[:size], _RELIABILITY[begin : begin + size], own_source(size))


class CopyCursor:
    """One session's text and its automaton; owned by that session, not thread-safe."""

    __slots__ = ("_rule", "_text", "automaton")

    def __init__(self, rule: Copy, context: Tokens) -> None:
        self._rule = rule
        self._text = Text()
        self._text.append(context)
        self.automaton = SuffixAutomaton.from_tokens(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Appends committed tokens; `feedback` is not used."""
        self._text.append(tokens)
        self.automaton.extend(tokens)

    def close(self) -> None:
        """Does nothing: what the session wrote ends with it."""

    @property
    def match_length(self) -> int:
        """How many last tokens of the context occurred before, as far as the rule looks."""
        return self._match()[1]

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the chain that the rule copies, or its beginning if the budget is smaller."""
        state, match_length = self._match()
        chain_length = self._rule.chain_length(match_length)
        size = min(chain_length, budget.max_nodes, budget.max_depth_nodes)
        if match_length < self._rule.min_match_tokens or size <= 0:
            return DraftTree.empty()
        if self._rule.occurrence == "commonest":
            return chain_after_match(self._commonest(state, size), match_length)
        begin, copied_length = self._source(state, match_length, chain_length)
        return chain_after_match(self._copied(begin, chain_length, size), copied_length)

    def _match(self) -> tuple[int, int]:
        """Returns the state of the match and its length."""
        limit = self._rule.max_match_tokens
        tail = self._text.tokens if limit is None else self._text.tokens[-limit:]
        state, length = kernels.match(self.automaton.arena, tail)
        return state, length

    def _source(self, state: int, match_length: int, chain_length: int) -> tuple[int, int]:
        """Returns where the copied tokens begin and how many last tokens of the context stand before them."""
        rule, arena = self._rule, self.automaton.arena
        if rule.occurrence == "last":
            return kernels.latest_end(arena, state) + 1, match_length
        wanted = chain_length if rule.if_short in ("climb", "require") else 0
        end, longest = kernels.first_end(arena, state, wanted, rule.min_match_tokens)
        return end + 1, min(longest, match_length)

    def _copied(self, begin: int, chain_length: int, size: int) -> Tokens:
        following: Tokens = self._text.tokens[begin:]
        if self._rule.if_short == "wrap" and following.shape[0] < size:
            return np.resize(following, size)
        if self._rule.if_short == "require" and following.shape[0] < chain_length:
            return following[:0]
        chain: Tokens = following[:size].copy()
        return chain

    def _commonest(self, state: int, size: int) -> Tokens:
        token_ids: Tokens = np.empty(size, np.int32)
        num_found: int = kernels.commonest(self.automaton.arena, state, token_ids)
        return token_ids[:num_found]
