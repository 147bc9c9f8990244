"""What other budgets and other batches would have gained, from a sample of a replay's steps.

Nodes are stored best first, so a tree that is cut to its first nodes is the tree of a smaller budget, and a
batch of steps shares its nodes as the engine shares them. Steps begin where those of the replay began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve, num_paying
from retrieval_spec.tree import DraftTree

MAX_STEPS = 2048
"""Of the steps of a family so many are kept, evenly spaced."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ASSUMED_COSTS_PER_NODE = (0.002, 0.01, 0.03)
"""Of a plain pass: about those of a GPU at batch 1, of something between, of a CPU."""


class StepSample:
    """Path probabilities and outcomes of some steps, evenly spaced over a replay.

    Args:
        max_nodes: of a tree; what comes behind is left out.
    """

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._stride = 1
        self._seen = 0
        self._probs: list[NDArray[np.float32]] = []
        self._came_true: list[NDArray[np.bool_]] = []

    def add(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Sees one step."""
        self._seen += 1
        if self._seen % self._stride:
            return
        num_nodes = min(len(tree), self._max_nodes)
        came_true = np.zeros(num_nodes, np.bool_)
        came_true[[node for node in path if node < num_nodes]] = True
        self._probs.append(tree.path_probs()[:num_nodes])
        self._came_true.append(came_true)
        if len(self) > MAX_STEPS:
            self._thin(2 * self._stride)

    def merge(self, other: StepSample) -> None:
        """Adds another family's steps, each weighing as many as it stands for."""
        stride = max(self._stride, other._stride)
        self._thin(stride)
        every = stride // other._stride
        self._probs += other._probs[::every]
        self._came_true += other._came_true[::every]
        self._seen += other._seen
        while len(self) > MAX_STEPS:
            self._thin(2 * self._stride)

    def _thin(self, stride: int) -> None:
        every = stride // self._stride
        self._probs, self._came_true = self._probs[::every], self._came_true[::every]
        self._stride = stride

    def __len__(self) -> int:
        return len(self._probs)

    def lengths_by_nodes(self) -> list[float]:
        """Returns the mean acceptance length with trees cut to 0, 1, 2, ... nodes."""
        accepted = np.zeros(self._max_nodes + 1)
        for came_true in self._came_true:
            accepted[1 : len(came_true) + 1] += came_true
        lengths: list[float] = (1.0 + np.cumsum(accepted) / max(len(self), 1)).tolist()
        return lengths

    def speedups(self, curves: Mapping[int, CostCurve], max_nodes: int | None = None) -> list[float]:
        """Returns tokens per cost for each batch size, where plain decoding has 1.

        Args:
            curves: sessions of a batch -> what its passes cost by all their nodes, as of `batch_curves`.
            max_nodes: of every tree; None drafts what pays in the batch.
        """
        return [self._speedup(size, curve, max_nodes) if len(self) else 1.0 for size, curve in curves.items()]

    def _speedup(self, batch_size: int, curve: CostCurve, max_nodes: int | None) -> float:
        passes = [self._pass(batch, curve, max_nodes) for batch in self._batches(batch_size)]
        accepted = sum(accepted for _, accepted in passes)
        cost = sum(curve.at(num_nodes) for num_nodes, _ in passes) / curve.at(0)
        return (len(passes) + accepted / batch_size) / cost

    def _batches(self, batch_size: int) -> list[list[int]]:
        # Neighbours are steps of one generation; a batch has one step of each of many.
        num_batches = -(-len(self) // batch_size)
        order = np.resize(np.arange(len(self)), num_batches * batch_size)
        batches: list[list[int]] = order.reshape(batch_size, num_batches).T.tolist()
        return batches

    def _pass(self, batch: list[int], curve: CostCurve, max_nodes: int | None) -> tuple[int, int]:
        """Returns drafted and accepted nodes of a pass of so many steps."""
        came_true = np.concatenate([self._came_true[step][:max_nodes] for step in batch])
        if max_nodes is not None:
            return came_true.shape[0], int(came_true.sum())
        probs = np.concatenate([self._probs[step] for step in batch])
        ranked = np.argsort(-probs, kind="stable")
        num_nodes = num_paying(probs[ranked], curve, len(batch))
        return num_nodes, int(came_true[ranked[:num_nodes]].sum())


def batch_curves(curves: Mapping[int, CostCurve]) -> dict[int, CostCurve]:
    """Returns sessions of a batch -> what its passes cost by all their nodes.

    Args:
        curves: rows of a batch -> the same by the nodes of each row (`cost_file`). Of one row alone, the
            others are made (`curve_of_batch`).
    """
    if len(curves) == 1:
        return {size: curve_of_batch(curves[1], size) for size in BATCH_SIZES}
    return {
        rows: CostCurve(tuple(rows * count for count in curve.node_counts), curve.costs)
        for rows, curve in curves.items()
    }


def curve_of_batch(curve: CostCurve, batch_size: int) -> CostCurve:
    """Returns what drafted nodes cost in a pass of several sessions, from the curve of one session's pass.

    A session's own token weighs as a drafted node does. True of the matrix products, which are most of a
    pass; attention over long contexts costs more a session than it costs a node.
    """
    others = batch_size - 1
    counts = [0, *(count - others for count in curve.node_counts if count > others)]
    if len(counts) == 1:
        counts.append(1)
    return CostCurve(tuple(counts), tuple(curve.at(count + others) for count in counts))
