from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.engine import Engine, Limits
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidRequest,
    InvalidTokens,
    LimitExceeded,
    MissingPath,
    UnknownSession,
)
from retrieval_spec.tree import DraftTree
from tests.fake_drafters import CountingCursor, CountingDrafter, TaughtDrafter

VOCAB_SIZE = 100


def engine(**options) -> Engine:
    drafters = {"half": CountingDrafter(VOCAB_SIZE, 0.5), "sure": CountingDrafter(VOCAB_SIZE, 0.875)}
    return Engine(VOCAB_SIZE, drafters, **options)


def test_sources_are_fused_into_one_tree_that_names_them():
    tree = engine().open_session([1, 2]).draft(max_nodes=3)
    assert tree.token_ids.tolist() == [3, 4, 5]
    assert tree.probs.tolist() == [0.875] * 3
    assert tree.sources.tolist() == [3, 3, 3]
    assert tree.source_names == ("half", "sure")


def test_committed_tokens_move_the_draft_on():
    session = engine().open_session([1])
    session.commit([7])
    session.commit(np.array([8, 9], np.int64))
    assert session.context.tolist() == [1, 7, 8, 9]
    assert session.draft(2).token_ids.tolist() == [10, 11]


def test_a_draft_changes_nothing():
    session = engine().open_session([1])
    assert session.draft(4) == session.draft(4)


@pytest.mark.parametrize("max_nodes", [0, -1])
def test_no_nodes_is_a_legal_budget(max_nodes):
    assert len(engine().open_session([1]).draft(max_nodes)) == 0


def test_an_empty_context_is_a_context():
    session = engine().open_session([])
    assert len(session.draft()) == 0
    session.commit([5])
    assert session.draft(1).token_ids.tolist() == [6]


@pytest.mark.row("P1")
@given(st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=400), max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_truncate_equals_a_session_that_never_went_further(commits, data):
    session = engine().open_session([1])
    for tokens in commits:
        session.commit(tokens)
    length = data.draw(st.integers(0, session.context_length))
    expected = session.context[:length].tolist()
    session.truncate(length)
    fresh = engine().open_session(expected)
    for either in (session, fresh):
        either.commit([3])
    assert session.context.tolist() == fresh.context.tolist() == [*expected, 3]
    assert session.draft() == fresh.draft()


def test_a_batch_shares_one_budget_by_probability():
    one_source = Engine(VOCAB_SIZE, {"sure": CountingDrafter(VOCAB_SIZE, 0.875)})
    sessions = [one_source.open_session([token]) for token in (1, 2, 3)]
    trees = one_source.draft_batch(sessions, total_nodes=8)
    assert [len(tree) for tree in trees] == [3, 3, 2]  # equal paths: ties go to the earlier session
    assert [len(tree) for tree in one_source.draft_batch(sessions, total_nodes=0)] == [0, 0, 0]
    assert one_source.draft_batch([], total_nodes=8) == []
    assert one_source.draft_batch([], total_nodes=-1) == []
    assert [len(tree) for tree in one_source.draft_batch(sessions, total_nodes=-1)] == [0, 0, 0]


def test_a_batch_gives_sure_sessions_the_nodes_of_unsure_ones():
    mixed = Engine(VOCAB_SIZE, {"sure": CountingDrafter(VOCAB_SIZE, 0.875)})
    trees = mixed.draft_batch([mixed.open_session([]), mixed.open_session([1])], total_nodes=5)
    assert [len(tree) for tree in trees] == [0, 5]


def test_no_session_of_a_batch_takes_more_than_four_times_the_average():
    mixed = Engine(VOCAB_SIZE, {"sure": CountingDrafter(VOCAB_SIZE, 1.0)})
    sessions = [mixed.open_session([]) for _ in range(7)]
    trees = mixed.draft_batch([*sessions, mixed.open_session([1])], total_nodes=16)
    assert [len(tree) for tree in trees] == [0] * 7 + [8]


