"""How many drafted nodes a step of the target model is worth: cost curves, and where to cut trees.

Knows trees and nothing of sessions or time; costs nothing measurable beside the drafts themselves.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import DraftTree, Float32s

Float64s = NDArray[np.float64]

MAX_CURVE_POINTS = 256
MAX_NODE_COUNT = 2**31 - 1
MIN_COST, MAX_COST = 1e-12, 1e12

COST_EXPONENT = 1.3
"""An accepted node spares a token of the next step, and that is a cheap one: every step decides one token
without a draft, which is the hard one, and what follows it is easy to draft. So much more must a node pay."""

SPARE_NODES = 4
"""So many more nodes are asked for than paid in the step before."""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """What one forward pass of the target costs by the drafted nodes in it, all sessions together.

    Linear between its points; beyond the last one it goes on as between the last two. Any unit will do,
    since only ratios matter. More nodes never cost less: where measured costs fall, neighbours are
    replaced by their mean until they do not (isotonic regression).

        CostCurve((0, 16, 64), (20.0, 21.0, 35.0))      milliseconds of a pass with 0, 16 and 64 nodes

    Attributes:
        node_counts: rising from 0, the pass without drafts.
        costs: of a pass with so many nodes.

    Raises:
        InvalidRequest: no points or too many, counts that do not rise from 0, or a cost that is no
            positive number.
    """

    node_counts: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        counts, costs = _whole_numbers(self.node_counts), _positive_numbers(self.costs)
        if not 1 <= len(counts) <= MAX_CURVE_POINTS or len(counts) != len(costs):
            raise InvalidRequest(
                "a cost curve needs one cost for each node count",
                got=f"{len(counts)} counts and {len(costs)} costs",
                expected=f"1 to {MAX_CURVE_POINTS} of both",
            )
        if counts[0] != 0 or any(map(operator.ge, counts, counts[1:])) or counts[-1] > MAX_NODE_COUNT:
            raise InvalidRequest(
                "the node counts of a cost curve must rise from 0",
                got=f"{counts[:8]}",
                expected="0, the pass without drafts, first",
            )
        object.__setattr__(self, "node_counts", counts)
        object.__setattr__(self, "costs", _without_falls(costs))

    @classmethod
    def linear(cls, cost_per_node: float) -> CostCurve:
        """Returns the curve `1 + cost_per_node * nodes`."""
        return cls((0, 1), (1.0, 1.0 + cost_per_node))

    def at(self, num_nodes: int) -> float:
        """Returns the cost of a pass with `num_nodes` nodes."""
        last = max(bisect_left(self.node_counts, num_nodes), 1)
        if last == len(self.node_counts):
            if last == 1:
                return self.costs[0]
            last -= 1
        (begin, end), (low, high) = self.node_counts[last - 1 : last + 1], self.costs[last - 1 : last + 1]
        return low + (high - low) * ((num_nodes - begin) / (end - begin))

    def end_of_line(self, num_nodes: int) -> int:
        """Returns the first of the curve's points that is not before `num_nodes`; that itself behind all."""
        at = bisect_left(self.node_counts, num_nodes)
        return self.node_counts[at] if at < len(self.node_counts) else num_nodes

    def up_to(self, max_nodes: int) -> Float64s:
        """Returns float64[max_nodes + 1], the cost of a pass with 0, 1, ... nodes; read-only."""
        # Trees have any size: few tables, each for many sizes.
        return _costs_up_to(self, 1 << max(max_nodes, 1).bit_length())[: max_nodes + 1]


def _whole_numbers(values: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, values))
    except TypeError as error:
        raise InvalidRequest(
            "the node counts of a cost curve are no whole numbers", got=repr(values)[:80]
        ) from error


