"""The blend against its readable twin: equal drafts, and equal tables after every commit."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.prompts import PromptsDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.structures.blend_tables import shipped_prior
from retrieval_spec.tree import DraftTree
from tests.reference.blend import Namespace, Session
from tests.reference.blend_tables import SHAPES
from tests.replay import num_accepted, recorded
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

    def check_tables(self) -> None:
        cells = self.blend.cells_of("default")
        assert cells.size == self.twin.tables.cells.size
        np.testing.assert_allclose(cells, self.twin.tables.cells, rtol=1e-5, atol=1e-7)


class BothSessions:
    def __init__(self, both: Both, prompt: list[int]) -> None:
        self.both = both
        self.cursors = [drafter.start(as_int32(prompt)) for drafter in both.drafters]
        self.joint = both.blend.start(self.cursors, "default")
        self.twin = Session(both.twin, prompt)

    def draft(self, max_nodes: int, max_depth: int = 64) -> DraftTree:
        """The draft of both, which must be equal."""
        budget = Budget(max_nodes, max_depth)
        tree = self.joint.draft(budget)
        bits = OTHER_BITS if self.both.with_others else ()
        others = tuple((bit, proposed(bit, self.twin.context, budget)) for bit in bits)
        expected = self.twin.draft(max_nodes, max_depth, others)
        assert tree.token_ids.tolist() == [node.token for node in expected]
        assert tree.parents.tolist() == [node.parent for node in expected]
        assert tree.sources.tolist() == [node.sources for node in expected]
        np.testing.assert_allclose(tree.probs, [node.prob for node in expected], rtol=1e-5, atol=1e-12)
        return tree

    def keep(self, num_nodes: int) -> None:
        self.joint.keep(num_nodes)
        self.twin.keep(num_nodes)

    def commit(self, tokens: list[int]) -> None:
        self.joint.observe(as_int32(tokens))
        self.twin.observe(tokens)
        self.both.check_tables()

    def close(self) -> None:
        for cursor in self.cursors:
            cursor.close()
        self.twin.close()


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


BUDGETS = st.tuples(st.sampled_from([1, 2, 3, 8, 16, 40]), st.sampled_from([1, 2, 64, 64, 64]))


@st.composite
def sessions(draw) -> list[tuple[list[int], list[tuple[tuple[int, int] | None, list[int]]]]]:
    """Prompts, each with what is committed after a draft of some budget, or after none."""
    alphabet = draw(st.sampled_from([1, 2, 3, 5, 9]))
    tokens = st.integers(0, alphabet - 1).map(lambda token: token * 30_011)
    step = st.tuples(st.one_of(st.none(), BUDGETS, BUDGETS), st.lists(tokens, max_size=12))
    session = st.tuples(st.lists(tokens, max_size=40), st.lists(step, min_size=1, max_size=4))
    return draw(st.lists(session, min_size=1, max_size=4))


def extreme_prior(seed: int) -> np.ndarray:
    """Tables as no outcomes would make them."""
    rng = np.random.default_rng(seed)
    prior = rng.normal(0.0, 0.4, shipped_prior().size).astype(np.float32)
    num_escapes = prod(SHAPES["escapes"])
    prior[:num_escapes] = rng.choice([0.0, 0.01, 0.5, 0.9, 0.9963, 1.0], num_escapes)
    prior[num_escapes] = 1.0  # the weight of what contexts give
    return prior


PRIORS = st.one_of(st.none(), st.integers(0, 99).map(extreme_prior))


@given(sessions(), st.booleans(), PRIORS)
@settings(max_examples=120, deadline=None)
def test_drafts_and_tables_are_those_of_the_twin(asked, with_others, prior):
    both = Both(with_others, prior)
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


def test_the_twin_is_compared_on_drafts_that_say_something():
    rng = np.random.default_rng(0)
    sizes: list[int] = []
    for with_others in (False, True):
        both = Both(with_others)
        for _ in range(6):
            session = both.start(rng.integers(0, 5, 30).tolist())
            sizes += replayed(session, rng.integers(0, 5, 40).tolist(), 16)
            session.close()
    assert np.mean(np.array(sizes) > 4) > 0.9


def wide(rng: np.random.Generator, num_tokens: int) -> list[int]:
    """Few contexts with very many continuations, some of them common."""
    rare = np.minimum(rng.zipf(1.3, num_tokens), 400) + 10
    return [int(token) for pair in zip(rng.integers(0, 2, num_tokens), rare, strict=True) for token in pair]


def test_contexts_with_many_continuations_are_read_as_by_the_twin():
    rng = np.random.default_rng(1)
    both = Both()
    sizes: list[int] = []
    for _ in range(4):
        session = both.start(wide(rng, 300))
        for _ in range(8):
            sizes.append(len(session.draft(60, 3)))
            session.commit(wide(rng, 6))
            session.commit(wide(rng, 20)[:-1])
            sizes.append(len(session.draft(60, 3)))
            session.commit(wide(rng, 1))
        session.close()
    assert np.mean(sizes) > 30


def test_escapes_that_were_learned_often_go_on_following_what_changes():
    both = Both()
    seen = prod(SHAPES["seen"])
    for cells in (both.blend.cells_of("default"), both.twin.tables.cells):
        cells[-prod(SHAPES["outcomes"]) - seen :][:seen] = 1_997.0
    session = both.start([1, 2, 3] * 5)
    for _ in range(8):
        session.draft(8)
        session.commit([1, 2, 3])
    assert both.twin.tables.by_name["seen"].max() == 2_000.0


@pytest.mark.parametrize("escape", [0.9, 0.9963, 0.9968, 0.9969, 0.999])
def test_what_long_matches_leave_over_is_learned_from_down_to_a_bound(escape):
    prior = shipped_prior().copy()
    prior[: prod(SHAPES["escapes"])] = escape
    both = Both(prior=prior)
    # Three matches, each with a new token.
    session = both.start([1, 2, 3, 10, 9, 2, 3, 11, 8, 3, 12, 7, 3, 12, 6, 3, 12, 1, 2, 3])
    session.draft(8)
    session.commit([12])
    num_learned = np.count_nonzero(both.twin.tables.by_name["seen"])
    assert num_learned == (3 if (1.0 - escape) ** 2 > 1e-5 else 2)


@pytest.mark.parametrize("at", [0, 1, 126, 127, 128, 129])
def test_the_oldest_continuation_and_the_newest_are_read_up_to_a_bound(at):
    in_order = [10, *range(209, 10, -1)]
    text = [token for other in [*range(10, 210), *[in_order[at]] * 30] for token in (0, other)]
    tree = Both().start([*text, 9, 0]).draft(16, 1)
    assert (in_order[at] in tree.token_ids.tolist()) == (at < 128)


@pytest.mark.parametrize("run_tokens", range(10, 18))
def test_a_token_is_looked_for_after_so_many_shorter_matches(run_tokens):
    both = Both()
    before = both.start([])
    before.commit([*[1] * 20, 2])
    before.close()
    session = both.start([1, 2, 3, *[1] * run_tokens])
    assert 2 in session.draft(16, 1).token_ids.tolist()
    session.commit([2])


@pytest.mark.parametrize("count", [0, 1, 3, 8, 20, 34, 60, 110])
def test_shares_after_the_shorter_match_are_those_of_the_twin(count):
    often = [token for step in range(count) for token in (5, 1, 2, 1_000 + step)]
    session = Both().start([*often, 5, 1, 2, 6, 1, 3, 7, 1, 4, 8, 5, 1])
    assert 2 in session.draft(16, 1).token_ids.tolist()
    session.commit([2])


def test_commonest_continuations_are_read_anew_when_the_twin_does():
    rng = np.random.default_rng(2)
    both = Both()
    for num_outputs in range(110):
        session = both.start([0])
        if num_outputs > 55:
            assert len(session.draft(40, 1)) > 10
        session.commit([0, int(rng.integers(1, 60))])
        session.close()


@pytest.mark.parametrize("num_tokens", [62, 63, 64, 65, 66, 100])
def test_passages_beyond_the_longest_match_are_followed_as_by_the_twin(num_tokens):
    passage, both = np.random.default_rng(num_tokens).integers(0, 9, num_tokens).tolist(), Both()
    session = both.start([*passage, 1, 2])
    session.commit([*passage, 3, 1, *passage])
    session.draft(16)
    session.close()
    session = both.start([7, *passage, *passage, 5, *passage])
    assert len(session.draft(16)) == 16
    session.commit(passage + passage[:2])
    assert len(session.draft(16)) > 4


def test_recorded_outputs_are_drafted_as_by_the_twin(data_dir):
    sizes: list[int] = []
    for family in ("code", "chat", "sql", "agent_tools", "translation"):
        both = Both()
        for prompt, output in recorded(data_dir, family, 4):
            session = both.start(prompt[-400:])
            sizes += replayed(session, output[:200], 16)
            session.close()
    assert np.mean(np.array(sizes) > 4) > 0.4
