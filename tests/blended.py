"""The blend beside its readable twin: asked and told the same, and compared after every draft and commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import pytest
from hypothesis import strategies as st

from retrieval_spec.drafters import stepping
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.prompts import PromptsDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.structures.blend_tables import shipped_prior
from retrieval_spec.structures.context import Context
from retrieval_spec.tree import DraftTree
from tests.reference.blend import Namespace, Node, Session, drafted_together
from tests.reference.blend_tables import SHAPES
from tests.replay import num_accepted
from tests.strategies import as_int32

VOCAB_SIZE = 151_936
NAMES = ("session", "history", "prompts", "other", "another")
OTHER_BITS = (3, 4)


class OtherDrafter:
    """Proposes a tree that looks arbitrary, but depends on the bit and the end of the context alone."""

    def __init__(self, bit):
        self.bit = bit

    def start(self, context, namespace="default"):
        return OtherCursor(self.bit, context)


class OtherCursor:
    def __init__(self, bit, context):
        self.bit, self.context = bit, context.tolist()

    def observe(self, tokens, feedback=None):
        self.context += tokens.tolist()

    def close(self):
        pass

    def propose(self, budget):
        return proposed(self.bit, self.context, budget)


def proposed(bit: int, context: list[int], budget: Budget) -> DraftTree:
    """A tree over the context's own tokens and one that it has not."""
    rng = np.random.default_rng([bit, len(context) % 5, *context[-2:]])
    if rng.random() < 0.3 or not context:
        return DraftTree.empty()
    paths = {(): 1.0}
    known = sorted({*context, 3})
    for _ in range(min(budget.max_nodes, 6)):
        above = list(paths)[rng.integers(len(paths))]
        if len(above) < budget.max_depth_nodes:
            paths.setdefault(
                (*above, known[rng.integers(len(known))]), float(rng.choice([0.0, 0.1, 0.5, 1.0]))
            )
    order = list(paths)
    parents = [order.index(path[:-1]) - 1 for path in order[1:]]
    probs = [paths[path] for path in order[1:]]
    return DraftTree.from_lists([path[-1] for path in order[1:]], parents, probs, [1] * len(probs))


@contextmanager
def drafted_in_parts_from(num_sessions: int) -> Iterator[None]:
    """Batches of so many sessions are large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "MANY_SESSIONS", num_sessions)
        yield


def check_equal(tree: DraftTree, expected: list[Node]) -> None:
    """Compares a tree with the twin's."""
    assert tree.token_ids.tolist() == [node.token for node in expected]
    assert tree.parents.tolist() == [node.parent for node in expected]
    assert tree.sources.tolist() == [node.sources for node in expected]
    np.testing.assert_allclose(tree.probs, [node.prob for node in expected], rtol=1e-5, atol=1e-12)


class Both:
    """The blend and its twin, which are asked and told the same."""

    def __init__(self, with_others: bool = False, prior: np.ndarray | None = None) -> None:
        sources = (SessionDrafter, HistoryDrafter, PromptsDrafter)
        self.drafters = [source.open(VOCAB_SIZE) for source in sources]
        self.with_others = with_others
        if with_others:
            self.drafters += [OtherDrafter(bit) for bit in OTHER_BITS]
        self.blend = Blend(NAMES[: len(self.drafters)], prior)
        self.twin = Namespace(shipped_prior() if prior is None else prior)

    def start(self, prompt: list[int]) -> BothSessions:
        return BothSessions(self, prompt)

    def draft_all(self, sessions: list[BothSessions], max_nodes: int, total_nodes: int) -> list[DraftTree]:
        """The drafts of a batch of both, which must be equal."""
        budgets = [Budget(max_nodes)] * len(sessions)
        trees = self.blend.draft_all([one.joint for one in sessions], budgets, total_nodes)
        asked = [(one.twin, one.others(budgets[0])) for one in sessions]
        expected = drafted_together(
            asked, max_nodes, total_nodes, in_parts=len(sessions) >= stepping.MANY_SESSIONS
        )
        for tree, nodes in zip(trees, expected, strict=True):
            check_equal(tree, nodes)
        self.check_tables()
        return trees

    def check_tables(self) -> None:
        cells = self.blend.cells_of("default")
        assert cells.size == self.twin.tables.cells.size
        np.testing.assert_allclose(cells, self.twin.tables.cells, rtol=1e-5, atol=1e-7)


