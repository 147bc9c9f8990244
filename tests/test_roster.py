"""Seats of sessions: kernels step over who sits there now, and over nobody else."""

from __future__ import annotations

import gc
import weakref

import pytest

from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.searched import Corpora
from retrieval_spec.engine import Engine
from retrieval_spec.structures.context_arrays import ContextArrays
from tests.stores import array_of, write_corpus
from tests.strategies import as_int32

VOCAB_SIZE = 70_000


@pytest.fixture
def engine(tmp_path):
    return Engine(VOCAB_SIZE, datastores=[write_corpus(tmp_path / "store", [[1, 2, 3, 4]], VOCAB_SIZE)])


def stepped(engine, *sessions):
    """The trees after nothing more; None where kernels alone cannot step."""
    num = len(sessions)
    lengths = [session.context_length for session in sessions]
    seats = [session.seat for session in sessions]
    step = engine.step_batch(seats, lengths, [0] * num, [8] * num, as_int32([]), 8 * num)
    return None if step is None else step.forest.trees([engine.source_names] * num)


def test_a_seat_is_given_again_and_its_former_session_is_not_stepped_over(engine):
    first = engine.open_session([1, 2])
    first.close()
    assert stepped(engine, first) is None
    second = engine.open_session([9, 1, 2, 3])
    assert second.seat == first.seat
    assert stepped(engine, second)[0].token_ids.tolist()[0] == 4


def test_more_sessions_than_there_were_seats_for_each_have_their_own(engine):
    sessions = [engine.open_session([1, 2, 3] if at % 2 else [1, 2]) for at in range(300)]
    assert len({session.seat for session in sessions}) == 300
    trees = stepped(engine, *sessions)
    assert [tree.token_ids.tolist()[0] for tree in trees] == [3, 4] * 150


def test_a_session_that_was_cut_is_stepped_over_as_it_is_now(engine):
    session = engine.open_session([7, 1])
    session.commit([2, 3])
    session.draft(4)
    session.truncate(3)
    assert session.draft(8) == stepped(engine, session)[0]
    assert stepped(engine, session)[0].token_ids.tolist()[0] == 3


def test_no_session_is_kept_alive(engine):
    session = weakref.ref(engine.open_session([1, 2]))
    gc.collect()
    assert session() is None


def test_sessions_from_before_a_datastore_came_are_not_mixed_with_later_ones(engine):
    before = engine.open_session([1, 2, 3])
    engine.drafters["corpus:more"] = CorpusDrafter(array_of([[1, 2, 3, 66]]))
    engine.source_names = engine.joining.source_names = tuple(engine.drafters)
    after = engine.open_session([1, 2, 3])
    assert stepped(engine, before, after) is None
    assert 66 not in stepped(engine, before)[0].token_ids.tolist()
    assert 66 in stepped(engine, after)[0].token_ids.tolist()
    trees = engine.draft_batch([before, after], 16)
    assert [66 in tree.token_ids.tolist() for tree in trees] == [False, True]


def test_rows_of_corpora_follow_their_sources_and_do_not_change_once_they_are_handed_out():
    drafter = CorpusDrafter(array_of([[1, 2, 3]]))
    corpora = Corpora(((5, drafter),))
    first = corpora.now()
    rows = first.rows.copy()
    assert corpora.now().rows is first.rows
    drafter.take_up(CorpusDrafter(array_of([[1, 2, 3]])))
    second = corpora.now()
    assert (first.rows == rows).all()
    assert (second.rows != rows).any()
    assert second.arrays == [drafter.corpus]
    drafter.take_up(CorpusDrafter(ContextArrays([array_of([[1, 2]]), array_of([[3]])])))
    assert corpora.now() is None
