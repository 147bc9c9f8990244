"""Sessions whose sources are blended: the arrays of each on a card, and the kernel that steps over cards.

What a session observes is worked in when it drafts next, in the same kernel call.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from itertools import accumulate
from typing import Any

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.drafters.base import Budget, Cursor, Int64s, SearchedCursor, TextCursor
from retrieval_spec.drafters.columns import new_columns, with_room
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.drafters.joint import trials_of
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import cards
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend import scratch_words
from retrieval_spec.kernels.blend_steps import NUM_ADDED, SEARCH_WORDS, take_steps
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

    lock = nullcontext()

    def trial(self) -> _NoText:
        return self

    def find_place(self, num_new: int) -> tuple[Int32s, Int32s, Int64s]:
        return _NO_TEXT, NO_ROWS, _NO_PLACE

    def advance(self, tokens: Tokens, num_added: int) -> None:
        pass


class _Scratch(threading.local):
    """Memory that kernels work in, one of each thread: all sessions find it in the caches."""

    def __init__(self) -> None:
        self._block: Int64s = np.empty(max(scratch_words(FIRST_NODES), SEARCH_WORDS), np.int64)
        self._trie: Int32s = np.empty(TRIE_ROWS * (FIRST_NODES + 1), np.int32)
        self._floats: Float32s = np.empty(2 * FIRST_NODES, np.float32)

    def block(self, max_nodes: int) -> Int64s:
        self._block = with_room(self._block, scratch_words(max_nodes))
        return self._block

    def trie(self, num_columns: int) -> Int32s:
        self._trie = with_room(self._trie, TRIE_ROWS * num_columns)
        return self._trie[: TRIE_ROWS * num_columns].reshape(TRIE_ROWS, num_columns)

    def floats(self, num_words: int) -> Float32s:
        self._floats = with_room(self._floats, num_words)
        return self._floats


_SCRATCH = _Scratch()


def step_all(joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int) -> list[DraftTree]:
    """Works in what sessions observed, and returns the most probable paths of each, best first.

    Those that share what they learn go in one kernel call, in their order; of what they draft together only
    the `total_nodes` most probable nodes are kept.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, joint in enumerate(joints):
        groups.setdefault(joint.shared, []).append(index)
    if len(groups) == 1:
        return _step(joints, budgets, total_nodes)
    trees: dict[int, DraftTree] = {}
    for indices in groups.values():
        some, of_them = [joints[index] for index in indices], [budgets[index] for index in indices]
        trees.update(zip(indices, _step(some, of_them, total_nodes), strict=True))
    return [trees[index] for index in range(len(joints))]


def _step(joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int) -> list[DraftTree]:
    caps = [budget.max_nodes for budget in budgets]
    num_nodes = sum(caps)
    tries = [joint.ask(budget) for joint, budget in zip(joints, budgets, strict=True)]
    columns = (*new_columns(num_nodes), np.empty(num_nodes, np.uint16))
    num_columns = 1 + max([cap * len(joint.corpora) for joint, cap in zip(joints, caps, strict=True)])
    block, trie = _SCRATCH.block(max(caps)), _SCRATCH.trie(num_columns)
    floats = _SCRATCH.floats(2 * num_nodes)
    best, reached = floats[: total_nodes if total_nodes < num_nodes else 0], floats[num_nodes:]
    outputs, prompts, learned = joints[0].locks
    with outputs, prompts, learned:
        for joint, asked, cap in zip(joints, tries, caps, strict=True):
            joint.prepare(asked, cap)
        steps, tokens = _steps_of(joints, caps)
        depth = budgets[0].max_depth_nodes
        take_steps(steps, tokens, depth, best, _RELIABILITY, block, trie, *columns, reached)
    num_added, sizes = steps[NUM_ADDED:].tolist()
    late = [index for index, joint in enumerate(joints) if joint.worked_in(num_added[index]) and caps[index]]
    trees = _trees(joints, caps, sizes, columns)
    for index in late:
        trees[index] = joints[index].draft(budgets[index])
    return trees


