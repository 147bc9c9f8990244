"""The rows of commonest continuations, against a count of what follows every string."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.kernels import automaton as layout
from retrieval_spec.kernels.commonest import MAX_PAIRS, ROW_WORDS, row_of
from retrieval_spec.structures.shared_automaton import SharedAutomaton
from tests.strategies import as_int32

pytestmark = pytest.mark.row("A1")

COUNTED = 128
STATE, TOTAL, NUM_EDGES, NUM_PAIRS, PAIRS = range(5)


class Counted:
    """Texts in an automaton with rows for its states, and as lists."""

    def __init__(self, num_rows: int = 64) -> None:
        self.automaton = SharedAutomaton(1 << 24, COUNTED)
        self.texts: list[list[int]] = []
        self.rows = np.zeros((num_rows, ROW_WORDS), np.int32)

    def add(self, text: list[int]) -> None:
        self.texts.append(text)
        assert self.automaton.extend(self.automaton.new_text(), as_int32(text))

    def remove_last(self) -> None:
        self.automaton.uncount(as_int32(self.texts.pop()))

    def row(self, string: list[int]) -> list[int]:
        arena = self.automaton.arena
        state = layout.walk(arena, as_int32(string))
        return self.rows[row_of(arena.view(np.uint32), self.rows, state)].tolist()

    def followers(self, string: list[int]) -> Counter[int]:
        found: Counter[int] = Counter()
        for text in self.texts:
            for at in range(len(text) - len(string)):
                if text[at : at + len(string)] == string:
                    found[text[at + len(string)]] += 1
        return found

    def edges(self, string: list[int]) -> list[int]:
        """The tokens that follow a string, as its edges follow each other."""
        arena = self.automaton.arena
        record = layout.record_of(layout.walk(arena, as_int32(string)))
        tokens, edge = [int(arena[record + layout.TOKEN])], int(arena[record + layout.OVERFLOW])
        while edge:
            at = int(arena[layout.EDGES_AT]) + edge * layout.EDGE_WORDS
            tokens.append(int(arena[at + layout.EDGE_TOKEN]))
            edge = int(arena[at + layout.EDGE_NEXT])
        return tokens

    def occurrences(self, string: list[int]) -> int:
        """How often a string occurs: the empty one with every token."""
        return self.automaton.num_occurrences(as_int32(string)) if string else self.automaton.num_tokens


def pairs_of(row: list[int]) -> dict[int, int]:
    """The pairs in their order."""
    pairs = row[PAIRS : PAIRS + 2 * row[NUM_PAIRS]]
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def check_row(counted: Counted, string: list[int]) -> None:
    followers, row = counted.followers(string), counted.row(string)
    assert row[STATE] == layout.walk(counted.automaton.arena, as_int32(string))
    assert row[TOTAL] == counted.occurrences(string)
    assert row[NUM_EDGES] == len(followers)
    known = [token for token in counted.edges(string) if followers[token]]
    commonest = sorted(known, key=lambda token: -followers[token])[:MAX_PAIRS]
    assert list(pairs_of(row).items()) == [(token, followers[token]) for token in commonest]


TOKENS = st.lists(st.integers(0, 4), min_size=2, max_size=40)


@given(st.lists(TOKENS, min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_rows_of_all_strings_hold_their_continuations(texts):
    counted = Counted()
    for text in texts:
        counted.add(text)
    check_row(counted, [])
    for text in texts:
        for begin in range(len(text) - 1):
            for end in range(begin + 1, min(begin + 4, len(text))):
                if counted.followers(text[begin:end]):
                    check_row(counted, text[begin:end])


@given(st.lists(st.integers(1, 5), min_size=MAX_PAIRS - 2, max_size=3 * MAX_PAIRS), st.randoms())
@settings(deadline=None, max_examples=100)
def test_of_many_continuations_the_commonest_are_kept(counts, random):
    followers = [token for token, count in enumerate(counts, 1_000) for _ in range(count)]
    random.shuffle(followers)
    counted = Counted()
    counted.add([token for follower in followers for token in (7, follower)])
    check_row(counted, [7])
    check_row(counted, [])


def test_a_continuation_that_no_text_has_any_more_is_left_out():
    counted = Counted()
    counted.add([1, 2, 1, 3, 1, 2])
    counted.add([1, 4, 1, 3])
    check_row(counted, [1])
    counted.remove_last()
    check_row(counted, [1])
    assert counted.row([1])[NUM_EDGES] == 2


@pytest.mark.parametrize("first_count", [64, 71, 72, 100])
def test_a_row_is_written_anew_when_its_state_is_an_eighth_more_frequent(first_count):
    counted = Counted()
    for _ in range(first_count):
        counted.add([1, 2])
    before = counted.row([1])
    assert before[TOTAL] == first_count
    for more in range(1, first_count // 8 + 1):
        counted.add([1, 3])
        assert counted.occurrences([1]) == first_count + more
        assert counted.row([1]) == before
    counted.add([1, 3])
    assert pairs_of(counted.row([1])) == {2: first_count, 3: first_count // 8 + 1}
    check_row(counted, [1])


@pytest.mark.parametrize("first_count", [7, 8, 63, 64, 65])
def test_the_row_of_all_texts_is_written_anew_when_they_are_an_eighth_longer(first_count):
    counted = Counted(num_rows=1)
    counted.add([2] * first_count)
    before = counted.row([])
    for _ in range(first_count // 8):
        counted.add([3])
        assert counted.row([]) == before
    counted.add([3])
    assert pairs_of(counted.row([])) == {2: first_count, 3: first_count // 8 + 1}
    check_row(counted, [])


def test_states_that_meet_in_one_row_take_it_by_turns_but_for_that_of_all_texts():
    counted = Counted(num_rows=2)
    counted.add([1, 2, 3, 2, 1, 3])
    check_row(counted, [])
    of_all = counted.rows[0].tolist()
    for string in ([1], [2], [1], [3], [2]):
        check_row(counted, string)
        assert counted.rows[0].tolist() == of_all
    check_row(counted, [])
