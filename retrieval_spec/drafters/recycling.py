"""Drafts from what the target found likely before: the top-k ids of all nodes that it ever verified.

Token Recycling (arXiv 2408.08696) keeps one row of ids a token and expands a fixed tree of ranks. Ours
also keeps rows for pairs of tokens, learns from the text, and takes the most probable paths by how
often candidates of their kind came true. Rows are shared by the sessions of a namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval_spec import __version__
from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.segments import Place, open_segments
from retrieval_spec.datastore.store import write_datastore
from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels import adjacency as kernels
from retrieval_spec.structures.adjacency_rows import (
    WIDTH,
    AdjacencyRows,
    Float64s,
    Int64s,
    Template,
    new_counts,
    no_counts,
)
from retrieval_spec.structures.saved_rows import NO_TOKEN, SavedRows
from retrieval_spec.tree import DraftTree, Int32s, Tokens

KIND = "adjacency_rows"
UNKNOWN_TOKENIZER = "sha256:" + "0" * 64
NUM_PAIRS = 1 << 16
"""Pairs of tokens that a namespace remembers at most."""
_NO_COUNTS = no_counts()


@dataclass(frozen=True, slots=True)
class RankTree:
    """Drafts along a fixed tree of ranks, over rows that feedback alone writes.

    The default is the tree of Token Recycling, "2.2.2" with 80 nodes.

    Attributes:
        children: the ranks that lead from the context to a node, and how many children it has: ("02", 2)
            gives the third candidate after the first candidate its first two candidates.
        share: makes the probability of a candidate of rank r, `share ** (r + 1)`. The published tree has
            none; this orders the nodes, for budgets that do not hold all of them.
    """

    children: tuple[tuple[str, int], ...] = (
        *(("", 8), ("0", 8), ("1", 4), ("2", 3), ("3", 2), ("4", 1), ("5", 1), ("6", 1), ("7", 1)),
        *(("00", 8), ("01", 3), ("02", 2), ("03", 1), ("04", 1), ("05", 1), ("06", 1), ("07", 1)),
        *(("10", 2), ("11", 1), ("20", 1), ("30", 1), ("40", 1), ("50", 1)),
        *(("000", 5), ("001", 2), ("002", 1), ("003", 1), ("004", 1)),
        *(("010", 1), ("020", 1), ("100", 1), ("200", 1), ("300", 1)),
        *(("0000", 3), ("0001", 1), ("0002", 1), ("0010", 1), ("0100", 1), ("1000", 1)),
        *(("00000", 2), ("00010", 1)),
    )
    share: float = 0.6

    def template(self) -> Template:
        """Returns the tree as arrays, its nodes by falling path probability.

        Raises:
            InvalidRequest: a node without its parent, a node twice, more children than a row has, or a
                share outside (0, 1).
        """
        paths = [path + str(rank) for path, num_children in self.children for rank in range(num_children)]
        parents = {"", *paths}
        lost = [path for path, num_children in self.children if path not in parents or num_children > WIDTH]
        if lost or len(set(paths)) != len(paths) or not 0 < self.share < 1:
            raise InvalidRequest(
                "this is no tree of ranks", got=lost or self, expected="each node once, below its parent"
            )
        # Every rank of a path, and each step down, costs one factor of the share.
        paths.sort(key=lambda path: (sum(map(int, path)) + len(path), len(path), path))
        index = {path: node for node, path in enumerate(paths)}
        nodes = [(index.get(path[:-1], NO_TOKEN), int(path[-1]), len(path)) for path in paths]
        columns: Int32s = np.array(nodes, np.int32).reshape(-1, 3).T.copy()
        return Template(columns, np.array([self.share ** (rank + 1) for _, rank, _ in nodes], np.float32))


class _Start(NamedTuple):
    """What every namespace starts with: read by all, written by none."""

    rows: SavedRows
    counts: Int64s
    tokenizer: TokenizerFacts


class _Learned:
    """What one namespace learned, and the lock around it."""

    __slots__ = ("__weakref__", "counts", "lock", "rows")

    def __init__(self, vocab_size: int, num_pairs: int, start: _Start | None) -> None:
        self.lock = threading.Lock()
        self.rows = AdjacencyRows(vocab_size, num_pairs)
        self.counts = new_counts()
        if start is not None:
            self.rows.restore(start.rows)
            self.counts += start.counts

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return int(self.rows.arena.nbytes)


class RecyclingDrafter:
    """Adjacency rows shared by all sessions of a namespace; safe to share between threads.

    Attributes:
        wanted_topk: ids a node that a row holds.
    """

    wanted_topk = WIDTH
    tokenizer_fingerprint: str  # of those that start with a datastore

    def __init__(self, vocab_size: int, rule: RankTree | None = None, start: _Start | None = None) -> None:
        self._vocab_size = vocab_size
        self._template = None if rule is None else rule.template()
        self._tokenizer = TokenizerFacts(UNKNOWN_TOKENIZER)
        if start is not None:
            self._tokenizer = start.tokenizer
            self.tokenizer_fingerprint = start.tokenizer.fingerprint
        num_pairs = NUM_PAIRS if rule is None else 0
        self.namespaces = Namespaces(lambda: _Learned(vocab_size, num_pairs, start))

    @classmethod
    def open(
        cls, vocab_size: int, rule: RankTree | None = None, path: Place | None = None
    ) -> RecyclingDrafter:
        """Returns the drafter.

        Args:
            vocab_size: token ids lie in `0 .. vocab_size - 1`.
            rule: drafts by this rule, from what feedback told of single tokens; None for ours.
            path: a datastore of saved rows, of which every namespace starts with a copy; None: it starts
                empty. Every byte is read and checked.

        Raises:
            InvalidRequest: a tree that is none, or a vocabulary too large for a row a token.
            DatastoreError: the datastore is damaged, of another format, or of another kind.
            TokenizerMismatch: its rows are of another vocabulary.
        """
        return cls(vocab_size, rule, None if path is None else _read(vocab_size, path))

    def save(
        self, path: str | Path, namespace: str = "default", tokenizer: TokenizerFacts | None = None
    ) -> None:
        """Writes what a namespace learned as a datastore; other sessions go on meanwhile.

        What open sessions counted is not in it before they close; their rows are.

        Args:
            path: where the datastore's folder shall be; the place is free, its parent exists.
            namespace: whose rows.
            tokenizer: where the ids come from; None: as in the datastore that was opened, else unknown.

        Raises:
            DatastoreExists, MissingPath: the place is taken, or in no folder.
            InvalidRequest: the folder's name cannot be the datastore's.
            DatastoreError: the file system refused.
        """
        learned = self.namespaces.of(namespace)
        with learned.lock:
            rows, counts = learned.rows.saved(), learned.counts.copy()
        facts = Facts(
            name=Path(path).name,
            vocab_size=self._vocab_size,
            depth_tokens=2,
            tokenizer=tokenizer or self._tokenizer,
            created_by=f"retrieval-spec {__version__}",
            kind=KIND,
        )
        write_datastore(path, facts, {**rows.to_columns(), "offered": counts[0], "right": counts[1]})

    def start(self, context: Tokens, namespace: str = "default") -> RecyclingCursor | RankTreeCursor:
        """Returns a cursor; the prompt is text to learn from, except for a published tree."""
        learned = self.namespaces.of(namespace)
        if self._template is not None:
            return RankTreeCursor(learned, self._template, context)
        return RecyclingCursor(learned, context)


class RankTreeCursor:
    """One session's last token and the rows of its namespace. Owned by that session, not thread-safe."""

    __slots__ = ("_learned", "_tail", "_template")

    def __init__(self, learned: _Learned, template: Template, context: Tokens) -> None:
        self._learned = learned
        self._template = template
        self._tail = Tail(1)
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves on; the rows take over what the feedback tells, of rejected nodes too."""
        _take_over(self._learned, feedback, NO_TOKEN)
        self._tail.append(tokens)

    def close(self) -> None:
        """Does nothing: the rows learned as the session went."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the tree of ranks with the tokens that the rows have."""
        context = self._tail.tokens
        if budget.max_nodes <= 0 or not context.shape[0]:
            return DraftTree.empty()
        root = int(context[-1])
        with self._learned.lock:
            token_ids, parents, probs = self._learned.rows.fill(
                self._template, root, budget.max_nodes, budget.max_depth_nodes
            )
        return DraftTree(token_ids, parents, probs, own_source(token_ids.shape[0]))


