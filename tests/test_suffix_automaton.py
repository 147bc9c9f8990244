"""The growing suffix automaton against its dictionary twin and against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.kernels import automaton as kernels
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from tests.reference.suffix_automaton import DictAutomaton
from tests.strategies import as_int32, token_streams


@given(token_streams(max_size=60), st.lists(st.integers(1, 9), min_size=1))
def test_every_substring_has_the_twin_s_count_and_ends(tokens, chunk_sizes):
    automaton, twin = in_chunks(tokens, chunk_sizes), DictAutomaton(tokens)
    assert automaton.num_states == twin.num_states
    assert automaton.match_length == twin.match_length
    for start in range(len(tokens)):
        for stop in range(start + 1, len(tokens) + 1):
            state = twin.state_of(tokens[start:stop])
            expected = (state.count, state.first_end, state.last_end)
            assert automaton.occurrences(as_int32(tokens[start:stop])) == expected


def in_chunks(tokens, chunk_sizes):
    automaton, at, turn = SuffixAutomaton(), 0, 0
    while at < len(tokens):
        size = chunk_sizes[turn % len(chunk_sizes)]
        automaton.extend(as_int32(tokens[at : at + size]))
        at, turn = at + size, turn + 1
    return automaton


def records(automaton):
    return automaton.arena[kernels.HEADER_WORDS :][: automaton.num_states * kernels.STATE_WORDS].tolist()
