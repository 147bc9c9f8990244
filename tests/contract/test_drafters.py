"""What every registered drafter must do, whatever it drafts from. A new source gets these for free."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget, Cursor, Drafter
from retrieval_spec.drafters.namespaces import Learner
from retrieval_spec.drafters.registry import DRAFTERS, drafter_class
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from tests.pseudo_models import PseudoModel, counting_law, repeating_law
from tests.pseudo_tokenizers import Letters
from tests.stores import write_corpus, write_dense

VOCAB_SIZE = 151_936
DOCUMENTS = [[5, 6, 7, 8, 5, 6, 9], [70_000, 5, 6, 7, 151_935], [1, 1, 1, 1, 1, 2]]
CONTEXTS = [[], [5], [4_242], [151_935], [5, 6], [5, 6, 7, 5, 6], [1] * 40, [70_000, 5, 6, 7, 70_000, 5]]
BUDGETS = [Budget(0), Budget(1), Budget(3), Budget(16), Budget(64), Budget(16, max_depth_nodes=2)]

STATES = np.random.default_rng(0).normal(size=(sum(map(len, DOCUMENTS)) - len(DOCUMENTS), 8))

LETTER = 0x4E00
# What a source needs to be opened beyond the vocabulary: a datastore, a draft model.
PARAMS = {
    "group": lambda folder: {"members": {"default": "all"}, "min_tenants": 1, "ngram_tokens": 3},
    "corpus": lambda folder: {"path": write_corpus(folder / "store", DOCUMENTS, VOCAB_SIZE)},
    "dense": lambda folder: {"path": write_dense(folder / "store", DOCUMENTS, VOCAB_SIZE, STATES)},
    "model": lambda folder: {"model": PseudoModel(VOCAB_SIZE, repeating_law(VOCAB_SIZE))},
    "text_model": lambda folder: {
        "model": PseudoModel(VOCAB_SIZE + 3, counting_law(VOCAB_SIZE + 3)),
        "draft_tokenizer": Letters(VOCAB_SIZE + 3, first=LETTER - 3),
        "target_tokenizer": Letters(VOCAB_SIZE, first=LETTER),
    },
}


class Told:
    """A source whose cursors are told a hidden state with every step: without one it has nothing to say."""

    def __init__(self, drafter):
        self.drafter = drafter

    def start(self, context, namespace="default"):
        cursor = ToldCursor(self.drafter.start(context, namespace))
        cursor.observe(context[-1:])
        return cursor


class ToldCursor:
    def __init__(self, cursor):
        self.cursor, self.close, self.propose = cursor, cursor.close, cursor.propose

    def observe(self, tokens, feedback=None):
        self.cursor.observe(tokens, Feedback(hidden_state=STATES[3].astype(np.float32)))


WRAPPED = {"dense": Told}


def write_one_session(drafter):
    cursor = drafter.start(tokens([]))
    cursor.observe(tokens(DOCUMENTS[0] * 2))
    cursor.close()


def ask_one_session(drafter):
    drafter.start(tokens(DOCUMENTS[0] * 2)).close()


# What a source needs to have something to say: those that learn from outputs or prompts need one.
PREPARED = dict.fromkeys(("frequent", "group", "history", "ngram_trie", "suffix_outputs"), write_one_session)
PREPARED["prompts"] = ask_one_session

# Sources that learn an output while it is written: what is output changes their drafts, prompts do not.
LIVE = {"suffix_outputs", "ngram_trie"}


@pytest.fixture(scope="module", params=sorted(DRAFTERS))
def opened(request, tmp_path_factory):
    """A function that opens the source once more."""
    params = PARAMS.get(request.param, lambda folder: {})(tmp_path_factory.mktemp(request.param))

    def open_prepared():
        drafter = drafter_class(request.param).open(vocab_size=VOCAB_SIZE, **params)
        PREPARED.get(request.param, lambda drafter: None)(drafter)
        return WRAPPED.get(request.param, lambda drafter: drafter)(drafter)

    open_prepared.is_live = request.param in LIVE
    return open_prepared


@pytest.fixture(scope="module")
def drafter(opened):
    return opened()


def tokens(values):
    return np.array(values, np.int32)


def test_it_is_a_drafter_and_makes_cursors(drafter):
    assert isinstance(drafter, Drafter)
    assert isinstance(drafter.start(tokens([])), Cursor)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_trees_keep_the_contract_and_the_budget(drafter, context, budget):
    tree = drafter.start(tokens(context)).propose(budget).check(VOCAB_SIZE)
    assert len(tree) <= budget.max_nodes
    assert max(tree.depths(), default=0) <= budget.max_depth_nodes
    assert np.all(np.diff(tree.path_probs()) <= 1e-6)  # kernels rank by products rounded to float32
    assert set(tree.sources.tolist()) <= {1}
    assert tree.source_names == ()


def test_it_drafts_something_for_a_context_that_it_knows(drafter):
    tree = drafter.start(tokens([5, 6, 7, 8, 5, 6, 9, 5, 6])).propose(Budget(16))
    assert {7, 9} <= set(tree.token_ids.tolist())


def test_a_smaller_budget_keeps_the_more_probable_nodes(drafter):
    cursor = drafter.start(tokens([5, 6, 7, 5, 6]))
    large, small = cursor.propose(Budget(64)), cursor.propose(Budget(2))
    best = sorted(large.path_probs().tolist(), reverse=True)[: len(small)]
    assert sorted(small.path_probs().tolist(), reverse=True) == best


def test_a_draft_changes_nothing_and_belongs_to_the_caller(drafter):
    cursor = drafter.start(tokens([5, 6, 7, 5, 6]))
    first = cursor.propose(Budget(16))
    copy = first.token_ids.tolist(), first.parents.tolist(), first.probs.tolist()
    assert cursor.propose(Budget(16)) == first
    cursor.observe(tokens([7]))
    cursor.propose(Budget(16))
    assert (first.token_ids.tolist(), first.parents.tolist(), first.probs.tolist()) == copy


STREAMS = st.lists(st.sampled_from([1, 2, 5, 6, 7, 8, 9, 70_000]), max_size=60)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_the_tokens_came_does_not_matter(opened, stream, cuts):
    at_once = opened().start(tokens([]))
    at_once.observe(tokens(stream))
    in_pieces = opened().start(tokens([]))
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for begin, end in pairwise(edges):
        in_pieces.observe(tokens(stream[begin:end]))
    assert at_once.propose(Budget(16)) == in_pieces.propose(Budget(16))


def test_sessions_do_not_disturb_each_other(opened):
    prompt = [5, 6, 7] if opened.is_live else [5, 6, 7, 5, 6]
    alone = opened().start(tokens(prompt))
    alone.observe(tokens([5, 6, 7, 5, 6][len(prompt) :]))
    shared = opened()
    first, second = shared.start(tokens([5, 6, 7])), shared.start(tokens([1, 2, 1]))
    for token in (5, 6):
        first.observe(tokens([token]))
        second.observe(tokens([token + 100]))
        second.propose(Budget(16))
    assert first.propose(Budget(16)) == alone.propose(Budget(16))


def test_no_namespace_is_drafted_what_another_one_taught(opened):
    alone, shared = opened(), opened()
    for prompt in DOCUMENTS:
        cursor = shared.start(tokens(prompt), "theirs")
        told = Feedback(tokens(prompt[-1:]), tokens([-1]), np.array([[5, 6]], np.int32))
        cursor.observe(tokens([*prompt, 5, 6, 70_000, 5, 6]), told)
        cursor.close()
    for namespace in ("default", "ours"):
        for context in CONTEXTS:
            trees = [one.start(tokens(context), namespace).propose(Budget(16)) for one in (alone, shared)]
            assert trees[0] == trees[1]


def test_closing_twice_is_as_closing_once(opened):
    trees = []
    for num_closes in (1, 2):
        drafter = opened()
        for token, times in ((9, num_closes), (7, 1)):
            cursor = drafter.start(tokens([]))
            cursor.observe(tokens([3, 4, 5, 6, *[token] * 4]))
            for _ in range(times):
                cursor.close()
        trees.append(drafter.start(tokens([3, 4, 5, 6])).propose(Budget(16)))
    assert trees[0] == trees[1]


def test_feedback_is_welcome(drafter):
    cursor = drafter.start(tokens([5, 6]))
    feedback = Feedback(tokens([6, 7]), tokens([-1, 0]), np.array([[7, 8], [8, 5]], np.int32))
    cursor.observe(tokens([7]), feedback.check(VOCAB_SIZE))
    cursor.propose(Budget(16)).check(VOCAB_SIZE)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRequest, match=r"corpus or .*session"):
        drafter_class("nonsense")


def test_what_it_learned_is_counted_by_namespace_and_given_back(opened):
    drafter = opened()
    learner = getattr(drafter, "drafter", drafter)
    if not isinstance(learner, Learner):
        assert not hasattr(learner, "namespaces")
        return
    known = set(learner.namespaces.sizes())
    for number in range(3):
        cursor = drafter.start(tokens(DOCUMENTS[1]), "default")
        cursor.observe(tokens(DOCUMENTS[0] * 3 + [number]))
        cursor.propose(Budget(4))
        cursor.close()
    sizes = learner.namespaces.sizes()
    assert set(sizes) == known | {"default"}
    assert sizes["default"] > 0
    assert learner.namespaces.num_bytes >= sum(sizes.values())
    del cursor
    for namespace in sizes:
        learner.namespaces.forget(namespace)
    gc.collect()
    assert learner.namespaces.num_bytes == 0
