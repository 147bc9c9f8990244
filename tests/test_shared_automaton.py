"""The automaton of several growing texts, against a dictionary of all their substrings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.kernels import automaton as layout
from retrieval_spec.structures.shared_automaton import SharedAutomaton
from tests.reference.shared_text import SharedText
from tests.strategies import as_int32

pytestmark = pytest.mark.row("A1")

NUM_TEXTS = 3
COUNTED = 128
OFFSETS = st.sampled_from([0, 70_000, 2**31 - 4])
GROWTH = st.lists(
    st.tuples(st.integers(0, NUM_TEXTS - 1), st.lists(st.integers(0, 2), min_size=1, max_size=9)), max_size=14
)


def grown(growth, offset=0, counted=COUNTED, max_bytes=1 << 20):
    automaton, twin = SharedAutomaton(max_bytes, counted), SharedText(NUM_TEXTS)
    texts = [automaton.new_text() for _ in range(NUM_TEXTS)]
    for text, tokens in growth:
        shifted = [token + offset for token in tokens]
        assert automaton.extend(texts[text], as_int32(shifted))
        for token in shifted:
            twin.append(text, token)
    return automaton, twin


def edges_of(automaton, state):
    """Returns token -> count of the target, of every edge of a state."""
    arena = automaton.arena
    record = arena[layout.HEADER_WORDS + state * layout.STATE_WORDS :][: layout.STATE_WORDS]
    edges = [(record[layout.TOKEN], record[layout.TARGET])] if record[layout.TARGET] >= 0 else []
    index = record[layout.OVERFLOW]
    while index:
        row = arena[arena[layout.EDGES_AT] + index * layout.EDGE_WORDS :][: layout.EDGE_WORDS]
        edges.append((row[layout.EDGE_TOKEN], row[layout.EDGE_TARGET]))
        index = row[layout.EDGE_NEXT]
    counts = [arena[layout.HEADER_WORDS + to * layout.STATE_WORDS + layout.COUNT] for _, to in edges]
    return {int(token): int(count) for (token, _), count in zip(edges, counts, strict=True)}


@given(GROWTH, OFFSETS)
@settings(deadline=None, max_examples=60)
def test_every_substring_has_its_count_and_its_followers(growth, offset):
    automaton, twin = grown(growth, offset)
    followers = twin.followers()
    for string, count in twin.counts.items():
        assert automaton.num_occurrences(as_int32(string)) == count
        assert edges_of(automaton, layout.walk(automaton.arena, as_int32(string))) == followers[string]


@given(GROWTH, st.integers(1, 6), st.integers(0, NUM_TEXTS - 1))
@settings(deadline=None, max_examples=60)
def test_a_text_taken_out_leaves_the_counts_of_the_others(growth, counted, removed):
    automaton, _ = grown(growth, counted=counted)
    automaton.uncount(as_int32([token for text, tokens in growth if text == removed for token in tokens]))
    _, twin = grown(growth)
    _, others = grown([(text, tokens) for text, tokens in growth if text != removed])
    for string in twin.counts:
        found = automaton.num_occurrences(as_int32(string))
        if len(string) <= counted:
            assert found == others.counts[string]
        else:
            assert 0 <= found <= twin.counts[string]


def test_a_long_run_is_counted_exactly():
    automaton = SharedAutomaton(4 << 20, counted_tokens=24)
    automaton.extend(automaton.new_text(), as_int32([7] * 5_000))
    assert [automaton.num_occurrences(as_int32([7] * length)) for length in (1, 24)] == [5_000, 4_977]


@given(GROWTH, st.lists(st.integers(0, 2), min_size=1, max_size=6))
@settings(deadline=None)
def test_no_other_string_is_in_it(growth, string):
    automaton, twin = grown(growth)
    assert automaton.num_occurrences(as_int32(string)) == twin.counts[tuple(string)]


@given(GROWTH, st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_a_place_is_the_longest_suffix_that_occurs_and_is_not_too_long(growth, context, max_match):
    automaton, twin = grown(growth)
    place = automaton.new_place()
    for end in range(len(context)):
        automaton.follow(place, as_int32(context[end : end + 1]), max_match)
        seen = context[max(0, end + 1 - max_match) : end + 1]
        state, length = place.tolist()
        assert length == twin.match_length(seen)
        assert state == layout.walk(automaton.arena, as_int32(seen[len(seen) - length :]))
        again = automaton.new_place()
        automaton.follow(again, as_int32(seen), max_match)
        assert np.array_equal(place, again)


@given(GROWTH, GROWTH, st.lists(st.integers(0, 2), max_size=24), st.integers(1, 9))
@settings(deadline=None, max_examples=200)
def test_a_place_is_found_again_after_texts_have_grown(growth, more, context, max_match):
    automaton = SharedAutomaton(1 << 20, COUNTED)
    texts = [automaton.new_text() for _ in range(NUM_TEXTS)]
    place, fresh = automaton.new_place(), automaton.new_place()
    newest = as_int32(context[-max_match:])
    for further in (growth, more):
        for text, tokens in further:
            automaton.extend(texts[text], as_int32(tokens))
        automaton.find_again(place, newest, max_match)
        fresh[:] = 0
        automaton.follow(fresh, newest, max_match)
        assert np.array_equal(place, fresh)


def test_an_equal_text_makes_no_states():
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 500, 5_000).astype(np.int32)
    automaton = SharedAutomaton(8 << 20, COUNTED)
    automaton.extend(automaton.new_text(), tokens)
    states = int(automaton.arena[layout.NUM_STATES])
    automaton.extend(automaton.new_text(), tokens)
    assert automaton.arena[layout.NUM_STATES] == states
    assert automaton.num_occurrences(tokens[:9]) == 2
    assert automaton.num_tokens == 10_000


def test_growing_arenas_keep_everything():
    rng = np.random.default_rng(6)
    pieces = [rng.integers(0, 12, 700).astype(np.int32) for _ in range(60)]
    small, large = SharedAutomaton(16 << 20, COUNTED), SharedAutomaton(16 << 20, COUNTED)
    while large._make_room():
        pass
    for automaton in (small, large):
        texts = [automaton.new_text() for _ in range(4)]
        for at, piece in enumerate(pieces):
            assert automaton.extend(texts[at % 4], piece)
    in_use = layout.HEADER_WORDS + int(small.arena[layout.NUM_STATES]) * layout.STATE_WORDS
    words = np.ones(in_use, bool)
    words[: layout.HEADER_WORDS] = False
    words[layout.HEADER_WORDS + layout.OVERFLOW :: layout.STATE_WORDS] = False  # rows move with the size
    assert np.array_equal(small.arena[:in_use][words], large.arena[:in_use][words])
    for piece in pieces:
        for at in range(0, 690, 97):
            string = piece[at : at + 5]
            state = layout.walk(small.arena, string)
            assert edges_of(small, state) == edges_of(large, layout.walk(large.arena, string))


def test_a_full_automaton_refuses_and_still_answers():
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 1_000, 50_000).astype(np.int32)
    automaton = SharedAutomaton(1 << 20, COUNTED)
    assert not automaton.extend(automaton.new_text(), tokens)
    assert automaton.is_half_full
    assert automaton.allocated_bytes <= 1 << 20
    assert automaton.num_tokens > 5_000
    assert automaton.num_occurrences(tokens[:8]) == 1
    assert not automaton.extend(automaton.new_text(), tokens[::-1].copy())