def _positive_numbers(values: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise InvalidRequest("the costs of a cost curve are no numbers", got=repr(values)[:80]) from error
    for number in numbers:
        if not MIN_COST <= number <= MAX_COST:  # NaN is not either
            raise InvalidRequest("a cost out of range", got=number, expected=f"{MIN_COST:g} to {MAX_COST:g}")
    return numbers


def _without_falls(costs: Sequence[float]) -> tuple[float, ...]:
    """Pools neighbours that fall into their mean (isotonic regression)."""
    blocks: list[tuple[float, int]] = []
    for cost in costs:
        mean, size = cost, 1
        while blocks and blocks[-1][0] > mean:
            earlier, earlier_size = blocks.pop()
            mean = (earlier * earlier_size + mean * size) / (earlier_size + size)
            size += earlier_size
        blocks.append((mean, size))
    return tuple(mean for mean, size in blocks for _ in range(size))


@lru_cache(maxsize=16)
def _costs_up_to(curve: CostCurve, max_nodes: int) -> Float64s:
    at = np.arange(max_nodes + 1)
    costs: Float64s = np.interp(at, curve.node_counts, curve.costs)
    if len(curve.costs) > 1 and max_nodes > curve.node_counts[-1]:
        (begin, end), (low, high) = curve.node_counts[-2:], curve.costs[-2:]
        beyond = at[end + 1 :] - end
        costs[end + 1 :] = high + beyond * ((high - low) / (end - begin))
    costs.flags.writeable = False
    return costs


def num_paying(path_probs: Float32s, cost_curve: CostCurve, num_sessions: int = 1) -> int:
    """Returns how many of the most probable nodes make a step yield the most tokens for what it costs.

    A step of `s` sessions yields `s` tokens and one for each accepted node: of all `n` the one with the
    largest `(s + path_probs[:n].sum()) / cost(n) ** COST_EXPONENT` is taken, the smallest of equal ones. So
    a node is kept while its path probability is at least its own cost times the step's tokens per cost
    (Dinkelbach's condition) times the exponent, a step in the curve is jumped where what lies behind it pays,
    and 0 is a usual answer.

    The rate is the step's own and not that of the whole generation: an accepted token spares what it
    would have cost in the next step, which is little where drafts are good and much where they are not.

    Args:
        path_probs: float32[n]  of all nodes that may be drafted, falling.
        cost_curve: of the pass that verifies them.
        num_sessions: in that pass.
    """
    tokens = np.zeros(path_probs.shape[0] + 1, np.float64)
    np.cumsum(path_probs, out=tokens[1:])
    tokens += num_sessions
    # In units of a plain pass, so that no power leaves the range of numbers.
    costs = cost_curve.up_to(path_probs.shape[0]) / cost_curve.costs[0]
    return int(np.argmax(tokens / costs**COST_EXPONENT))


def cut(tree: DraftTree, cost_curve: CostCurve) -> DraftTree:
    """Returns the nodes of a tree that pay, where it is verified alone."""
    return tree.prefix(num_paying(tree.path_probs(), cost_curve)) if len(tree) else tree


def draft_paying(
    draft: Callable[[int], DraftTree], max_nodes: int, cost_curve: CostCurve, num_paid: int
) -> DraftTree:
    """Returns the nodes that pay of trees of at most `max_nodes` nodes, where they are verified alone.

    A draft of few nodes is cheaper and a little better than the first nodes of one of many, and the
    number that pays changes little from step to step: so a few more are asked for than paid last time,
    and twice as many while all of them pay.

    Args:
        draft: returns the best tree of at most so many nodes.
        max_nodes: nodes that may be drafted.
        cost_curve: of the pass that verifies them.
        num_paid: nodes that paid in the step before.
    """
    # As far as the curve's next point: a step in it is seen from behind only.
    asked_nodes = min(cost_curve.end_of_line(num_paid + SPARE_NODES), max_nodes)
    tree = cut(draft(asked_nodes), cost_curve)
    while len(tree) == asked_nodes < max_nodes:
        asked_nodes = min(2 * asked_nodes, max_nodes)
        tree = cut(draft(asked_nodes), cost_curve)
    return tree


def share_nodes(
    trees: Sequence[DraftTree], total_nodes: int, cost_curve: CostCurve | None = None
) -> list[DraftTree]:
    """Returns the trees cut so that together they hold the `total_nodes` most probable paths.

    One selection over all sessions (TETRIS, arXiv 2502.15197): a session with a sure continuation gets
    nodes that a session without one cannot use. Trees are stored best first, so a cut is a prefix;
    ties go to the earlier session. With a cost curve only as many as pay in the common pass.
    """
    if (sum(map(len, trees)) <= total_nodes and cost_curve is None) or not trees:
        return list(trees)
    path_probs = np.concatenate([tree.path_probs() for tree in trees])
    owners = np.repeat(np.arange(len(trees)), [len(tree) for tree in trees])
    chosen = np.argsort(-path_probs, kind="stable")[:total_nodes]
    if cost_curve is not None:
        chosen = chosen[: num_paying(path_probs[chosen], cost_curve, len(trees))]
    counts = np.bincount(owners[chosen], minlength=len(trees)).tolist()
    return [tree.prefix(count) for tree, count in zip(trees, counts, strict=True)]