def _steps_of(joints: Sequence[Blended], caps: list[int]) -> tuple[Int64s, Tokens]:
    pending = [joint.pending for joint in joints]
    ends = list(accumulate(map(len, pending)))
    unwritten = [0] * len(joints)
    steps = np.array([[joint.address for joint in joints], ends, caps, unwritten, unwritten], np.int64)
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
        locks: around what it reads and learns together with other sessions.
        pending: int32[n]  observed, but not worked in yet.
        shared: equal for sessions that learn together.
        source_names: of the engine.
    """

    __slots__ = (
        "_card",
        "_cursors",
        "_drafted",
        "_learned",
        "_others",
        "_records",
        "_rows",
        "_seen",
        "_texts",
        "address",
        "corpora",
        "locks",
        "pending",
        "shared",
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
        self._rows = np.zeros((len(self.corpora), cards.CORPUS_WORDS), np.int64)
        self._seen: list[Any] = [_nobody] * (2 * NUM_TEXTS + len(self.corpora))
        self.locks = (texts[OUTPUTS].lock, texts[PROMPTS].lock, learned.lock)
        self.shared = tuple(map(id, self.locks))
        self.address = self._card.ctypes.data
        self._card[cards.TABLES] = learned.tables.ctypes.data
        self._card[cards.CORPORA] = self._rows.ctypes.data

    def _make_room(self, max_nodes: int) -> None:
        self._keep_in(np.empty((3, max_nodes), np.int32), np.empty(record_words(max_nodes), np.int32))

    def _keep_in(self, drafted: Int32s, records: Int32s) -> None:
        """Moves what is known of the tree drafted last into other arrays."""
        drafted[:, : self._drafted.shape[1]] = self._drafted
        records[: self._records.shape[0]] = self._records
        self._drafted, self._records = drafted, records
        at = [cards.DRAFTED, cards.DRAFTED_ROOM, cards.RECORDS, cards.RECORDS_WORDS]
        self._card[at] = drafted.ctypes.data, drafted.shape[1], records.ctypes.data, records.shape[0]

    def draft(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths, best first."""
        return _step((self,), (budget,), budget.max_nodes)[0]

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
            _step((self,), (Budget(0),), 0)

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

    def ask(self, budget: Budget) -> Int32s | None:
        """Returns the trees of the sources that are no texts as one trie; None if a kernel asks them."""
        if budget.max_nodes == 0 or self._are_searched():
            return None
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

    def _are_searched(self) -> bool:
        return len(self.corpora) == len(self._others) and all(
            [cursor.find_corpus() is not None for _, cursor in self.corpora]
        )

    def prepare(self, trie: Int32s | None, max_nodes: int) -> None:
        """Brings the card up to date before a kernel reads it; the locks are held."""
        card = self._card
        if max_nodes > self._drafted.shape[1]:
            self._make_room(max_nodes)
        for kind, text in enumerate(self._texts):
            arena, rows, place = text.find_place(self.pending.shape[0])
            if self._seen[2 * kind]() is not arena or self._seen[2 * kind + 1]() is not rows:
                self._seen[2 * kind : 2 * kind + 2] = weakref.ref(arena), weakref.ref(rows)
                card[kind * cards.TEXT_WORDS : (kind + 1) * cards.TEXT_WORDS] = (
                    *(arena.ctypes.data, rows.ctypes.data, place.ctypes.data),
                    *(arena.shape[0], rows.shape[0]),
                )
        if trie is not None:
            card[cards.TRIE], card[cards.TRIE_COLUMNS], card[cards.NUM_CORPORA] = (
                trie.ctypes.data,
                trie.shape[1],
                0,
            )
        elif max_nodes:
            card[cards.TRIE_COLUMNS], card[cards.NUM_CORPORA] = 0, len(self.corpora)
            self._look_up_corpora()

    def _look_up_corpora(self) -> None:
        for at, (bit, cursor) in enumerate(self.corpora):
            found = cursor.find_corpus()
            assert found is not None
            corpus, tail = found
            row, seen = self._rows[at], 2 * NUM_TEXTS + at
            if self._seen[seen]() is not corpus:
                self._seen[seen] = weakref.ref(corpus)
                row[: cards.CONTEXT] = _words_of(corpus)
                row[cards.CORPUS_BIT] = bit
            row[cards.CONTEXT], row[cards.NUM_CONTEXT] = tail.address, tail.tokens.shape[0]

    def worked_in(self, num_added: int) -> bool:
        """Notes that a kernel worked in what was pending; returns whether it had no room for all of it."""
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
