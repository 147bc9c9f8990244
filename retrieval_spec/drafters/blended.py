"""Sessions whose sources are blended: the arrays of each on a card, for kernels that step over cards.

What a session observes is worked in when it drafts next, in the same kernel call; its cursors are told later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from retrieval_spec.drafters.base import (
    Budget,
    Cursor,
    Int64s,
    TextCursor,
    is_text,
)
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.drafters.joint import Group, trials_of
from retrieval_spec.drafters.searched import Corpora
from retrieval_spec.drafters.stepping import FIRST_NODES, draft_all, in_order, learn_from
from retrieval_spec.drafters.text_card import TextCard
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import cards
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.records import record_words
from retrieval_spec.structures.blend_tables import new_tables
from retrieval_spec.structures.context import Context
from retrieval_spec.structures.shared_automaton import NO_ROWS
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens

_TRIAL_TOKENS = 1_024
"""Of a context, for a trial: more than any source looks back."""


class Learned:
    """What one namespace learned, and the lock around it."""

    __slots__ = ("__weakref__", "_group", "lock", "tables")

    def __init__(self, prior: Float32s | None) -> None:
        self.lock = threading.Lock()
        self.tables = new_tables(prior)
        self._group: Group | None = None

    def copy(self) -> Learned:
        """Returns the same for one session alone."""
        copy = Learned.__new__(Learned)
        copy.lock, copy._group = threading.Lock(), None
        with self.lock:
            copy.tables = self.tables.copy()
        return copy

    def group(self, locks: tuple[threading.Lock, ...], corpora: Corpora) -> Group:
        """Returns what sessions with the same locks and corpora have in common: the same one for all."""
        group = self._group
        if group is None or group.locks != locks or group.corpora is not corpora:
            group = self._group = Group(locks, corpora)
        return group

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return int(self.tables.nbytes)


class _NoText:
    """Stands for a kind of text that an engine has no source of."""

    lock = None
    learns_at_once = False
    card = TextCard(SuffixAutomaton().arena, NO_ROWS)
    place = np.zeros(max(ANCHOR_WORDS, cards.PLACE_WORDS), np.int64)

    def trial(self) -> _NoText:
        return self

    def refresh(self, num_new: int) -> None:
        pass

    def advance(self, tokens: Tokens) -> None:
        pass

    def make_room(self, left: Tokens) -> None:
        pass


class Blended:
    """The cursors of one session; owned by it, not thread-safe.

    Attributes:
        address: where its card lies.
        group: of sessions that kernels step together; None if a source has to be told or asked itself.
        locks: around what it reads and learns together with other sessions, in the order to take them.
        corpora: that kernels search for it; None if it has other sources that are no texts.
        source_names: of the engine.
    """

    __slots__ = (
        "_card",
        "_context",
        "_cursors",
        "_drafted",
        "_learned",
        "_num_nodes",
        "_others",
        "_records",
        "_searched",
        "_texts",
        "_told_corpora",
        "_told_texts",
        "_trie",
        "address",
        "corpora",
        "group",
        "locks",
        "source_names",
    )

    def __init__(
        self,
        cursors: Sequence[Cursor],
        learned: Learned,
        source_names: tuple[str, ...],
        context: Context,
        corpora_among: Callable[[Sequence[tuple[int, Cursor]]], Corpora | None],
    ) -> None:
        texts: list[TextCursor | _NoText] = [_NoText()] * NUM_TEXTS
        bits: Int64s = np.zeros(NUM_TEXTS, np.int64)
        others: list[tuple[int, Cursor]] = []
        for bit, cursor in enumerate(cursors):
            if is_text(cursor):
                texts[cursor.kind], bits[cursor.kind] = cursor, bit
            else:
                others.append((bit, cursor))
        self.source_names = source_names
        self.corpora = corpora_among(others)
        self._drafted = np.empty((2, 3, 0), np.int32)
        self._records = np.empty((2, 0), np.int32)
        self._card: Int64s = np.zeros(cards.CARD_WORDS, np.int64)
        self._card[cards.BITS : cards.BITS + NUM_TEXTS] = bits
        self._card[[cards.NUM_DRAFTED, cards.NUM_UNLEARNED]] = -1
        self._take(learned, texts, others, context)
        self._make_room(FIRST_NODES)

    def _take(
        self,
        learned: Learned,
        texts: Sequence[TextCursor | _NoText],
        others: list[tuple[int, Cursor]],
        context: Context,
    ) -> None:
        """Notes whose arrays are on the card."""
        card, self._learned, self._texts, self._context = self._card, learned, texts, context
        card[cards.CONTEXT], card[cards.TABLES] = context.words.ctypes.data, learned.tables.ctypes.data
        card[cards.NUM_WORKED_IN] = self._told_texts = self._told_corpora = context.length
        for kind, text in enumerate(texts):
            card[cards.TEXTS + kind], card[cards.PLACES + kind] = text.card.address, text.place.ctypes.data
        self._note_others(others)
        shared = (texts[OUTPUTS].lock, texts[PROMPTS].lock, learned.lock)
        self.locks = in_order(lock for lock in shared if lock is not None)
        has_to_be_told = any(text.learns_at_once for text in texts)
        self.group = None
        if self.corpora is not None and not has_to_be_told:
            self.group = learned.group(self.locks, self.corpora)
        self.address = card.ctypes.data

    def _note_others(self, others: list[tuple[int, Cursor]]) -> None:
        """Notes the sources that are no texts: who is told of commits at once, and who when it is asked."""
        cursors = [cursor for _, cursor in others]
        self._cursors, self._searched = (cursors, []) if self.corpora is None else ([], cursors)
        self._others = [(bit, GuardedCursor(cursor)) for bit, cursor in others]

    def _make_room(self, max_nodes: int) -> None:
        num_words = record_words(max_nodes)
        self._keep_in(np.empty((2, 3, max_nodes), np.int32), np.empty((2, num_words), np.int32))

    def _keep_in(self, drafted: Int32s, records: Int32s) -> None:
        """Moves what is known of the trees drafted last into other arrays."""
        drafted[:, :, : self._drafted.shape[2]] = self._drafted
        records[:, : self._records.shape[1]] = self._records
        self._drafted, self._records, self._num_nodes = drafted, records, drafted.shape[2]
        at = [cards.DRAFTED, cards.DRAFTED_ROOM, cards.RECORDS, cards.RECORDS_WORDS]
        self._card[at] = drafted.ctypes.data, drafted.shape[2], records.ctypes.data, records.shape[1]

    def draft(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths, best first."""
        return draft_all((self,), (budget,), budget.max_nodes)[0]

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Appends to the context; the texts and what is learned from them wait for the next draft."""
        for cursor in self._cursors:
            cursor.observe(tokens, feedback)
        if tokens.shape[0]:
            self._work_in()
            self._context.append(tokens)

    def _work_in(self) -> None:
        if self._num_pending:
            draft_all((self,), (Budget(0),), 0)

    @property
    def _num_pending(self) -> int:
        return self._context.length - self._card.item(cards.NUM_WORKED_IN)

    def settle(self) -> None:
        """Works in what was observed, learns from it and tells the cursors."""
        self._work_in()
        if self._card.item(cards.NUM_UNLEARNED) >= 0:
            learn_from(np.array([self.address]), {self.locks})
        self._tell_texts()
        self._tell_corpora()

    def _tell_texts(self) -> None:
        """Tells the texts of all that kernels worked in for them."""
        tokens = self._context.tokens[self._told_texts :]
        self._told_texts += tokens.shape[0]
        for text in self._texts:
            text.advance(tokens)

    def _tell_corpora(self) -> None:
        """Tells the corpora of the context's end, which kernels find without them."""
        tokens = self._context.tokens[self._told_corpora :]
        self._told_corpora += tokens.shape[0]
        for cursor in self._searched:
            cursor.observe(tokens)

    def keep(self, num_nodes: int) -> None:
        """Says that of the tree drafted last only the first nodes will be verified."""
        self._card[cards.NUM_KEPT] = num_nodes

    def trial(self) -> Blended | None:
        """Returns one in the same state, whose moves show nowhere else; None if a source allows none."""
        self.settle()
        others = [(bit, guarded.cursor) for bit, guarded in self._others]
        texts = trials_of(self._texts)  # type: ignore[arg-type]
        cursors = trials_of([cursor for _, cursor in others])
        if texts is None or cursors is None:
            return None
        trial = copy(self)
        trial._card = self._card.copy()
        bits = [bit for bit, _ in others]
        context = Context(self._context.tokens[-_TRIAL_TOKENS:])
        trial._take(self._learned.copy(), texts, list(zip(bits, cursors, strict=True)), context)  # type: ignore[arg-type]
        trial._keep_in(np.empty_like(self._drafted), np.empty_like(self._records))
        return trial

    def leave_out(self) -> None:
        """Notes that nothing else is proposed than texts know, or kernels find in corpora."""
        self._card[cards.TRIE_COLUMNS] = 0

    def propose(self, budget: Budget) -> None:
        """Lets the sources propose that are no texts."""
        card, self._trie = self._card, self._proposed(budget)
        card[cards.TRIE], card[cards.TRIE_COLUMNS] = self._trie.ctypes.data, self._trie.shape[1]

    def _proposed(self, budget: Budget) -> Int32s:
        """Returns the trees of the sources that are no texts as one trie."""
        self._tell_corpora()
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
        num_new = self._num_pending
        for text in self._texts:
            text.refresh(num_new)

    def worked_in(self) -> None:
        """Notes that a kernel has worked in what was pending."""
        if self.group is None:
            self._tell_texts()

    def make_room(self, num_left: int) -> None:
        """Makes room for tokens to come, and for the last ones, so many of which the own text has not yet."""
        self._context.make_room()
        self._texts[OWN].make_room(self._context.tokens[self._context.length - num_left :])