def test_a_batch_respects_the_bound_of_each_session():
    mixed = Engine(VOCAB_SIZE, {"sure": CountingDrafter(VOCAB_SIZE, 1.0)})
    sessions = [mixed.open_session([1]) for _ in range(3)]
    trees = mixed.draft_batch(sessions, total_nodes=60, max_nodes=[0, 5, 100])
    assert [len(tree) for tree in trees] == [0, 5, 55]


def test_only_nodes_that_pay_are_drafted():
    halves = Engine(VOCAB_SIZE, {"half": CountingDrafter(VOCAB_SIZE, 0.5)})
    session = halves.open_session([1])
    assert len(session.draft(16, CostCurve.linear(0.0))) == 16
    assert len(session.draft(16, CostCurve.linear(0.03))) == 3
    assert len(session.draft(2, CostCurve.linear(0.03))) == 2
    assert len(session.draft(16, CostCurve.linear(0.6))) == 0
    assert len(session.draft(16)) == 16


def test_asking_again_under_a_curve_gives_the_same_tree():
    session = Engine(VOCAB_SIZE, {"half": CountingDrafter(VOCAB_SIZE, 0.9)}).open_session([1])
    curve = CostCurve((0, 16, 17, 64), (1.0, 1.1, 2.0, 2.1))
    first = session.draft(64, curve)
    assert len(session.draft(64, CostCurve.linear(0.5))) < len(first)
    assert session.draft(64, curve) == first


def test_a_batch_drafts_what_pays_in_the_common_pass():
    halves = Engine(VOCAB_SIZE, {"half": CountingDrafter(VOCAB_SIZE, 0.5)})
    sessions = [halves.open_session([token]) for token in range(10)]
    sizes = [
        [len(tree) for tree in halves.draft_batch(sessions[:count], 160, cost_curve=CostCurve.linear(0.03))]
        for count in (1, 2, 10)
    ]
    assert sizes == [[3], [3, 3], [1] * 10]


def draft_alone(engine, session, curve):
    return session.draft(16, curve)


def draft_in_a_batch(engine, session, curve):
    return engine.draft_batch([session], 16, cost_curve=curve)[0]


@pytest.mark.parametrize("draft", [draft_alone, draft_in_a_batch])
def test_nodes_that_nobody_verified_do_not_count_as_refused(draft):
    blending = Engine(VOCAB_SIZE)
    session = blending.open_session([*range(20)] * 3)
    sure = float(session.draft(16).path_probs().sum())
    for token in [*range(20)] * 15:
        assert len(draft(blending, session, CostCurve.linear(5.0))) == 0
        session.commit([token])
    assert float(session.draft(16).path_probs().sum()) >= sure > 12


@pytest.mark.quick
@pytest.mark.row("C1")
@pytest.mark.parametrize("bad", [[VOCAB_SIZE], [-1], [2**31], [0.5]])
def test_bad_tokens_leave_the_session_as_it_was(bad):
    session = engine().open_session([1])
    with pytest.raises(InvalidTokens):
        session.commit([2, *bad])
    assert session.context.tolist() == [1]
    with pytest.raises(InvalidTokens):
        engine().open_session(bad)


@pytest.mark.row("C1")
def test_limits_hold():
    small = engine(limits=Limits(max_context_tokens=4, max_nodes=2, max_sessions=1))
    with pytest.raises(LimitExceeded, match="context too long"):
        small.open_session([1, 2, 3, 4, 5])
    session = small.open_session([1, 2, 3])
    with pytest.raises(LimitExceeded, match="context too long"):
        session.commit([4, 5])
    assert session.context_length == 3
    assert len(session.draft(1_000)) == 2  # a budget is an upper bound: clamped, not refused
    with pytest.raises(LimitExceeded, match="sessions"):
        small.open_session([1])
    session.close()
    assert small.open_session([1]).context_length == 1


@pytest.mark.row("P1")
def test_a_step_for_another_state_is_refused():
    session = engine().open_session([1, 2])
    session.expect(2)
    with pytest.raises(ContextMismatch, match="got 3; expected 2"):
        session.expect(3)
    with pytest.raises(ContextMismatch):
        session.truncate(3)


