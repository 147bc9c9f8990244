"""The contract between the engine and every source of drafts.

A drafter is opened once and shared by all sessions; a cursor is one session's position in it. Neither
knows of sessions, sockets or clocks. `tests/contract/` runs over every registered drafter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.tree import DraftTree, Tokens, Uint16s

MAX_DEPTH_NODES = 64
"""No path of a draft tree is longer."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a tree may cost: an upper bound, never a target; the root is not counted.

    Attributes:
        max_nodes: drafted nodes at most; 0 means "no draft".
        max_depth_nodes: nodes on one path at most.
    """

    max_nodes: int = 16
    max_depth_nodes: int = MAX_DEPTH_NODES


@dataclass(frozen=True, slots=True)
class Feedback:
    """What only a verifier knows and may leave out.

    Attributes:
        node_token_ids: int32[m]  the verified nodes' tokens, accepted or not, the root first.
        topk_ids: int32[m, k]  the target model's most probable next tokens after each of them.
    """

    node_token_ids: Tokens
    topk_ids: NDArray[np.int32]


_OWN_SOURCE = np.ones(4096, np.uint16)
_OWN_SOURCE.setflags(write=False)


def own_source(num_nodes: int) -> Uint16s:
    """Returns read-only uint16[num_nodes], the `sources` of every tree that a cursor proposes: all 1."""
    if num_nodes > _OWN_SOURCE.shape[0]:
        return np.ones(num_nodes, np.uint16)
    sources: Uint16s = _OWN_SOURCE[:num_nodes]
    return sources


@runtime_checkable
class Cursor(Protocol):
    """One session's position in one drafter; owned by that session, not thread-safe."""

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves on by committed tokens; drafts that were rejected never come here."""
        ...

    def propose(self, budget: Budget) -> DraftTree:
        """Returns a tree that continues the context; equal states give equal trees.

        Nodes come best first, by path probability. The tree's `sources` are all 1 and its
        `source_names` empty: the engine sets both.
        """
        ...


@runtime_checkable
class Drafter(Protocol):
    """A source of drafts: immutable, or synchronised within."""

    def start(self, context: Tokens) -> Cursor:
        """Returns a cursor that has observed `context`, which may be empty."""
        ...


@runtime_checkable
class TextDrafter(Drafter, Protocol):
    """A drafter over text that was encoded beforehand: its ids mean text to one tokenizer alone."""

    tokenizer_fingerprint: str
