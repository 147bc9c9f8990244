"""The draft trees of an answer: columns over all nodes, checked as hostile and cut into a tree each."""

from __future__ import annotations

import operator
import struct
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
"""From here on numpy is faster than plain numbers."""

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
    columns = (result.token_ids, result.parents, result.probs, result.sources)
    tokens, parents, probs, sources = columns
    num_nodes, num_masks = sum(counts), 1 << len(source_names)
    if not len(tokens) == len(parents) == len(probs) == 2 * len(sources) == 4 * num_nodes:
        raise wrong_length(columns, _NODE_COLUMNS, num_nodes)
    forest = DraftTree(
        array_of(tokens, INT32),
        array_of(parents, INT32),
        array_of(probs, FLOAT32),
        array_of(sources, UINT16),
        source_names,
    )
    if len(counts) < _MANY_TREES:
        is_proven = _are_few_sound(columns, counts, vocab_size, num_masks)
    else:
        is_proven = _are_many_sound(forest, array_of(result.node_counts, INT32), vocab_size, num_masks)
    if not is_proven:
        _check_each(forest, counts, vocab_size, num_masks)
    return _cut(forest, counts)


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


def _are_few_sound(columns: Sequence[bytes], counts: Sequence[int], vocab_size: int, num_masks: int) -> bool:
    """Whether all trees are known to be sound, by plain numbers; if not, some may be still.

    Bits are taken for unsigned numbers, of which the largest tells that none is negative either.
    """
    num_nodes = sum(counts)
    if not num_nodes:
        return True
    numbers = struct.unpack(f"<{num_nodes}I{num_nodes}i{num_nodes}I{num_nodes}H", b"".join(columns))
    tokens, parents = numbers[:num_nodes], numbers[num_nodes : 2 * num_nodes]
    if not (
        max(tokens) < vocab_size
        and min(parents) >= CONTEXT
        and max(numbers[2 * num_nodes : 3 * num_nodes]) <= _BITS_OF_ONE
        and max(numbers[3 * num_nodes :]) < num_masks
    ):
        return False
    begin = 0
    for count in filter(None, counts):
        own = parents[begin : begin + count]
        # Without a loop in Python over nodes, which would cost more than all the rest of reading an answer.
        if not all(map(operator.lt, own, range(count))):
            return False
        if len(set(zip(own, tokens[begin : begin + count], strict=True))) < count:
            return False  # two siblings are alike
        begin += count
    return True


def _are_many_sound(forest: DraftTree, sizes: NDArray[Any], vocab_size: int, num_masks: int) -> bool:
    """Tells what `_are_few_sound` does, after few looks at whole columns."""
    tokens, num_nodes = forest.token_ids, forest.token_ids.shape[0]
    if not num_nodes:
        return True
    # Nodes of all trees are numbered through. What continues a context has the last node of the tree before
    # as its parent, which has no other children: they would come after it.
    num_each = sizes.astype(np.int64)
    parents = forest.parents + np.repeat(np.add.accumulate(num_each) - num_each, num_each)
    edges = (parents << 32) + tokens  # two alike are siblings
    edges.sort()
    # Few kinds of calls into numpy: a draft finds cold caches, where the first of each kind costs most.
    least, most = np.minimum.reduce, np.maximum.reduce
    return bool(
        most(tokens.view(np.uint32)) < vocab_size
        and least(forest.parents) >= CONTEXT
        and least(np.arange(num_nodes) - parents) > 0
        and most(forest.probs.view(np.uint32)) <= _BITS_OF_ONE
        and most(forest.sources) < num_masks
        and least(edges[1:] - edges[:-1], initial=1) > 0
    )


def _check_each(forest: DraftTree, counts: Sequence[int], vocab_size: int, num_masks: int) -> None:
    """Does what `DraftTree.check` does, for one tree after the other: says what is wrong."""
    as_tokens(forest.token_ids, vocab_size)
    columns = [column.tolist() for column in (forest.token_ids, forest.parents, forest.probs, forest.sources)]
    begin = 0
    for count in counts:
        tokens, parents, probs, sources = [column[begin : begin + count] for column in columns]
        for node, (parent, prob, mask) in enumerate(zip(parents, probs, sources, strict=True)):
            if not (CONTEXT <= parent < node and 0 <= prob <= 1 and mask < num_masks):
                raise _node_error(node, parent, prob, num_masks)
        if len(set(zip(parents, tokens, strict=True))) < count:
            raise InvalidTree("two siblings carry the same token")
        begin += count


def _node_error(node: int, parent: int, prob: float, num_masks: int) -> InvalidTree:
    if not CONTEXT <= parent < node:
        return InvalidTree(
            "the parent of a node does not precede it", got=parent, expected=f"-1 to {node - 1}"
        )
    if not 0 <= prob <= 1:
        return InvalidTree("a node has no probability", got=prob, expected="probs in [0, 1]")
    return InvalidTree("a node names an unknown source", expected=f"a mask below {num_masks}")
