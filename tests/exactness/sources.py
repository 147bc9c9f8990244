"""Draft sources for the exactness tests: from useless to clairvoyant, all answering by the context alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrieval_spec.tree import DraftTree

TreeMaker = Callable[[list[int], int], DraftTree]
DEPTH_NODES = 6


class FakeSource:
    """Hands every session's context to `make(context, max_nodes)`; keeps the sessions it opened."""

    source_names = ("fake",)
    wanted_topk = 0
    projection = None

    def __init__(self, vocab_size: int, make: TreeMaker) -> None:
        self.vocab_size = vocab_size
        self.make = make
        self.sessions: list[FakeSession] = []

    def open_session(self, prompt_ids, namespace="default"):
        self.sessions.append(FakeSession(self.make, list(prompt_ids)))
        return self.sessions[-1]

    def draft_batch(
        self, sessions: Sequence[FakeSession], total_nodes: int, cost_curve=None, max_nodes=None
    ) -> list[DraftTree]:
        return [session.draft(total_nodes // len(sessions)) for session in sessions]

    def close(self) -> None:
        pass


class FakeSession:
    def __init__(self, make: TreeMaker, context: list[int]) -> None:
        self.make = make
        self.context = context
        self.is_closed = False

    @property
    def context_length(self) -> int:
        return len(self.context)

    def draft(self, max_nodes: int = 16, cost_curve=None) -> DraftTree:
        return self.make(self.context, max_nodes)

    def commit(self, token_ids, feedback=None) -> None:
        self.context.extend(token_ids)

    def truncate(self, length: int) -> None:
        del self.context[length:]

    def close(self) -> None:
        self.is_closed = True


def empty(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    return lambda context, max_nodes: DraftTree.empty()


def all_wrong(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    """Trees in which no child of the context is what the target chooses."""

    def make(context, max_nodes):
        right = coming(truth, context)
        return DraftTree.chain([(token + 1) % vocab_size for token in right][:max_nodes])

    return make


def oracle(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    """Chains that are right to the last node."""
    return lambda context, max_nodes: DraftTree.chain(coming(truth, context)[:max_nodes])


def bushy(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    """The right path hidden between decoys: at every depth two wrong siblings, one before it, one after."""

    def make(context, max_nodes):
        tokens, parents, parent = [], [], -1
        for token in coming(truth, context):
            right = len(tokens) + 1
            tokens += [(token + 1) % vocab_size, token, (token + 2) % vocab_size]
            parents += [parent] * 3
            if parent >= 0:  # a decoy below a decoy
                tokens.append(token)
                parents.append(right - 1)
            parent = right
        return DraftTree.from_lists(tokens, parents).prefix(max_nodes)

    return make


def partly_wrong(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    """Right for a while that changes from step to step, then wrong; a wrong sibling comes first."""

    def make(context, max_nodes):
        right = coming(truth, context)[: 1 + len(context) % 4]
        tail = [(token + 3) % vocab_size for token in right]
        tokens = [(right[0] + 1) % vocab_size, *right, *tail] if right else []
        parents = [-1, -1, *range(1, len(tokens) - 1)]
        return DraftTree.from_lists(tokens, parents[: len(tokens)]).prefix(max_nodes)

    return make


def random_trees(truth: Sequence[int], vocab_size: int) -> TreeMaker:
    """Random trees over the tokens that really occur, another one for every context length."""
    alphabet = sorted(set(truth))

    def make(context, max_nodes):
        rng = np.random.default_rng(len(context))
        edges: dict[tuple[int, int], int] = {}
        for _ in range(max_nodes):
            parent = int(rng.integers(-1, len(edges)))
            edges.setdefault((parent, int(rng.choice(alphabet))), len(edges))
        return DraftTree.from_lists([token for _, token in edges], [parent for parent, _ in edges])

    return make


def coming(truth: Sequence[int], context: list[int]) -> list[int]:
    """The next tokens of the known output; also right again after a test went astray."""
    return [int(token) for token in truth[len(context) : len(context) + DEPTH_NODES]]


MAKERS = {maker.__name__: maker for maker in (empty, all_wrong, oracle, bushy, partly_wrong, random_trees)}
