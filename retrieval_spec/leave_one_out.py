"""What a corpus would accept of text like its own: documents replayed as if they did not stand in it.

A sampled document is decoded over drafts from all others: every occurrence inside of it, or inside of a
document with exactly the same tokens, is left out. The document's own text is what the target says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.corpus_stats import Advance, Int64s, Part, quantiles, sample
from retrieval_spec.kernels.context_draft import NUM_NEIGHBOURS
from retrieval_spec.kernels.leave_one_out import mark_equal, nearest_elsewhere, num_confirmed
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_arrays import ContextArrays, new_scratch
from retrieval_spec.tree import TOKEN, Tokens

NUM_DOCUMENTS = 100
MAX_NODES = 16
MAX_REPLAYED_TOKENS = 512
"""Of a longer document, so many tokens from a random place on."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One document's steps, and how many drafted tokens they accepted."""

    num_steps: int
    num_accepted: int

    @property
    def mean_acceptance_length(self) -> float:
        """Accepted tokens of a step, and its own one."""
        return 1 + self.num_accepted / self.num_steps


def predict_acceptance(
    parts: Sequence[Part], num_documents: int, max_nodes: int, advance: Advance
) -> dict[str, Any]:
    """Returns the mean acceptance length over sampled documents and its spread, ready for JSON.

    Args:
        parts: the segments of the corpus.
        num_documents: how many documents of two tokens or more are replayed; always the same ones.
        max_nodes: nodes of every draft.
        advance: told of every document.
    """
    replayed = replay_documents(parts, num_documents, max_nodes, advance)
    steps = sum(document.num_steps for document in replayed)
    accepted = sum(document.num_accepted for document in replayed)
    means = np.array([document.mean_acceptance_length for document in replayed])
    return {
        "num_documents": len(replayed),
        "num_steps": steps,
        "max_nodes": max_nodes,
        "mean_acceptance_length": round(1 + accepted / steps, 4) if steps else None,
        "over_documents": quantiles(means),
    }


def replay_documents(
    parts: Sequence[Part], num_documents: int, max_nodes: int, advance: Advance
) -> list[Replayed]:
    """Replays sampled documents, each over drafts from the others."""
    rng = np.random.default_rng(1)
    drafts = _Drafts(parts, max_nodes)
    replayed = []
    for document in _sampled(parts, num_documents):
        drafts.leave_out(document)
        begin = int(rng.integers(1, max(len(document) - MAX_REPLAYED_TOKENS, 1) + 1))
        replayed.append(_replay(drafts, document, begin))
        advance(1)
    return replayed


def _sampled(parts: Sequence[Part], num_documents: int) -> list[Tokens]:
    """Returns documents that have a token to draft from and one to draft."""
    usable = [np.flatnonzero(part.lengths > 1) for part in parts]
    ends = np.cumsum([0, *map(len, usable)])
    chosen = sample(int(ends[-1]), num_documents)
    owners = np.searchsorted(ends, chosen, side="right") - 1
    return [
        _document(parts[owner], int(usable[owner][number - ends[owner]]))
        for owner, number in zip(owners.tolist(), chosen.tolist(), strict=True)
    ]


def _document(part: Part, index: int) -> Tokens:
    start = int(part.starts[index])
    return part.array.tokens[start : start + int(part.lengths[index])].astype(TOKEN)


def _replay(drafts: _Drafts, document: Tokens, begin: int) -> Replayed:
    """Decodes the document greedily from `begin` on."""
    at, end = begin, min(begin + MAX_REPLAYED_TOKENS, len(document))
    num_steps = num_accepted = 0
    while at < end:
        accepted = drafts.num_accepted(document[:at], document[at:end])
        num_steps += 1
        num_accepted += accepted
        at += accepted + 1
    return Replayed(num_steps, num_accepted)


class _Drafts:
    """Drafts from a corpus without some documents, which change; used by one thread."""

    def __init__(self, parts: Sequence[Part], max_nodes: int) -> None:
        self._windows = [Window(part) for part in parts]
        self.arrays = ContextArrays([window.array for window in self._windows])
        self._max_nodes = max_nodes
        self._scratch = new_scratch()

    def leave_out(self, document: Tokens) -> None:
        """Leaves out every document with exactly these tokens, and no other one."""
        for window in self._windows:
            window.leave_out(document)

    def num_accepted(self, context: Tokens, text: Tokens) -> int:
        """Returns how many tokens of `text` a draft after `context` holds, from the first one on."""
        for window in self._windows:
            window.move(context)
        token_ids, parents, _ = self.arrays.draft(context, self._max_nodes, self._max_nodes, self._scratch)
        return int(num_confirmed(token_ids, parents, text))


class Window:
    """A context array of the few positions near a context that are not left out.

    A draft from it is one from the whole array without those: it sees as many on each side as it can use.
    """

    def __init__(self, part: Part) -> None:
        whole = part.array
        self._part = part
        self._positions = np.zeros(2 * NUM_NEIGHBOURS, np.uint32)
        self._buckets = np.zeros(whole.num_ids + 1, np.uint32)
        self._is_left_out: NDArray[np.bool_] = np.zeros(len(part.starts), bool)
        self._starts: Int64s = np.zeros(0, np.int64)
        self._stops: Int64s = np.zeros(0, np.int64)
        self.array = ContextArray(whole.tokens, self._positions, self._buckets, whole.depth_tokens)

    def leave_out(self, document: Tokens) -> None:
        """Leaves out every document with exactly these tokens."""
        part = self._part
        mark_equal(part.array.tokens, part.starts, part.lengths, document, self._is_left_out)
        self.leave_out_documents(np.flatnonzero(self._is_left_out))

    def leave_out_documents(self, documents: Int64s) -> None:
        """Leaves out the positions in documents, their ends included, and no others.

        Args:
            documents: int64[n]  their places among those of the segment, rising.
        """
        self._starts = self._part.starts[documents]
        self._stops = self._starts + self._part.lengths[documents] + 1

    def move(self, context: Tokens) -> None:
        """Shows the positions near a context."""
        whole, token = self._part.array, int(context[-1])
        if token >= whole.num_ids:
            return
        self._buckets[token], self._buckets[token + 1] = nearest_elsewhere(
            whole.tokens,
            whole.positions,
            whole.buckets,
            context,
            whole.depth_tokens,
            self._starts,
            self._stops,
            self._positions,
        )
