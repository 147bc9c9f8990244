"""The dense index: lists against comparing all, and bytes that lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")
# ruff: noqa: E402
from retrieval_spec.errors import DatastoreCorrupt
from retrieval_spec.structures import dense_index
from retrieval_spec.structures.dense_index import DenseIndex

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


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_faiss_reads_it(index, lie, monkeypatch):
    monkeypatch.setattr(faiss, "deserialize_index", None)
    with pytest.raises(DatastoreCorrupt, match="dense index"):
        DenseIndex.from_bytes(changed(index.to_bytes(), *LIES[lie]), DIMENSIONS, NUM_VECTORS)


@pytest.mark.parametrize("num_bytes", [0, 3, 40, 60, 1_000])
def test_a_cut_index_is_refused(index, num_bytes):
    with pytest.raises(DatastoreCorrupt):
        DenseIndex.from_bytes(index.to_bytes()[:num_bytes], DIMENSIONS, NUM_VECTORS)


def test_another_number_of_vectors_is_refused(index):
    with pytest.raises(DatastoreCorrupt):
        DenseIndex.from_bytes(index.to_bytes(), DIMENSIONS, NUM_VECTORS - 1)
