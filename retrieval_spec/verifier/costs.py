"""Measuring what a step of a model costs by its drafted nodes, before anything is drafted for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import Plan, StepCostMeter
from retrieval_spec.tree import CONTEXT, DraftTree
from retrieval_spec.verifier.drafts import NoDrafts, NoDraftsSession, TokenIds
from retrieval_spec.verifier.generation import generate

WARM_UP_ROUNDS = 2
"""Not counted: what is done once is done in them."""


def measure_step_costs(
    model: Any, node_counts: Sequence[int], context_tokens: int = 512, rounds: int = 12
) -> CostCurve:
    """Returns what a step costs in milliseconds: the pass over a tree, and all that belongs to it.

    One generation over trees of random tokens, of which next to none are accepted; sizes take turns, so that
    a disturbance hits all alike, and each one's median counts.

    Args:
        model: what the verifier accepts.
        node_counts: of the trees; 0, the plain step, is always among them.
        context_tokens: tokens of the prompt.
        rounds: steps of each size.

    Raises:
        InvalidRequest: sizes below 0, or no rounds.
        UnsupportedModel: the model cannot be verified over trees.
    """
    counts = sorted({0, *node_counts})
    if counts[0] < 0 or rounds < 1 or context_tokens < 1:
        raise InvalidRequest(
            "nothing to measure", got=f"{counts} nodes, {rounds} rounds", expected="sizes from 0, and rounds"
        )
    vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
    prompt = np.random.default_rng(0).integers(0, vocab_size, context_tokens)
    meter = _Turns(counts)
    # Near the end there is no room for the deepest nodes, and a random token may be accepted now and then.
    num_tokens = (len(counts) + 1) * (rounds + WARM_UP_ROUNDS) + 2 * counts[-1].bit_length()
    generate(
        model,
        prompt,
        _RandomTrees(vocab_size),
        max_nodes=counts[-1],
        step_costs=meter,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
    )
    counted = [costs[WARM_UP_ROUNDS:] for costs in meter.costs_ms]
    if not all(counted):
        unseen = [count for count, costs in zip(counts, counted, strict=True) if not costs]
        raise InvalidRequest("no step had as many nodes", got=unseen, expected="trees that the cache holds")
    return CostCurve(tuple(counts), tuple(map(median, counted)))


class _Turns(StepCostMeter):
    """Asks for each size in turn, and keeps what steps took."""

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self._turns = cycle(range(len(counts)))
        self._counts = counts
        self._now = 0
        self.costs_ms: list[list[float]] = [[] for _ in counts]

    def plan(self, max_nodes: int) -> Plan:
        self._now = next(self._turns)
        return Plan(min(self._counts[self._now], max_nodes), None)

    def observe(self, num_nodes: int, cost: float) -> None:
        if num_nodes == self._counts[self._now]:  # at the end there may be no room for as many
            self.costs_ms[self._now].append(cost * 1e3)


class _RandomTrees(NoDrafts):
    """Drafts two random tokens after each node."""

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> NoDraftsSession:
        return _RandomSession(len(prompt_ids), self.vocab_size)


class _RandomSession(NoDraftsSession):
    def __init__(self, context_length: int, vocab_size: int) -> None:
        super().__init__(context_length)
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(0)

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        tokens = self._rng.choice(self._vocab_size, max_nodes, replace=False)
        parents = [CONTEXT, CONTEXT, *(node // 2 for node in range(max_nodes))][:max_nodes]
        return DraftTree.from_lists(tokens.tolist(), parents, [0.0] * max_nodes, [0] * max_nodes)
