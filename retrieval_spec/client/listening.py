"""What drafts were or would have been worth, seen from the tokens that came. Knows sessions, asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retrieval_spec.client.economy import LONGEST_GAP_STEPS, Policy
from retrieval_spec.client.session import RemoteSession, Timing
from retrieval_spec.tree import CONTEXT, DraftTree


class Match(NamedTuple):
    """How far tokens followed a tree.

    Attributes:
        num_tokens: that it had drafted.
        is_final: whether more tokens cannot change that.
    """

    num_tokens: int
    is_final: bool


def match(tree: DraftTree, token_ids: Sequence[int]) -> Match:
    """Returns how many of the tokens a tree had drafted, in a row from the first."""
    parents = tree.parents.tolist()
    node, depth = _follow(parents, tree.token_ids.tolist(), token_ids)
    return Match(depth, depth < len(token_ids) or node not in parents)


def _follow(parents: list[int], drafted: list[int], token_ids: Sequence[int]) -> tuple[int, int]:
    """Returns the node of a tree that tokens lead to, and how many of them do."""
    node, depth, num_tokens = CONTEXT, 0, len(token_ids)
    for at, parent in enumerate(parents):
        # Children follow their parents, so that one look at each node is enough.
        if parent == node and depth < num_tokens and drafted[at] == token_ids[depth]:
            node, depth = at, depth + 1
    return node, depth


class Overheard:
    """The trees of an answer that no step waited for, until tokens have come that say what they are worth.

    Args:
        latency_s: what the answer took.
        trees: for each session, its epoch and the length of the context that the tree continues.
    """

    def __init__(self, latency_s: float, trees: Sequence[tuple[RemoteSession, int, int, DraftTree]]) -> None:
        self._latency_s = latency_s
        self._trees = trees
        self._left_looks = LONGEST_GAP_STEPS  # tokens may never come

    def judge(self, policy: Policy) -> bool:
        """Tells what is known by now; whether that settles it."""
        matches = [
            match(tree, session.tail(length))
            for session, epoch, length, tree in self._trees
            if session.epoch == epoch and session.context_length >= length
        ]
        self._left_looks -= 1
        is_final = self._left_looks <= 0 or all(found.is_final for found in matches)
        worth = sum(found.num_tokens for found in matches) / max(len(matches), 1)
        return policy.judged(worth, self._latency_s, is_final=is_final)


def remember(sessions: Sequence[RemoteSession], trees: Sequence[DraftTree], step: Timing) -> None:
    """Notes where a step's drafts will be, until the tokens have come that follow them."""
    for row, session in enumerate(sessions):
        session.last_step, session.last_length = step, session.context_length
        session.last_trees, session.last_row = trees, row


def book(sessions: Sequence[RemoteSession], policy: Policy, now_s: float) -> None:
    """Tells the policy what came of the sessions' last step."""
    num_ended, num_skipped, accepted, drafted = 0, 0, 0, False
    steps: set[Timing] = set()  # one, nearly always
    for session in sessions:
        step = session.last_step
        if step is None or step.returned_s is None:
            continue
        num_ended += 1
        steps.add(step)
        session.last_step = None
        if session.skipped_steps:
            num_skipped = max(num_skipped, session.skipped_steps)
            session.skipped_steps = 0
        tree = session.last_tree
        token_ids = tree.token_ids.tolist()
        if token_ids:
            drafted = True
            accepted += _follow(tree.parents.tolist(), token_ids, session.tail(session.last_length))[1]
    if not num_ended:
        return
    begun_s = max([step.returned_s for step in steps if step.returned_s is not None])
    waited_s = max([step.waited_s for step in steps if step.waited_s is not None], default=None)
    elapsed_s = (now_s - begun_s) / (1 + num_skipped)
    policy.stepped(elapsed_s, accepted / num_ended, waited_s, drafted=drafted)
