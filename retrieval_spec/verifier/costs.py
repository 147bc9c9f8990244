"""Measuring what a step of a model costs by its drafted nodes, before anything is drafted for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve
from retrieval_spec.client.interface import DraftSession
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import BatchCostMeter, Plan, StepCostMeter
from retrieval_spec.tree import CONTEXT, DraftTree
from retrieval_spec.verifier.drafts import NoDrafts, NoDraftsSession, TokenIds
from retrieval_spec.verifier.loop import TreeVerifier
from retrieval_spec.verifier.support import check_model

WARM_UP_ROUNDS = 2
"""Not counted: what is done once is done in them."""


def measure_step_costs(
    model: Any,
    node_counts: Sequence[int],
    context_tokens: int = 512,
    rounds: int = 12,
    num_rows: int = 1,
) -> CostCurve:
    """Returns what a step costs in milliseconds: the pass over each row's tree, and all that belongs to it.

    One generation over trees of random tokens, of which next to none are accepted; sizes take turns, so that
    a disturbance hits all alike, and each one's median counts.

    Args:
        model: what the verifier accepts.
        node_counts: of the tree of each row; 0, the plain step, is always among them.
        context_tokens: tokens of the prompts.
        rounds: steps of each size.
        num_rows: sequences of a batch that go through the target together.

    Raises:
        InvalidRequest: sizes below 0 or above the vocabulary, no rounds, or no room for trees of a size.
        UnsupportedModel: the model cannot be verified over trees.
    """
    counts = sorted({0, *node_counts})
    if counts[0] < 0 or min(rounds, context_tokens, num_rows) < 1:
        raise InvalidRequest(
            "nothing to measure",
            got=f"{counts} nodes, {num_rows} rows, {rounds} rounds",
            expected="sizes from 0, rows and rounds",
        )
    vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
    if counts[-1] > vocab_size:
        raise InvalidRequest(
            "no tree of different tokens has as many nodes", got=counts[-1], expected=f"<= {vocab_size}"
        )
    prompts = np.random.default_rng(0).integers(0, vocab_size, (num_rows, context_tokens))
    turns = _Turns([num_rows * count for count in counts])
    # Near the end there is no room for the deepest nodes, and a random token may be accepted now and then.
    num_tokens = (len(counts) + 1) * (rounds + WARM_UP_ROUNDS) + 2 * counts[-1].bit_length()
    _generate(model, prompts, turns, counts[-1], num_tokens)
    counted = [costs[WARM_UP_ROUNDS:] for costs in turns.costs_ms]
    if not all(counted):
        unseen = [count for count, costs in zip(counts, counted, strict=True) if not costs]
        raise InvalidRequest("no step had as many nodes", got=unseen, expected="trees that the cache holds")
    return CostCurve(tuple(counts), tuple(map(median, counted)))


def _generate(model: Any, prompts: NDArray[np.int64], turns: _Turns, max_nodes: int, num_tokens: int) -> None:
    check_model(model)
    verifier = TreeVerifier(
        _RandomTrees(int(model.config.get_text_config(decoder=True).vocab_size)),
        max_nodes=max_nodes,
        step_costs=turns if len(prompts) == 1 else _TurnsOfRows(turns),
    )
    inputs = torch.from_numpy(prompts).to(model.device)
    # One row needs none, and is cheaper without.
    mask = {"attention_mask": torch.ones_like(inputs)} if len(prompts) > 1 else {}
    model.generate(
        inputs,
        custom_generate=verifier,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        **mask,
    )


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


class _TurnsOfRows(BatchCostMeter):
    """The same for a batch, as long as none of its rows has ended."""

    def __init__(self, turns: _Turns) -> None:
        super().__init__()
        self._turns = turns

    def of(self, num_sessions: int) -> StepCostMeter:
        return self._turns


class _RandomTrees(NoDrafts):
    """Drafts two random tokens after each node."""

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> NoDraftsSession:
        return _RandomSession(len(prompt_ids), self.vocab_size)

    def draft_batch(
        self,
        sessions: Sequence[DraftSession],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        return [session.draft(total_nodes // len(sessions)) for session in sessions]


class _RandomSession(NoDraftsSession):
    def __init__(self, context_length: int, vocab_size: int) -> None:
        super().__init__(context_length)
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(0)

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        tokens = self._rng.choice(self._vocab_size, max_nodes, replace=False)
        parents = [CONTEXT, CONTEXT, *(node // 2 for node in range(max_nodes))][:max_nodes]
        return DraftTree.from_lists(tokens.tolist(), parents, [0.0] * max_nodes, [0] * max_nodes)
