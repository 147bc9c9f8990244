"""Steps of blended sessions: many in one call of a kernel, which goes from card to card.

What Python does for each session of a batch takes as long as the search: where all is as usual, it says where
the cards lie, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.drafters.base import Budget, Int64s
from retrieval_spec.drafters.columns import new_columns
from retrieval_spec.drafters.joint import Drafted, Rows
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels.blend import scratch_words
from retrieval_spec.kernels.blend_steps import take_steps
from retrieval_spec.kernels.commits import commit_steps
from retrieval_spec.kernels.proposals import SEARCH_WORDS
from retrieval_spec.kernels.steps import NUM_LEFT, STEP_WORDS, TURN
from retrieval_spec.tree import DraftTree, Float32s, Forest, Int32s, Uint16s

if TYPE_CHECKING:
    from retrieval_spec.drafters.blended import Blended

FIRST_NODES = 16
"""There is room for a tree of so many nodes before one is asked for."""

_RELIABILITY = reliability_by_match_length()


class _Scratch(threading.local):
    """Memory that kernels work in, one of each thread: all sessions find it in the caches."""

    def __init__(self) -> None:
        self._max_nodes = self._num_nodes = self._num_columns = 0
        self.fit(FIRST_NODES, FIRST_NODES, FIRST_NODES + 1)

    def fit(self, max_nodes: int, num_nodes: int, num_columns: int) -> None:
        """Makes room for so many nodes of one tree and of all, and for so many columns of a trie."""
        if max_nodes > self._max_nodes:
            self._max_nodes = max_nodes
            self.block: Int64s = np.empty(max(scratch_words(max_nodes), SEARCH_WORDS), np.int64)
        if num_nodes > self._num_nodes:
            self._num_nodes = num_nodes
            self.best: Float32s = np.empty(num_nodes, np.float32)
            self.reached: Float32s = np.empty(num_nodes, np.float32)
        if num_columns > self._num_columns:
            self._num_columns = num_columns
            self.trie: Int32s = np.empty((TRIE_ROWS, num_columns), np.int32)


_SCRATCH = _Scratch()


def draft_all(joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int) -> list[DraftTree]:
    """Works in what sessions observed, and returns the most probable paths of each, best first.

    All in one kernel call, which takes those first of whose nodes most were kept last time. Of what they
    draft together only the `total_nodes` most probable nodes are kept.
    """
    caps = [budget.max_nodes for budget in budgets]
    try:
        for joint, budget in zip(joints, budgets, strict=True):
            joint.ask(budget)
        steps = _new_steps([joint.address for joint in joints], [0] * len(joints), [0] * len(joints), caps)
        with _Held(joints):
            for joint, cap in zip(joints, caps, strict=True):
                joint.prepare(cap)
            drafted = _draft(joints, steps, caps, total_nodes, budgets[0].max_depth_nodes)
    finally:
        for joint in joints:
            joint.let_go()
    for joint in joints:
        joint.worked_in()
    return _trees(joints, drafted, budgets)


def commit_and_draft(
    joints: Sequence[Blended], rows: Rows, total_nodes: int, max_depth_nodes: int
) -> Drafted | None:
    """Commits to sessions and drafts for them, where nothing about any of them is unusual.

    Else nothing is changed, and what they commit and draft is to be done one by one.
    """
    corpora = [joint.corpora_as_noted() for joint in joints]  # nobody unmaps them now
    if None in corpora:
        return None
    steps = _new_steps([joint.address for joint in joints], rows.lengths, rows.ends, rows.max_nodes)
    with _Held(joints):
        if not commit_steps(steps, rows.token_ids, rows.vocab_size):
            return None
        drafted = _draft(joints, steps, rows.max_nodes, total_nodes, max_depth_nodes)
    if not drafted.late:
        return drafted
    budgets = [Budget(cap, max_depth_nodes) for cap in rows.max_nodes]
    return drafted._replace(forest=Forest.of(_trees(joints, drafted, budgets)))


def _trees(joints: Sequence[Blended], drafted: Drafted, budgets: Sequence[Budget]) -> list[DraftTree]:
    """Returns all trees, those included for which there was no room before."""
    trees = drafted.forest.trees([joint.source_names for joint in joints])
    for at in drafted.late:
        if budgets[at].max_nodes:
            trees[at] = joints[at].draft(budgets[at])
    return trees


def _new_steps(
    addresses: list[int], lengths: Sequence[int], ends: Sequence[int], caps: Sequence[int]
) -> Int64s:
    steps: Int64s = np.zeros((len(caps), STEP_WORDS), np.int64)
    firsts = accumulate([0, *caps[:-1]])
    steps[:, :NUM_LEFT] = list(zip(addresses, lengths, ends, caps, firsts, strict=True))
    return steps


def _draft(
    joints: Sequence[Blended], steps: Int64s, caps: Sequence[int], total_nodes: int, max_depth_nodes: int
) -> Drafted:
    """Drafts, and makes room where there was none, or will soon be none."""
    num_nodes, most = sum(caps), max(caps)
    scratch = _SCRATCH
    scratch.fit(most, num_nodes, 1 + most * max([joint.num_corpora for joint in joints]))
    best = scratch.best[: total_nodes if total_nodes < num_nodes else 0]
    token_ids, parents, probs = new_columns(num_nodes)
    sources: Uint16s = np.empty(num_nodes, np.uint16)
    kept = take_steps(
        *(steps, max_depth_nodes, best, _RELIABILITY, scratch.block, scratch.trie),
        *(token_ids, parents, probs, sources, scratch.reached),
    )
    done = steps[:, NUM_LEFT:TURN].tolist()
    late = [at for at, (num_left, _, _) in enumerate(done) if num_left]
    due = [at for at, (num_left, _, is_due) in enumerate(done) if is_due or num_left]
    for at in due:
        joints[at].make_room(done[at][0])
    counts = [size for _, size, _ in done]
    forest = Forest(counts, token_ids[:kept], parents[:kept], probs[:kept], sources[:kept])
    return Drafted(forest, late, due)


class _Held:
    """The locks of sessions, each once and all in one order, so that no two threads wait for each other."""

    __slots__ = ("_locks",)

    def __init__(self, joints: Sequence[Blended]) -> None:
        self._locks = joints[0].locks
        others = {joint.locks for joint in joints[1:]} - {self._locks}
        if others:
            self._locks = in_order({*self._locks}.union(*others))

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *raised: object) -> None:
        for lock in self._locks:
            lock.release()


def in_order(locks: Iterable[Lock]) -> tuple[Lock, ...]:
    """Returns locks in the order in which everybody takes them."""
    return tuple(sorted(locks, key=id))