class BothSessions:
    def __init__(self, both: Both, prompt: list[int]) -> None:
        self.both = both
        self.cursors = [drafter.start(as_int32(prompt)) for drafter in both.drafters]
        self.joint = both.blend.start(self.cursors, "default", Context(as_int32(prompt)))
        self.twin = Session(both.twin, prompt)

    def draft(self, max_nodes: int, max_depth: int = 64) -> DraftTree:
        """The draft of both, which must be equal."""
        budget = Budget(max_nodes, max_depth)
        tree = self.joint.draft(budget)
        expected = self.twin.draft(max_nodes, max_depth, self.others(budget))
        check_equal(tree, expected)
        self.both.check_tables()
        return tree

    def others(self, budget: Budget) -> tuple[tuple[int, DraftTree], ...]:
        """What the other sources propose, by their bits."""
        bits = OTHER_BITS if self.both.with_others else ()
        return tuple((bit, proposed(bit, self.twin.context, budget)) for bit in bits)

    def keep(self, num_nodes: int) -> None:
        self.joint.keep(num_nodes)
        self.twin.keep(num_nodes)

    def commit(self, tokens: list[int]) -> None:
        self.joint.observe(as_int32(tokens))
        self.twin.observe(tokens)
        if sum(tokens) % 2:  # else with the next draft
            self.settle()

    def settle(self) -> None:
        """Both have worked in what was committed, and learned the same."""
        self.joint.settle()
        self.twin.learn()
        self.both.check_tables()

    def close(self) -> None:
        self.settle()
        for cursor in self.cursors:
            cursor.close()
        self.twin.close()


Sessions = list[tuple[list[int], list[tuple[tuple[int, int] | None, list[int]]]]]
"""Prompts, each with what is committed after a draft of some budget, or after none."""

BUDGETS = st.tuples(st.sampled_from([1, 2, 3, 8, 16, 40]), st.sampled_from([1, 2, 64, 64, 64]))


def extreme_prior(seed: int) -> np.ndarray:
    """Tables as no outcomes would make them."""
    rng = np.random.default_rng(seed)
    prior = rng.normal(0.0, 0.4, shipped_prior().size).astype(np.float32)
    num_escapes = prod(SHAPES["escapes"])
    prior[:num_escapes] = rng.choice([0.0, 0.01, 0.5, 0.9, 0.9963, 1.0], num_escapes)
    prior[num_escapes] = 1.0  # the weight of what contexts give
    return prior


PRIORS = st.one_of(st.none(), st.integers(0, 99).map(extreme_prior))


def lived_through(both: Both, asked: Sessions) -> None:
    """Lets both live through sessions; of some trees only the first nodes are verified."""
    for prompt, steps in asked:
        session = both.start(prompt)
        for budget, tokens in steps:
            if budget:
                tree = session.draft(*budget)
                if len(tokens) % 3:
                    session.keep(len(tree) * len(tokens) // 12)
            session.commit(tokens)
        session.draft(8)
        session.close()


def paths_of(tree: DraftTree) -> set[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return set(paths)


def replayed(session: BothSessions, output: list[int], max_nodes: int) -> Iterator[int]:
    """Lets both draft for an output, step by step; yields how many nodes each draft had."""
    at = 0
    while at < len(output):
        tree = session.draft(max_nodes)
        yield len(tree)
        size = num_accepted(paths_of(tree), output[at:])
        session.commit(output[at : at + size + 1])
        at += size + 1
