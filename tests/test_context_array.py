from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, InvalidTokens, LimitExceeded
from retrieval_spec.kernels.context_array import FOUND, LENGTH, SEEN_WORDS, nearest
from retrieval_spec.kernels.context_draft import NUM_NEIGHBOURS
from retrieval_spec.structures import context_array
from retrieval_spec.structures.context_array import ContextArray, separator_of
from tests.reference.context_array import ReferenceContextArray, reference_draft

pytestmark = pytest.mark.row("A1")

NARROW, WIDE = np.uint16, np.int32
K = NUM_NEIGHBOURS
compiling = settings(deadline=None)  # the first example compiles


@st.composite
def corpora(draw, max_tokens=60):
    """Short documents over few ids, small or above 65,536; empty ones and a missing last end included."""
    dtype, first_id = draw(st.sampled_from([(NARROW, 0), (WIDE, 0), (WIDE, 70_000)]))
    ids = st.integers(first_id, first_id + draw(st.integers(0, 3)))
    tokens = draw(st.lists(st.one_of(ids, ids, ids, st.just(separator_of(dtype))), max_size=max_tokens))
    context = draw(st.lists(ids, min_size=1, max_size=8))
    return np.array(tokens, dtype), np.array(context, np.int32)


def pair(tokens, depth):
    array = ContextArray.build(tokens, depth_tokens=depth)
    return array, ReferenceContextArray(tokens.tolist(), separator_of(tokens.dtype), depth)


@compiling
@given(corpora(), st.integers(1, 7))
def test_positions_stand_in_the_order_of_their_contexts(case, depth):
    tokens, _ = case
    array, reference = pair(tokens, depth)
    assert array.positions.tolist() == reference.positions
    assert array.positions.dtype == np.uint32
    for token in range(max(0, array.num_ids - 5), array.num_ids):
        bucket = array.positions[array.buckets[token] : array.buckets[token + 1]]
        assert all(tokens[i - 1] == token for i in bucket)


@pytest.mark.quick
@compiling
@given(corpora(), st.integers(1, 7))
def test_counts_are_exact(case, depth):
    tokens, context = case
    array, reference = pair(tokens, depth)
    context = context[-depth:]
    first, last = array.count_range(context)
    assert array.positions[first:last].tolist() == reference.occurrences(context)
    token_ids, counts = array.continuation_counts(context)
    assert token_ids.dtype == np.int32
    assert counts.dtype == np.int64
    expected = sorted(reference.continuation_counts(context).items())
    assert list(zip(token_ids.tolist(), counts.tolist(), strict=True)) == expected


@pytest.mark.quick
@compiling
@given(corpora(), st.integers(1, 7), st.integers(1, 9))
def test_nearest_neighbours_are_the_longest_matches(case, depth, k):
    tokens, context = case
    array, reference = pair(tokens, depth)
    context = context[-depth:]
    block = np.empty(2 + k * SEEN_WORDS, np.int64)
    count = nearest(array.tokens, array.positions, array.buckets, context, depth, k, block, 2)
    found, lengths = block[2 + FOUND :: SEEN_WORDS], block[2 + LENGTH :: SEEN_WORDS]
    taken = list(zip(found[:count].tolist(), lengths[:count].tolist(), strict=True))
    assert taken == reference.nearest(context, k)
    longest = sorted((reference.match_length(i, context) for i in reference.positions), reverse=True)
    assert [length for _, length in taken] == [length for length in longest[:k] if length]


def test_equally_long_matches_come_from_both_sides_by_turns():
    end = separator_of(NARROW)
    sides = [*range(10, 18), *range(30, 38)]
    tokens = np.array([token for side in sides for token in (side, 50, 51, end)], NARROW)
    array, reference = pair(tokens, 7)
    block = np.empty(5 * SEEN_WORDS, np.int64)
    context = np.array([20, 50], np.int32)
    assert nearest(array.tokens, array.positions, array.buckets, context, 7, 5, block, 0) == 5
    found = block[FOUND::SEEN_WORDS].tolist()
    assert found == [position for position, _ in reference.nearest(context, 5)]
    assert [int(tokens[position - 2]) for position in found] == [30, 17, 31, 16, 32]


