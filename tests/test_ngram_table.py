"""The n-gram table counts what its twin counts, in bounded memory, however the text was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels import ngram as kernels
from retrieval_spec.structures import ngram_table
from retrieval_spec.structures.ngram_table import MAX_CORPUS_CONTEXTS, NGramTable, Shape
from tests.reference.ngram_table import ReferenceTable
from tests.strategies import as_int32, token_streams

pytestmark = pytest.mark.row("A1")

SEPARATOR = 2**16 - 1


def counted(text, shape, **options):
    table, twin = NGramTable(shape, **options), ReferenceTable(*shape)
    table.extend(as_int32(text))
    twin.extend(text)
    return table, twin


def all_counts(table, arena, context, tokens):
    row = kernels.walk(arena, as_int32(context))
    return {token: kernels.count_of(arena, row, token) for token in tokens}


def assert_like_the_twin(table, twin):
    for generation in (twin.newest, twin.older, twin.base):
        for context in generation:
            if len(context) < twin.min_context:
                continue
            found = table.successors(as_int32(context))
            assert found is not None
            total, num_distinct, best = twin.successors(context)
            assert (found.total, found.num_distinct) == (total, num_distinct)
            assert list(found.counts.items()) == list(best.items())
    for context, counts in twin.newest.items():
        assert all_counts(table, table.arena, context, counts) == dict(counts)


@pytest.mark.quick
@given(token_streams(max_size=300, alphabet=9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6))
@settings(deadline=None)
def test_it_counts_what_the_twin_counts(text, max_context, min_context, max_kept):
    shape = Shape(max_context, min(min_context, max_context), max_kept)
    table, twin = counted(text, shape)
    assert_like_the_twin(table, twin)
    assert list(table.contexts()) == list(twin.newest)


@given(token_streams(max_size=200, alphabet=4), st.lists(st.integers(1, 30), min_size=1, max_size=6))
@settings(deadline=None)
def test_how_the_text_was_cut_does_not_matter(text, sizes):
    at_once, _ = counted(text, Shape(3))
    in_pieces = NGramTable(Shape(3))
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        begin = max(0, at - 3)
        in_pieces.extend(as_int32(text[begin : at + size]), at - begin)
        at, turn = at + size, turn + 1
    assert np.array_equal(at_once.arena, in_pieces.arena)


def test_a_context_with_more_followers_than_kept_ones_knows_them_all():
    rng = np.random.default_rng(0)
    followers = (rng.zipf(1.2, 5_000) % 900 + 10).tolist()
    text = [token for follower in followers for token in (3, follower)]
    table, twin = counted(text, Shape(2))
    assert_like_the_twin(table, twin)
    found = table.successors(as_int32([3]))
    assert found.num_distinct == len(set(followers)) > 300


def test_a_full_table_forgets_the_generation_before_and_halves_what_comes_back():
    rng = np.random.default_rng(1)
    table, twin = NGramTable(Shape(2), max_contexts=256), ReferenceTable(2)
    num_turns = 0
    for _ in range(40):
        text = (rng.zipf(1.4, 30) % 200).tolist()
        for at in range(len(text)):
            generation = table.older
            piece = text[max(0, at - 2) : at + 1]
            table.extend(as_int32(piece), len(piece) - 1)
            if table.older is not generation:
                twin.turn()
                num_turns += 1
            twin.extend(piece, len(piece) - 1)
    assert num_turns >= 3
    assert_like_the_twin(table, twin)


@pytest.mark.row("A1", "S2")
def test_memory_is_bounded_whatever_comes():
    rng = np.random.default_rng(2)
    table = NGramTable(Shape(4), max_contexts=4_096)
    for _ in range(20):
        table.extend(as_int32(rng.integers(0, 2**31 - 1, 5_000).tolist()))
        assert table.num_contexts < 4_096
    assert table.num_bytes < 2 * 4_096 * 160
    one_context = NGramTable(Shape(1), max_contexts=4_096)
    text = np.zeros(100_000, np.int32)
    text[1::2] = np.arange(50_000) + 1
    one_context.extend(text)
    assert one_context.num_bytes < 2 * 4_096 * 160


def test_a_run_of_one_token_is_one_row_for_each_length():
    table = NGramTable(Shape(3))
    table.extend(as_int32([7] * 10_000))
    assert table.num_contexts == 3
    assert table.successors(as_int32([7, 7, 7])).counts == {7: 9_997}


@given(
    st.lists(token_streams(max_size=30, alphabet=3), max_size=8),
    token_streams(max_size=60, alphabet=3),
    st.sampled_from([1, 7, 20, 1_000_000]),
)
@settings(deadline=None)
def test_a_base_is_counted_by_document_and_kept_apart(documents, text, chunk_tokens):
    documents = [[token % 60_000 for token in document] for document in documents]
    corpus = [token for document in documents for token in (*document, SEPARATOR)]
    base = NGramTable(Shape(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_table, "_CHUNK_TOKENS", chunk_tokens)
        base.extend_documents(np.array(corpus, np.uint16), SEPARATOR)
    before = base.arena.copy()
    base_twin = ReferenceTable(3)
    base_twin.extend([-1 if token == SEPARATOR else token for token in corpus])
    assert list(base.contexts()) == list(base_twin.newest)
    assert_like_the_twin(base, base_twin)
    table, twin = NGramTable(Shape(3), base=base), ReferenceTable(3, documents=base_twin.newest)
    table.extend(as_int32(text))
    twin.extend(text)
    assert_like_the_twin(table, twin)
    assert np.array_equal(base.arena, before)


def test_of_a_corpus_that_is_too_large_the_beginning_is_counted():
    tokens = np.arange(60_000, dtype=np.uint16)
    base = NGramTable(Shape(1), max_contexts=1_024)
    base.extend_documents(tokens, SEPARATOR)
    assert base.successors(as_int32([10])).counts == {11: 1}
    assert base.successors(as_int32([50_000])) is None


@pytest.mark.parametrize(
    "shape", [Shape(0), Shape(9), Shape(2, 3), Shape(2, 0), Shape(2, 1, 0), Shape(2, 1, 17)]
)
def test_shapes_out_of_range_are_refused(shape):
    with pytest.raises(InvalidRequest, match="out of range"):
        NGramTable(shape)


@pytest.mark.parametrize("max_contexts", [0, MAX_CORPUS_CONTEXTS + 1])
def test_numbers_of_contexts_out_of_range_are_refused(max_contexts):
    with pytest.raises(InvalidRequest, match="number of contexts out of range"):
        NGramTable(Shape(2), max_contexts)
