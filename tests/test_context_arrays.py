from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.kernels.context_draft import NUM_NEIGHBOURS
from retrieval_spec.structures.context_array import ContextArray, separator_of
from retrieval_spec.structures.context_arrays import ContextArrays, new_scratch
from tests.reference.context_array import ReferenceContextArray, reference_draft
from tests.reference.context_arrays import ReferenceContextArrays
from tests.threads import in_threads

pytestmark = pytest.mark.row("A1")

NARROW, WIDE = np.uint16, np.int32
END = None
compiling = settings(deadline=None)  # the first example compiles


def array_over(text, dtype, depth_tokens=32):
    tokens = [separator_of(dtype) if token is END else token for token in text]
    return ContextArray.build(np.array(tokens, dtype), depth_tokens=depth_tokens)


def twin_of(text, depth_tokens=32):
    return ReferenceContextArray([-1 if token is END else token for token in text], -1, depth_tokens)


@st.composite
def segmented(draw, max_segments=4, max_tokens=60):
    """Texts, an array type for each, and a context; a text ends a document, as all that is built does."""
    ids = st.integers(0, draw(st.integers(0, 3)))
    text = st.lists(st.one_of(ids, ids, ids, st.just(END)), max_size=max_tokens).map(lambda t: [*t, END])
    texts = draw(st.lists(text, min_size=1, max_size=max_segments))
    dtypes = [draw(st.sampled_from([NARROW, WIDE])) for _ in texts]
    return texts, dtypes, np.array(draw(st.lists(ids, min_size=1, max_size=8)), np.int32)


def arrays_over(texts, dtypes, depths=None):
    depths = depths or [32] * len(texts)
    return ContextArrays([array_over(*one) for one in zip(texts, dtypes, depths, strict=True)])


