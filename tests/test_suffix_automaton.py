"""The growing suffix automaton against its dictionary twin and against brute force."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.kernels import automaton as kernels
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from tests.reference.suffix_automaton import DictAutomaton
from tests.strategies import as_int32, token_streams

pytestmark = pytest.mark.row("A1")

LARGEST_ID = 2**31 - 2
chunk_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def in_chunks(tokens, sizes):
    automaton, at, turn = SuffixAutomaton(), 0, 0
    while at < len(tokens):
        size = sizes[turn % len(sizes)]
        automaton.extend(as_int32(tokens[at : at + size]))
        at, turn = at + size, turn + 1
    return automaton


def records(automaton):
    """All states as rows; overflow edges move when the buffers grow, so their places are left out."""
    words = automaton.arena[kernels.HEADER_WORDS :][: automaton.num_states * kernels.STATE_WORDS]
    rows = words.reshape(-1, kernels.STATE_WORDS).copy()
    rows[:, kernels.OVERFLOW] = 0
    return rows


def fibonacci_word(length):
    shorter, longer = [1], [1, 0]
    while len(longer) < length:
        shorter, longer = longer, longer + shorter
    return longer[:length]


def de_bruijn(order):
    """All binary strings of that length once, by the greedy rule "prefer one"."""
    bits, seen = [0] * order, {(0,) * order}
    while True:
        for bit in (1, 0):
            window = (*bits[len(bits) - order + 1 :], bit)
            if window not in seen:
                seen.add(window)
                bits.append(bit)
                break
        else:
            return bits


TEXTS = {
    "one token": lambda length: [7] * length,
    "two tokens in turn": lambda length: [3, 4] * (length // 2),
    "fibonacci": fibonacci_word,
    "de bruijn": lambda length: de_bruijn(length.bit_length())[:length],
    "a run, then another token": lambda length: [1] * (length - 1) + [2],
    "random": lambda length: np.random.default_rng(5).integers(0, 4, length).tolist(),
    "all different": lambda length: list(range(LARGEST_ID, LARGEST_ID - length, -1)),
}


@pytest.mark.quick
@given(token_streams(max_size=50, alphabet=4), chunk_sizes)
@settings(deadline=None)
def test_every_substring_has_the_twin_s_count_and_ends(tokens, sizes):
    automaton, twin = in_chunks(tokens, sizes), DictAutomaton(tokens)
    assert (automaton.num_states, automaton.num_tokens) == (twin.num_states, len(tokens))
    for start in range(len(tokens)):
        for stop in range(start + 1, len(tokens) + 1):
            state = twin.state_of(tokens[start:stop])
            expected = (state.count, state.first_end, state.last_end)
            assert automaton.occurrences(as_int32(tokens[start:stop])) == expected


@pytest.mark.quick
@given(token_streams(max_size=50, alphabet=2))
@settings(deadline=None)
def test_counts_and_ends_are_those_of_a_scan(tokens):
    automaton = SuffixAutomaton.from_tokens(as_int32(tokens))
    for size in range(1, 5):
        for start in range(len(tokens) - size + 1):
            string = tokens[start : start + size]
            ends = [end for end in range(size - 1, len(tokens)) if tokens[end - size + 1 : end + 1] == string]
            assert automaton.occurrences(as_int32(string)) == (len(ends), ends[0], ends[-1])


@pytest.mark.quick
@given(token_streams(max_size=60, alphabet=2), chunk_sizes)
@settings(deadline=None)
def test_the_match_is_the_longest_suffix_that_occurred_before(tokens, sizes):
    def occurred_before(size):
        suffix = tokens[len(tokens) - size :]
        return any(tokens[at : at + size] == suffix for at in range(len(tokens) - size))

    longest = max((size for size in range(len(tokens)) if size and occurred_before(size)), default=0)
    assert in_chunks(tokens, sizes).match_length == longest


@given(token_streams(max_size=30, alphabet=2), token_streams(max_size=6, alphabet=3))
@settings(deadline=None)
def test_a_string_that_does_not_occur_is_not_found(tokens, string):
    found = SuffixAutomaton.from_tokens(as_int32(tokens)).occurrences(as_int32(string))
    occurs = any(tokens[at : at + len(string)] == string for at in range(len(tokens) - len(string) + 1))
    assert (found is not None) == (occurs and len(string) > 0)


@pytest.mark.parametrize("token", [0, 65_535, 65_536, 151_936, LARGEST_ID, -1, -(2**31)])
def test_a_token_id_of_any_size_is_told_apart(token):
    automaton = SuffixAutomaton.from_tokens(as_int32([token, 5, token, 6]))
    assert automaton.occurrences(as_int32([token])) == (2, 0, 2)
    assert automaton.occurrences(as_int32([token & 0xFFFF, 7])) is None


@pytest.mark.parametrize("name", TEXTS)
def test_growth_in_small_steps_equals_one_load(name):
    tokens = as_int32(TEXTS[name](6_000))
    grown = SuffixAutomaton()
    for at in range(0, tokens.size, 7):
        grown.extend(tokens[at : at + 7])
    loaded = SuffixAutomaton.from_tokens(tokens)
    assert np.array_equal(records(grown), records(loaded))
    assert grown.counts_are_exact == loaded.counts_are_exact


@pytest.mark.parametrize("name", TEXTS)
def test_counts_are_exact_after_a_refresh(name):
    tokens = TEXTS[name](1_500)
    automaton = SuffixAutomaton.from_tokens(as_int32(tokens))
    automaton.refresh()
    assert automaton.counts_are_exact
    twin = DictAutomaton(tokens)
    for start in range(0, 1_400, 97):
        for size in (1, 2, 17, 90):
            state = twin.state_of(tokens[start : start + size])
            found = automaton.occurrences(as_int32(tokens[start : start + size]))
            assert found == (state.count, state.first_end, state.last_end)


def test_counts_of_a_long_run_are_lower_bounds_until_they_are_exact_again():
    automaton = SuffixAutomaton.from_tokens(as_int32([7] * 1_000))
    run = as_int32([7] * 3)
    assert not automaton.counts_are_exact
    assert automaton.occurrences(run).num_occurrences < 998
    automaton.extend(as_int32([7] * (kernels.FIRST_BOUNDARY - 1_000)))
    assert automaton.counts_are_exact
    assert automaton.occurrences(run) == (kernels.FIRST_BOUNDARY - 2, 2, kernels.FIRST_BOUNDARY - 1)


@pytest.mark.quick
@given(token_streams(max_size=200, alphabet=4))
@settings(deadline=None)
def test_states_and_edges_stay_within_the_bounds_of_theory(tokens):
    automaton = SuffixAutomaton.from_tokens(as_int32(tokens))
    assert automaton.num_states <= max(2 * len(tokens), 2)
    assert automaton.arena[kernels.NUM_EDGES] <= len(tokens) + 1


@pytest.mark.row("A1", "A2")
@pytest.mark.parametrize("name", TEXTS)
def test_building_takes_linear_time(name):
    def seconds(tokens):
        start = time.thread_time()
        SuffixAutomaton.from_tokens(tokens)
        return time.thread_time() - start

    short, long = as_int32(TEXTS[name](20_000)), as_int32(TEXTS[name](80_000))
    seconds(short)
    ratio = min(seconds(long) for _ in range(3)) / min(seconds(short) for _ in range(3))
    assert ratio < 4 * 4, f"4 times the text took {ratio:.1f} times as long"


def test_growing_publishes_a_new_buffer_and_leaves_the_old_one_alone():
    automaton = SuffixAutomaton.from_tokens(as_int32([1, 2, 1, 2]))
    old = automaton.arena
    automaton.extend(as_int32(list(range(10_000))))
    assert automaton.arena is not old
    assert old.size < automaton.arena.size
    assert automaton.allocated_bytes >= automaton.used_bytes > 10_000 * 32


def test_a_text_whose_length_was_told_grows_no_buffer():
    tokens = as_int32(np.random.default_rng(3).zipf(1.5, 20_000) % 50_000)
    automaton = SuffixAutomaton(tokens.size)
    arena = automaton.arena
    automaton.extend(tokens)
    assert automaton.arena is arena
    assert automaton.allocated_bytes < 80 * tokens.size


def test_extending_by_nothing_changes_nothing():
    automaton = SuffixAutomaton.from_tokens(as_int32([1, 2, 1]))
    before = automaton.arena.copy()
    automaton.extend(as_int32([]))
    assert np.array_equal(automaton.arena, before)
    assert SuffixAutomaton().match_length == 0
    assert SuffixAutomaton().occurrences(as_int32([])) is None


CHECKED = """
import numpy as np
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.session import SessionDrafter
for tokens in ([], [1], [1, 1, 1, 1], [0, 1] * 60, list(range(300)) + [5, 6], [2**31 - 2, 70000] * 9):
    cursor = SessionDrafter.open(2**31 - 1).start(np.array(tokens[:40], np.int32))
    for at in range(40, len(tokens), 7):
        cursor.observe(np.array(tokens[at : at + 7], np.int32))
    cursor.automaton.refresh()
    print(cursor.propose(Budget(9)).token_ids.tolist())
"""


@pytest.mark.row("A1", "F3")
def test_no_kernel_reads_or_writes_past_an_array():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECKED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["[]", "[]"]
    assert len(done.stdout.splitlines()) == 6