@pytest.mark.quick
@compiling
@given(corpora(), st.integers(1, 7), st.integers(1, 20), st.integers(1, 5))
def test_drafts_equal_the_reference(case, depth, max_nodes, max_depth):
    tokens, context = case
    array, reference = pair(tokens, depth)
    token_ids, parents, probs = array.draft(context, max_nodes, max_depth)
    drafted = list(zip(token_ids.tolist(), parents.tolist(), probs.tolist(), strict=True))
    assert drafted == reference_draft(
        reference, context, K, lambda n: n**2, array._reliability, max_nodes, max_depth
    )


@compiling
@given(corpora())
def test_threads_do_not_change_the_result(case):
    tokens, _ = case
    one, two = (ContextArray.build(tokens, threads=threads) for threads in (1, 2))
    assert all(np.array_equal(one.columns()[name], two.columns()[name]) for name in one.columns())


def structured_corpora():
    rng = np.random.default_rng(5)
    end = separator_of(WIDE)
    document = [*rng.integers(0, 9, 100).tolist(), end]
    yield "random", rng.integers(0, 40, 6_000)
    yield "two ids", rng.integers(0, 2, 6_000)
    yield "identical documents", np.array(document * 60)
    yield "only ends", np.full(500, end)
    yield "periodic", np.arange(6_000) % 7
    yield "wide ids", rng.choice([3, 70_000, 151_000, 2_000_000], 6_000)
    zipf = np.minimum(rng.zipf(1.3, 8_000), 50_000)
    zipf[rng.random(8_000) < 0.01] = end
    yield "skewed with ends", zipf


@pytest.mark.parametrize("tokens", [pytest.param(tokens, id=name) for name, tokens in structured_corpora()])
@pytest.mark.parametrize("depth", [32, 5])
def test_larger_corpora_are_sorted_too(tokens, depth, monkeypatch):
    monkeypatch.setattr(context_array, "_MIN_TASK_POSITIONS", 1000)
    tokens = tokens.astype(WIDE)
    one, two = (ContextArray.build(tokens, threads=threads, depth_tokens=depth) for threads in (1, 2))
    assert np.array_equal(one.positions, two.positions)
    reference = ReferenceContextArray(tokens.tolist(), separator_of(WIDE), depth)
    assert one.positions.tolist() == reference.positions


@pytest.mark.row("A2")
def test_one_repeated_token_costs_linear_time():
    calls = []
    array = ContextArray.build(np.zeros(300_000, NARROW), progress=calls.append)
    assert array.positions[:3].tolist() == [32, 33, 34]  # whole contexts first, by position
    assert array.positions[-31:].tolist() == list(range(31, 0, -1))
    assert sum(calls) == array.positions.shape[0] == 299_999
    assert array.count_range(np.zeros(32, np.int32)) == (0, 299_999 - 31)


def test_a_match_never_crosses_a_document_and_its_end_is_never_drafted():
    end = separator_of(NARROW)
    array = ContextArray.build(np.array([1, 2, end, 3, 4, end, end, 2, 3, 9, end], NARROW))
    assert array.draft(np.array([2], np.int32), 8, 8)[0].tolist() == [3, 9]
    assert array.count_range(np.array([2, 3], np.int32)) != (0, 0)
    assert np.subtract(*array.count_range(np.array([4, 2], np.int32))) == 0
    ended = array.continuation_counts(np.array([1, 2], np.int32))
    assert [column.tolist() for column in ended] == [[], []]
    # One of the two occurrences of 2 has ended, so the other's token has half of the weight.
    probs = array.draft(np.array([2], np.int32), 8, 8)[2]
    assert probs[0] == np.float32(0.5 * array._reliability[1])


def test_a_document_that_ends_inside_the_match_still_matches_as_far_as_it_goes():
    end = separator_of(WIDE)
    array = ContextArray.build(np.array([5, 6, 7, end, 8, 6, 7, 1, end], WIDE))
    assert array.draft(np.array([4, 5, 6, 7], np.int32), 4, 4)[0].tolist() == [1]
    assert array.draft(np.array([9, 8, 6], np.int32), 4, 4)[0].tolist() == [7, 1]


