from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.dense import CONTINUATION_TOKENS, DenseDrafter, Neighbours
from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    DatastoreCorrupt,
    InvalidFeedback,
    InvalidRequest,
    TokenizerMismatch,
)
from retrieval_spec.feedback import Feedback
from tests.reference.dresd import ReferenceDresd
from tests.reference.fusion import paths_of
from tests.replay import num_accepted, recorded
from tests.stores import MODEL, write_corpus, write_dense
from tests.strategies import as_int32 as ids

VOCAB_SIZE = 151_936
DIMENSIONS = 16
NUM_TRACES = 20


def told(state):
    return Feedback(hidden_state=np.asarray(state, np.float32))


def drafted_paths(tree):
    """{path: probability of its last node}."""
    return {path: float(prob) for path, (prob, _) in paths_of(tree).items()}


def state_after(tokens):
    """A made-up state: much of it follows from the last token, less from those before."""
    state = np.zeros(DIMENSIONS)
    for weight, length in ((1.0, 1), (0.6, 3), (0.2, 20)):
        seed = [int(token) + 1 for token in tokens[-length:]]
        state += weight * np.random.default_rng(seed).normal(size=DIMENSIONS)
    return (state / np.linalg.norm(state)).astype(np.float32)


def states_of(documents):
    """A state for every token that has one before it; no two alike, since which is the 50th must be clear."""
    told = [[1_000 + number, *document] for number, document in enumerate(documents)]
    return np.stack([state_after(tokens[:i]) for tokens in told for i in range(2, len(tokens))])


def as_stored(engine):
    """The vectors as the index keeps them, a byte a dimension: neighbours are those of these."""
    (drafter,) = engine.drafters.values()
    index = drafter.states[0].index
    return index._index.reconstruct_n(0, index.num_vectors)


def assert_like_the_twin(tree, expected):
    drafted = drafted_paths(tree)
    assert set(drafted) == set(expected)
    for path, (count, parents_count) in expected.items():
        assert drafted[path] == pytest.approx(min(count / parents_count, 0.999), abs=1e-6)


@pytest.mark.parametrize("alphabet", [2, 3, 4, 6, 10])
def test_random_contexts_give_the_drafts_of_the_twin(alphabet, tmp_path):
    rng = np.random.default_rng(alphabet)
    documents = [rng.integers(0, alphabet, rng.integers(1, 40)).tolist() for _ in range(40)]
    store = write_dense(tmp_path / "store", documents, alphabet, states_of(documents))
    engine = Engine(alphabet, preset="dresd", datastores=[store])
    twin = ReferenceDresd(documents, as_stored(engine))
    num_drafts = 0
    for _ in range(25):
        context = rng.integers(0, alphabet, rng.integers(1, 20)).tolist()
        session = engine.open_session(context)
        for _ in range(4):  # 5 alphabets, 25 sessions of 4 commits: 500 contexts
            news = rng.integers(0, alphabet, rng.integers(1, 4)).tolist()
            context = context + news
            session.commit(news, told(state_after(context[:-1])))
            expected = twin.draft(state_after(context[:-1]), context[-1])
            assert_like_the_twin(session.draft(100), expected)
            num_drafts += len(expected) > 1
    assert num_drafts > 60


@pytest.fixture(scope="module")
def traces(data_dir):
    """Recorded outputs of three kinds: those that are replayed, and others for the store."""
    families = ("code", "mtbench", "code_class")
    replays = [trace for family in families for trace in recorded(data_dir, family, 7)][:NUM_TRACES]
    others = [output for family in families for _, output in recorded(data_dir, family, 20, skip=7)]
    return replays, others


def test_real_traces_give_the_drafts_of_the_twin(traces, tmp_path):
    replays, others = traces
    documents = [output[:120] for output in others]
    store = write_dense(tmp_path / "store", documents, VOCAB_SIZE, states_of(documents))
    engine = Engine(VOCAB_SIZE, preset="dresd", datastores=[store])
    twin = ReferenceDresd(documents, as_stored(engine))
    num_steps = num_drafts = num_right = 0
    for prompt, whole in replays:
        context, output = prompt[-200:], whole[:90]
        session = engine.open_session(context)
        commit, output = output[:1], output[1:]
        while output:
            context += commit
            session.commit(commit, told(state_after(context[:-1])))
            tree = session.draft(100)
            assert_like_the_twin(tree, twin.draft(state_after(context[:-1]), context[-1]))
            accepted = num_accepted(drafted_paths(tree), output)
            commit, output = output[: accepted + 1], output[accepted + 1 :]
            num_steps, num_drafts = num_steps + 1, num_drafts + (len(tree) > 0)
            num_right += accepted
    assert num_drafts > 0.25 * num_steps
    assert num_right > 0.2 * num_steps


def test_the_preset_has_the_published_parameters():
    (source,) = preset("dresd").sources
    rule = source.params["rule"]
    assert (source.kind, preset("dresd").max_nodes) == ("dense", 100)
    assert (rule.num_neighbours, rule.max_rows, rule.continuation_tokens) == (50, 10, 10)
    assert CONTINUATION_TOKENS == 19  # with the root the published 20


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
DOCUMENTS = [[1, 5, 6, 7], [2, 5, 8, 9], [3, 4]]
STATES = np.array([EAST, EAST, EAST, NORTH, NORTH, NORTH, WEST], np.float32)


