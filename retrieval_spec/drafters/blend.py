"""One calibrated tree over all sources: what the default preset drafts.

Sources that are texts (`base.TextCursor`) are expanded together, node by node; what others propose joins
in as evidence. Every commit corrects the probabilities of its namespace (`kernels.blend_learning`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy

import numpy as np

from retrieval_spec.drafters.base import Budget, Cursor, Int64s, TextCursor
from retrieval_spec.drafters.columns import new_columns, with_room
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.drafters.joint import trials_of
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend import draft, scratch_words
from retrieval_spec.kernels.blend_learning import MAX_LEARNED_TOKENS, learn
from retrieval_spec.kernels.blend_tables import NUM_TEXTS
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.records import record_words
from retrieval_spec.structures.blend_tables import new_tables
from retrieval_spec.structures.shared_automaton import NO_ROWS
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens

_NOTHING = np.zeros((TRIE_ROWS, 1), np.int32)
_NO_TEXT = SuffixAutomaton().arena
_NO_PLACE = np.zeros(ANCHOR_WORDS, np.int64)


class _Learned:
    """What one namespace learned, and the lock around it."""

    __slots__ = ("__weakref__", "lock", "tables")

    def __init__(self, prior: Float32s | None) -> None:
        self.lock = threading.Lock()
        self.tables = new_tables(prior)

    def copy(self) -> _Learned:
        """Returns the same for one session alone."""
        copy = _Learned.__new__(_Learned)
        copy.lock = threading.Lock()
        with self.lock:
            copy.tables = self.tables.copy()
        return copy

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return int(self.tables.nbytes)


class Blend:
    """Blends the sources of an engine; keeps what it learned apart by namespace.

    Args:
        source_names: of the engine, in the order of its cursors.
        prior: float32[PRIOR_CELLS]  what every namespace starts with; None: what ships with the package.
    """

    def __init__(self, source_names: tuple[str, ...], prior: Float32s | None = None) -> None:
        self.source_names = source_names
        self.namespaces = Namespaces(lambda: _Learned(prior))

    def start(self, cursors: Sequence[Cursor], namespace: str) -> Blended:
        """Returns the cursors of a new session as one."""
        return Blended(cursors, self.namespaces.of(namespace), self.source_names)

    def cells_of(self, namespace: str) -> Float32s:
        """Returns the tables of a namespace, not a copy: float32[NUM_CELLS], for tools."""
        return self.namespaces.of(namespace).tables


class _NoText:
    """Stands for a kind of text that an engine has no source of."""

    lock = nullcontext()

    def trial(self) -> _NoText:
        return self

    def find_place(self) -> tuple[Int32s, Int32s, Int64s]:
        return _NO_TEXT, NO_ROWS, _NO_PLACE

    def observe(self, tokens: Tokens) -> None:
        pass

    advance = observe


class Blended:
    """The cursors of one session; owned by it, not thread-safe."""

    __slots__ = (
        "_bits",
        "_cursors",
        "_drafted",
        "_learned",
        "_num_kept",
        "_others",
        "_records",
        "_scratch",
        "_source_names",
        "_texts",
    )

    def __init__(self, cursors: Sequence[Cursor], learned: _Learned, source_names: tuple[str, ...]) -> None:
        self._learned = learned
        self._source_names = source_names
        self._scratch = np.empty(scratch_words(16), np.int64)
        self._records: Int32s = np.empty(record_words(16), np.int32)
        self._texts: list[TextCursor | _NoText] = [_NoText()] * NUM_TEXTS
        self._bits: Int64s = np.zeros(NUM_TEXTS, np.int64)
        self._others: list[tuple[int, Cursor]] = []
        self._cursors: list[Cursor] = []
        for bit, cursor in enumerate(cursors):
            if isinstance(cursor, TextCursor):
                self._texts[cursor.kind], self._bits[cursor.kind] = cursor, bit
            else:
                self._others.append((bit, GuardedCursor(cursor)))
                self._cursors.append(cursor)
        self._drafted: tuple[Tokens, Int32s, Float32s] | None = None
        self._num_kept = 0

    def draft(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths, best first."""
        max_nodes = budget.max_nodes
        proposed = self._proposed(budget)
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        self._records = with_room(self._records, record_words(max_nodes))
        token_ids, parents, probs = new_columns(max_nodes)
        sources, path_probs = np.empty(max_nodes, np.uint16), np.empty(max_nodes, np.float32)
        own, outputs, prompts = self._texts
        with outputs.lock, prompts.lock, self._learned.lock:
            size = draft(
                *own.find_place(),
                *outputs.find_place(),
                *prompts.find_place(),
                proposed,
                self._learned.tables,
                self._bits,
                budget.max_depth_nodes,
                self._scratch,
                self._records,
                token_ids,
                parents,
                probs,
                sources,
                path_probs,
            )
        if size < max_nodes:
            token_ids, parents, probs, sources = (
                token_ids[:size],
                parents[:size],
                probs[:size],
                sources[:size],
            )
        self._drafted, self._num_kept = (token_ids, parents, path_probs), size
        return DraftTree(token_ids, parents, probs, sources, self._source_names)

    def trial(self) -> Blended | None:
        """Returns one in the same state, whose moves show nowhere else; None if a source allows none."""
        texts, others = trials_of(self._texts), trials_of(self._cursors)  # type: ignore[arg-type]
        if texts is None or others is None:
            return None
        trial = copy(self)
        trial._learned, trial._records = self._learned.copy(), self._records.copy()
        trial._texts = texts  # type: ignore[assignment]  # trials of texts are texts
        trial._cursors = others
        bits = [bit for bit, _ in self._others]
        trial._others = [(bit, GuardedCursor(cursor)) for bit, cursor in zip(bits, others, strict=True)]
        return trial

    def keep(self, num_nodes: int) -> None:
        """Says that of the tree drafted last only the first nodes will be verified."""
        self._num_kept = num_nodes

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Learns from what followed the context, and moves all cursors on."""
        num_tokens = tokens.shape[0]
        if num_tokens and self._drafted is not None:
            self._learn(tokens, self._drafted)
        else:
            num_tokens = 0
        for text in self._texts:
            if 0 < num_tokens <= MAX_LEARNED_TOKENS:
                text.advance(tokens)
            else:
                text.observe(tokens)
        for cursor in self._cursors:
            cursor.observe(tokens, feedback)

    def _learn(self, tokens: Tokens, drafted: tuple[Tokens, Int32s, Float32s]) -> None:
        own, outputs, prompts = self._texts
        with outputs.lock, prompts.lock, self._learned.lock:
            own_text, _, anchor = own.find_place()
            output_texts, _, output_place = outputs.find_place()
            prompt_texts, _, prompt_place = prompts.find_place()
            learn(
                own_text,
                anchor,
                output_texts,
                output_place,
                prompt_texts,
                prompt_place,
                self._learned.tables,
                tokens,
                *drafted,
                self._num_kept,
                self._scratch,
                self._records,
            )
        self._drafted = None

    def _proposed(self, budget: Budget) -> Int32s:
        """Returns the trees of the sources that are no texts, as one trie."""
        trees, num_nodes = [], 0
        for bit, cursor in self._others:
            tree = cursor.propose(budget)
            if tree.token_ids.shape[0]:
                trees.append((bit, tree))
                num_nodes += tree.token_ids.shape[0]
        if num_nodes == 0:
            return _NOTHING
        trie: Int32s = np.zeros((TRIE_ROWS, num_nodes + 1), np.int32)
        size = 1
        for bit, tree in trees:
            size = insert(trie, size, tree.token_ids, tree.parents, tree.probs, tree.sources, bit)
        return trie