@pytest.mark.parametrize("tokens", [[], [7], [7, 65535], [65535], [65535, 65535]])
def test_tiny_corpora_draft_nothing(tokens):
    array = ContextArray.build(np.array(tokens, NARROW))
    array = ContextArray.from_columns(array.columns(), depth_tokens=32)
    assert array.draft(np.array([7], np.int32), 8, 8)[0].size == 0
    assert array.continuation_counts(np.array([7], np.int32))[0].size == 0


def test_unknown_and_empty_contexts_draft_nothing():
    array = ContextArray.build(np.array([1, 2, 3, 1, 2, 65535], NARROW))
    for context in ([], [4], [1, 0], [2**31 - 1], [65535]):
        assert array.draft(np.array(context, np.int32), 8, 8)[0].size == 0
    assert array.draft(np.array([1], np.int32), 0, 8)[0].size == 0
    assert array.draft(np.array([1], np.int32), 8, 0)[0].size == 0


def test_long_contexts_count_by_their_last_tokens():
    tokens = np.random.default_rng(0).integers(0, 3, 2_000).astype(NARROW)
    array = ContextArray.build(tokens)
    context = tokens[:1_000].astype(np.int32)
    long, short = (array.draft(c, 16, 8) for c in (context, context[-32:]))
    assert all(np.array_equal(a, b) for a, b in zip(long, short, strict=True))


def test_columns_round_trip_read_only_and_small(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 500, 300_000)
    for dtype, limit in ((NARROW, 6.1), (WIDE, 8.1)):
        array = ContextArray.build(tokens.astype(dtype))
        assert array.num_bytes / tokens.size <= limit
        mapped = {}
        for name, column in array.columns().items():
            np.save(tmp_path / f"{name}.npy", column)
            mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        again = ContextArray.from_columns(mapped, depth_tokens=array.depth_tokens)
        assert not any(column.flags.writeable for column in again.columns().values())
        context = tokens[:40].astype(np.int32)
        assert all(map(np.array_equal, array.draft(context, 16, 16), again.draft(context, 16, 16)))


def test_the_callers_array_stays_writeable():
    tokens = np.zeros(9, NARROW)
    ContextArray.build(tokens)
    assert tokens.flags.writeable


def changed(name, column):
    return lambda columns: {**columns, name: column(columns[name])}


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    "change",
    [
        lambda columns: {name: columns[name] for name in ("tokens", "buckets")},
        changed("tokens", lambda c: c.astype(np.int64)),
        changed("positions", lambda c: c.astype(np.int32)),
        changed("positions", lambda c: c.reshape(-1, 1)),
        changed("positions", lambda c: c[:-1]),
        changed("positions", lambda c: c[::2]),
        changed("buckets", lambda c: c[:0]),
        changed("buckets", lambda c: c[:-1]),
        changed("buckets", lambda c: c[::-1].copy()),
        changed("buckets", lambda c: c[[0, -1, *range(2, c.size)]]),
        changed("buckets", lambda c: np.append(np.zeros(2**21, np.uint32), c[-1:])),
        changed("tokens", lambda c: c[:4]),
        changed("tokens", lambda c: np.frombuffer(b"\0" + c.tobytes() + b"\0", c.dtype, c.size, 1)),
    ],
)
def test_wrong_columns_are_refused(change):
    columns = ContextArray.build(np.array([1, 2, 3, 1, 2, 65535], NARROW)).columns()
    with pytest.raises(DatastoreCorrupt):
        ContextArray.from_columns(change(columns), depth_tokens=32)


