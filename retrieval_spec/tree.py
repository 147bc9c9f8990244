"""`DraftTree`, the one value that travels between layers, and `as_tokens`, the one door for token ids.

Knows numpy and nothing else: no drafter, no wire format, no verifier layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidTokens, InvalidTree

TOKEN = np.int32
"""The one element type of token ids: vocabularies above 65,536 are normal."""

_TOKEN_DTYPE = np.dtype(TOKEN)

MAX_VOCAB_SIZE = 2**31 - 1
CONTEXT = -1
"""The parent of a node that continues the context itself; the root is not a node."""

Tokens = NDArray[np.int32]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]
Uint16s = NDArray[np.uint16]


def as_tokens(values: Sequence[int] | NDArray[Any], vocab_size: int) -> Tokens:
    """Returns `values` as contiguous int32 token ids, or says which one is not a token id.

    Everything that comes from outside passes here once; kernels trust what passed.

    Args:
        values: integers; any integer dtype, any sequence, one dimension.
        vocab_size: ids must lie in `0 .. vocab_size - 1`.

    Raises:
        InvalidTokens: wrong type, more than one dimension, or an id outside the vocabulary.
    """
    array = _as_integer_vector(values)
    # The range is checked before the cast: 2**32 - 1 would become -1 in int32.
    lowest, highest = _range(array)
    if lowest < 0 or highest >= vocab_size:
        index = int(np.flatnonzero((array < 0) | (array >= vocab_size))[0])
        raise InvalidTokens(
            f"token id at index {index} is outside the vocabulary",
            got=int(array[index]),
            expected=f"0 to {vocab_size - 1}",
            remedy="use the tokenizer of the target model",
        )
    return np.ascontiguousarray(array, dtype=TOKEN)


def _as_integer_vector(values: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    if isinstance(values, np.ndarray) and values.dtype == _TOKEN_DTYPE and values.ndim == 1:
        return values  # what nearly always comes
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidTokens("token ids are not a flat list of integers", got=error) from error
    if array.ndim != 1:
        raise InvalidTokens("token ids need one dimension", got=f"shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, TOKEN)
    if array.dtype.kind not in "iu":
        raise InvalidTokens("token ids need an integer type", got=array.dtype, expected="int32")
    return array


def _range(array: NDArray[Any]) -> tuple[int, int]:
    # Commits hold a few tokens, and for those a call into numpy costs more than the rest of the door.
    if array.size <= 64:
        values = array.tolist() or [0]
        return min(values), max(values)
    return int(array.min()), int(array.max())


@dataclass(frozen=True, slots=True, eq=False, init=False)
class DraftTree:
    """A tree of drafted tokens that continue the context; immutable by convention and cheap to pass on.

    Nodes are stored best first, a parent before its children. The root (the last context token) is
    not a node. For the context `the`, the drafts `the cat sat` and `the cat ran` are

        token_ids = [cat, sat, ran]   parents = [-1, 0, 0]

    Attributes:
        token_ids: int32[n]  the drafted tokens.
        parents: int32[n]  index of the parent node, smaller than the own index; -1 continues the context.
        probs: float32[n]  estimated probability that the node is accepted given that its parent is.
        sources: uint16[n]  bit mask of the drafters that proposed the node, by `source_names`.
        source_names: the drafter behind each bit, lowest first.
    """

    token_ids: Tokens
    parents: Int32s
    probs: Float32s
    sources: Uint16s
    source_names: tuple[str, ...] = ()

    def __init__(
        self,
        token_ids: Tokens,
        parents: Int32s,
        probs: Float32s,
        sources: Uint16s,
        source_names: tuple[str, ...] = (),
    ) -> None:
        # Three trees are made in every draft: the slots' own setters take a third of the time that
        # the generated constructor of a frozen class takes.
        _set_token_ids(self, token_ids)
        _set_parents(self, parents)
        _set_probs(self, probs)
        _set_sources(self, sources)
        _set_source_names(self, source_names)

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @classmethod
    def empty(cls, source_names: tuple[str, ...] = ()) -> DraftTree:
        """Returns a tree without nodes: "no draft" is a legal answer."""
        return cls(_NO_TOKENS, _NO_TOKENS, _NO_PROBS, _NO_SOURCES, source_names)

    @classmethod
    def from_lists(
        cls,
        token_ids: Sequence[int],
        parents: Sequence[int],
        probs: Sequence[float] | None = None,
        sources: Sequence[int] | None = None,
        source_names: tuple[str, ...] = (),
    ) -> DraftTree:
        """Returns a tree from plain sequences; call `check` on what comes from outside."""
        count = len(token_ids)
        return cls(
            np.array(token_ids, TOKEN),
            np.array(parents, np.int32),
            np.array([1.0] * count if probs is None else probs, np.float32),
            np.array([1] * count if sources is None else sources, np.uint16),
            source_names,
        )

    @classmethod
    def chain(cls, token_ids: Sequence[int], probs: Sequence[float] | None = None) -> DraftTree:
        """Returns the tree that is one path."""
        return cls.from_lists(token_ids, range(-1, len(token_ids) - 1), probs)

    def check(self, vocab_size: int) -> DraftTree:
        """Returns the tree itself if it keeps the contract, whoever sent it.

        Raises:
            InvalidTree: columns of different types or lengths, a parent that does not precede its
                child, two siblings with one token, or a probability outside [0, 1].
            InvalidTokens: a token id outside the vocabulary.
        """
        self._check_columns()
        as_tokens(self.token_ids, vocab_size)
        self._check_parents()
        if not bool(np.all((self.probs >= 0) & (self.probs <= 1))):  # NaN fails the comparison too
            raise InvalidTree("a node has no probability", expected="probs in [0, 1]")
        return self

    def _check_columns(self) -> None:
        columns: tuple[NDArray[Any], ...] = (self.token_ids, self.parents, self.probs, self.sources)
        dtypes = (TOKEN, np.int32, np.float32, np.uint16)
        for column, dtype in zip(columns, dtypes, strict=True):
            if column.dtype != dtype or column.shape != (len(self),):
                raise InvalidTree(
                    "a column of the draft tree has another type or length",
                    got=f"{column.dtype}[{column.shape}]",
                    expected=f"{np.dtype(dtype)}[{len(self)}]",
                )

    def _check_parents(self) -> None:
        late = np.flatnonzero((self.parents >= np.arange(len(self))) | (self.parents < CONTEXT))
        if late.size:
            node = int(late[0])
            raise InvalidTree(
                f"the parent of node {node} does not precede it",
                got=int(self.parents[node]),
                expected=f"-1 to {node - 1}",
            )
        edges = (self.parents.astype(np.int64) << 32) | self.token_ids
        if np.unique(edges).size != len(self):
            raise InvalidTree("two siblings carry the same token", remedy="merge them with fuse()")

    def depths(self) -> Int32s:
        """Returns int32[n], the number of nodes from the context to each node: 1 for its children."""
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(1 if parent == CONTEXT else depths[parent] + 1)
        return np.array(depths, np.int32)

    def path_probs(self) -> Float32s:
        """Returns float32[n], the estimated probability that the whole path to each node is accepted."""
        path_probs = self.probs.tolist()
        for node, parent in enumerate(self.parents.tolist()):
            if parent != CONTEXT:
                path_probs[node] *= path_probs[parent]
        return np.array(path_probs, np.float32)

    def path_to(self, node: int) -> list[int]:
        """Returns the nodes from the first child of the context down to `node`, `node` included."""
        path = []
        while node != CONTEXT:
            path.append(node)
            node = int(self.parents[node])
        return path[::-1]

    def best_path(self) -> list[int]:
        """Returns the nodes of the path of which most tokens are expected to be accepted, first child first.

        What a host that verifies one chain only should draft; [] if the tree is empty.
        """
        expected: list[float] = []
        for parent, prob in zip(self.parents.tolist(), self.path_probs().tolist(), strict=True):
            expected.append(prob if parent == CONTEXT else expected[parent] + prob)
        return self.path_to(expected.index(max(expected))) if expected else []

    def children(self) -> dict[int, dict[int, int]]:
        """Returns parent -> {token id -> node}, the form in which a verifier walks the tree."""
        children: dict[int, dict[int, int]] = {}
        edges = zip(self.parents.tolist(), self.token_ids.tolist(), strict=True)
        for node, (parent, token_id) in enumerate(edges):
            children.setdefault(parent, {})[token_id] = node
        return children

    def prefix(self, num_nodes: int) -> DraftTree:
        """Returns the first `num_nodes` nodes: the best ones, since nodes are stored best first."""
        if num_nodes >= len(self):
            return self
        return DraftTree(
            self.token_ids[:num_nodes],
            self.parents[:num_nodes],
            self.probs[:num_nodes],
            self.sources[:num_nodes],
            self.source_names,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DraftTree):
            return NotImplemented
        return (
            self.source_names == other.source_names
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.parents, other.parents)
            and np.array_equal(self.probs, other.probs)
            and np.array_equal(self.sources, other.sources)
        )

    __hash__ = None  # type: ignore[assignment]


class Forest(NamedTuple):
    """Draft trees of several sessions in common columns, one right behind the other.

    Attributes:
        counts: nodes of each tree.
        token_ids: int32[n]  as in `DraftTree`, and so are the others; parents are counted within each tree.
        parents: int32[n]
        probs: float32[n]
        sources: uint16[n]
    """

    counts: Sequence[int]
    token_ids: Tokens
    parents: Int32s
    probs: Float32s
    sources: Uint16s

    def trees(self, source_names: Sequence[tuple[str, ...]]) -> list[DraftTree]:
        """Returns the trees one by one; costs no copy."""
        trees, begin = [], 0
        for count, names in zip(self.counts, source_names, strict=True):
            part = slice(begin, begin + count)
            trees.append(
                DraftTree(
                    self.token_ids[part], self.parents[part], self.probs[part], self.sources[part], names
                )
            )
            begin += count
        return trees

    @classmethod
    def of(cls, trees: Sequence[DraftTree]) -> Forest:
        """Returns trees in common columns."""
        return cls(
            [len(tree) for tree in trees],
            np.concatenate([tree.token_ids for tree in trees]),
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.probs for tree in trees]),
            np.concatenate([tree.sources for tree in trees]),
        )


_set_token_ids, _set_parents, _set_probs, _set_sources, _set_source_names = (
    DraftTree.__dict__[name].__set__ for name in DraftTree.__slots__
)
_NO_TOKENS: Tokens = np.zeros(0, TOKEN)
_NO_PROBS: Float32s = np.zeros(0, np.float32)
_NO_SOURCES: Uint16s = np.zeros(0, np.uint16)
