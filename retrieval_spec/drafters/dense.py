"""Drafts from hidden states: what followed the corpus positions where the target was in a similar state.

The verifier projects the target's state (`projection.py`) and hands it over as feedback. It is about the
one step that it came with: without a fresh state there is no draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import DENSE_KIND, SEPARATORS, Manifest
from retrieval_spec.datastore.segments import Place, open_segments
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import PARENT, PROB, TOKEN, TREE_ROWS, TRIE_ROWS
from retrieval_spec.kernels.fusion import best_first
from retrieval_spec.kernels.neighbour_draft import plant
from retrieval_spec.projection import Projection
from retrieval_spec.structures.dense_index import DenseIndex, check_trained_alike, nearest
from retrieval_spec.tree import TOKEN as TOKEN_TYPE
from retrieval_spec.tree import DraftTree, Float32s, Tokens

CONTINUATION_TOKENS = 19
"""Tokens behind the root that a neighbour gives: with the root the published 20."""
MAX_NEIGHBOURS = 1_000

SHARE = (0.0, 1.0, 1.0, 0.0, 0.0)
"""A node is as probable as its share of its parent's neighbours."""

# Fitted on held-out text: neighbours that agree are right more often the nearer and the more they are.
FITTED = (-3.2, 1.63, 0.12, 2.28, 0.43)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How the nearest neighbours of a state become a tree.

    Of the nearest, those count whose own next token is the root; what followed it becomes a trie. With
    `share` = the part of the parent's weight that a child has, the child's probability is

        sigmoid(w0 + w1 log(share) - w2 log(1 - share) + w3 nearest similarity + w4 log2(neighbours))

    of the parent's neighbours: with (0, 1, 1, 0, 0) it is the share itself.

    Attributes:
        num_neighbours: vectors that are looked at.
        max_rows: neighbours with the right next token that are used at most, the nearest ones.
        continuation_tokens: tokens that are read behind the root.
        temperature: a neighbour counts exp(similarity / temperature); infinite: all count the same.
        worth: w0 to w4.
    """

    num_neighbours: int = 50
    max_rows: int = 50
    continuation_tokens: int = CONTINUATION_TOKENS
    temperature: float = 0.1
    worth: tuple[float, float, float, float, float] = FITTED

    def __post_init__(self) -> None:
        if not 1 <= self.max_rows <= self.num_neighbours <= MAX_NEIGHBOURS:
            raise InvalidRequest(
                "the numbers of neighbours are out of range",
                got=f"{self.max_rows} of {self.num_neighbours}",
                expected=f"rising, 1 to {MAX_NEIGHBOURS}",
            )
        if not 1 <= self.continuation_tokens <= CONTINUATION_TOKENS or not self.temperature > 0:
            raise InvalidRequest(
                "a rule for neighbours is out of range",
                got=f"{self.continuation_tokens} tokens, temperature {self.temperature}",
                expected=f"1 to {CONTINUATION_TOKENS} tokens, a temperature above 0",
            )
        if len(self.worth) != len(FITTED) or not np.isfinite(self.worth).all():
            raise InvalidRequest("worth is no rule", got=self.worth, expected=f"{len(FITTED)} finite numbers")


@dataclass(frozen=True, eq=False)
class States:
    """One segment of a dense datastore, open: immutable and shared by all sessions.

    Attributes:
        tokens: uint16[n] or int32[n]  the corpus.
        separator: ends every document in it.
        positions: uint32[m]  the place in `tokens` of the token that each state decided.
        index: the states' vectors by number.
    """

    tokens: NDArray[Any]
    separator: int
    positions: NDArray[Any]
    index: DenseIndex

    @classmethod
    def from_store(cls, store: Datastore, dimensions: int) -> States:
        """Returns what an open segment holds; every byte of its index is checked before FAISS reads it.

        Raises:
            DatastoreCorrupt: the index was altered, or is not one of these states.
            MissingDependency: FAISS is not installed.
        """
        store.check_sha256("index")
        columns = store.columns
        index = DenseIndex.from_bytes(columns["index"], dimensions, columns["positions"].shape[0])
        return cls(columns["tokens"], SEPARATORS[store.manifest.token_dtype], columns["positions"], index)

    def read(self, numbers: NDArray[np.int64], num_tokens: int) -> Tokens:
        """Returns int32[m, num_tokens], the token that each state decided and those behind it.

        A document ends with -1; what stands behind that is of no meaning.
        """
        places = self.positions[numbers].astype(np.int64)[:, None] + np.arange(num_tokens)
        last = self.tokens.shape[0] - 1  # a damaged column reads nothing else
        read: Tokens = self.tokens[np.minimum(places, last)].astype(TOKEN_TYPE)
        read[(read == self.separator) | (places > last)] = -1
        return read


class DenseDrafter:
    """One dense datastore as a source of drafts, all segments as one; shared by all threads.

    Attributes:
        states: of each segment, immutable; replaced as a whole.
        num_ids: of them; what stands at or above it is no token.
    """

    def __init__(
        self,
        states: Sequence[States],
        num_ids: int,
        projection: Projection,
        tokenizer_fingerprint: str = "",
        rule: Neighbours | None = None,
    ) -> None:
        self.states = tuple(states)
        self.num_ids = num_ids
        self._rule = rule or Neighbours()
        self.projection = projection
        self.tokenizer_fingerprint = tokenizer_fingerprint

    @classmethod
    def open(cls, vocab_size: int, path: Place, rule: Neighbours | None = None) -> DenseDrafter:
        """Opens a datastore; every byte of the index is checked before FAISS reads it.

        Raises:
            DatastoreError: the datastore is damaged, of another format, or of another kind.
            TokenizerMismatch: it holds token ids that the target model does not have.
            MissingDependency: FAISS is not installed.
        """
        segments = open_segments(path)
        manifest = segments.manifest
        if manifest.kind != DENSE_KIND:
            raise InvalidRequest(
                f"datastore {path} is of another kind", got=manifest.kind, expected=DENSE_KIND
            )
        if manifest.vocab_size > vocab_size:
            raise TokenizerMismatch(
                f"datastore {path} was built for a larger vocabulary",
                got=f"{manifest.vocab_size} token ids",
                expected=f"at most {vocab_size}",
                remedy="build it again with the tokenizer of the target model",
            )
        projection = _one_projection(segments.stores)
        states = [States.from_store(store, projection.dimensions) for store in segments.stores]
        check_trained_alike([one.index for one in states])
        drafter = cls(states, manifest.vocab_size, projection, manifest.tokenizer.fingerprint, rule)
        drafter.start(np.zeros(0, TOKEN_TYPE)).warm_up()
        return drafter

    def start(self, context: Tokens, namespace: str = "default") -> DenseCursor:
        """Returns a cursor; it drafts once it was told a state."""
        return DenseCursor(self, self._rule)

    def take_up(self, fresh: DenseDrafter) -> None:
        """Drafts from another drafter's states, which the same projection must lead to.

        Raises:
            InvalidRequest: verifiers were told another projection.
        """
        if not fresh.projection.equals(self.projection):
            raise InvalidRequest(
                "the datastore was built with another projection, and verifiers use the old one",
                got=fresh.projection.model_fingerprint,
                remedy="start the server again with it",
            )
        self.states, self.num_ids = fresh.states, fresh.num_ids
        self.tokenizer_fingerprint = fresh.tokenizer_fingerprint

    def let_go(self) -> None:
        """Drafts nothing, until something is taken up."""
        self.states = ()


def _one_projection(stores: Sequence[Datastore]) -> Projection:
    projections = [read_projection(store.manifest, store.columns) for store in stores]
    if not all(other.equals(projections[0]) for other in projections[1:]):
        raise DatastoreCorrupt("the segments do not fit each other", expected="one projection")
    return projections[0]


def read_projection(manifest: Manifest, columns: Mapping[str, NDArray[Any]]) -> Projection:
    """Returns the projection that a dense datastore was built with.

    Raises:
        DatastoreCorrupt: its columns hold none.
    """
    mean = columns["mean"]
    try:
        components = columns["components"].reshape(-1, max(mean.shape[0], 1))
        return Projection(mean, columns["scale"], components, manifest.model_fingerprint).check()
    except (InvalidRequest, ValueError) as error:
        raise DatastoreCorrupt("the datastore holds no projection", got=error) from error


class DenseCursor:
    """One session's newest state. Owned by that session, not thread-safe."""

    __slots__ = ("_drafter", "_root_id", "_rule", "_state", "_sums", "_trie", "_worth")

    def __init__(self, drafter: DenseDrafter, rule: Neighbours) -> None:
        columns = 1 + rule.max_rows * rule.continuation_tokens
        self._drafter = drafter
        self._rule = rule
        self._worth = np.array(rule.worth)
        self._trie = np.zeros((TRIE_ROWS, columns), np.int32)
        self._sums = np.zeros((3, columns))
        self._root_id = -1
        self._state: Float32s | None = None

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest token and the state that decided it; an older state says nothing of it."""
        if not tokens.shape[0]:
            return
        self._root_id = int(tokens[-1])
        state = None if feedback is None else feedback.hidden_state
        self._state = None if state is None or not state.shape[0] else _unit(state)

    def close(self) -> None:
        """Does nothing: the datastore never changes."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns what followed the root at the nearest states; no state, no nodes."""
        states = self._drafter.states
        if self._state is None or budget.max_nodes <= 0 or not states:
            return DraftTree.empty()
        rows, similarities = self._agreeing(states, self._state)
        if not rows.shape[0]:
            return DraftTree.empty()
        size = self._plant(rows, similarities, budget.max_depth_nodes)
        best = np.empty((TREE_ROWS, min(budget.max_nodes, size - 1)), np.int32)
        best_first(self._trie, best)
        probs = best[PROB].view(np.float32)
        return DraftTree(best[TOKEN], best[PARENT], probs, own_source(best.shape[1]))

    def warm_up(self) -> None:
        """Compiles what the first draft needs: a server is asked for one without a state before it serves."""
        self._plant(np.full((1, 2), -1, TOKEN_TYPE), np.zeros(1), 1)

    def _agreeing(self, states: Sequence[States], state: Float32s) -> tuple[Tokens, NDArray[np.float64]]:
        """Returns int32[m, t], neighbours whose next token is the root, which comes first; nearest first."""
        rule = self._rule
        indexes = [one.index for one in states]
        owners, numbers, similarities = nearest(indexes, state, rule.num_neighbours)
        rows = np.empty((numbers.shape[0], 1 + rule.continuation_tokens), TOKEN_TYPE)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            rows[mine] = states[owner].read(numbers[mine], rows.shape[1])
        kept = np.flatnonzero(rows[:, 0] == self._root_id)[: rule.max_rows]
        return rows[kept], similarities[kept].astype(np.float64)

    def _plant(self, rows: Tokens, similarities: NDArray[np.float64], max_depth_nodes: int) -> int:
        rule = self._rule
        self._trie.fill(0)
        self._sums.fill(0)
        weights = np.exp((similarities - similarities[0]) / rule.temperature)
        depth = min(rows.shape[1] - 1, max_depth_nodes)
        size: int = plant(
            rows.ravel(),
            self._drafter.num_ids,
            np.arange(rows.shape[0]) * rows.shape[1] + 1,
            np.maximum(weights, 1e-12),
            similarities,
            depth,
            self._worth,
            self._trie,
            self._sums,
        )
        return size


def _unit(state: Float32s) -> Float32s:
    """Returns the state with length 1: whoever sent it may not have kept to that."""
    norm = float(np.linalg.norm(state.astype(np.float64)))
    unit: Float32s = (state / max(norm, 1e-30)).astype(np.float32)
    return unit
