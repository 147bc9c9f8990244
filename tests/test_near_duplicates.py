from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels import minhash
from retrieval_spec.near_duplicates import NearDuplicates, bands_for
from tests.reference.near_duplicates import jaccard, most_similar

MARGIN = 0.22
"""Six standard errors of the estimate at a similarity of 0.8, five at 0.5: once in a million comparisons."""


def kept_of(documents: list[list[int]], threshold: float) -> list[bool]:
    near = NearDuplicates(threshold)
    return [near.add(np.array(document, np.int32)) for document in documents]


def edited(rng: np.random.Generator, document: list[int], num_edits: int) -> list[int]:
    """The document with so many of its tokens changed, left out or doubled."""
    changed = list(document)
    for _ in range(num_edits):
        at = int(rng.integers(len(changed)))
        changed[at : at + 1] = [[int(rng.integers(1000))], [], [changed[at]] * 2][rng.integers(3)]
        changed = changed or [0]
    return changed


def family(seed: int) -> list[list[int]]:
    """Documents of all sizes, and copies of them with few and with many edits."""
    rng = np.random.default_rng(seed)
    documents: list[list[int]] = []
    for _ in range(rng.integers(1, 6)):
        size = int(rng.integers(1, 10) if rng.random() < 0.3 else rng.integers(10, 300))
        documents.append(rng.integers(0, 1000, size).tolist())
    for _ in range(rng.integers(1, 12)):
        source = documents[rng.integers(len(documents))]
        documents.append(edited(rng, source, int(rng.integers(0, 2 + len(source) // 6))))
    return documents


@settings(max_examples=200, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32), threshold=st.sampled_from([0.5, 0.7, 0.8, 0.9]))
def test_what_is_far_more_similar_is_dropped_and_what_is_far_less_is_kept(seed, threshold):
    documents = family(seed)
    kept: list[list[int]] = []
    for document, is_kept in zip(documents, kept_of(documents, threshold), strict=True):
        similarity = most_similar(document, kept)
        if similarity >= threshold + MARGIN * (1 - threshold) / 0.2 or similarity == 1.0:
            assert not is_kept
        if similarity <= threshold - MARGIN:
            assert is_kept
        kept += [document] if is_kept else []


def test_the_families_hold_what_is_far_below_far_above_and_between():
    similarities = [
        most_similar(documents[at], documents[:at])
        for documents in map(family, range(100))
        for at in range(len(documents))
    ]
    shares = np.histogram(similarities, [0, 0.3, 0.58, 0.8, 0.95, 1.01])[0] / len(similarities)
    assert (shares > 0.04).all()


def test_of_identical_documents_the_first_is_kept_whatever_their_size():
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 5, size).tolist() for size in (1, 2, 4, 5, 6, 50, 3000)]
    assert kept_of(documents + documents, 1.0) == [True] * 7 + [False] * 7


def test_documents_shorter_than_a_shingle_differ_by_any_token_and_by_their_length():
    assert kept_of([[0], [0, 0], [0, 0, 0], [1], [1, 0], [0, 1]], 0.5) == [True] * 6


@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.8, 0.95])
def test_the_estimate_errs_as_little_as_the_theory_says(similarity):
    """Of 400 pairs, each set apart by random tokens in its middle."""
    rng = np.random.default_rng(2)
    near = NearDuplicates()
    estimates, exact = [], []
    for _ in range(400):
        one = rng.integers(0, 50_000, 300)
        other = one.copy()
        num_changed = round(300 * (1 - similarity) / (1 + similarity))
        other[100 : 100 + num_changed] = rng.integers(0, 50_000, num_changed)
        signatures = []
        for document in (one, other):
            near._signed(document.astype(np.int32))
            signatures.append(near._signatures[0].copy())
        estimates.append(float((signatures[0] == signatures[1]).mean()))
        exact.append(jaccard(one.tolist(), other.tolist()))
    errors = np.array(estimates) - exact
    standard_error = np.sqrt(np.mean(exact) * (1 - np.mean(exact)) / minhash.NUM_HASHES)
    assert abs(errors.mean()) < 4 * standard_error / np.sqrt(400)
    assert 0.8 < errors.std() / standard_error < 1.2


def test_the_type_of_the_ids_changes_nothing():
    document = np.random.default_rng(3).integers(0, 60_000, 200)
    near = NearDuplicates()
    assert near.add(document.astype(np.uint16))
    read_only = document.astype(np.int32)
    read_only.setflags(write=False)
    assert not near.add(read_only)


def test_documents_are_found_again_after_the_arrays_have_grown():
    rng = np.random.default_rng(4)
    documents = [rng.integers(0, 50_000, 20).astype(np.int32) for _ in range(6000)]
    near = NearDuplicates()
    assert all(near.add(document) for document in documents)
    assert not any(near.add(document) for document in documents)
    assert len(near) == 6000


def test_a_document_takes_no_more_memory_than_is_said():
    rng = np.random.default_rng(5)
    for threshold, most_bytes in ((0.8, 540), (0.5, 980)):
        near = NearDuplicates(threshold)
        for at in range(6000):
            near.add(rng.integers(0, 50_000, 10).astype(np.int32))
            if at >= 1024:
                assert 256 + (near._tags.nbytes + near._slots.nbytes) / len(near) <= most_bytes


def test_what_was_known_before_counts_as_if_it_had_been_kept_then():
    documents = family(17) * 2 + family(18)
    once = NearDuplicates()
    kept = [document for document in documents if once.add(np.array(document, np.int32))]
    again = NearDuplicates()
    for document in kept[:3]:
        again.know(np.array(document, np.int32))
    rest = documents[documents.index(kept[2]) + 1 :]
    assert [document for document in rest if again.add(np.array(document, np.int32))] == kept[3:]


def test_many_pages_of_one_template_cost_no_more_than_a_bound():
    """Half of every page is the same, so all of them agree in some bands."""
    rng = np.random.default_rng(6)
    template = rng.integers(0, 50_000, 200)
    near = NearDuplicates()
    for _ in range(1500):
        page = np.concatenate([template, rng.integers(0, 50_000, 80)]).astype(np.int32)
        near.add(page)
    bands: dict[tuple[int, ...], int] = {}
    for document in near._slots[near._tags > 0].tolist():
        for band in range(near._num_bands):
            rows = near._signatures[document, band * near._num_rows : (band + 1) * near._num_rows]
            bands[(band, *rows.tolist())] = 0
    num_entered = np.count_nonzero(near._tags)
    assert len(near) > 1400
    assert num_entered < len(near) * near._num_bands
    assert num_entered <= minhash.MAX_ALIKE * len(bands)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.75, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_is_similar_to_the_threshold(threshold):
    num_bands, num_rows = bands_for(threshold)
    assert num_bands * num_rows <= minhash.NUM_HASHES
    assert 1 - (1 - threshold**num_rows) ** num_bands >= 0.999


@pytest.mark.parametrize("threshold", [0.0, 0.49, 1.01, 80.0, float("nan"), -1.0])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(InvalidRequest, match="near-duplicates is out of range"):
        NearDuplicates(threshold)