@pytest.mark.row("F3")
@settings(compiling, max_examples=200)
@given(st.data(), st.sampled_from([NARROW, WIDE]))
def test_damaged_columns_give_trees_within_the_contract(data, dtype):
    tokens = np.random.default_rng(1).integers(0, 4, 200).astype(dtype)
    columns = {name: column.copy() for name, column in ContextArray.build(tokens).columns().items()}
    for name in data.draw(st.sets(st.sampled_from(["tokens", "positions"]), min_size=1)):
        info = np.iinfo(columns[name].dtype)
        values = st.sampled_from([info.min, info.max, 0, 1, 199, 200, 201]) | st.integers(info.min, info.max)
        where = data.draw(st.lists(st.tuples(st.integers(0, 198), values), max_size=80))
        for index, value in where:
            columns[name][index] = value
    array = ContextArray.from_columns(columns, depth_tokens=32)
    context = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40)), np.int32)
    token_ids, parents, probs = array.draft(context, 64, 64)
    assert np.all((token_ids >= 0) & (token_ids < array.num_ids))
    assert np.all(parents < np.arange(parents.size))
    assert np.all((probs >= 0) & (probs <= 1))
    array.continuation_counts(context[-32:])


@pytest.mark.row("F3")
def test_a_damaged_directory_does_not_crash_queries():
    array = ContextArray.build(np.random.default_rng(1).integers(0, 4, 200).astype(NARROW))
    # from_columns refuses this; the file may change after it was checked.
    damaged = ContextArray(array.tokens, array.positions, np.array([9, 4, 2**32 - 1, 0, 7], np.uint32), 32)
    for token in range(6):
        damaged.draft(np.array([1, token], np.int32), 64, 64)
        damaged.continuation_counts(np.array([1, token], np.int32))


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (np.zeros((2, 2), NARROW), InvalidTokens),
        (np.zeros(3, np.int64), InvalidTokens),
        (np.array([1, -1], WIDE), InvalidTokens),
        (np.array([1, 2**31 - 2], WIDE), LimitExceeded),
        (np.broadcast_to(np.zeros(1, NARROW), (2**32 - 1,)), LimitExceeded),
    ],
)
def test_what_cannot_be_indexed_is_refused(tokens, error):
    with pytest.raises(error):
        ContextArray.build(tokens)


@pytest.mark.parametrize("depth", [0, 65, 10**9])
def test_a_depth_out_of_range_is_refused(depth):
    with pytest.raises(InvalidRequest):
        ContextArray.build(np.zeros(3, NARROW), depth_tokens=depth)


@pytest.mark.parametrize("length", [0, 33])
def test_counts_beyond_the_depth_are_refused(length):
    with pytest.raises(InvalidRequest):
        ContextArray.build(np.zeros(3, NARROW)).count_range(np.zeros(length, np.int32))


def test_an_error_in_progress_ends_the_build(monkeypatch):
    monkeypatch.setattr(context_array, "_MIN_TASK_POSITIONS", 10)

    def stop(positions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ContextArray.build(np.arange(1000).astype(NARROW), progress=stop)


PLAIN = """
import numpy as np
from retrieval_spec.structures.context_array import ContextArray
rng = np.random.default_rng(3)
for dtype in (np.uint16, np.int32):
    tokens = rng.choice([0, 1, 2, np.iinfo(dtype).max], 400, p=[0.5, 0.3, 0.15, 0.05]).astype(dtype)
    array = ContextArray.build(tokens, threads=1)
    print(array.positions.tolist())
    for start in range(0, 390, 13):
        context = tokens[start : start + 5].astype(np.int32)
        print([column.tolist() for column in array.draft(context, 9, 4)], array.count_range(context))
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


@pytest.mark.parametrize("num_ids", [65_534, 65_535, 65_536, 70_000])
def test_ids_in_use_are_sorted_alike_in_two_bytes_and_in_four(num_ids):
    rng = np.random.default_rng(num_ids)
    ids = np.sort(rng.choice(500_000, num_ids, replace=False)).astype(np.int32)
    end = np.array([np.iinfo(np.int32).max], np.int32)
    text = np.concatenate([rng.permutation(ids), rng.choice(ids, 9_999), end])
    array = ContextArray.build(text, depth_tokens=2)
    positions = np.arange(1, text.size)
    before, earlier = text[:-1], np.concatenate([end, text[:-2]])  # where the text begins sorts last
    assert array.positions.tolist() == positions[np.lexsort((positions, earlier, before))].tolist()
