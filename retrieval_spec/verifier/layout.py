"""The order in which a draft tree goes through the target model: the root first, useless nodes left out.

Plain Python lists: trees are small, and the acceptance walk reads them node by node.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_spec.tree import CONTEXT, DraftTree


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of one forward pass; node 0 is the root, the token decided last and not yet forwarded.

    For the root `the` and the drafts `the cat sat` and `the cat ran` it is

        token_ids = [the, cat, sat, ran]   parents = [-1, 0, 1, 1]   depths = [0, 1, 2, 2]

    Attributes:
        token_ids: the root and the drafted tokens.
        parents: index of the parent, smaller than the own index; -1 for the root.
        depths: distance from the root.
        children: of every node, token id -> child.
    """

    token_ids: list[int]
    parents: list[int]
    depths: list[int]
    children: list[dict[int, int]]

    def __len__(self) -> int:
        return len(self.token_ids)


def lay_out(root_id: int, tree: DraftTree, max_depth_nodes: int, end_ids: frozenset[int]) -> Layout:
    """Returns the root and those nodes of `tree` that can save a step.

    A node deeper than the tokens left to decide cannot; nor can an end-of-sequence token, since the
    parent's own distribution ends the generation, nor anything below it.

    Args:
        root_id: the token decided last.
        tree: a tree that keeps the contract.
        max_depth_nodes: deepest node to keep.
        end_ids: tokens that end the generation wherever they come.
    """
    layout = Layout([root_id], [-1], [0], [{}])
    place: list[int] = []
    for token_id, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        above = 0 if parent == CONTEXT else place[parent]
        if above < 0 or layout.depths[above] >= max_depth_nodes or token_id in end_ids:
            place.append(-1)
            continue
        place.append(len(layout))
        layout.children[above][token_id] = len(layout)
        layout.children.append({})
        layout.depths.append(layout.depths[above] + 1)
        layout.parents.append(above)
        layout.token_ids.append(token_id)
    return layout
