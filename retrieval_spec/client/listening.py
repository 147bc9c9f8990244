"""What drafts were or would have been worth, seen from the tokens that came. Knows sessions, asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retrieval_spec.client.economy import LONGEST_GAP_STEPS, Policy
from retrieval_spec.client.session import RemoteSession
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
    if not len(tree):
        return Match(0, True)
    parents, drafted = tree.parents.tolist(), tree.token_ids.tolist()
    node, depth = CONTEXT, 0
    for at, (parent, token_id) in enumerate(zip(parents, drafted, strict=True)):
        # Children follow their parents, so that one look at each node is enough.
        if parent == node and depth < len(token_ids) and token_id == token_ids[depth]:
            node, depth = at, depth + 1
    return Match(depth, depth < len(token_ids) or node not in parents)


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
            match(tree, session.context[length:].tolist())
            for session, epoch, length, tree in self._trees
            if session.epoch == epoch and session.context_length >= length
        ]
        self._left_looks -= 1
        is_final = self._left_looks <= 0 or all(found.is_final for found in matches)
        worth = sum(found.num_tokens for found in matches) / max(len(matches), 1)
        return policy.judged(worth, self._latency_s, is_final=is_final)


def book(sessions: Sequence[RemoteSession], policy: Policy, now_s: float) -> None:
    """Tells the policy what came of the sessions' last step."""
    steps = [(session, session.last_step) for session in sessions]
    ended = [(session, step) for session, step in steps if step is not None]
    if not ended:
        return
    accepted, drafted, begun_s, waited_s = 0, False, 0.0, None
    num_steps = 1 + max([session.skipped_steps for session, _ in ended])
    for session, step in ended:
        session.last_step = None
        session.skipped_steps = 0
        begun_s = max(begun_s, step.returned_s)
        if step.waited_s is not None:
            waited_s = max(waited_s or 0.0, step.waited_s)
        if len(step.tree):
            drafted = True
            accepted += match(step.tree, session.context[step.length :].tolist()).num_tokens
    policy.stepped((now_s - begun_s) / num_steps, accepted / len(ended), waited_s, drafted=drafted)