class RecyclingCursor:
    """One session's last two tokens, the rows of its namespace, and how often those were right here.

    Owned by that session, not thread-safe.
    """

    __slots__ = ("_counts", "_known_counts", "_learned", "_tail")

    def __init__(self, learned: _Learned, context: Tokens) -> None:
        self._learned = learned
        self._tail = Tail(2)
        self._tail.append(context)
        with learned.lock:
            learned.rows.learn(context, 1, _NO_COUNTS)  # no test of the rows: the target did not write it
            self._known_counts = learned.counts.copy()
        self._counts = self._known_counts.copy()

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Learns committed text and feedback; the text has the last word on what comes first in a row."""
        known = self._tail.tokens
        text = np.concatenate((known, tokens))
        begin = known.shape[0]
        with self._learned.lock:
            self._learned.rows.learn(text, begin, self._counts)
        if _take_over(self._learned, feedback, int(known[-2]) if begin > 1 else NO_TOKEN):
            with self._learned.lock:
                self._learned.rows.learn(text, begin, _NO_COUNTS)
        self._tail.append(tokens)

    def close(self) -> None:
        """Adds what was right in this session to what its namespace knows of such candidates."""
        with self._learned.lock:
            self._learned.counts += self._counts - self._known_counts
        self._known_counts = self._counts.copy()

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths over the rows."""
        context = self._tail.tokens
        if budget.max_nodes <= 0 or not context.shape[0]:
            return DraftTree.empty()
        previous = int(context[-2]) if context.shape[0] > 1 else NO_TOKEN
        with self._learned.lock:
            token_ids, parents, probs = self._learned.rows.draft(
                _PRIOR, self._counts, previous, int(context[-1]), budget.max_nodes, budget.max_depth_nodes
            )
        return DraftTree(token_ids, parents, probs, own_source(token_ids.shape[0]))


