"""Replays recorded generations without a model: what drafts would have been accepted, and what they cost.

Under greedy verification a step accepts the longest path of its tree that the recorded output follows, so a
replay gives the exact acceptance. What a generation wrote is learned when it ends and not before: no output
drafts itself, but for a datastore that holds it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine
from retrieval_spec.traces import Trace
from retrieval_spec.tree import CONTEXT, DraftTree, Tokens

MAX_POSITIONS = 64
"""Acceptance is told by position up to here."""
NUM_BINS = 20
MAX_LATENCIES = 200_000
"""Drafts that are timed; of more traffic the first ones."""


class Observer(Protocol):
    """Is told of every step of a replay; `Tally` is one."""

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        """Sees one step before its tokens are committed.

        Args:
            trace: what is replayed.
            at: tokens of its output before the step; 0 in the first one.
            tree: what was drafted.
            path: its nodes that came true, the first one first; the step decides one token more.
            latency_us: what the draft took, in microseconds.
        """
        ...


@dataclass(slots=True)
class SourceTally:
    """What one source drafted.

    Attributes:
        drafted_nodes: nodes that it proposed, alone or with others.
        accepted_nodes: those that came true.
        won_nodes: those that came true and that no other source proposed.
    """

    drafted_nodes: int = 0
    accepted_nodes: int = 0
    won_nodes: int = 0


@dataclass(slots=True)
class Tally:
    """What the drafts of some generations came to.

    Attributes:
        traces: generations.
        tokens: of their outputs.
        steps: passes of the target.
        drafted_nodes: nodes of all trees.
        accepted_tokens: drafted ones that came true.
        tree_sizes: steps by their drafted nodes.
        accepted_at: steps that accepted a token at each position, the first one first.
        sources: by name.
        predicted: number, sum of path probabilities and accepted nodes of each bin of path probabilities.
        draft_us: what drafts took, in microseconds.
        cost: of all passes, where a plain one costs 1; 0 where nobody knows.
    """

    traces: int = 0
    tokens: int = 0
    steps: int = 0
    drafted_nodes: int = 0
    accepted_tokens: int = 0
    tree_sizes: Counter[int] = field(default_factory=Counter)
    accepted_at: Any = field(default_factory=lambda: np.zeros(MAX_POSITIONS, np.int64))
    sources: dict[str, SourceTally] = field(default_factory=dict)
    predicted: Any = field(default_factory=lambda: np.zeros((3, NUM_BINS)))
    draft_us: list[float] = field(default_factory=list)
    cost: float = 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a step decides: 1 + accepted ones, 1.0 without drafts."""
        return 1.0 + self.accepted_tokens / max(self.steps, 1)

    @property
    def calibration_error(self) -> float:
        """How far path probabilities are from the share that came true, over bins, by their nodes."""
        nodes, expected, accepted = self.predicted
        return float(np.abs(expected - accepted).sum() / max(nodes.sum(), 1.0))

    @property
    def speedup(self) -> float:
        """Tokens per cost, where plain decoding has 1."""
        return self.tokens / self.cost if self.cost else 1.0

    def cost_under(self, curve: CostCurve) -> float:
        """Returns what all passes cost, where a plain one costs 1."""
        return sum(count * curve.at(size) for size, count in self.tree_sizes.items()) / curve.at(0)

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        """Counts one step: its tree, and the nodes of it that came true; with the first one, the trace."""
        if at == 0:
            self.traces += 1
            self.tokens += trace.output.shape[0]
        self.steps += 1
        self.drafted_nodes += len(tree)
        self.tree_sizes[len(tree)] += 1
        self.accepted_tokens += len(path)
        self.accepted_at[: len(path)] += 1
        if len(self.draft_us) < MAX_LATENCIES:
            self.draft_us.append(latency_us)
        if len(tree):
            self._judge(tree, path)

    def _judge(self, tree: DraftTree, path: list[int]) -> None:
        came_true = np.zeros(len(tree), np.bool_)
        came_true[path] = True
        probs = tree.path_probs()
        bins = np.minimum((probs * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        for row, weights in zip(self.predicted, (None, probs, came_true), strict=True):
            row += np.bincount(bins, weights, NUM_BINS)
        for bit, name in enumerate(tree.source_names):
            source = self.sources.setdefault(name, SourceTally())
            proposed = (tree.sources >> bit) & 1 == 1
            source.drafted_nodes += int(proposed.sum())
            source.accepted_nodes += int(proposed[came_true].sum())
            source.won_nodes += int((tree.sources[came_true] == 1 << bit).sum())

    def merge(self, other: Tally) -> None:
        """Adds what another one counted."""
        for name in ("traces", "tokens", "steps", "drafted_nodes", "accepted_tokens", "cost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.tree_sizes += other.tree_sizes
        self.accepted_at += other.accepted_at
        self.predicted += other.predicted
        self.draft_us += other.draft_us[: MAX_LATENCIES - len(self.draft_us)]
        for name, theirs in other.sources.items():
            ours = self.sources.setdefault(name, SourceTally())
            ours.drafted_nodes += theirs.drafted_nodes
            ours.accepted_nodes += theirs.accepted_nodes
            ours.won_nodes += theirs.won_nodes


def replay(
    engine: Engine,
    traces: Iterable[Trace],
    max_nodes: int,
    cost_curve: CostCurve | None = None,
    tally: Tally | None = None,
    observers: Sequence[Observer] = (),
) -> Tally:
    """Replays generations one after the other, each closed before the next one opens.

    Args:
        engine: what drafts, and learns on the way.
        traces: in the order in which they were asked.
        max_nodes: nodes of a draft tree at most.
        cost_curve: of a pass of the target: only nodes that pay are drafted, and costs are counted.
        tally: what is counted goes in here; None makes one.
        observers: told of every step too, after the tally.

    Raises:
        RetrievalSpecError: a trace that the engine does not take.
    """
    tally = tally or Tally()
    for trace in traces:
        _replay_one(engine, trace, max_nodes, cost_curve, (tally, *observers))
    if cost_curve is not None:
        tally.cost = tally.cost_under(cost_curve)
    return tally


def _replay_one(
    engine: Engine,
    trace: Trace,
    max_nodes: int,
    cost_curve: CostCurve | None,
    observers: Sequence[Observer],
) -> None:
    session, output, at = engine.open_session(trace.prompt), trace.output, 0
    while at < output.shape[0]:
        began_ns = time.perf_counter_ns()
        tree = session.draft(max_nodes, cost_curve)
        latency_us = (time.perf_counter_ns() - began_ns) / 1e3
        path = accepted_path(tree, output[at:])
        for observer in observers:
            observer.step(trace, at, tree, path, latency_us)
        session.commit(output[at : at + len(path) + 1])
        at += len(path) + 1
    session.close()


def accepted_path(tree: DraftTree, continuation: Tokens) -> list[int]:
    """Returns the nodes of the longest path that the continuation follows, the first one first."""
    path, node = [], CONTEXT
    edges = list(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    for token in continuation[: len(edges)].tolist():
        try:
            node = edges.index((node, token), node + 1)
        except ValueError:
            break
        path.append(node)
    return path
