"""Steps of blended sessions: many in one call of a kernel, which goes from card to card.

What Python does for each session of a batch takes as long as the search: where all is as usual, it says where
the cards lie, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.drafters.base import Budget, Int64s
from retrieval_spec.drafters.columns import new_columns
from retrieval_spec.drafters.joint import Group, Joint
from retrieval_spec.drafters.searched import NOTHING, Searched
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels.blend import scratch_words
from retrieval_spec.kernels.blend_steps import begin_steps, draft_turns, end_steps, take_steps
from retrieval_spec.kernels.commits import UNUSUAL, commit_steps
from retrieval_spec.kernels.outcomes import learn_outcomes
from retrieval_spec.kernels.proposals import SEARCH_WORDS
from retrieval_spec.kernels.steps import CARD, FIRST, MAX_NODES, NUM_LEFT, NUM_PARTS, STEP_WORDS, TURN
from retrieval_spec.tree import DraftTree, Float32s, Forest, Int32s, Tokens, Uint16s

if TYPE_CHECKING:
    from retrieval_spec.drafters.blended import Blended

FIRST_NODES = 64
"""There is room for a tree of so many nodes before one is asked for: while a session has none for what is
asked, whole steps go row by row."""
MANY_SESSIONS = 32
"""From here on a step is drafted in parts: another thread is worth waking for one of them."""

Trees = tuple[Tokens, Int32s, Float32s, Uint16s]
"""Token ids, parents, probabilities and sources of all trees."""
Work = Callable[[], object]
Both = Callable[[Work, Work], None]
"""Does two things that do not touch each other, in any order or at once; raises what one of them raises."""

_RELIABILITY = reliability_by_match_length()


class Seated(NamedTuple):
    """Sessions that kernels can step together.

    Attributes:
        cards: int64[..]  where the card of each lies, by its seat.
        groups: that they are of.
    """

    cards: Int64s
    groups: set[Group]


class Rows(NamedTuple):
    """What a step commits and asks for.

    Attributes:
        columns: int64[4, n]  for each session, as they came: its seat, tokens that its context is taken to
            hold, how many it commits, and how many nodes its tree may have.
        token_ids: int32[..]  those that are committed, session after session, as they came.
        vocab_size: ids lie below it.
        most_nodes: of any tree.
    """

    columns: Int64s
    token_ids: Tokens
    vocab_size: int
    most_nodes: int


class Asked(NamedTuple):
    """What kernels are to draft.

    Attributes:
        steps: int64[n, STEP_WORDS]  `kernels.steps`.
        num_nodes: that all trees may have together.
        most_nodes: that one may have.
        total_nodes: of these are kept.
        max_depth_nodes: no path is longer.
    """

    steps: Int64s
    num_nodes: int
    most_nodes: int
    total_nodes: int
    max_depth_nodes: int

    @property
    def num_best(self) -> int:
        """How many nodes are chosen among all; 0 if all are kept."""
        return self.total_nodes if self.total_nodes < self.num_nodes else 0


class Drafted(NamedTuple):
    """What came of a step.

    Attributes:
        forest: the trees; none for sessions that are late.
        due: sessions that are to be tended to, by their places, and for how many tokens their own text had
            no room.
    """

    forest: Forest
    due: list[tuple[int, int]]

    @property
    def late(self) -> list[tuple[int, int]]:
        """Those without room: they are to draft after the others, once they have it."""
        return [(at, num_left) for at, num_left in self.due if num_left]

    def trees(self, joints: Sequence[Joint], budgets: Sequence[Budget]) -> list[DraftTree]:
        """Returns the trees of all, once there is room: together perhaps more nodes than were asked for."""
        trees = self.forest.trees([joint.source_names for joint in joints])
        for at, _ in self.late:
            if budgets[at].max_nodes:
                trees[at] = joints[at].draft(budgets[at])
        return trees


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


def one_by_one(first: Work, second: Work) -> None:
    """Does two things one after the other."""
    first()
    second()


def draft_all(joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int) -> list[DraftTree]:
    """Works in what sessions observed, and returns the most probable paths of each, best first.

    All in one kernel call, which takes those first of whose nodes most were kept last time. Of what they
    draft together only the `total_nodes` most probable nodes are kept.
    """
    caps = [budget.max_nodes for budget in budgets]
    common = joints[0].corpora
    searched = None if common is None else common.now()
    for joint, budget in zip(joints, budgets, strict=True):
        if not budget.max_nodes or (searched is not None and joint.corpora is common):
            joint.leave_out()
        else:
            joint.propose(budget)
    steps = _steps_of(joints, caps)
    with _Held({joint.locks for joint in joints}):
        for joint, cap in zip(joints, caps, strict=True):
            joint.prepare(cap)
        asked = Asked(steps, sum(caps), max(caps), total_nodes, budgets[0].max_depth_nodes)
        drafted = _draft(asked, searched or NOTHING, one_by_one)
    for at, num_left in drafted.due:
        joints[at].make_room(num_left)
    for joint in joints:
        joint.worked_in()
    return drafted.trees(joints, budgets)


def commit_and_draft(
    seated: Seated, rows: Rows, total_nodes: int, max_depth_nodes: int, both: Both
) -> Drafted | None:
    """Commits to distinct sessions and drafts for them, where nothing about any of them is unusual.

    Else nothing is changed, and what they commit and draft is to be done one by one. The trees are those of
    `Joint.observe` for each and `draft_all`, and of these the most probable nodes. Of large steps `both` does
    the halves, and how it does so changes no tree.
    """
    corpora = {group.corpora for group in seated.groups}
    searched = corpora.pop().now()
    if corpora or searched is None:
        return None
    steps: Int64s = np.empty((rows.columns.shape[1], STEP_WORDS), np.int64)
    with _Held({group.locks for group in seated.groups}):
        num_nodes = commit_steps(
            steps, seated.cards, rows.columns, rows.most_nodes, rows.token_ids, rows.vocab_size
        )
        if num_nodes == UNUSUAL:
            return None
        asked = Asked(steps, num_nodes, rows.most_nodes, total_nodes, max_depth_nodes)
        return _draft(asked, searched, both)


def learn_from(cards: Int64s, locks: set[tuple[Lock, ...]]) -> None:
    """Learns from what became of trees now, not when sessions draft again after their next commits.

    Args:
        cards: int64[n]  where those of the sessions lie.
        locks: of the sessions.
    """
    with _Held(locks):
        learn_outcomes(cards)


def _steps_of(joints: Sequence[Blended], caps: Sequence[int]) -> Int64s:
    steps: Int64s = np.zeros((len(caps), STEP_WORDS), np.int64)
    steps[:, CARD], steps[:, MAX_NODES] = [joint.address for joint in joints], caps
    steps[1:, FIRST] = list(accumulate(caps[:-1]))
    return steps


def _draft(asked: Asked, searched: Searched, both: Both) -> Drafted:
    steps = asked.steps
    token_ids, parents, probs = new_columns(asked.num_nodes)
    sources: Uint16s = np.empty(asked.num_nodes, np.uint16)
    draft = _draft_whole if steps.shape[0] < MANY_SESSIONS else partial(_draft_in_parts, both)
    kept = draft(asked, searched, (token_ids, parents, probs, sources))
    done = steps[:, NUM_LEFT:TURN].tolist()
    due = [(at, num_left) for at, (num_left, _, is_due) in enumerate(done) if is_due or num_left]
    counts = [size for _, size, _ in done]
    forest = Forest(counts, token_ids[:kept], parents[:kept], probs[:kept], sources[:kept])
    return Drafted(forest, due)


def _draft_whole(asked: Asked, searched: Searched, trees: Trees) -> int:
    """Fills in the trees; returns how many nodes are kept of all."""
    scratch = _fitting(asked, searched)
    kept: int = take_steps(
        *(asked.steps, searched.rows, asked.max_depth_nodes, scratch.best[: asked.num_best], _RELIABILITY),
        *(scratch.block, scratch.trie, *trees, scratch.reached),
    )
    return kept


def _draft_in_parts(both: Both, asked: Asked, searched: Searched, trees: Trees) -> int:
    """Does as `_draft_whole`, but each part knows only its own trees while it drafts."""
    scratch = _fitting(asked, searched)
    begin_steps(asked.steps)
    draft_part = partial(_draft_part, asked, searched, (*trees, scratch.reached))
    both(partial(draft_part, 0), partial(draft_part, 1))
    kept: int = end_steps(asked.steps, scratch.best[: asked.num_best], *trees, scratch.reached)
    return kept


def _draft_part(asked: Asked, searched: Searched, columns: tuple[Any, ...], part: int) -> None:
    scratch = _fitting(asked, searched)
    best = scratch.best[: -(-asked.num_best // NUM_PARTS)]
    draft_turns(
        *(asked.steps, part, asked.num_best, searched.rows, asked.max_depth_nodes, best, _RELIABILITY),
        *(scratch.block, scratch.trie, *columns),
    )


def compile_parts() -> None:
    """Compiles what only large steps need."""
    nobody: Int64s = np.empty((0, STEP_WORDS), np.int64)
    no_trees = (*new_columns(0), np.empty(0, np.uint16))
    _draft_in_parts(one_by_one, Asked(nobody, 0, 0, 0, 0), NOTHING, no_trees)


def _fitting(asked: Asked, searched: Searched) -> _Scratch:
    """Returns the memory of this thread, with room for what is asked."""
    _SCRATCH.fit(asked.most_nodes, asked.num_nodes, 1 + asked.most_nodes * len(searched.arrays))
    return _SCRATCH


class _Held:
    """Locks of sessions, each once and all in one order, so that no two threads wait for each other."""

    __slots__ = ("_locks",)

    def __init__(self, of_sessions: set[tuple[Lock, ...]]) -> None:
        (self._locks,) = of_sessions if len(of_sessions) == 1 else [in_order(set().union(*of_sessions))]

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *raised: object) -> None:
        for lock in self._locks:
            lock.release()


def in_order(locks: Iterable[Lock]) -> tuple[Lock, ...]:
    """Returns locks in the order in which everybody takes them."""
    return tuple(sorted(locks, key=id))