def rows_of(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


def twin_draft(twin, context, array, max_nodes, max_depth):
    return reference_draft(
        twin, context, NUM_NEIGHBOURS, lambda n: n**2, array._reliability, max_nodes, max_depth
    )


@compiling
@given(segmented(), st.data(), st.integers(1, 20), st.integers(1, 5))
def test_segments_draft_like_the_twin(case, data, max_nodes, max_depth):
    texts, dtypes, context = case
    depths = [data.draw(st.integers(1, 7)) for _ in texts]
    arrays = arrays_over(texts, dtypes, depths)
    twin = ReferenceContextArrays([twin_of(*one) for one in zip(texts, depths, strict=True)])
    drafted = rows_of(arrays.draft(context, max_nodes, max_depth))
    assert drafted == twin_draft(twin, context, arrays, max_nodes, max_depth)


@compiling
@given(segmented(), st.integers(1, 20), st.integers(1, 5))
def test_matches_are_as_long_as_in_one_array_over_all(case, max_nodes, max_depth):
    texts, dtypes, context = case
    arrays, whole = arrays_over(texts, dtypes), twin_of(list(chain(*texts)))
    twin = ReferenceContextArrays([twin_of(text) for text in texts])
    lengths = [[length for _, length in corpus.nearest(context, NUM_NEIGHBOURS)] for corpus in (twin, whole)]
    assert lengths[0] == lengths[1]
    if len(lengths[0]) < NUM_NEIGHBOURS:  # all are taken: no tie is left to a rule
        array = array_over(list(chain(*texts)), WIDE)
        assert rows_of(arrays.draft(context, max_nodes, max_depth)) == rows_of(
            array.draft(context, max_nodes, max_depth)
        )


@compiling
@given(segmented(max_segments=1), st.integers(0, 20), st.integers(0, 5))
def test_one_segment_drafts_as_it_does_alone(case, max_nodes, max_depth):
    (text,), (dtype,), context = case
    array = array_over(text, dtype)
    arrays, scratch = ContextArrays([array]), new_scratch()
    expected = rows_of(array.draft(context, max_nodes, max_depth))
    assert rows_of(arrays.draft(context, max_nodes, max_depth, scratch)) == expected
    assert (arrays.depth_tokens, arrays.num_ids) == (array.depth_tokens, array.num_ids)
    # Beside a segment that has nothing to say it goes through the copies.
    both = ContextArrays([array_over([], NARROW), array])
    assert rows_of(both.draft(context, max_nodes, max_depth, scratch)) == expected


@pytest.mark.parametrize("dtypes", [(NARROW, NARROW), (WIDE, WIDE), (NARROW, WIDE), (WIDE, NARROW)])
def test_real_numbers_of_occurrences_draft_like_the_twin(dtypes):
    rng = np.random.default_rng(3)
    texts = [[*rng.integers(0, 5, 700).tolist(), END] for _ in range(6)]
    arrays = arrays_over(texts, dtypes * 3)
    twin = ReferenceContextArrays([twin_of(text) for text in texts])
    scratch, num_nodes = new_scratch(), 0
    for _ in range(40):
        context = rng.integers(0, 5, 12).astype(np.int32)
        drafted = rows_of(arrays.draft(context, 40, 9, scratch))
        assert drafted == twin_draft(twin, context, arrays, 40, 9)
        num_nodes += len(drafted)
    assert num_nodes > 400


def test_a_longer_match_counts_from_any_segment_and_of_equal_ones_the_earlier():
    many = [token for _ in range(NUM_NEIGHBOURS) for token in (2, 3, 5, END)]
    arrays = arrays_over([many, [1, 2, 3, 6, END], [*many[:-2], 7, END]], [NARROW, WIDE, NARROW])
    token_ids, _, _ = arrays.draft(np.array([1, 2, 3], np.int32), 8, 8)
    assert sorted(token_ids.tolist()) == [5, 6]
    token_ids, _, _ = arrays.draft(np.array([9, 2, 3], np.int32), 8, 8)
    assert token_ids.tolist() == [5]


def test_an_id_that_one_segment_does_not_know_may_be_in_another():
    arrays = arrays_over([[1, 2, 3, END], [70_000, 2, 4, END]], [NARROW, WIDE])
    assert arrays.num_ids == 70_001
    token_ids, _, probs = arrays.draft(np.array([70_000, 2], np.int32), 8, 8)
    assert token_ids.tolist() == [4, 3]
    assert probs[0] > probs[1]


def test_a_path_is_as_deep_as_asked_and_never_deeper_than_a_row():
    arrays = arrays_over([list(range(200)), [*range(200), END]], [NARROW, WIDE])
    for max_nodes, max_depth, expected in ((200, 500, 64), (200, 64, 64), (200, 5, 5), (7, 64, 7), (0, 9, 0)):
        token_ids, parents, _ = arrays.draft(np.array([9], np.int32), max_nodes, max_depth)
        assert token_ids.tolist() == list(range(10, 10 + expected))
        assert parents.tolist() == list(range(-1, expected - 1))


@pytest.mark.parametrize("num_segments", [0, 2, 5])
def test_nothing_to_search_drafts_nothing(num_segments):
    arrays = ContextArrays([array_over([], NARROW)] * num_segments)
    for context in ([], [1], [-1], [2**31 - 1]):
        assert arrays.draft(np.array(context, np.int32), 8, 8)[0].size == 0
    assert (arrays.num_ids, arrays.num_bytes) == (0, 4 * num_segments)


@pytest.mark.row("F3")
@settings(compiling, max_examples=200)
@given(st.data())
def test_damaged_segments_give_trees_within_the_contract(data):
    segments = []
    for seed, dtype in enumerate((NARROW, WIDE)):
        tokens = np.random.default_rng(seed).integers(0, 4, 200).astype(dtype)
        columns = {name: column.copy() for name, column in ContextArray.build(tokens).columns().items()}
        for name in data.draw(st.sets(st.sampled_from(["tokens", "positions"]))):
            info = np.iinfo(columns[name].dtype)
            values = st.sampled_from([info.min, info.max, 0, 1, 199, 200, 201]) | st.integers(
                info.min, info.max
            )
            for index, value in data.draw(st.lists(st.tuples(st.integers(0, 198), values), max_size=40)):
                columns[name][index] = value
        segments.append(ContextArray.from_columns(columns, depth_tokens=32))
    arrays = ContextArrays(segments)
    context = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40)), np.int32)
    token_ids, parents, probs = arrays.draft(context, 64, 64)
    assert np.all((token_ids >= 0) & (token_ids < arrays.num_ids))
    assert np.all(parents < np.arange(parents.size))
    assert np.all((probs >= 0) & (probs <= 1))


@pytest.mark.row("K1")
def test_threads_share_segments():
    rng = np.random.default_rng(7)
    texts = [[*rng.integers(0, 9, 3_000).tolist(), END] for _ in range(3)]
    arrays = arrays_over(texts, [NARROW, WIDE, NARROW])
    contexts = rng.integers(0, 9, (200, 10)).astype(np.int32)

    def drafts(_):
        scratch = new_scratch()
        return [rows_of(arrays.draft(context, 16, 16, scratch)) for context in contexts]

    first, *others = in_threads(drafts, range(4))
    assert all(other == first for other in others)
    assert sum(map(len, first)) > 1_000


PLAIN = """
import numpy as np
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_arrays import ContextArrays
rng = np.random.default_rng(3)
texts = [rng.choice([0, 1, 2, -1], 120, p=[0.5, 0.3, 0.15, 0.05]) for _ in range(3)]
dtypes = [np.uint16, np.int32, np.int32]
arrays = ContextArrays([
    ContextArray.build(np.where(text < 0, np.iinfo(dtype).max, text).astype(dtype))
    for text, dtype in zip(texts, dtypes, strict=True)
])
for _ in range(20):
    context = rng.integers(0, 3, 6).astype(np.int32)
    print([column.tolist() for column in arrays.draft(context, 9, 4)])
"""


@pytest.mark.row("A1", "F3")
def test_plain_python_gives_the_same_and_stays_in_bounds():
    outputs = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PLAIN], env=environment, capture_output=True, check=True
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
