"""Drafts ahead: the trees that a session would draft after what it may commit; nothing is changed by them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from retrieval_spec.ahead import Lookahead
from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import CONTEXT, DraftTree
from tests.fake_drafters import CountingDrafter
from tests.stores import write_corpus
from tests.strategies import as_int32

VOCAB_SIZE = 50
CURVE = CostCurve((0, 4, 16), (10.0, 11.0, 20.0))


@pytest.fixture(scope="module", params=["default", "session", "with a corpus"])
def new_engine(request, tmp_path_factory):
    if request.param == "with a corpus":
        rng = np.random.default_rng(0)
        documents = [rng.integers(0, 4, 300).tolist() for _ in range(4)]
        store = write_corpus(tmp_path_factory.mktemp("stores") / "store", documents, VOCAB_SIZE)
        return lambda: Engine(VOCAB_SIZE, datastores=[store])
    return lambda: Engine(VOCAB_SIZE, preset=request.param)


def some_text(seed: int, length: int) -> list[int]:
    """Repeats itself, as far as that goes: passages of it, and now and then a surprise."""
    rng = random.Random(seed)
    text = [rng.randrange(4) for _ in range(30)]
    while len(text) < length:
        begin = rng.randrange(len(text) - 20)
        text += text[begin : begin + rng.randrange(5, 20)]
        text.append(rng.randrange(6))
    return text


def decided(tree: DraftTree, truth: list[int]) -> list[int]:
    """What a target that writes `truth` accepts of a tree, and its own token."""
    children, node, tokens = tree.children(), CONTEXT, []
    for token in truth:
        tokens.append(token)
        node = children.get(node, {}).get(token)
        if node is None:
            break
    return tokens


def generate(engine: Engine, seed: int, look, curve: CostCurve | None) -> list[DraftTree]:
    """The trees of a generation; `look` is told of each step before it is committed."""
    text = some_text(seed, 250)
    session, at, trees = engine.open_session(text[:60]), 60, []
    while at < len(text):
        trees.append(session.draft(12, curve))
        tokens = decided(trees[-1], text[at:])
        look(session.look_ahead(), trees[-1], tokens)
        session.commit(tokens)
        at += len(tokens)
    session.close()
    return trees


@pytest.mark.parametrize("curve", [None, CURVE])
def test_what_is_drafted_ahead_is_what_the_session_drafts_then(new_engine, curve):
    expected = []

    def look(lookahead: Lookahead, tree: DraftTree, tokens: list[int]) -> None:
        lookahead.draft(as_int32([5, 0, 5]), 12, curve)  # another outcome leaves nothing behind
        expected.append(lookahead.draft(as_int32(tokens), 12, curve))

    engine = new_engine()
    for seed in range(3):  # later ones draft from what earlier ones wrote
        expected.clear()
        drafted = generate(engine, seed, look, curve)
        assert drafted[1:] == expected[:-1]
        assert sum(map(len, drafted)) > len(drafted)


def test_looking_ahead_changes_no_later_draft(new_engine):
    def look(lookahead: Lookahead, tree: DraftTree, tokens: list[int]) -> None:
        for outcome in lookahead.outcomes(tree, 4):
            lookahead.draft(outcome, 12, None)

    looking, plain = new_engine(), new_engine()
    for seed in range(6):  # as many as it takes for the commonest continuations to be noted and grow old
        looked = generate(looking, seed, look, None)
        assert looked == generate(plain, seed, lambda *step: None, None)


def test_outcomes_leave_the_tree_with_their_last_token_and_one_comes_true_often(new_engine):
    steps, hits = 0, 0

    def look(lookahead: Lookahead, tree: DraftTree, tokens: list[int]) -> None:
        nonlocal steps, hits
        outcomes = [outcome.tolist() for outcome in lookahead.outcomes(tree, 6)]
        assert len(outcomes) <= 6
        assert len(set(map(tuple, outcomes))) == len(outcomes)
        assert all(decided(tree, outcome) == outcome for outcome in outcomes)
        assert all(len(decided(tree, [*outcome, 49])) == len(outcome) for outcome in outcomes)
        steps, hits = steps + 1, hits + (tokens in outcomes)

    generate(new_engine(), 1, look, None)
    assert hits > steps / 20


def test_the_likeliest_outcome_of_a_copy_is_all_of_it_and_its_next_token():
    text = [*range(40)] * 2
    session = Engine(VOCAB_SIZE).open_session(text + text[:20])
    tree = session.draft(8)
    assert session.look_ahead().outcomes(tree, 3)[0].tolist() == [*range(20, 29)]


def test_a_source_that_learns_while_it_is_written_allows_no_look_ahead():
    live = {"history": HistoryDrafter.open(VOCAB_SIZE, learn="live")}
    unknown = {"session": SessionDrafter.open(VOCAB_SIZE), "counting": CountingDrafter(VOCAB_SIZE)}
    for engine in (
        Engine(VOCAB_SIZE, live),
        Engine(VOCAB_SIZE, unknown),
        Engine(VOCAB_SIZE, preset="session+recycling"),
    ):
        session = engine.open_session([1, 2, 3] * 4)
        lookahead = session.look_ahead()
        assert lookahead.outcomes(session.draft(2), 4) == []
        assert lookahead.draft(as_int32([1]), 4, None) is None


def test_a_trial_of_an_automaton_grows_on_a_copy():
    automaton = SuffixAutomaton.from_tokens(as_int32([1, 2, 1, 2, 3] * 50))
    before = automaton.arena.copy()
    trial = automaton.trial()
    assert trial.arena is automaton.arena
    trial.extend(as_int32([*range(600)]))  # more than there is room for
    assert np.array_equal(automaton.arena, before)
    automaton.extend(as_int32([*range(600)]))
    assert trial.num_tokens == automaton.num_tokens == 850
    for string in ([1, 2], [3, 0, 1], [597, 598, 599], [5, 5]):
        assert trial.occurrences(as_int32(string)) == automaton.occurrences(as_int32(string))
