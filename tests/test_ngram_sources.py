"""The sources behind `llamacpp-cache` and `aded`: what they keep apart, and when they learn."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.namespaces import TOKENS_PER_LOCK
from retrieval_spec.drafters.ngram import NGramDrafter
from retrieval_spec.drafters.ngram_cache import NGramCacheDrafter
from retrieval_spec.drafters.trigram import TrigramDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.structures.ngram_table import NGramTable
from tests.stores import write_corpus
from tests.strategies import as_int32
from tests.threads import in_threads

VOCAB_SIZE = 151_936
DOCUMENTS = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 5], [8, 9]]
SOURCES = [NGramCacheDrafter, TrigramDrafter]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "store", DOCUMENTS, VOCAB_SIZE)


def drafted(drafter, context, namespace="default", max_nodes=16):
    return drafter.start(as_int32(context), namespace).propose(Budget(max_nodes)).token_ids.tolist()


def test_earlier_outputs_count_once_their_session_is_closed():
    drafter = NGramCacheDrafter.open(VOCAB_SIZE)
    for _ in range(4):
        cursor = drafter.start(as_int32([1, 2]))
        cursor.observe(as_int32([3, 4, 5]))
        assert drafted(drafter, [2]) == []
        cursor.close()
    assert drafted(drafter, [2]) == [3, 4, 5]
    assert drafted(drafter, [1]) == []  # a prompt's own n-grams are not an output's
    assert drafted(drafter, [2], "another") == []


def test_a_session_that_went_back_is_learned_as_it_ended():
    engine = Engine(VOCAB_SIZE, preset="llamacpp-cache")
    for _ in range(4):
        session = engine.open_session([1, 2])
        session.commit([9, 9])
        session.truncate(2)
        session.commit([3, 4, 5])
        session.close()
    assert engine.open_session([2]).draft().token_ids.tolist() == [3, 4, 5]


def test_the_corpus_decides_between_what_the_text_says(store):
    text = [1, 2, 5, 7, 1, 2, 5, 7, 1, 2, 3, 7, 1, 2, 3, 7, 6, 2]
    assert drafted(NGramCacheDrafter.open(VOCAB_SIZE), [*text, 1, 2])[0] == 3  # as often as 5, and smaller
    other = [1, 2, 4, 7, 1, 2, 4, 7, 1, 2, 5, 7, 1, 2, 5, 7, 6, 2]
    assert drafted(NGramCacheDrafter.open(VOCAB_SIZE), [*other, 1, 2])[0] == 4
    assert drafted(NGramCacheDrafter.open(VOCAB_SIZE, store), [*other, 1, 2])[0] == 5


def test_the_corpus_alone_drafts_what_is_frequent_in_it(store):
    assert drafted(NGramCacheDrafter.open(VOCAB_SIZE, store), [1, 2]) == [3]  # 4 came once: too few
    assert drafted(NGramCacheDrafter.open(VOCAB_SIZE, store), [8, 9]) == []


def test_trigrams_of_the_corpus_are_read_on_and_never_changed(store):
    drafter = TrigramDrafter.open(VOCAB_SIZE, store)
    before = drafter.static.copy()
    tree = drafter.start(as_int32([1, 2])).propose(Budget(8))
    assert tree.token_ids.tolist() == [3, 4, 5]
    assert tree.probs.tolist() == pytest.approx([2 / 3, 1.0, 1 / 3], abs=1e-3)
    cursor = drafter.start(as_int32([1, 2]))
    for _ in range(30):
        cursor.observe(as_int32([5, 1, 2]))
    assert cursor.propose(Budget(8)).token_ids[0] == 5
    assert np.array_equal(drafter.static, before)
    assert drafted(drafter, [1, 2], "another") == [3, 4, 5]


def test_one_trigram_gains_no_more_than_the_cap():
    drafter = TrigramDrafter.open(VOCAB_SIZE)
    drafter.start(as_int32([])).observe(as_int32([4] * 2_000))
    later = drafter.start(as_int32([]))
    for _ in range(3):
        later.observe(as_int32([*range(100, 120), 4, 4, 6, *range(200, 220)]))
    tree = drafter.start(as_int32([4, 4]), "default").propose(Budget(64, max_depth_nodes=1))
    shares = dict(zip(tree.token_ids.tolist(), tree.probs.tolist(), strict=True))
    assert shares[4] == pytest.approx(3.0 / (3.0 + 3 * 14 * 0.04), abs=1e-6)


def test_paths_are_five_deep_and_at_most_24():
    rng = np.random.default_rng(0)
    cursor = TrigramDrafter.open(VOCAB_SIZE).start(as_int32([]))
    cursor.observe(as_int32(rng.integers(0, 5, 2_000).tolist()))
    tree = cursor.propose(Budget(64))
    assert len(tree) == 64
    assert tree.depths().max() <= 5
    assert len(set(range(64)) - set(tree.parents.tolist())) <= 24


@pytest.mark.parametrize("source", SOURCES)
def test_a_corpus_of_another_vocabulary_is_refused(source, store):
    with pytest.raises(TokenizerMismatch):
        source.open(5, store)
    assert source.open(VOCAB_SIZE, store).tokenizer_fingerprint.startswith("sha256:")
    assert not hasattr(source.open(VOCAB_SIZE), "tokenizer_fingerprint")


@pytest.mark.parametrize("preset", ["llamacpp-cache", "aded"])
def test_an_engine_opens_one_source_for_each_corpus_or_one_without(preset, store, tmp_path):
    other = write_corpus(tmp_path / "other", DOCUMENTS, VOCAB_SIZE)
    assert len(Engine(VOCAB_SIZE, preset=preset).drafters) == 1
    assert Engine(VOCAB_SIZE, preset=preset).datastores == {}
    assert set(Engine(VOCAB_SIZE, preset=preset, datastores=[store, other]).datastores) == {"store", "other"}
    with pytest.raises(InvalidRequest, match="one name"):
        Engine(VOCAB_SIZE, preset=preset, datastores=[store, tmp_path / ".." / store.parent.name / "store"])


@pytest.mark.parametrize("source", SOURCES)
def test_threads_share_one_namespace(source):
    drafter = source.open(VOCAB_SIZE)
    text = np.random.default_rng(0).integers(0, 30, 8_000).astype(np.int32)

    def write(part):
        for begin in range(0, part.shape[0], 500):
            cursor = drafter.start(part[begin : begin + 10])
            for at in range(begin + 10, begin + 500, 5):
                cursor.propose(Budget(16)).check(VOCAB_SIZE)
                cursor.observe(part[at : at + 5])
            cursor.close()

    in_threads(write, np.split(text, 4))


@pytest.mark.parametrize("source", [NGramDrafter, NGramCacheDrafter])
def test_a_long_text_holds_no_other_session_up(source, monkeypatch):
    """The lock is held for one call at a time."""
    drafter, learned = source.open(VOCAB_SIZE), []
    extend = NGramTable.extend

    def noted(table, text, start=0):
        learned.append(text.shape[0] - start)
        extend(table, text, start)

    cursor = drafter.start(as_int32([1, 2, 3]))
    monkeypatch.setattr(NGramTable, "extend", noted)
    text = np.random.default_rng(0).integers(0, 30, 5_000).astype(np.int32)
    if source is NGramCacheDrafter:
        cursor.observe(text)
        learned.clear()
        cursor.close()
    else:
        cursor.observe(text)
    assert sum(learned) == text.size
    assert max(learned) <= TOKENS_PER_LOCK
