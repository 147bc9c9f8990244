"""What came after each token, and after each pair of tokens, most probable first, on one flat array.

The matrix of Token Recycling (arXiv 2408.08696) with rows for pairs of tokens beside it. Not
thread-safe: whoever shares it holds a lock around every call. Knows no drafts and no policy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels import adjacency as kernels
from retrieval_spec.kernels import adjacency_draft
from retrieval_spec.structures.saved_rows import NO_TOKEN, SavedRows
from retrieval_spec.tree import Float32s, Int32s, Tokens

WIDTH = kernels.WIDTH
MAX_IDS = 1 << 22
"""Rows are reserved for the whole vocabulary, though memory is used only by those that are written."""

TreeColumns = tuple[Tokens, Int32s, Float32s]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]


class Template(NamedTuple):
    """A fixed tree of ranks, its nodes best first, parents before their children.

    Attributes:
        nodes: int32[3, n]  parent, rank in the parent's row, and depth of every node.
        probs: float32[n]  the probability that each node gets.
    """

    nodes: Int32s
    probs: Float32s


class AdjacencyRows:
    """Rows of `WIDTH` ids by token and, in a bounded hash table, by pair of tokens.

    A vocabulary of 152,064 takes 5.5 MB and 65,536 pairs 3.4 MB, of which the system provides the pages
    that were written. Of the pairs that fall on the same places, the one written longest ago gives way.
    """

    __slots__ = ("_scratch", "arena")

    def __init__(self, vocab_size: int, num_pairs: int = 0) -> None:
        """Makes rows that know nothing, with room for so many pairs: none, or a power of two."""
        if vocab_size > MAX_IDS:
            raise InvalidRequest(
                "the vocabulary is too large for adjacency rows", got=vocab_size, expected=f"<= {MAX_IDS}"
            )
        words = vocab_size * kernels.ROW_WORDS + num_pairs * kernels.RECORD_WORDS
        self.arena: Int32s = np.zeros(kernels.HEADER_WORDS + words, np.int32)
        self.arena[kernels.NUM_IDS] = vocab_size
        self.arena[kernels.NUM_RECORDS] = num_pairs
        self._scratch = np.empty(0, np.int64)

    def update(
        self,
        node_token_ids: Tokens,
        node_parents: Int32s,
        topk_ids: Int32s,
        topk_logprobs: Float32s,
        previous: int = NO_TOKEN,
    ) -> None:
        """Replaces the rows of verified nodes by what the target found most probable after each.

        Args:
            node_token_ids: int32[m]  the nodes' tokens, the root first.
            node_parents: int32[m]  index of an earlier node; -1 for the root.
            topk_ids: int32[m, k]  the most probable next tokens, best first; further ones are left out.
            topk_logprobs: float32[m, k]  their natural log-probabilities; shape (0, 0) if not told.
            previous: the token before the root.
        """
        # Copies: arrays that came over the wire are read-only, and kernels are compiled for one kind.
        kernels.update(
            self.arena,
            np.array(node_token_ids),
            np.array(node_parents),
            np.array(topk_ids, order="C"),
            np.array(topk_logprobs, order="C"),
            previous,
        )

    def learn(self, text: Tokens, begin: int, counts: Int64s) -> None:
        """Moves every token of a text from `begin` on to the front of the rows of what stands before it.

        Args:
            text: int32[n]  token ids, contiguous.
            begin: index of the first new token; those before it are context.
            counts: int64[2, classes]  from `new_counts`, counted up by what the rows offered just before
                and what came; or from `no_counts`.
        """
        kernels.learn(self.arena, text, begin, counts)

    def fill(self, template: Template, root: int, max_nodes: int, max_depth_nodes: int) -> TreeColumns:
        """Returns the template with the tokens of the rows; the unknown is left out with its subtree."""
        tree = np.empty((4, template.probs.shape[0]), np.int32)
        size = adjacency_draft.fill_template(
            self.arena, template.nodes, root, max_nodes, max_depth_nodes, tree
        )
        probs = template.probs[tree[adjacency_draft.PROB, :size]]
        return tree[adjacency_draft.TOKEN_ID, :size], tree[adjacency_draft.PARENT, :size], probs

    def draft(
        self,
        prior: Float64s,
        counts: Int64s,
        previous: int,
        root: int,
        max_nodes: int,
        max_depth_nodes: int,
    ) -> TreeColumns:
        """Returns token ids, parents and probabilities of the most probable paths, best first.

        Args:
            prior: float64[2, classes]  what the counts start with: offers, all above 0, and right ones.
            counts: int64[2, classes]  what was learned of them.
            previous: the token before the root, `NO_TOKEN` if there is none.
            root: the last token of the context.
            max_nodes: nodes of the tree at most.
            max_depth_nodes: nodes on one path at most.
        """
        if self._scratch.shape[0] < adjacency_draft.scratch_words(max_nodes):
            self._scratch = np.empty(adjacency_draft.scratch_words(max_nodes), np.int64)
        tree = np.empty((3, max_nodes), np.int32)
        size = adjacency_draft.draft(
            self.arena, prior, counts, previous, root, max_depth_nodes, self._scratch, tree
        )
        return tree[0, :size], tree[1, :size], tree[2, :size].view(np.float32)

    def saved(self) -> SavedRows:
        """Returns copies of all rows that are known."""
        rows, records = self._parts()
        tokens = np.flatnonzero(rows[:, :WIDTH].any(axis=1))
        used = records[records[:, kernels.TOKEN] != 0]
        ages = (
            int(self.arena[kernels.CLOCK]) - used[:, kernels.WRITTEN].astype(np.int64)
        ) & kernels.MAX_CLOCK
        used = used[np.argsort(-ages, kind="stable")]
        keys = np.concatenate([np.stack([np.full_like(tokens, NO_TOKEN), tokens], axis=1), used[:, :2] - 1])
        return SavedRows(keys.astype(np.int32), np.concatenate([rows[tokens], used[:, kernels.ROW :]]))

    def restore(self, saved: SavedRows) -> None:
        """Takes over saved rows, as the first that these learn; of too many pairs, the newest."""
        rows, records = self._parts()
        is_pair = saved.keys[:, 0] != NO_TOKEN
        rows[saved.keys[~is_pair, 1]] = saved.rows[~is_pair]
        num_records = records.shape[0]
        if not num_records:
            return
        keys, pair_rows = saved.keys[is_pair][-num_records:], saved.rows[is_pair][-num_records:]
        homes = np.empty(keys.shape[0], np.int64)
        kernels.find_homes(self.arena, keys, homes)
        # By rising home, from a place that no probing crosses: then whatever fitted once fits again.
        crowding = np.cumsum(np.bincount(homes, minlength=num_records) - 1)
        order = np.argsort((homes - np.argmin(crowding) - 1) % num_records, kind="stable")
        kernels.restore_pairs(self.arena, keys, pair_rows, order)

    def _parts(self) -> tuple[Int32s, Int32s]:
        """Returns int32[ids, ROW_WORDS] and int32[records, RECORD_WORDS], views of the arena."""
        begin = kernels.HEADER_WORDS + int(self.arena[kernels.NUM_IDS]) * kernels.ROW_WORDS
        rows = self.arena[kernels.HEADER_WORDS : begin].reshape(-1, kernels.ROW_WORDS)
        return rows, self.arena[begin:].reshape(-1, kernels.RECORD_WORDS)

    def row(self, token: int) -> list[int]:
        """Returns the ids known to follow a token, the most probable first."""
        return self._ids_at(kernels.HEADER_WORDS + token * kernels.ROW_WORDS)

    def pair_row(self, previous: int, token: int) -> list[int]:
        """Returns the ids known to follow two tokens, the most probable first."""
        row = kernels.find_row(self.arena, previous, token)
        return [] if row == kernels.NO_ROW else self._ids_at(row)

    def _ids_at(self, row: int) -> list[int]:
        return [entry - 1 for entry in self.arena[row : row + WIDTH].tolist() if entry]


def new_counts() -> Int64s:
    """Returns int64[2, classes] of zeros."""
    return np.zeros((2, kernels.NUM_CLASSES), np.int64)


def no_counts() -> Int64s:
    """Returns what stands for "count nothing"."""
    return np.zeros((2, 0), np.int64)