def test_a_closed_session_is_unknown():
    session = engine().open_session([1])
    session.close()
    session.close()
    for call in (session.draft, lambda: session.commit([1]), lambda: session.truncate(0)):
        with pytest.raises(UnknownSession):
            call()


@pytest.mark.row("C1")
@pytest.mark.parametrize("namespace", ["", "a b", "x" * 65, "a/b/c", "/a", "a/", "../a", "ü"])
def test_a_namespace_is_a_name(namespace):
    with pytest.raises(InvalidRequest, match="namespace"):
        engine().open_session([1], namespace=namespace)


@pytest.mark.parametrize("vocab_size", [0, -1, 2**31])
def test_the_vocabulary_has_a_size(vocab_size):
    with pytest.raises(InvalidRequest, match="vocabulary"):
        Engine(vocab_size, {})


def test_wrong_set_ups_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidRequest, match="preset"):
        Engine(VOCAB_SIZE, preset="nonsense")
    with pytest.raises(InvalidRequest, match="sources"):
        Engine(VOCAB_SIZE, {str(index): CountingDrafter(VOCAB_SIZE) for index in range(17)})
    with pytest.raises(MissingPath):
        Engine(VOCAB_SIZE, datastores=[tmp_path / "nowhere"])


def test_an_engine_without_sources_drafts_nothing():
    assert Engine(VOCAB_SIZE, {}).open_session([1]).draft() == DraftTree.empty()


def test_one_engine_has_one_projection():
    same = {"one": TaughtDrafter(), "other": TaughtDrafter()}
    assert Engine(VOCAB_SIZE, same).state_dimensions == 3
    assert Engine(VOCAB_SIZE, same).wanted_topk == 2
    assert engine().projection is None
    another = TaughtDrafter()
    another.projection = replace(another.projection, mean=np.ones(5, np.float32))
    with pytest.raises(InvalidRequest, match="different projections"):
        Engine(VOCAB_SIZE, {"one": TaughtDrafter(), "other": another})


def test_what_follows_the_prompt_is_output_also_after_a_cut():
    class Noting(CountingDrafter):
        def start(self, context, namespace="default"):
            started.append((context.tolist(), namespace))
            return super().start(context, namespace)

    started = []
    session = Engine(VOCAB_SIZE, {"noting": Noting(VOCAB_SIZE)}).open_session([1, 2], "tenant")
    session.commit([3, 4])
    session.truncate(3)
    assert session.draft(1).token_ids.tolist() == [4]
    session.truncate(1)
    session.commit([7])
    session.truncate(2)
    assert session.draft(1).token_ids.tolist() == [8]
    assert started == [([1, 2], "tenant"), ([1, 2], "tenant"), ([1], "tenant"), ([1], "tenant")]


def test_a_preset_bounds_the_tree_and_so_do_the_limits():
    prompt = list(range(10)) * 4
    for preset, limits, expected in (
        ("pld", Limits(), 10),
        ("pld", Limits(max_nodes=4), 4),
        ("session", Limits(max_nodes=20), 20),
    ):
        session = Engine(VOCAB_SIZE, preset=preset, limits=limits).open_session(prompt)
        assert len(session.draft(200)) == expected


def test_a_tree_of_any_size_has_its_own_source():
    for size in (0, 1, 4_096, 4_097, 10_000):
        assert own_source(size).tolist() == [1] * size
        assert own_source(size).dtype == np.uint16


def test_a_guarded_cursor_hides_errors_of_its_own_kind_and_nothing_else(caplog):
    class Failing(CountingCursor):
        error: Exception = InvalidRequest("no drafts today")
        is_closed = False

        def propose(self, budget):
            raise self.error

        def close(self):
            self.is_closed = True

    cursor = Failing(CountingDrafter(VOCAB_SIZE))
    guarded = GuardedCursor(cursor)
    guarded.observe(np.array([1, 2], np.int32))
    assert [len(guarded.propose(Budget(4))) for _ in range(3)] == [0, 0, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    cursor.error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        guarded.propose(Budget(4))
    guarded.close()
    assert (cursor.seen, cursor.is_closed, guarded.is_closed) == ([1, 2], True, True)
