"""A document is replayed as if neither it nor an exact copy of it stood in the corpus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import leave_one_out
from retrieval_spec.corpus_stats import open_parts
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.kernels.context_draft import NUM_NEIGHBOURS
from retrieval_spec.leave_one_out import _Drafts, predict_acceptance, replay_documents
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_arrays import ContextArrays
from tests.golden import change_column
from tests.stores import array_of, write_corpus


def parts_of(folder, *segments, vocab_size=5000):
    """The corpora as segments of one, with narrow and wide ids in turn."""
    paths = [
        write_corpus(folder / f"segment{number}", documents, vocab_size, (np.uint16, np.int32)[number % 2])
        for number, documents in enumerate(segments)
    ]
    return open_parts([open_datastore(path) for path in paths])


def ignore(amount: int) -> None:
    pass


def random_documents(num: int, num_tokens: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, num_tokens).tolist() for _ in range(num)]


def array_without(part, documents, document) -> ContextArray:
    """A segment that never held the document, over as many ids."""
    array = array_of([other for other in documents if other != document], part.array.tokens.dtype)
    missing = part.array.num_ids + 1 - len(array.buckets)
    buckets = np.append(array.buckets, np.full(missing, array.buckets[-1]))
    return ContextArray(array.tokens, array.positions, buckets, array.depth_tokens)


def assert_drafts_as_without(parts, segments, document) -> int:
    """Compares the drafts at every place of a document; returns how many nodes they had."""
    drafts = _Drafts(parts, 16)
    drafts.leave_out(np.array(document, np.int32))
    oracle = ContextArrays(
        [array_without(part, documents, document) for part, documents in zip(parts, segments, strict=True)]
    )
    num_nodes = 0
    for at in range(1, len(document)):
        context = np.array(document[:at], np.int32)
        drafts.num_accepted(context, np.array(document[at:], np.int32))
        drafted = drafts.arrays.draft(context, 16, 16)
        for column, expected in zip(drafted, oracle.draft(context, 16, 16), strict=True):
            np.testing.assert_array_equal(column, expected)
        num_nodes += len(drafted[0])
    return num_nodes


corpora = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(st.lists(corpora, min_size=1, max_size=3))
def test_drafts_are_those_of_a_corpus_without_the_document(tmp_path_factory, segments):
    parts = parts_of(tmp_path_factory.mktemp("left_out"), *segments)
    for documents in segments:
        for document in documents:
            assert_drafts_as_without(parts, segments, document)


@pytest.mark.parametrize("num_segments", [1, 3])
def test_drafts_are_those_of_a_corpus_without_the_document_where_neighbours_abound(tmp_path, num_segments):
    documents = random_documents(40, 120, 3)
    documents += documents[:10] * 5
    segments = [documents[start::num_segments] for start in range(num_segments)]
    parts = parts_of(tmp_path, *segments)
    assert min(len(part.array.positions) for part in parts) > 50 * NUM_NEIGHBOURS
    num_nodes = sum(assert_drafts_as_without(parts, segments, document) for document in documents[:6])
    assert num_nodes > 1000


def test_a_corpus_in_segments_predicts_what_it_does_in_one(tmp_path):
    documents = random_documents(20, 200, 5000)
    twins = [[*document[:90], 4999 - document[90], *document[91:]] for document in documents]
    segments = [documents[:10] + twins[5:15], documents[10:] + documents[:5], twins[:5] + twins[15:]]
    whole = parts_of(tmp_path, [document for documents in segments for document in documents])
    (tmp_path / "parts").mkdir()
    apart = parts_of(tmp_path / "parts", *segments)
    assert predict_acceptance(whole, 45, 16, ignore) == predict_acceptance(apart, 45, 16, ignore)


def test_distinct_random_text_predicts_no_acceptance(tmp_path):
    parts = parts_of(tmp_path, random_documents(40, 300, 5000))
    predicted = predict_acceptance(parts, 40, 16, ignore)
    assert 1.0 <= predicted["mean_acceptance_length"] < 1.02
    assert predicted["num_documents"] == 40
    assert predicted["num_steps"] > 40 * 290


def test_a_near_twin_of_every_document_predicts_long_acceptance(tmp_path):
    documents = random_documents(20, 300, 5000)
    twins = [[*document[:150], 4999 - document[150], *document[151:]] for document in documents]
    predicted = predict_acceptance(parts_of(tmp_path, documents + twins), 40, 16, ignore)
    assert predicted["mean_acceptance_length"] > 8
    assert predicted["over_documents"]["min"] > 8


def test_exact_copies_do_not_count(tmp_path):
    documents = random_documents(20, 300, 5000)
    alone = predict_acceptance(parts_of(tmp_path, documents), 20, 16, ignore)
    (tmp_path / "copies").mkdir()
    copied = predict_acceptance(parts_of(tmp_path / "copies", documents * 3), 60, 16, ignore)
    assert alone["mean_acceptance_length"] < 1.02
    assert copied["mean_acceptance_length"] == alone["mean_acceptance_length"]
    assert copied["num_steps"] == 3 * alone["num_steps"]


def test_copies_that_differ_in_length_or_in_the_last_token_do_count(tmp_path):
    for number, change in enumerate((lambda d: d[:-1], lambda d: [*d[:-1], 4999 - d[-1]], lambda d: [*d, 7])):
        documents = random_documents(10, 100, 5000)
        folder = tmp_path / str(number)
        folder.mkdir()
        parts = parts_of(folder, documents + [change(document) for document in documents])
        assert predict_acceptance(parts, 20, 16, ignore)["mean_acceptance_length"] > 5


def test_a_replay_counts_the_steps_of_greedy_decoding(tmp_path):
    documents = [[1, 2, 3, 4, 5, 6, 7], [9, 2, 3, 4, 5, 8, 8], [6]]
    first, second = replay_documents(parts_of(tmp_path, documents), 10, 16, ignore)
    # 1: nothing known, 2; 2: drafts 3 4 5 and another 8, so 6 is the target's; 6: only the end; 7.
    assert (first.num_steps, first.num_accepted) == (3, 3)
    assert first.mean_acceptance_length == 2.0
    assert (second.num_steps, second.num_accepted) == (3, 3)


def test_long_documents_are_replayed_in_part_and_always_the_same_part(tmp_path, monkeypatch):
    monkeypatch.setattr(leave_one_out, "MAX_REPLAYED_TOKENS", 50)
    parts = parts_of(tmp_path, random_documents(10, 300, 5000))
    predicted = predict_acceptance(parts, 4, 16, ignore)
    assert predicted["num_documents"] == 4
    assert predicted["num_steps"] <= 200
    assert predicted == predict_acceptance(parts, 4, 16, ignore)


@pytest.mark.row("F3")
def test_damaged_positions_give_other_figures_but_no_crash(tmp_path):
    path = write_corpus(tmp_path / "store", random_documents(5, 50, 4), 10, np.uint16)
    positions = np.random.default_rng(0).integers(0, 2**32, 250, dtype=np.uint32)
    positions[::2] %= 256
    change_column(path, "positions", positions.tobytes())
    predicted = predict_acceptance(open_parts([open_datastore(path)]), 5, 16, ignore)
    assert predicted["mean_acceptance_length"] == pytest.approx(predicted["over_documents"]["p50"], abs=1)
