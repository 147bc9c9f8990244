"""Acceptance over a draft tree as plain decoding with a look at the set of drafted paths."""

from __future__ import annotations

from collections.abc import Callable

from retrieval_spec.tree import DraftTree


def drafted_paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """Every path of the tree, from the context's child down, as its tokens."""
    return {tuple(tree.token_ids[step] for step in tree.path_to(node)) for node in range(len(tree.token_ids))}


def accept_by_paths(
    tree: DraftTree, target: Callable[[tuple[int, ...]], int], stops: Callable[[tuple[int, ...]], bool]
) -> tuple[list[int], int]:
    """The tokens of one step and how many of them had been drafted.

    `target` gives the next token after the tokens decided in this step, `stops` says whether they end
    the generation. The step goes on exactly as long as what was decided is a drafted path.
    """
    paths = drafted_paths(tree)
    decided: tuple[int, ...] = ()
    while True:
        decided += (target(decided),)
        if stops(decided) or decided not in paths:
            return list(decided), len(decided) - (decided not in paths)
