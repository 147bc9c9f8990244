from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.corpus_rest import Rest
from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.structures.context_array import ContextArray
from tests.reference.fusion import paths_of
from tests.reference.rest import ReferenceRest
from tests.replay import num_accepted, recorded
from tests.stores import array_of, write_corpus
from tests.strategies import as_int32 as ids
from tests.threads import in_threads

SEPARATOR = 2**31 - 1
NUM_TRACES = 20


def drafter_over(documents, rule, depth_tokens=32):
    return CorpusDrafter(array_of(documents, depth_tokens=depth_tokens), rule=rule)


def drafted_paths(tree):
    """{path: probability of its last node}, in the order of the tree."""
    return {path: float(prob) for path, (prob, _) in paths_of(tree).items()}


def assert_like_the_twin(tree, expected):
    drafted = drafted_paths(tree)
    assert set(drafted) == set(expected)
    assert np.all(np.diff(tree.path_probs()) <= 1e-6)
    for path, (count, parents_count) in expected.items():
        assert drafted[path] == np.float32(count / parents_count)


def random_documents(rng, alphabet, num_tokens=600):
    lengths = rng.integers(0, 40, num_tokens // 20)
    return [rng.integers(0, alphabet, length).tolist() for length in lengths]


RULES = {
    "published": (Rest(), {}),
    "few occurrences": (Rest(max_occurrences=7), {"k": 7}),
    "one occurrence": (Rest(max_occurrences=1), {"k": 1}),
    "other lengths": (
        Rest(longest_span_tokens=4, shortest_span_tokens=1, continuation_tokens=3),
        {"spans": range(4, 0, -1), "ahead": 3},
    ),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_random_contexts_give_the_drafts_of_the_twin(name, seed):
    rng = np.random.default_rng(seed)
    alphabet = (2, 3, 4, 6, 10)[seed]
    documents = random_documents(rng, alphabet)
    rule, parameters = RULES[name]
    drafter, twin = drafter_over(documents, rule), ReferenceRest(documents, **parameters)
    num_drafts = 0
    for _ in range(25):
        context = rng.integers(0, alphabet, rng.integers(0, 30)).tolist()
        cursor = drafter.start(ids(context))
        for _ in range(4):  # 4 rules, 5 seeds, 25 contexts of 4 commits: 500 contexts a rule
            budget = Budget(int(rng.choice([1, 5, 16, 64])), int(rng.choice([1, 2, 64])))
            tree = cursor.propose(budget).check(SEPARATOR)
            assert_like_the_twin(tree, twin.draft(context, budget.max_nodes, budget.max_depth_nodes))
            num_drafts += len(tree) > 0
            news = rng.integers(0, alphabet, rng.integers(1, 4)).tolist()
            cursor.observe(ids(news))
            context = context + news
    assert num_drafts > 70


def test_large_groups_are_sorted_like_small_ones():
    """A thousand occurrences take another sort than a few do."""
    rng = np.random.default_rng(0)
    documents = [[1, 2, *(rng.zipf(1.3, 6) % 100_000 + 3).tolist()] for _ in range(1_500)]
    for rule, k in ((Rest(), 5_000), (Rest(max_occurrences=400), 400)):
        drafter, twin = drafter_over(documents, rule), ReferenceRest(documents, k=k)
        for max_nodes in (64, 256):
            tree = drafter.start(ids([9, 1, 2])).propose(Budget(max_nodes))
            assert len(tree) == max_nodes
            assert_like_the_twin(tree, twin.draft([9, 1, 2], max_nodes))


@pytest.fixture(scope="module")
def traces(data_dir):
    """Recorded outputs of three kinds: those that are replayed, and others for the store."""
    families = ("code", "mtbench", "code_class")
    replays = [trace for family in families for trace in recorded(data_dir, family, 7)][:NUM_TRACES]
    others = [output for family in families for _, output in recorded(data_dir, family, 53, skip=7)]
    return replays, others


def test_real_traces_give_the_drafts_of_the_twin(traces, tmp_path):
    vocab_size = 151_936
    replays, documents = traces
    store = write_corpus(tmp_path / "store", documents, vocab_size)
    engine = Engine(vocab_size, preset="rest", datastores=[store])
    twin = ReferenceRest(documents)
    num_steps = num_drafts = num_right = 0
    for prompt, whole in replays:
        context, output = prompt[-200:], whole[:150]
        session = engine.open_session(context)
        while output:
            tree = session.draft(64)
            assert_like_the_twin(tree, twin.draft(context))
            accepted = num_accepted(drafted_paths(tree), output)
            commit, output = output[: accepted + 1], output[accepted + 1 :]
            session.commit(commit)
            context += commit
            num_steps, num_drafts = num_steps + 1, num_drafts + (len(tree) > 0)
            num_right += accepted
        session.close()
    assert num_drafts > 0.25 * num_steps
    assert num_right > 0.2 * num_steps


def test_the_preset_has_the_published_parameters():
    (source,) = preset("rest").sources
    assert source.kind == "corpus"
    rule = source.params["rule"]
    assert (rule.longest_span_tokens, rule.shortest_span_tokens) == (16, 2)
    assert (rule.max_occurrences, rule.continuation_tokens, preset("rest").max_nodes) == (5_000, 10, 64)


def test_one_token_alone_is_no_span():
    drafter = drafter_over([[1, 2, 3]], Rest())
    assert len(drafter.start(ids([1])).propose(Budget(8))) == 0
    assert drafter.start(ids([1, 2])).propose(Budget(8)).token_ids.tolist() == [3]


def test_a_span_at_the_end_of_documents_alone_is_no_hit():
    drafter = drafter_over([[7, 1, 2], [8, 1, 2, 5]], Rest())
    assert drafter.start(ids([7, 1, 2])).propose(Budget(8)).token_ids.tolist() == [5]


def test_occurrences_that_end_count_for_the_parent():
    drafter = drafter_over([[1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 4]], Rest())
    tree = drafter.start(ids([1, 2])).propose(Budget(8))
    assert drafted_paths(tree) == {(3,): 0.5, (4,): 0.25}


def test_the_sample_prefers_no_continuation():
    """REST would read the first 100 of the sorted continuations alone: all of them token 10."""
    rng = np.random.default_rng(1)
    documents = [[int(rng.integers(20, 1_000)), 1, 2, 10 + i % 4] for i in range(4_000)]
    tree = drafter_over(documents, Rest(max_occurrences=100)).start(ids([1, 2])).propose(Budget(8))
    assert sorted(tree.token_ids.tolist()) == [10, 11, 12, 13]
    assert tree.probs.max() < 0.45


def test_a_shallow_datastore_bounds_the_span():
    documents = [[5, 6, 1, 2, 3], [7, 8, 1, 2, 4]]
    tree = drafter_over(documents, Rest(), depth_tokens=2).start(ids([5, 6, 1, 2])).propose(Budget(8))
    assert sorted(tree.token_ids.tolist()) == [3, 4]
    assert len(drafter_over(documents, Rest(), depth_tokens=1).start(ids([1, 2])).propose(Budget(8))) == 0


@pytest.mark.parametrize("context", [[], [1, 99], [99, 1, 2, 99], [1, SEPARATOR], [SEPARATOR, SEPARATOR]])
def test_what_the_corpus_does_not_hold_gives_no_draft(context):
    assert len(drafter_over([[1, 2, 3]], Rest()).start(ids(context)).propose(Budget(8))) == 0


def test_budgets_bound_nodes_and_depth():
    cursor = drafter_over([[1, 2, 3, 4, 5], [1, 2, 6]], Rest()).start(ids([1, 2]))
    assert len(cursor.propose(Budget(0))) == 0
    assert cursor.propose(Budget(2)).token_ids.tolist() == [3, 6]
    assert cursor.propose(Budget(9, max_depth_nodes=1)).parents.tolist() == [-1, -1]
    assert len(cursor.propose(Budget(9, max_depth_nodes=0))) == 0


@pytest.mark.row("F3")
def test_a_damaged_corpus_gives_other_drafts_but_no_crash():
    array = ContextArray.build(ids([1, 2, 3, SEPARATOR] * 50))
    positions = np.full_like(array.positions, 2**32 - 1)
    positions[::3] = 7
    for tokens in (array.tokens, array.tokens[:5]):
        broken = ContextArray(tokens, positions, array.buckets, array.depth_tokens)
        CorpusDrafter(broken, rule=Rest()).start(ids([1, 2])).propose(Budget(64)).check(SEPARATOR)


@pytest.mark.parametrize(
    "parameters",
    [
        {"shortest_span_tokens": 0},
        {"longest_span_tokens": 3, "shortest_span_tokens": 4},
        {"max_occurrences": 0},
        {"max_occurrences": 1 << 40},
        {"continuation_tokens": 0},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(InvalidRequest, match="out of range"):
        Rest(**parameters)


@pytest.mark.row("K1")
def test_threads_share_one_drafter():
    text = np.random.default_rng(0).integers(0, 6, 50_000).tolist()
    drafter = drafter_over([text], Rest())
    contexts = [ids(text[i : i + 20]) for i in range(0, 2_000, 20)]
    expected = [drafter.start(context).propose(Budget(16)) for context in contexts]

    def answers(_):
        return [drafter.start(context).propose(Budget(16)) for context in contexts]

    assert in_threads(answers, range(4)) == [expected] * 4
