"""The draft trees of an answer: columns over all nodes, checked as hostile and cut into a tree each."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidTree
from retrieval_spec.tree import CONTEXT, DraftTree, as_tokens
from retrieval_spec.v1.draft_pb2 import DraftStepResult
from retrieval_spec.wire.columns import FLOAT32, INT32, UINT16, array_of, wrong_length

_NODE_COLUMNS = {"token_ids": 4, "parents": 4, "probs": 4, "sources": 2}
_MANY_TREES = 4
"""From here on numpy is faster than loops over plain numbers."""

_BITS_OF_ONE = 0x3F800000
"""Of a float32; those from 0.0 to 1.0 have no larger ones, negative numbers and NaN have."""


def read_trees(
    result: DraftStepResult, counts: Sequence[int], vocab_size: int, source_names: tuple[str, ...]
) -> list[DraftTree]:
    """Returns a tree a session.

    Args:
        result: the answer.
        counts: nodes of each tree, as its column `node_counts` says; none is negative.
        vocab_size: token ids lie below it.
        source_names: the drafter behind each bit of the source masks.

    Raises:
        InvalidRequest: a column has another length than the counts demand.
        InvalidTree, InvalidTokens: a tree that breaks the contract of `DraftTree`.
    """
    forest = _read_forest(result, sum(counts), source_names)
    num_masks = 1 << len(source_names)
    is_proven = len(counts) >= _MANY_TREES and _are_sound(
        forest, array_of(result.node_counts, INT32), vocab_size, num_masks
    )
    if not is_proven:
        _check_each(forest, counts, vocab_size, num_masks)
    return _cut(forest, counts)


def _read_forest(result: DraftStepResult, num_nodes: int, source_names: tuple[str, ...]) -> DraftTree:
    tokens, parents, probs, sources = columns = (
        result.token_ids,
        result.parents,
        result.probs,
        result.sources,
    )
    if not len(tokens) == len(parents) == len(probs) == 2 * len(sources) == 4 * num_nodes:
        raise wrong_length(columns, _NODE_COLUMNS, num_nodes)
    return DraftTree(
        array_of(tokens, INT32),
        array_of(parents, INT32),
        array_of(probs, FLOAT32),
        array_of(sources, UINT16),
        source_names,
    )


def _cut(forest: DraftTree, counts: Sequence[int]) -> list[DraftTree]:
    if len(counts) == 1:
        return [forest]
    tokens, parents, probs, sources = forest.token_ids, forest.parents, forest.probs, forest.sources
    names, begin = forest.source_names, 0
    # Where many share a budget, a good part of them get no nodes at all.
    trees = [DraftTree.empty(names)] * len(counts)
    for index, count in enumerate(counts):
        if count:
            part = slice(begin, begin + count)
            trees[index] = DraftTree(tokens[part], parents[part], probs[part], sources[part], names)
            begin += count
    return trees


def _check_each(forest: DraftTree, counts: Sequence[int], vocab_size: int, num_masks: int) -> None:
    """Does what `DraftTree.check` does, for one tree after the other."""
    columns = [column.tolist() for column in (forest.token_ids, forest.parents, forest.probs, forest.sources)]
    begin = 0
    for count in counts:
        tokens, parents, probs, sources = [column[begin : begin + count] for column in columns]
        if count and not _is_sound(tokens, parents, probs, sources, vocab_size, num_masks):
            as_tokens(forest.token_ids, vocab_size)  # says which one
            raise _tree_error(parents, probs, sources, num_masks)
        begin += count


def _are_sound(forest: DraftTree, sizes: NDArray[Any], vocab_size: int, num_masks: int) -> bool:
    """Whether all trees are known to be sound after few looks at whole columns; if not, some may be still.

    Bits of signed numbers and floats are taken for those of unsigned ones, of which one look at the largest
    tells that none is negative either.
    """
    tokens, num_nodes = forest.token_ids, forest.token_ids.shape[0]
    if not num_nodes:
        return True
    # Nodes of all trees are numbered through. What continues a context has the last node of the tree before
    # as its parent, which has no other children: they would come after it.
    parents = forest.parents + np.repeat(sizes.cumsum() - sizes, sizes)
    edges = (parents << 32) + tokens  # two alike are siblings
    edges.sort()
    return bool(
        tokens.view(np.uint32).max() < vocab_size
        and forest.parents.min() >= CONTEXT
        and (parents < np.arange(num_nodes)).all()
        and forest.probs.view(np.uint32).max() <= _BITS_OF_ONE
        and forest.sources.max() < num_masks
        and (edges[1:] != edges[:-1]).all()
    )


def _is_sound(
    tokens: Sequence[int],
    parents: Sequence[int],
    probs: Sequence[float],
    sources: Sequence[int],
    vocab_size: int,
    num_masks: int,
) -> bool:
    # Without a loop in Python, which would cost more than all the rest of reading an answer.
    return (
        min(tokens) >= 0
        and max(tokens) < vocab_size
        and min(parents) >= CONTEXT
        and all(map(operator.lt, parents, range(len(parents))))
        and min(probs) >= 0
        and max(probs) <= 1
        and not math.isnan(sum(probs))  # least and largest may miss a NaN, the sum does not
        and max(sources) < num_masks
        and len(set(zip(parents, tokens, strict=True))) == len(tokens)
    )


def _tree_error(
    parents: Sequence[int],
    probs: Sequence[float],
    sources: Sequence[int],
    num_masks: int,
) -> InvalidTree:
    for node, (parent, prob, mask) in enumerate(zip(parents, probs, sources, strict=True)):
        if not (CONTEXT <= parent < node and 0 <= prob <= 1 and mask < num_masks):
            return _node_error(node, parent, prob, num_masks)
    return InvalidTree("two siblings carry the same token")


def _node_error(node: int, parent: int, prob: float, num_masks: int) -> InvalidTree:
    if not CONTEXT <= parent < node:
        return InvalidTree(
            "the parent of a node does not precede it", got=parent, expected=f"-1 to {node - 1}"
        )
    if not 0 <= prob <= 1:
        return InvalidTree("a node has no probability", got=prob, expected="probs in [0, 1]")
    return InvalidTree("a node names an unknown source", expected=f"a mask below {num_masks}")
