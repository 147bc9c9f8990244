"""SAM-Decoding: its rules for a corpus and its switch between sources, against their twins."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.combination import longer_match, longer_match_or_last
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.corpus_sam import MAX_OCCURRENCES, SamChain, SamTree
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import DraftTree
from tests.reference.copying import longest_match
from tests.reference.sam import (
    RANK_PATHS,
    ReferenceCorpus,
    sam_paths,
    sam_recycling_paths,
    static_chain,
    static_tree,
)
from tests.reference.token_recycling import ReferenceRecycling
from tests.replay import chain_paths, drafted_paths, recorded, replayed
from tests.stores import array_of, write_corpus
from tests.strategies import as_int32
from tests.test_recycling import PseudoModel, verify

VOCAB_SIZE = 151_936
SEPARATOR = 2**31 - 1


def drafter_over(documents, rule, depth=32):
    return CorpusDrafter(array_of(documents, depth_tokens=depth), rule=rule)


def random_documents(rng, alphabet):
    return [rng.integers(0, alphabet, rng.integers(0, 60)).tolist() for _ in range(30)]


def random_contexts(rng, alphabet, documents, num_contexts):
    """Contexts that repeat themselves and pieces of the documents, in the steps that commit them."""
    for _ in range(num_contexts):
        steps = []
        for _ in range(5):
            own = [token for step in steps for token in step]
            source = documents[rng.integers(len(documents))] if rng.random() < 0.8 else own
            begin = rng.integers(0, len(source) + 1)
            steps.append(source[begin : begin + rng.integers(0, 20)])
            steps[-1] += rng.integers(0, alphabet, rng.integers(0, 2)).tolist()
        yield steps


TREES = {
    "published": (SamTree(), {}),
    "without a bias": (SamTree(bias_tokens=0), {"bias": 0}),
    "narrow": (
        SamTree(nodes_per_match_token=9.0, bias_tokens=0, width=2),
        {"alpha": 9.0, "bias": 0, "width": 2},
    ),
    "many nodes": (
        SamTree(nodes_per_match_token=30.0, bias_tokens=0, width=5, max_nodes=200),
        {"alpha": 30.0, "bias": 0, "width": 5, "max_nodes": 200},
    ),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("seed", range(5))
def test_trees_hold_the_paths_of_the_twin(name, seed):
    rng = np.random.default_rng(seed)
    alphabet = (2, 3, 5, 12, 40)[seed]
    documents = random_documents(rng, alphabet)
    rule, parameters = TREES[name]
    depth = (32, 32, 32, 6, 32)[seed]
    drafter, twin = drafter_over(documents, rule, depth), ReferenceCorpus(documents, depth)
    num_drafts = 0
    for steps in random_contexts(rng, alphabet, documents, 20):
        context, cursor = [], drafter.start(as_int32([]))
        for news in steps:
            cursor.observe(as_int32(news))
            context += news
            tree = cursor.propose(Budget(256)).check(VOCAB_SIZE)
            assert cursor.match_length == twin.longest_match(context)[0]
            assert drafted_paths(tree) == static_tree(twin, context, **parameters)
            assert np.all(np.diff(tree.path_probs()) <= 1e-6)
            assert cursor.propose(Budget(3)) == tree.prefix(3)
            num_drafts += len(tree) > 0
    assert num_drafts > 10


@pytest.mark.parametrize("seed", range(5))
def test_chains_are_those_of_the_twin(seed):
    rng = np.random.default_rng(seed)
    alphabet = (2, 3, 5, 12, 40)[seed]
    documents = random_documents(rng, alphabet)
    drafter, twin = drafter_over(documents, SamChain()), ReferenceCorpus(documents)
    num_drafts = 0
    for steps in random_contexts(rng, alphabet, documents, 20):
        context, cursor = [], drafter.start(as_int32([]))
        for news in steps:
            cursor.observe(as_int32(news))
            context += news
            chain = static_chain(twin, context)
            tree = cursor.propose(Budget(64)).check(VOCAB_SIZE)
            assert tree.token_ids.tolist() == chain
            assert drafted_paths(tree) == chain_paths(chain)
            assert cursor.propose(Budget(64, max_depth_nodes=2)) == tree.prefix(2)
            num_drafts += len(chain) > 0
    assert num_drafts > 50


def test_shares_count_the_occurrences_that_end():
    documents = [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 5]]
    rule = SamTree(bias_tokens=0)
    tree = drafter_over(documents, rule).start(as_int32([9, 1, 2])).propose(Budget(8))
    assert tree.token_ids.tolist() == [3, 5, 4]
    assert tree.probs.tolist() == [0.5, 0.25, 0.5]


def test_of_many_occurrences_a_sample_is_counted():
    rng = np.random.default_rng(0)
    followers = rng.choice([10, 11, 12], 3 * MAX_OCCURRENCES, p=[0.6, 0.3, 0.1]).tolist()
    documents = [[int(rng.integers(20, 1_000)), 1, follower] for follower in followers]
    tree = drafter_over(documents, SamTree(bias_tokens=0)).start(as_int32([1])).propose(Budget(3))
    assert tree.token_ids.tolist() == [10, 11, 12]
    assert np.allclose(tree.probs, [0.6, 0.3, 0.1], atol=0.03)
    chain = drafter_over(documents, SamChain()).start(as_int32([1])).propose(Budget(3))
    assert chain.token_ids.tolist()[0] in (10, 11, 12)


@pytest.mark.parametrize("rule", [SamTree(bias_tokens=0), SamChain()], ids=str)
@pytest.mark.parametrize("context", [[], [99], [1, 99], [3], [SEPARATOR]], ids=str)
def test_what_no_document_goes_on_with_gives_no_draft(rule, context):
    cursor = drafter_over([[1, 2, 3]], rule).start(as_int32(context))
    assert len(cursor.propose(Budget(8))) == 0
    assert len(cursor.propose(Budget(0))) == 0
    assert cursor.match_length == (1 if context == [3] else 0)


@pytest.mark.row("F3")
@pytest.mark.parametrize("rule", [SamTree(bias_tokens=0), SamChain()], ids=str)
def test_a_damaged_corpus_gives_other_drafts_but_no_crash(rule):
    array = array_of([[1, 2, 3]] * 50)
    positions = np.full_like(array.positions, 2**32 - 1)
    positions[::3] = 7
    damaged = array.tokens.copy()
    damaged[::5] = -4
    for tokens in (array.tokens, array.tokens[:5], damaged):
        broken = ContextArray(tokens, positions, array.buckets, array.depth_tokens)
        CorpusDrafter(broken, rule=rule).start(as_int32([1, 2])).propose(Budget(64)).check(SEPARATOR)


@pytest.mark.parametrize(
    "make", [lambda: SamTree(width=0), lambda: SamTree(max_nodes=0), lambda: SamChain(65)]
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(InvalidRequest, match="out of range"):
        make()


class Fake:
    """A cursor with a match length, whose draft tells which one it is."""

    def __init__(self, name, length=None):
        self.name = name
        if length is not None:
            self.match_length = length

    def propose(self, budget):
        return DraftTree.chain([self.name])


def asked(combine, *lengths, **params):
    cursors = [Fake(name, length) for name, length in enumerate(lengths)]
    trees = combine(cursors, Budget(8), **params)
    assert len(trees) == len(cursors)
    (chosen,) = [tree.token_ids[0] for tree in trees if len(tree)]
    assert [len(tree) for tree in trees] == [name == chosen for name in range(len(cursors))]
    return chosen


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [((3,), 0), ((0, 5), 0), ((0, 6), 1), ((4, 9), 0), ((4, 10), 1), ((2, 8, 9), 2), ((2, 9, 9), 1)],
)
def test_the_corpus_drafts_where_its_match_is_longer_by_more_than_the_bias(lengths, chosen):
    assert asked(longer_match, *lengths, corpus_bias_tokens=5) == chosen


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [((4, None), 1), ((5, None), 0), ((4, 9, None), 2), ((4, 10, None), 1), ((5, 10, None), 0), ((None,), 0)],
)
def test_the_last_source_drafts_where_no_match_is_long_enough(lengths, chosen):
    assert asked(longer_match_or_last, *lengths, corpus_bias_tokens=5, min_match_tokens=5) == chosen


def test_no_sources_give_no_trees():
    assert longer_match([], Budget(4), corpus_bias_tokens=5) == []
    assert longer_match_or_last([], Budget(4), corpus_bias_tokens=5, min_match_tokens=5) == []


def test_random_contexts_give_the_drafts_of_sam_decoding(tmp_path):
    sources = {"own": 0, "corpus": 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        alphabet = (2, 4, 8, 20, 60)[seed]
        documents = random_documents(rng, alphabet)
        engine = Engine(
            VOCAB_SIZE, preset="sam", datastores=[write_corpus(tmp_path / f"{seed}", documents, 99)]
        )
        twin = ReferenceCorpus(documents)
        for steps in random_contexts(rng, alphabet, documents, 25):
            context, session = [], engine.open_session([])
            for news in steps:
                session.commit(news)
                context += news
                paths = drafted_paths(session.draft(64))
                assert paths == sam_paths(context, twin)
                own = longest_match(context) >= twin.longest_match(context)[0] - 5
                sources["own" if own else "corpus"] += len(paths) > 0
            session.close()
    assert min(sources.values()) > 50


@pytest.fixture(scope="module")
def traces(data_dir):
    """20 recorded outputs to replay, and others of the same kinds as documents."""
    families = ("code", "rag", "chat", "agent_tools")
    replayed = [trace for family in families for trace in recorded(data_dir, family, 5)]
    others = [output for family in families for _, output in recorded(data_dir, family, 60, skip=5)]
    return [(prompt[-300:], output[:150]) for prompt, output in replayed], others


def test_real_traces_give_the_drafts_of_sam_decoding(traces, tmp_path):
    replays, documents = traces
    store = write_corpus(tmp_path / "store", documents, VOCAB_SIZE)
    engine = Engine(VOCAB_SIZE, preset="sam", datastores=[store])
    twin = ReferenceCorpus(documents)
    accepted = []
    for prompt, output in replays:
        session = engine.open_session(prompt)
        accepted += replayed(session, prompt, output, lambda context: sam_paths(context, twin), 64)
        session.close()
    assert len(replays) == 20
    assert sum(accepted) > 0.4 * len(accepted)


def replay_with_rows(session, context, corpus, rows, model, truth=None, num_steps=1_000):
    """Replays with feedback; returns who drafted each step, and all accepted tokens."""
    drafted_by, num_accepted = [], 0
    while num_steps and truth != []:
        tree = session.draft(80).check(VOCAB_SIZE)
        who, expected = sam_recycling_paths(context, corpus, rows)
        assert drafted_paths(tree) == expected
        decided, feedback = verify(tree, context, model, truth)
        session.commit(decided, feedback)
        rows.update(feedback.node_token_ids.tolist(), feedback.topk_ids.tolist())
        context = context + decided
        drafted_by += [who] * (len(expected) > 0)
        num_accepted += len(decided) - 1
        truth = None if truth is None else truth[len(decided) :]
        num_steps -= 1
    return drafted_by, num_accepted


def test_random_contexts_give_the_drafts_of_sam_decoding_with_rows(tmp_path):
    drafted_by = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        alphabet = (9, 10, 12, 20, 60)[seed]
        documents = random_documents(rng, alphabet)
        store = write_corpus(tmp_path / f"{seed}", documents, 99)
        engine, corpus = (
            Engine(VOCAB_SIZE, preset="sam-recycling", datastores=[store]),
            ReferenceCorpus(documents),
        )
        rows, model = ReferenceRecycling(), PseudoModel(list(range(alphabet)))
        for steps in random_contexts(rng, alphabet, documents, 50):
            context = [0, *(token for step in steps for token in step)]
            session = engine.open_session(context)
            drafted_by += replay_with_rows(session, context, corpus, rows, model, num_steps=4)[0]
            session.close()
    assert min(drafted_by.count(who) for who in ("own", "corpus", "rows")) > 15


def test_real_traces_give_the_drafts_of_sam_decoding_with_rows(traces, tmp_path):
    replays, documents = traces
    store = write_corpus(tmp_path / "store", documents, VOCAB_SIZE)
    engine, corpus = (
        Engine(VOCAB_SIZE, preset="sam-recycling", datastores=[store]),
        ReferenceCorpus(documents),
    )
    rows, model = ReferenceRecycling(), PseudoModel(list(range(VOCAB_SIZE)))
    drafted_by, num_accepted = [], 0
    for prompt, output in replays:
        session = engine.open_session(prompt)
        who, accepted = replay_with_rows(session, prompt, corpus, rows, model, output)
        drafted_by, num_accepted = drafted_by + who, num_accepted + accepted
        session.close()
    assert min(drafted_by.count(who) for who in ("own", "corpus", "rows")) > 10
    assert num_accepted > 0.3 * len(drafted_by)


def test_the_tree_model_has_the_described_levels():
    assert len(set(RANK_PATHS)) == len(RANK_PATHS) == 60
    assert [sum(len(path) == depth for path in RANK_PATHS) for depth in range(1, 7)] == [7, 20, 21, 8, 4, 0]
