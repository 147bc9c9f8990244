"""Draft trees from a draft model: what such a model must offer, and how its distributions become a tree.

Shared by the server and the verifier, so it needs numpy alone; it knows no model library. A tree is grown
from the most probable tokens, or drawn at random where the verifier shall test drafts against `q`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidDistribution, TokenizerMismatch
from retrieval_spec.tree import CONTEXT, DraftTree, Float32s, Tokens

Path = tuple[int, ...]
"""Drafted tokens from the child of the context down to one node; () is the context itself."""

THROUGH_TEXT = 'draft through text: the source "text_model" (drafters.text_model.TextModelDrafter)'
"""What helps where a draft model's ids are not the target's."""

_SUM_TOLERANCE = 1e-3


@runtime_checkable
class Predictions(Protocol):
    """A draft model's view of one session; owned by that session, not thread-safe."""

    def observe(self, tokens: Tokens) -> None:
        """Appends committed tokens; only `next_probs` may cost time."""
        ...

    def next_probs(self, paths: Sequence[Path]) -> Float32s:
        """Returns float32[n, vocab_size], the next-token distribution after the context and each path.

        Since the last `observe`, the longest proper prefix of a path was asked for in an earlier call.
        """
        ...


@runtime_checkable
class RewindablePredictions(Predictions, Protocol):
    """Predictions that can forget the newest tokens."""

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` observed tokens."""
        ...


@runtime_checkable
class DraftModel(Protocol):
    """A model that predicts the target's next tokens; opened once, shared by all sessions."""

    @property
    def vocab_size(self) -> int:
        """Its distributions have that many entries; ids mean the target's tokens."""
        ...

    def start(self) -> Predictions:
        """Returns predictions for a session that has observed nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Growth:
    """When a grown tree is deep enough (OPT-Tree's published values).

    Attributes:
        min_gain_tokens: a layer that raises the expected accepted tokens by no more than this is the last.
        max_depth_nodes: nodes on one path at most.
    """

    min_gain_tokens: float = 0.5
    max_depth_nodes: int = 10


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """The children of one node that were drawn at random: which, in which order, and from what.

    Attributes:
        token_ids: int32[k]  drawn without replacement, in the order of the draws.
        q: float32[v]  the distribution of the first draw; ids from v on have probability 0.
    """

    token_ids: Tokens
    q: Float32s

    def check(self, vocab_size: int) -> Proposal:
        """Returns the proposal itself if the ratio test can rely on it.

        Raises:
            InvalidDistribution: `q` is none, or one of the tokens cannot have been drawn from it.
        """
        width = self.q.shape[0] if self.q.ndim == 1 else vocab_size + 1
        check_probs(self.q[None], 1, min(width, vocab_size))
        tokens = self.token_ids.tolist()
        if len(set(tokens)) != len(tokens) or not all(0 <= token < width for token in tokens):
            raise InvalidDistribution("drawn tokens repeat or are none", got=tokens[:8])
        if not bool(np.all(self.q[self.token_ids] > 0)):
            raise InvalidDistribution("a drawn token has no probability", expected="q > 0")
        return self


Proposals = Mapping[Path, Proposal]
"""Path to a node -> its children that were drawn at random."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelTree:
    """What a draft model says of one context.

    Attributes:
        tree: its draft; `probs` are the model's own.
        first_probs: float32[vocab_size]  its distribution of the first token.
        proposals: the children that were drawn; empty for a grown tree.
    """

    tree: DraftTree
    first_probs: Float32s
    proposals: Proposals = field(default_factory=dict)


def fingerprint_of(model: DraftModel) -> str:
    """Returns what a draft model says of its tokenizer by an attribute `tokenizer_fingerprint`, else ""."""
    return str(getattr(model, "tokenizer_fingerprint", ""))


def check_same_ids(fingerprint: str, target_fingerprint: str) -> None:
    """Refuses a draft model whose ids mean other text than the target's, where both tokenizers are known.

    Raises:
        TokenizerMismatch: the fingerprints differ; an empty one is unknown.
    """
    if fingerprint and target_fingerprint and fingerprint != target_fingerprint:
        raise TokenizerMismatch(
            "the draft model has another tokenizer than the target model",
            got=fingerprint,
            expected=target_fingerprint,
            remedy=f"use one of the same family, or {THROUGH_TEXT}",
        )


def check_probs(probs: Any, num_rows: int, vocab_size: int) -> Float32s:
    """Returns float32[num_rows, vocab_size] if every row is a probability distribution.

    Raises:
        InvalidDistribution: another type or shape, a number outside [0, 1], or a sum that is not 1.
    """
    if not isinstance(probs, np.ndarray) or probs.dtype.kind != "f" or probs.shape != (num_rows, vocab_size):
        raise InvalidDistribution(
            "the draft model's probabilities have another type or shape",
            got=f"{getattr(probs, 'dtype', type(probs).__name__)}{getattr(probs, 'shape', '')}",
            expected=f"float32({num_rows}, {vocab_size})",
        )
    lowest, sums = probs.min(initial=0), probs.sum(axis=1)
    # NaN fails every comparison, and an infinite entry makes an infinite sum.
    if not (lowest >= 0 and bool(np.all(np.abs(sums - 1) <= _SUM_TOLERANCE))):
        raise InvalidDistribution(
            "the draft model's probabilities are no distribution",
            got=f"sums {sums[:4].tolist()}, lowest {lowest}",
            expected="numbers >= 0 with the sum 1",
        )
    return np.minimum(probs, 1, dtype=np.float32)


def grow(predictions: Predictions, vocab_size: int, max_nodes: int, growth: Growth) -> ModelTree:
    """Returns the `max_nodes` most probable paths, grown layer by layer (OPT-Tree, arXiv 2406.17276).

    A path's probability is the expected gain of its last node, so the sum over the tree is the expected
    number of accepted tokens. A node that is not among the best so far can have no descendant among
    them: only the best ones of a layer are asked for the next. A path too improbable for a float32 is none.

    Raises:
        InvalidDistribution: see `check_probs`.
    """
    pool = _Pool()
    first = probs = check_probs(predictions.next_probs([()]), 1, vocab_size)
    frontier = np.array([CONTEXT])
    best, expected_tokens = pool.best(0), 0.0
    for depth in range(1, growth.max_depth_nodes + 1):
        pool.add_best(frontier, probs, depth, max_nodes)
        best = pool.best(max_nodes)
        # Rounded once, so that neither the order of the nodes nor the layers before decide whether one gains.
        before, expected_tokens = expected_tokens, math.fsum(pool.weights[best].tolist())
        frontier = best[pool.depths[best] == depth]
        gains = expected_tokens - before > growth.min_gain_tokens
        if not gains or frontier.size == 0 or depth == growth.max_depth_nodes:
            break
        paths = [pool.path_to(node) for node in frontier.tolist()]
        probs = check_probs(predictions.next_probs(paths), len(paths), vocab_size)
    return ModelTree(pool.tree(best), first[0])


def draw(
    predictions: Predictions,
    vocab_size: int,
    max_nodes: int,
    branching: Sequence[int],
    generator: np.random.Generator,
) -> ModelTree:
    """Returns a tree whose children were drawn from the model without replacement, node by node.

    Args:
        predictions: the model.
        vocab_size: entries of its distributions.
        max_nodes: where a layer does not fit, its less probable parents get no children.
        branching: children of a node at each depth, the first layer first.
        generator: decides the draws; must be independent of what the verifier draws with.

    Raises:
        InvalidDistribution: see `check_probs`.
    """
    pool = _Pool()
    proposals: dict[Path, Proposal] = {}
    first = probs = check_probs(predictions.next_probs([()]), 1, vocab_size)
    frontier: list[int] = [CONTEXT]
    paths: list[Path] = [()]
    for depth, width in enumerate(branching, start=1):
        begin = len(pool)
        for node, path, row in zip(frontier, paths, probs, strict=True):
            drawn = without_replacement(row, width, generator)
            proposals[path] = Proposal(drawn, row)
            pool.add(np.full(drawn.shape[0], node), drawn, row[drawn], depth)
        room = (max_nodes - len(pool)) // branching[depth] if depth < len(branching) else 0
        ranked = pool.best(len(pool))
        frontier = ranked[ranked >= begin][: max(room, 0)].tolist()
        if not frontier:
            break
        paths = [pool.path_to(node) for node in frontier]
        probs = check_probs(predictions.next_probs(paths), len(paths), vocab_size)
    return ModelTree(pool.tree(pool.best(max_nodes)), first[0], proposals)


def without_replacement(q: Float32s, k: int, generator: np.random.Generator) -> Tokens:
    """Returns up to `k` different tokens in draw order, each drawn from what the earlier ones left of `q`.

    The largest `log q + Gumbel noise` are exactly that (Plackett-Luce).
    """
    possible = np.flatnonzero(q > 0)
    keys = np.log(q[possible]) + generator.gumbel(size=possible.shape[0])
    drawn: Tokens = possible[np.argsort(-keys, kind="stable")[:k]].astype(np.int32)
    return drawn


class _Pool:
    """Nodes of a tree that is still growing, in any order that puts parents first."""

    def __init__(self) -> None:
        self.token_ids = np.zeros(0, np.int32)
        self.parents = np.zeros(0, np.int32)
        self.probs = np.zeros(0, np.float32)
        self.weights = np.zeros(0, np.float32)
        self.depths = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    def add(self, parents: NDArray[Any], token_ids: NDArray[Any], probs: Float32s, depth: int) -> None:
        """Adds children of nodes that are there."""
        above = np.append(self.weights, np.float32(1))[parents]  # -1, the context, is the last
        self.token_ids = np.append(self.token_ids, token_ids.astype(np.int32))
        self.parents = np.append(self.parents, parents.astype(np.int32))
        self.probs = np.append(self.probs, probs)
        self.weights = np.append(self.weights, above * probs)
        self.depths = np.append(self.depths, np.full(len(probs), depth, np.int32))

    def add_best(self, frontier: NDArray[Any], probs: Float32s, depth: int, count: int) -> None:
        """Adds those children of `frontier` that have one of the `count` highest path probabilities."""
        above = np.append(self.weights, np.float32(1))[frontier]
        weights = (above[:, None] * probs).ravel()
        # What falls behind the best of the layers above can be ranked no higher later.
        floor = self.weights[self.best(count)[-1]] if len(self) >= count > 0 else np.float32(0)
        chosen = np.flatnonzero((weights >= floor) & (weights > 0))
        if chosen.shape[0] > count:
            chosen = chosen[weights[chosen] >= np.partition(weights[chosen], -count)[-count]]
        rows, token_ids = np.divmod(chosen, probs.shape[1])
        kept = np.lexsort((rows, token_ids, -weights[chosen]))[:count]
        rows, token_ids = rows[kept], token_ids[kept]
        self.add(frontier[rows], token_ids, probs[rows, token_ids], depth)

    def best(self, count: int) -> NDArray[np.int64]:
        """Returns the nodes of the highest path probability, best first; ties by depth, then by token."""
        order: NDArray[np.int64] = np.lexsort((self.token_ids, self.depths, -self.weights))[:count]
        return order

    def path_to(self, node: int) -> Path:
        """Returns the tokens down to a node."""
        path: list[int] = []
        while node != CONTEXT:
            path.append(int(self.token_ids[node]))
            node = int(self.parents[node])
        return tuple(reversed(path))

    def tree(self, nodes: NDArray[np.int64]) -> DraftTree:
        """Returns some nodes, their parents always among them and before them, as a tree."""
        rank = np.full(len(self) + 1, CONTEXT, np.int32)
        rank[nodes] = np.arange(nodes.shape[0])
        return DraftTree(
            self.token_ids[nodes],
            rank[self.parents[nodes]],
            self.probs[nodes],
            np.ones(nodes.shape[0], np.uint16),
        )