def _read(vocab_size: int, path: Place) -> _Start:
    store = open_segments(path).only
    manifest, columns = store.manifest, store.columns
    if manifest.kind != KIND:
        raise InvalidRequest(f"datastore {path} is of another kind", got=manifest.kind, expected=KIND)
    if manifest.vocab_size != vocab_size:
        raise TokenizerMismatch(
            f"the rows of datastore {path} are of another vocabulary",
            got=f"{manifest.vocab_size} token ids",
            expected=vocab_size,
            remedy="save rows that were learned with the target model",
        )
    store.check()
    counts = np.stack([columns["offered"], columns["right"]])
    return _Start(SavedRows.from_columns(columns), counts, manifest.tokenizer)


def _take_over(learned: _Learned, feedback: Feedback | None, previous: int) -> bool:
    """Writes the rows that the feedback tells; returns whether it tells any."""
    if feedback is None or not feedback.topk_ids.size:
        return False
    with learned.lock:
        learned.rows.update(
            feedback.node_token_ids,
            feedback.node_parents,
            feedback.topk_ids,
            feedback.topk_logprobs,
            previous,
        )
    return True


def _prior(offers: float, by_rank: Sequence[Sequence[float]], trust: Sequence[float]) -> Float64s:
    """Returns float64[2, classes]: so many offers of each class, and how many of them are right.

    Args:
        offers: what the prior weighs.
        by_rank: share of right candidates by kind and rank, where no log-probability was told.
        trust: by kind, what a told probability is worth.
    """
    levels = np.arange(1, kernels.MAX_LEVEL + 1)
    told = np.exp(-(((levels - 0.5) / kernels.LEVELS_PER_ROOT_NAT) ** 2))
    shares = [[*ranks, *(kind_trust * told)] for ranks, kind_trust in zip(by_rank, trust, strict=True)]
    flat = np.concatenate([np.array(kind) for kind in shares])
    return np.stack([np.full(flat.shape, offers), offers * flat])


# What came true over outputs of the shipped model, rounded; a session's own counts soon outweigh it.
_PRIOR = _prior(
    20.0,
    (
        (0.60, 0.12, 0.06, 0.035, 0.02, 0.015, 0.01, 0.01),
        (0.37, 0.15, 0.08, 0.03, 0.025, 0.02, 0.02, 0.02),
        (0.12, 0.04, 0.03, 0.02, 0.01, 0.01, 0.01, 0.01),
    ),
    (0.95, 0.8, 0.25),
)
