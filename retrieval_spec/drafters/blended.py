"""Sessions whose sources are blended: the arrays of each on a card, and the kernel that steps over cards.

What a session observes is worked in when it drafts next, in the same kernel call.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.drafters.base import NO_SPAN, Budget, Cursor, Int64s, SearchedCursor, Span, TextCursor
from retrieval_spec.drafters.columns import new_columns
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.drafters.joint import trials_of
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import cards
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend import scratch_words
from retrieval_spec.kernels.blend_steps import (
    MAX_NODES,
    NUM_ADDED,
    SEARCH_WORDS,
    SIZE,
    STEP_WORDS,
    take_steps,
)
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, PROMPTS
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.records import record_words
from retrieval_spec.structures.blend_tables import new_tables
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.shared_automaton import NO_ROWS
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import TOKEN, DraftTree, Float32s, Int32s, Tokens, Uint16s

FIRST_NODES = 16
"""There is room for a tree of so many nodes before one is asked for."""

_NOTHING: Tokens = np.zeros(0, TOKEN)
_NO_TEXT = SuffixAutomaton().arena
_NO_PLACE = np.zeros(ANCHOR_WORDS, np.int64)
_RELIABILITY = reliability_by_match_length()


class Learned:
    """What one namespace learned, and the lock around it."""

    __slots__ = ("__weakref__", "lock", "tables")

    def __init__(self, prior: Float32s | None) -> None:
        self.lock = threading.Lock()
        self.tables = new_tables(prior)

    def copy(self) -> Learned:
        """Returns the same for one session alone."""
        copy = Learned.__new__(Learned)
        copy.lock = threading.Lock()
        with self.lock:
            copy.tables = self.tables.copy()
        return copy

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return int(self.tables.nbytes)


class _NoText:
    """Stands for a kind of text that an engine has no source of."""

    lock = None

    def trial(self) -> _NoText:
        return self

    def find_place(self, num_new: int) -> tuple[Int32s, Int32s, Int64s, Span]:
        return _NO_TEXT, NO_ROWS, _NO_PLACE, NO_SPAN

    def advance(self, tokens: Tokens, num_added: int) -> None:
        pass


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


def step_all(joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int) -> list[DraftTree]:
    """Works in what sessions observed, and returns the most probable paths of each, best first.

    All in one kernel call, in their order. Of what they draft together only the `total_nodes` most probable
    nodes are kept.
    """
    caps = [budget.max_nodes for budget in budgets]
    num_nodes, num_columns = sum(caps), 1
    for joint, budget in zip(joints, budgets, strict=True):
        joint.ask(budget)
        num_columns = max(num_columns, 1 + budget.max_nodes * len(joint.corpora))
    scratch = _SCRATCH
    scratch.fit(max(caps), num_nodes, num_columns)
    best = scratch.best[: total_nodes if total_nodes < num_nodes else 0]
    columns = (*new_columns(num_nodes), np.empty(num_nodes, np.uint16))
    with _Held(joints):
        for joint, cap in zip(joints, caps, strict=True):
            joint.prepare(cap)
        steps, tokens = _steps_of(joints, caps)
        take_steps(
            *(steps, tokens, budgets[0].max_depth_nodes, best, _RELIABILITY, scratch.block, scratch.trie),
            *(*columns, scratch.reached),
        )
    done = steps[:, NUM_ADDED : SIZE + 1].tolist()
    late = [at for at, joint in enumerate(joints) if joint.worked_in(done[at][0]) and caps[at]]
    trees = _trees(joints, caps, [size for _, size in done], columns)
    for at in late:
        trees[at] = joints[at].draft(budgets[at])
    return trees


class _Held:
    """The locks of sessions, each once and all in one order, so that no two threads wait for each other."""

    __slots__ = ("_locks",)

    def __init__(self, joints: Sequence[Blended]) -> None:
        self._locks = joints[0].locks
        others = {joint.locks for joint in joints[1:]} - {self._locks}
        if others:
            self._locks = _in_order({*self._locks}.union(*others))

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *raised: object) -> None:
        for lock in self._locks:
            lock.release()


def _in_order(locks: Iterable[Lock]) -> tuple[Lock, ...]:
    return tuple(sorted(locks, key=id))


def _steps_of(joints: Sequence[Blended], caps: list[int]) -> tuple[Int64s, Tokens]:
    pending = [joint.pending for joint in joints]
    ends = accumulate(map(len, pending))
    steps: Int64s = np.zeros((len(joints), STEP_WORDS), np.int64)
    steps[:, : MAX_NODES + 1] = [
        (joint.address, end, cap) for joint, end, cap in zip(joints, ends, caps, strict=True)
    ]
    return steps, pending[0] if len(pending) == 1 else np.concatenate(pending)


def _trees(
    joints: Sequence[Blended],
    caps: Sequence[int],
    sizes: Sequence[int],
    columns: tuple[Tokens, Int32s, Float32s, Uint16s],
) -> list[DraftTree]:
    token_ids, parents, probs, sources = columns
    if sizes[0] == token_ids.shape[0]:
        return [DraftTree(token_ids, parents, probs, sources, joint.source_names) for joint in joints]
    trees, first = [], 0
    for joint, cap, size in zip(joints, caps, sizes, strict=True):
        part = slice(first, first + size)
        trees.append(
            DraftTree(token_ids[part], parents[part], probs[part], sources[part], joint.source_names)
        )
        first += cap
    return trees


class Blended:
    """The cursors of one session; owned by it, not thread-safe.

    Attributes:
        address: where its card lies.
        corpora: the sources that kernels ask themselves, by their bits; none if there are others.
        locks: around what it reads and learns together with other sessions, in the order to take them.
        pending: int32[n]  observed, but not worked in yet.
        source_names: of the engine.
    """

    __slots__ = (
        "_card",
        "_cursors",
        "_drafted",
        "_learned",
        "_num_nodes",
        "_others",
        "_records",
        "_rows",
        "_searched",
        "_seen",
        "_texts",
        "_trie",
        "address",
        "corpora",
        "locks",
        "pending",
        "source_names",
    )

    def __init__(self, cursors: Sequence[Cursor], learned: Learned, source_names: tuple[str, ...]) -> None:
        texts: list[TextCursor | _NoText] = [_NoText()] * NUM_TEXTS
        bits: Int64s = np.zeros(NUM_TEXTS, np.int64)
        others: list[tuple[int, Cursor]] = []
        for bit, cursor in enumerate(cursors):
            if isinstance(cursor, TextCursor):
                texts[cursor.kind], bits[cursor.kind] = cursor, bit
            else:
                others.append((bit, cursor))
        self.source_names = source_names
        self.pending = _NOTHING
        self._drafted = np.empty((3, 0), np.int32)
        self._records = np.empty(0, np.int32)
        self._card: Int64s = np.zeros(cards.CARD_WORDS, np.int64)
        self._card[cards.BITS : cards.BITS + NUM_TEXTS] = bits
        self._card[cards.NUM_DRAFTED] = -1
        self._take(learned, texts, others)
        self._make_room(FIRST_NODES)

    def _take(
        self, learned: Learned, texts: Sequence[TextCursor | _NoText], others: list[tuple[int, Cursor]]
    ) -> None:
        """Notes whose arrays are on the card."""
        self._learned, self._texts = learned, texts
        self._cursors = [cursor for _, cursor in others]
        self._others = [(bit, GuardedCursor(cursor)) for bit, cursor in others]
        corpora = [(bit, cursor) for bit, cursor in others if isinstance(cursor, SearchedCursor)]
        self.corpora = corpora if len(corpora) == len(others) else []
        self._searched: list[ContextArray] = []
        self._rows = np.zeros((len(self.corpora), cards.CORPUS_WORDS), np.int64)
        self._seen: list[Any] = [_nobody] * (2 * NUM_TEXTS + len(self.corpora))
        shared = (texts[OUTPUTS].lock, texts[PROMPTS].lock, learned.lock)
        self.locks = _in_order(lock for lock in shared if lock is not None)
        self.address = self._card.ctypes.data
        self._card[cards.TABLES] = learned.tables.ctypes.data
        self._card[cards.CORPORA], self._card[cards.NUM_CORPORA] = self._rows.ctypes.data, len(self.corpora)

    def _make_room(self, max_nodes: int) -> None:
        self._keep_in(np.empty((3, max_nodes), np.int32), np.empty(record_words(max_nodes), np.int32))

    def _keep_in(self, drafted: Int32s, records: Int32s) -> None:
        """Moves what is known of the tree drafted last into other arrays."""
        drafted[:, : self._drafted.shape[1]] = self._drafted
        records[: self._records.shape[0]] = self._records
        self._drafted, self._records, self._num_nodes = drafted, records, drafted.shape[1]
        at = [cards.DRAFTED, cards.DRAFTED_ROOM, cards.RECORDS, cards.RECORDS_WORDS]
        self._card[at] = drafted.ctypes.data, drafted.shape[1], records.ctypes.data, records.shape[0]

    def draft(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths, best first."""
        return step_all((self,), (budget,), budget.max_nodes)[0]

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves all cursors on; the texts and what is learned from them wait for the next draft."""
        for cursor in self._cursors:
            cursor.observe(tokens, feedback)
        if tokens.shape[0]:
            self.settle()
            self.pending = tokens.copy()

    def settle(self) -> None:
        """Works in what was observed."""
        if self.pending.shape[0]:
            step_all((self,), (Budget(0),), 0)

    def keep(self, num_nodes: int) -> None:
        """Says that of the tree drafted last only the first nodes will be verified."""
        self._card[cards.NUM_KEPT] = num_nodes

    def trial(self) -> Blended | None:
        """Returns one in the same state, whose moves show nowhere else; None if a source allows none."""
        self.settle()
        texts, others = trials_of(self._texts), trials_of(self._cursors)  # type: ignore[arg-type]
        if texts is None or others is None:
            return None
        trial = copy(self)
        trial._card = self._card.copy()
        bits = [bit for bit, _ in self._others]
        trial._take(self._learned.copy(), texts, list(zip(bits, others, strict=True)))  # type: ignore[arg-type]
        trial._keep_in(np.empty_like(self._drafted), np.empty_like(self._records))
        return trial

    def ask(self, budget: Budget) -> None:
        """Lets the sources propose that are no texts, or notes on the card where kernels search them."""
        card, num_found = self._card, 0
        if budget.max_nodes:
            num_found = self._look_up_corpora()
        if num_found == len(self._others) or not budget.max_nodes:
            card[cards.TRIE_COLUMNS] = 0
        else:
            self._trie = self._proposed(budget)
            card[cards.TRIE], card[cards.TRIE_COLUMNS] = self._trie.ctypes.data, self._trie.shape[1]

    def _look_up_corpora(self) -> int:
        """Notes where corpora and the end of the context are; returns how many kernels can search."""
        rows, num_found = self._rows, 0
        for bit, cursor in self.corpora:
            found = cursor.find_corpus()
            if found is None:
                break
            corpus, tail = found
            self._searched.append(corpus)  # nobody unmaps it now
            seen = 2 * NUM_TEXTS + num_found
            if self._seen[seen]() is not corpus:
                self._seen[seen] = weakref.ref(corpus)
                rows[num_found, : cards.CONTEXT] = _words_of(corpus)
                rows[num_found, cards.CORPUS_BIT] = bit
            rows[num_found, cards.CONTEXT] = tail.address
            rows[num_found, cards.NUM_CONTEXT] = tail.tokens.shape[0]
            num_found += 1
        return num_found

    def _proposed(self, budget: Budget) -> Int32s:
        """Returns the trees of the sources that are no texts as one trie."""
        trees, num_nodes = [], 0
        for bit, cursor in self._others:
            tree = cursor.propose(budget)
            trees.append((bit, tree))
            num_nodes += tree.token_ids.shape[0]
        trie: Int32s = np.zeros((TRIE_ROWS, num_nodes + 1), np.int32)
        size = 1
        for bit, tree in trees:
            size = insert(trie, size, tree.token_ids, tree.parents, tree.probs, tree.sources, bit)
        return trie

    def prepare(self, max_nodes: int) -> None:
        """Brings the card up to date before a kernel reads it; the locks are held."""
        if max_nodes > self._num_nodes:
            self._make_room(max_nodes)
        seen, num_new = self._seen, self.pending.shape[0]
        for kind, text in enumerate(self._texts):
            arena, rows, place, suffix = text.find_place(num_new)
            at = kind * cards.TEXT_WORDS
            self._card[at + cards.SUFFIX : at + cards.TEXT_WORDS] = suffix
            if seen[2 * kind]() is not arena or seen[2 * kind + 1]() is not rows:
                seen[2 * kind : 2 * kind + 2] = weakref.ref(arena), weakref.ref(rows)
                self._card[at : at + cards.SUFFIX] = (
                    *(arena.ctypes.data, rows.ctypes.data, place.ctypes.data),
                    *(arena.shape[0], rows.shape[0]),
                )

    def worked_in(self, num_added: int) -> bool:
        """Notes that a kernel worked in what was pending; returns whether it had no room for all of it."""
        self._searched.clear()
        tokens, self.pending = self.pending, _NOTHING
        if tokens.shape[0]:
            for text in self._texts:
                text.advance(tokens, num_added)
        return num_added < len(tokens)


def _words_of(corpus: ContextArray) -> list[int]:
    """Returns what stands on a card of a corpus, up to the context."""
    tokens, positions, buckets = corpus.tokens, corpus.positions, corpus.buckets
    return [
        *(tokens.ctypes.data, tokens.shape[0], tokens.dtype.itemsize == TOKEN().itemsize),
        *(positions.ctypes.data, positions.shape[0], buckets.ctypes.data, buckets.shape[0]),
        corpus.depth_tokens,
    ]


def _nobody() -> None:
    """Stands for a reference to what is gone."""