@pytest.fixture
def store(tmp_path):
    return write_dense(tmp_path / "store", DOCUMENTS, 10, STATES)


def cursor_at(store, root, state, **changes):
    cursor = DenseDrafter.open(10, store, rule=replace(Neighbours(), **changes)).start(ids([3]))
    cursor.observe(ids([root]), told(state))
    return cursor


def test_the_nearer_state_is_the_more_probable_continuation(store):
    east = drafted_paths(cursor_at(store, 5, [0.9, 0.5]).propose(Budget(8)))
    assert set(east) == {(6,), (6, 7), (8,), (8, 9)}
    assert east[6,] > east[8,]
    north = drafted_paths(cursor_at(store, 5, [0.5, 0.9]).propose(Budget(8)))
    assert north[8,] > north[6,]


def test_a_neighbour_that_leads_to_another_root_is_no_neighbour(store):
    assert len(cursor_at(store, 9, EAST, num_neighbours=2, max_rows=2).propose(Budget(8))) == 0
    assert len(cursor_at(store, 2, EAST).propose(Budget(8))) == 0  # first of its document: no state led to it


def test_a_continuation_ends_with_its_document(store):
    assert len(cursor_at(store, 4, WEST).propose(Budget(8))) == 0
    assert drafted_paths(cursor_at(store, 6, EAST).propose(Budget(8))).keys() == {(7,)}


def test_a_state_is_about_one_step(store):
    cursor = cursor_at(store, 5, EAST)
    assert len(cursor.propose(Budget(8))) == 4
    cursor.observe(ids([]))
    assert len(cursor.propose(Budget(8))) == 4
    cursor.observe(ids([5]))
    assert len(cursor.propose(Budget(8))) == 0
    cursor.observe(ids([5]), Feedback())
    assert len(cursor.propose(Budget(8))) == 0


def test_the_probabilities_follow_the_rule(store):
    worth = (-1.0, 1.5, 0.5, 0.25, 0.75)
    tree = cursor_at(store, 5, EAST, temperature=0.5, worth=worth).propose(Budget(8))
    share = 1 / (1 + math.exp(-1 / 0.5))
    z = -1 + 1.5 * math.log(share) - 0.5 * math.log(1 - share) + 0.25 + 0.75 * math.log2(2)
    assert drafted_paths(tree)[6,] == pytest.approx(1 / (1 + math.exp(-z)), abs=0.01)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e20])
def test_the_length_of_a_state_does_not_matter(store, scale):
    assert cursor_at(store, 5, np.array(EAST) * scale).propose(Budget(8)) == cursor_at(
        store, 5, EAST
    ).propose(Budget(8))


def test_a_state_without_direction_drafts_safely(store):
    cursor_at(store, 5, [0, 0]).propose(Budget(8)).check(10)


def test_sources_of_states_and_of_text_are_fused(store, tmp_path):
    text = write_corpus(tmp_path / "text", [[1, 5, 3]], 10)
    both = preset("dresd").sources + preset("corpus").sources
    engine = Engine(10, preset=replace(preset("dresd"), sources=both), datastores=[store, text])
    session = engine.open_session([1])
    session.commit([5], told(EAST))
    assert {3, 6, 8} <= set(session.draft(16).token_ids.tolist())
    assert engine.projection.model_fingerprint == MODEL


@pytest.mark.parametrize("state", [[1.0], [1.0, 2.0, 3.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_state_of_another_size_or_without_a_value_is_refused_before_anything_is_committed(store, state):
    session = Engine(10, preset="dresd", datastores=[store]).open_session([1])
    with pytest.raises(InvalidFeedback, match="hidden"):
        session.commit([5], told(state))
    assert session.context_length == 1


@pytest.mark.row("F7")
@pytest.mark.parametrize("where", [0, 4, 60, -1])
def test_an_altered_index_is_refused_before_it_is_read(store, where, monkeypatch):
    data = bytearray((store / "index.bin").read_bytes())
    data[where] ^= 1
    (store / "index.bin").write_bytes(data)
    monkeypatch.setattr("faiss.deserialize_index", None)
    with pytest.raises(DatastoreCorrupt, match=r"index\.bin was altered"):
        DenseDrafter.open(10, store)


def test_a_datastore_of_a_larger_vocabulary_is_refused(store):
    with pytest.raises(TokenizerMismatch):
        DenseDrafter.open(9, store)


def test_a_datastore_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="another kind"):
        DenseDrafter.open(10, write_corpus(tmp_path / "text", [[1, 5, 3]], 10))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_neighbours": 0},
        {"max_rows": 51},
        {"continuation_tokens": 20},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"worth": (0.0, 1.0)},
        {"worth": (0.0, 1.0, 1.0, 0.0, math.inf)},
    ],
)
def test_rules_out_of_range_are_refused(changes):
    with pytest.raises(InvalidRequest):
        replace(Neighbours(), **changes)
