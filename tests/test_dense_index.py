"""The dense index: lists against comparing all, and bytes that lie."""

from __future__ import annotations

import struct
import sys
from itertools import pairwise

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")
# ruff: noqa: E402
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, MissingDependency
from retrieval_spec.structures import dense_index
from retrieval_spec.structures.dense_index import DenseIndex, check_trained_alike, nearest

NUM_VECTORS, DIMENSIONS = 4_000, 16


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


RNG = np.random.default_rng(3)
CENTRES = RNG.normal(size=(40, DIMENSIONS))
VECTORS = unit(CENTRES[RNG.integers(0, 40, NUM_VECTORS)] + 0.4 * RNG.normal(size=(NUM_VECTORS, DIMENSIONS)))


@pytest.fixture(scope="module", params=["flat", "lists"])
def index(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "lists":
            patch.setattr(dense_index, "MAX_FLAT", 1_000)
        return DenseIndex.build(VECTORS)


def test_neighbours_are_those_of_comparing_all(index):
    found = hits = 0
    for query in VECTORS[::100]:
        numbers, similarities = index.search(query, 20)
        assert (np.diff(similarities) <= 0).all()
        np.testing.assert_allclose(similarities, VECTORS[numbers] @ query, atol=0.05)
        hits += len(set(numbers.tolist()) & set(np.argsort(-(VECTORS @ query))[:20].tolist()))
        found += 20
    assert hits / found > 0.85
    assert index.recall(VECTORS) > 0.85


def test_the_bytes_give_the_same_index_again(index):
    data = index.to_bytes()
    again = DenseIndex.from_bytes(data, DIMENSIONS, NUM_VECTORS)
    for query in VECTORS[::500]:
        np.testing.assert_array_equal(again.search(query, 50)[0], index.search(query, 50)[0])


def test_equally_near_vectors_come_by_number():
    index = DenseIndex.build(np.repeat(VECTORS[:3], 4, axis=0))
    assert index.search(VECTORS[1], 4)[0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("num_vectors", [1, 2, 11])
def test_few_vectors_are_all_found(num_vectors):
    index = DenseIndex.build(VECTORS[:num_vectors])
    again = DenseIndex.from_bytes(index.to_bytes(), DIMENSIONS, num_vectors)
    assert sorted(again.search(VECTORS[0], 50)[0].tolist()) == list(range(num_vectors))


def test_a_search_uses_one_thread_and_leaves_the_setting(index):
    before = faiss.omp_get_max_threads()
    index.search(VECTORS[0], 5)
    assert faiss.omp_get_max_threads() == before


def changed(data, offset, form, value):
    altered = data.copy()
    struct.pack_into(form, altered.data, offset, value)
    return altered


LIES = {
    "another kind": (0, "<4s", b"IxPT"),
    "a mapped file": (0, "<4s", b"IwPQ"),
    "dimensions": (4, "<i", DIMENSIONS + 1),
    "no vectors": (8, "<q", 0),
    "too many vectors": (8, "<q", 2**62),
    "not trained": (32, "<B", 0),
    "another metric": (33, "<i", 1),
}


@pytest.mark.row("F7")
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_faiss_reads_it(index, lie, monkeypatch):
    monkeypatch.setattr(faiss, "deserialize_index", None)
    with pytest.raises(DatastoreCorrupt, match="dense index"):
        DenseIndex.from_bytes(changed(index.to_bytes(), *LIES[lie]), DIMENSIONS, NUM_VECTORS)


@pytest.mark.row("F7")
@pytest.mark.parametrize("num_bytes", [0, 3, 40, 60, 1_000])
def test_a_cut_index_is_refused(index, num_bytes):
    with pytest.raises(DatastoreCorrupt):
        DenseIndex.from_bytes(index.to_bytes()[:num_bytes], DIMENSIONS, NUM_VECTORS)


def test_another_number_of_vectors_is_refused(index):
    with pytest.raises(DatastoreCorrupt):
        DenseIndex.from_bytes(index.to_bytes(), DIMENSIONS, NUM_VECTORS - 1)


# Indexes that grow


def cut(index, vectors, edges):
    """Indexes trained as this one over the vectors between the edges."""
    return [index.with_vectors(vectors[start:stop]) for start, stop in pairwise(edges)]


TIED = np.concatenate([VECTORS[:1_500], np.repeat(VECTORS[:20], 40, axis=0), VECTORS[1_500:2_500]])


@pytest.mark.parametrize("edges", [(0, 3_300), (0, 1, 1_700, 1_700, 3_300), (0, 2_000, 3_299, 3_300)])
def test_several_indexes_answer_as_one_also_where_vectors_are_equally_near(index, edges):
    whole, parts = index.with_vectors(TIED), cut(index, TIED, edges)
    begins = np.array(edges)
    num_tied = 0
    for query in (*TIED[::60], *VECTORS[:20]):
        for count in (1, 7, 50):
            numbers, similarities = whole.search(query, count)
            owners, found, found_similarities = nearest(parts, query, count)
            np.testing.assert_array_equal(begins[owners] + found, numbers)
            np.testing.assert_array_equal(found_similarities, similarities)
            num_tied += len(set(similarities.tolist())) < len(similarities)
    assert num_tied > 30


def test_a_flat_index_finds_exactly_the_nearest_of_what_it_stores():
    trained = DenseIndex.build(VECTORS[:500])
    index = trained.with_vectors(TIED)
    stored = index._index.reconstruct_n(0, len(TIED)).astype(np.float64)
    for query in TIED[::97]:
        wanted = stored @ query
        numbers, _ = index.search(query, 50)
        np.testing.assert_allclose(np.sort(wanted[numbers]), np.sort(wanted)[-50:], atol=1e-6)


def test_joined_indexes_have_the_bytes_of_one_that_all_were_added_to(index):
    parts = cut(index, TIED, (0, 1_000, 1_000, 2_400, 3_300))
    is_kept = np.random.default_rng(1).random(len(TIED)) < 0.7
    masks = np.split(is_kept, [1_000, 1_000, 2_400])
    joined = DenseIndex.joined(list(zip(parts, masks, strict=True)))
    np.testing.assert_array_equal(joined.to_bytes(), index.with_vectors(TIED[is_kept]).to_bytes())
    assert joined.num_vectors == is_kept.sum()


def test_few_or_no_vectors_of_a_trained_index_are_read_again(index):
    for count in (0, 1, 3):
        few = index.with_vectors(VECTORS[:count])
        again = DenseIndex.from_bytes(few.to_bytes(), DIMENSIONS, count)
        assert again.search(VECTORS[0], 50)[0].shape[0] <= count
        assert again.is_trained_like(index)


def test_indexes_of_another_training_are_not_compared(index):
    check_trained_alike([index, index.with_vectors(VECTORS[:3])])
    with pytest.raises(DatastoreCorrupt, match="do not fit each other"):
        check_trained_alike([index, DenseIndex.build(VECTORS[:900] * 0.5)])


@pytest.mark.row("F7")
def test_nothing_is_no_index():
    with pytest.raises(InvalidRequest, match=r"no vectors to index; got \(0, 8\); expected one or more"):
        DenseIndex.build(np.zeros((0, 8), np.float32))


def test_more_bytes_than_so_many_vectors_take_are_refused_before_faiss_reads_them(monkeypatch):
    data = DenseIndex.build(VECTORS).to_bytes()
    monkeypatch.setattr(faiss, "deserialize_index", None)
    padded = np.concatenate([data, np.zeros(64 << 20, np.uint8)])
    with pytest.raises(DatastoreCorrupt, match="too large"):
        DenseIndex.from_bytes(padded, VECTORS.shape[1], VECTORS.shape[0])


def test_without_faiss_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        MissingDependency, match=r"dense datastores need faiss; pip install 'retrieval-spec\[dense\]'"
    ):
        DenseIndex.build(VECTORS)


def test_more_lists_than_the_bytes_hold_are_refused_before_faiss_reads_them(monkeypatch):
    monkeypatch.setattr(dense_index, "MAX_FLAT", 1_000)
    data = DenseIndex.build(VECTORS).to_bytes()
    monkeypatch.setattr(faiss, "deserialize_index", None)
    offset = dense_index._HEADER.size
    for lists in (0, 2**20, 2**63):
        with pytest.raises(DatastoreCorrupt, match="of other lists"):
            DenseIndex.from_bytes(changed(data, offset, "<Q", lists), DIMENSIONS, NUM_VECTORS)
