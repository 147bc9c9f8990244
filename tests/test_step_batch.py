"""Steps that are done at once: the same as row by row, taken whenever they can be, and nothing half done."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters import stepping
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.prompts import PromptsDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import ContextMismatch, InvalidRequest, RetrievalSpecError, UnknownSession
from retrieval_spec.limits import Limits
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.service.steps import StepDesk
from retrieval_spec.session import Session
from retrieval_spec.structures.context_arrays import ContextArrays
from retrieval_spec.tree import DraftTree, Forest
from retrieval_spec.v1 import draft_pb2 as pb
from tests.stores import array_of, write_corpus
from tests.strategies import as_int32

VOCAB_SIZE = 70_000
DOCUMENTS = [[1, 2, 3, 1, 2, 4, 5], [69_999, 1, 2, 3, 3, 3, 0, 5]]
TOKENS = st.lists(st.one_of(st.integers(0, 5), st.just(69_999)), max_size=8)
CURVES = [None, None, CostCurve.linear(0.05), CostCurve((0, 2, 4), (1.0, 1.1, 3.0))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("stores") / "corpus", DOCUMENTS, VOCAB_SIZE)


def seats_of(sessions):
    return [session.seat for session in sessions]


class Sides:
    """Two equal engines with the same sessions, one of which does whole steps at once."""

    def __init__(self, store, prompts):
        self.whole, self.single = (Engine(VOCAB_SIZE, datastores=[store]) for _ in range(2))
        self.sessions = [
            tuple(engine.open_session(prompt) for engine in (self.whole, self.single)) for prompt in prompts
        ]

    def step(self, chosen, commits, caps, total_nodes, cost_curve=None):
        """The trees of both; None where not all was done at once, and then nothing was."""
        at_once, one_by_one = zip(*[self.sessions[at] for at in chosen], strict=True)
        stepped = self.whole.step_batch(
            seats_of(at_once),
            [one.context_length for one in at_once],
            [len(commit) for commit in commits],
            caps,
            as_int32([token for commit in commits for token in commit]),
            total_nodes,
            cost_curve,
        )
        if stepped is None:
            return None
        self.whole.learn(stepped)
        for at in stepped.due:
            at_once[at].tend()
        for session, commit in zip(one_by_one, commits, strict=True):
            session.commit(commit)
        expected = self.single.draft_batch(one_by_one, total_nodes, caps, cost_curve)
        for session in one_by_one:  # one that is asked for no nodes would wait for its next draft
            session.joint.settle()
        trees = stepped.forest.trees([self.whole.source_names] * len(chosen))
        return trees, expected

    def end(self, at):
        for session in self.sessions[at]:
            session.close()


@st.composite
def scripts(draw):
    prompts = draw(st.lists(TOKENS, min_size=1, max_size=5))
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        chosen = draw(st.lists(st.sampled_from(range(len(prompts))), min_size=1, unique=True))
        commits = [draw(TOKENS) for _ in chosen]
        caps = [draw(st.integers(-1, 16)) for _ in chosen]
        steps.append((chosen, commits, caps, draw(st.integers(0, 40)), draw(st.sampled_from(CURVES))))
    return prompts, steps


@given(scripts(), TOKENS)
@settings(max_examples=60, deadline=None)
def test_trees_contexts_and_what_is_learned_are_those_of_single_rows(store, script, later):
    prompts, steps = script
    sides = Sides(store, prompts)
    for chosen, commits, caps, total_nodes, cost_curve in steps:
        done = sides.step(chosen, commits, caps, total_nodes, cost_curve)
        if cost_curve is not None and len(chosen) == 1:
            assert done is None
        else:
            assert done is not None
            assert done[0] == done[1]
    for whole, single in sides.sessions:
        assert whole.context.tolist() == single.context.tolist()
        assert whole.draft(12) == single.draft(12)
    for at in range(len(prompts)):
        sides.end(at)
    drafts = [engine.open_session(later).draft(20) for engine in (sides.whole, sides.single)]
    assert drafts[0] == drafts[1]


def test_texts_grow_beyond_every_room(store):
    """Contexts, automata and histories move to larger memory while steps go on at once."""
    rng = np.random.default_rng(1)
    sides = Sides(store, [[1, 2, 3], [], list(range(300))])
    drafted = 0
    for step in range(150):
        commits = [rng.integers(0, 12 if step % 3 else 5_000, rng.integers(0, 60)).tolist() for _ in range(3)]
        trees, expected = sides.step([0, 1, 2], commits, [8, 8, 8], 16)
        assert trees == expected
        drafted += sum(map(len, trees))
        if step % 25 == 24:  # and others learn what one of them wrote
            sides.end(step // 25 % 3)
            sides.sessions[step // 25 % 3] = tuple(
                engine.open_session([1, 2, step]) for engine in (sides.whole, sides.single)
            )
    assert drafted > 1_000
    assert max(whole.context_length for whole, _ in sides.sessions) > 1_000


def test_where_a_kernel_finds_no_room_the_session_drafts_all_the_same(store):
    """New states come without end: more than was made room for ahead."""
    sides = Sides(store, [list(range(100)) * 2, [1, 2, 3, 1, 2]])
    at = 1_000
    for _ in range(40):
        commits = [[*range(at, at + 90), *range(90)], [3, 1, 2]]
        done = sides.step([0, 1], commits, [8, 8], 12)
        if done is None:  # the context itself has no room: row by row there is
            for session in sides.sessions[0]:
                session.commit(commits[0])
        else:
            assert done[0] == done[1]
            assert len(done[0][0]) > 0
        at += 90


def test_no_tree_depends_on_who_had_time_to_learn(store):
    """Sessions that go on together learn in the same order after each step and before the next one."""
    rng, engines = np.random.default_rng(2), [Engine(VOCAB_SIZE, datastores=[store]) for _ in range(2)]
    sides = [[one.open_session([1, 2, 3, 1, 2]) for _ in range(6)] for one in engines]
    probs: set[float] = set()
    for length in range(5, 125, 2):
        asked = [length] * 6, [2] * 6, [8] * 6, as_int32(rng.integers(1, 5, 12).tolist()), 24
        steps = [one.step_batch(seats_of(side), *asked) for one, side in zip(engines, sides, strict=True)]
        engines[0].learn(steps[0])
        forests = [step.forest.trees([engines[0].source_names] * 6) for step in steps]
        assert forests[0] == forests[1]
        probs |= {*forests[0][0].probs.tolist()}
    assert len(probs) > 60


def batch_of(engine, *prompts):
    sessions = [engine.open_session(prompt) for prompt in prompts]
    for session in sessions:
        session.draft(4)
    return sessions


UNUSUAL = {
    "another length": {"lengths": [9, 4]},
    "a token below 0": {"token_ids": [7, -1]},
    "a token past the vocabulary": {"token_ids": [7, VOCAB_SIZE]},
    "more tokens than one commit may have": {"commits": [70, 0], "token_ids": [1] * 70},
    "fewer tokens than are counted": {"commits": [2, 1]},
    "more tokens than are counted": {"commits": [1, 0]},
    "a commit of less than nothing": {"commits": [3, -1]},
    "more nodes than there is room for": {"total_nodes": 2_000, "max_nodes": [900, 900]},
}


@pytest.mark.parametrize("unusual", UNUSUAL.values(), ids=UNUSUAL)
def test_of_an_unusual_step_nothing_is_done(unusual):
    engine = Engine(VOCAB_SIZE, limits=Limits(max_append_tokens=64))
    sessions = batch_of(engine, [1, 2, 3, 1], [1, 2, 3, 1])
    before = [session.draft(8) for session in sessions]
    usual = {"lengths": [4, 4], "commits": [1, 1], "max_nodes": [4, 4], "token_ids": [2, 2], "total_nodes": 8}
    asked = usual | unusual
    asked["token_ids"] = as_int32(asked["token_ids"])
    assert engine.step_batch(seats_of(sessions), *asked.values()) is None
    assert [session.context.tolist() for session in sessions] == [[1, 2, 3, 1]] * 2
    assert [session.draft(8) for session in sessions] == before
    usual["token_ids"] = as_int32(usual["token_ids"])
    assert engine.step_batch(seats_of(sessions), *usual.values()) is not None
    assert [session.context.tolist() for session in sessions] == [[1, 2, 3, 1, 2]] * 2


def test_a_session_that_stands_in_a_step_twice_is_not_done_at_once():
    session, other = batch_of(Engine(VOCAB_SIZE), [1, 2, 3, 1], [1, 2])
    asked = ([4, 2, 4], [1, 0, 1], [4, 4, 4], as_int32([2, 2]), 8)
    assert session._engine.step_batch(seats_of([session, other, session]), *asked) is None
    assert session.context_length == 4


def test_a_closed_session_and_one_with_tokens_to_work_in_are_unusual():
    engine = Engine(VOCAB_SIZE)
    sessions = batch_of(engine, [1, 2, 3, 1], [1, 2, 3, 1])
    nothing = ([0, 0], [4, 4], as_int32([]), 8)
    sessions[0].commit([2])
    assert engine.step_batch(seats_of(sessions), [5, 4], *nothing) is None
    sessions[0].draft(4)
    assert engine.step_batch(seats_of(sessions), [5, 4], *nothing) is not None
    sessions[1].close()
    assert engine.step_batch(seats_of(sessions), [5, 4], *nothing) is None


def test_without_memory_for_a_commit_nothing_is_done():
    engine = Engine(VOCAB_SIZE, limits=Limits(max_session_bytes=50_000))
    sessions = batch_of(engine, [1, 2, 3], [1, 2, 3])
    tokens = as_int32([1] * 400)
    assert engine.step_batch(seats_of(sessions), [3, 3], [200, 200], [4, 4], tokens, 8) is None
    assert [session.context_length for session in sessions] == [3, 3]


@pytest.mark.parametrize("preset", ["suffix", "session+recycling"])
def test_sources_that_have_to_be_told_go_row_by_row(preset):
    engine = Engine(VOCAB_SIZE, preset=preset)
    sessions = [engine.open_session([1, 2, 3, 1])]
    assert engine.step_batch(seats_of(sessions), [4], [1], [4], as_int32([2]), 4) is None
    assert sessions[0].context_length == 4


def test_what_was_committed_at_once_is_drafted_by_others_once_the_session_ended():
    engine = Engine(VOCAB_SIZE)
    writing, open_one = batch_of(engine, [1, 2], [9, 41, 42])
    for length, token in enumerate([41, 42, 43, 44, 45, 46], start=2):
        assert engine.step_batch(seats_of([writing]), [length], [1], [4], as_int32([token]), 4) is not None
    writing.close()
    history = 1 << engine.source_names.index("history")
    for session in (open_one, engine.open_session([9, 41, 42])):
        forest = engine.step_batch(seats_of([session]), [3], [0], [4], as_int32([]), 4).forest
        assert forest.token_ids.tolist()[:3] == [43, 44, 45]
        assert forest.sources[0] & history


def with_live_history():
    history = HistoryDrafter.open(VOCAB_SIZE, learn="live")
    return {"session": SessionDrafter.open(VOCAB_SIZE), "history": history, "prompts": PromptsDrafter.open(1)}


def test_outputs_that_are_learned_as_they_are_written_are_learned_at_once():
    from retrieval_spec.drafters.blend import Blend

    engine = Engine(VOCAB_SIZE, with_live_history())
    engine.joining = Blend(engine.source_names)
    writing, reading = batch_of(engine, [1, 2], [1, 2])
    assert engine.step_batch(seats_of([writing]), [2], [1], [4], as_int32([3]), 4) is None
    for token in (41, 42, 43, 44):
        writing.commit([token])
        writing.draft(4)
    reading.commit([41, 42])
    assert reading.draft(4).token_ids.tolist()[:2] == [43, 44]


def answered(servicer, rows, total_nodes=16, **fields):
    step, result = pb.DraftStep(step_number=3, **fields), pb.DraftStepResult()
    wire.write_step(step, rows, total_nodes)
    servicer.answer(step, result)
    return wire.read_result(
        result, [row.max_nodes for row in rows], total_nodes, VOCAB_SIZE, servicer.engine.source_names
    )


def opened(servicer, prompt):
    request = pb.OpenSessionRequest(prompt_token_ids=as_int32(prompt).tobytes())
    return servicer.open_session(request).session_id


@pytest.fixture
def servicer(store):
    return Servicer(Engine(VOCAB_SIZE, datastores=[store]))


@pytest.fixture
def row_by_row(monkeypatch):
    """How many steps a server answered row by row."""
    calls, method = [], StepDesk._row_by_row

    def counted(self, *arguments):
        calls.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(StepDesk, "_row_by_row", counted)
    return calls


@pytest.mark.parametrize("pad_to_nodes", [0, 6])
def test_a_server_answers_usual_steps_at_once(servicer, row_by_row, caplog, pad_to_nodes):
    ids = [opened(servicer, [1, 2, 3, 1, 2]) for _ in range(5)]
    for length in range(5, 400, 2):
        rows = [wire.SessionStep(one, length, as_int32([3, 1 + length % 5]), 4) for one in ids]
        step, result = pb.DraftStep(pad_to_nodes=pad_to_nodes), pb.DraftStepResult()
        wire.write_step(step, rows, 16)
        servicer.end_step(servicer.answer(step, result))
        assert set(result.statuses) == {0}
        assert len(result.node_counts) == 20
        assert not pad_to_nodes or len(result.token_ids) == 4 * 5 * pad_to_nodes
    assert row_by_row == []
    assert caplog.records == []
    assert servicer.meter.steps == len(range(5, 400, 2))
    assert servicer.meter.committed_tokens == 2 * 5 * servicer.meter.steps
    assert servicer.meter.drafts > servicer.meter.steps


def test_a_server_learns_once_the_answer_is_under_way(servicer, row_by_row):
    one, num_learned = opened(servicer, [1, 2, 3, 1, 2]), 0
    for length, token in enumerate((3, 1, 2, 3), start=5):
        before = servicer.engine.joining.cells_of("default").copy()
        step, result = pb.DraftStep(), pb.DraftStepResult()
        wire.write_step(step, [wire.SessionStep(one, length, as_int32([token]), 8)], 8)
        done = servicer.answer(step, result)
        assert np.array_equal(servicer.engine.joining.cells_of("default"), before)
        servicer.end_step(done)
        num_learned += not np.array_equal(servicer.engine.joining.cells_of("default"), before)
    assert num_learned == 3  # before the first one nothing was drafted
    assert row_by_row == []


def test_sessions_are_in_use_as_long_as_steps_are_done_for_them(servicer, row_by_row, monkeypatch):
    table, now_s = servicer.sessions, 0.0
    monkeypatch.setattr(table, "_clock", lambda: now_s)
    used, unused, ended = (opened(servicer, [1, 2, 3, 1, 2]) for _ in range(3))
    now_s = servicer.engine.limits.max_idle_s - 1.0
    step, result = pb.DraftStep(), pb.DraftStepResult()
    wire.write_step(step, [wire.SessionStep(one, 5, as_int32([3]), 4) for one in (used, ended)], 8)
    done = servicer.answer(step, result)
    table.close(ended)  # before the answer is under way
    servicer.end_step(done)
    assert row_by_row == []
    now_s += 2.0
    assert table.drop_idle() == 1
    assert table.get(used).context_length == 6
    assert table.seats([unused]) is None
    assert [*table._used_s] == [used]


def test_a_server_says_which_row_failed_and_answers_the_others(servicer, row_by_row):
    ids = [opened(servicer, [1, 2, 3, 1, 2]) for _ in range(2)]
    rows = [wire.SessionStep(one, 5, as_int32([3]), 4) for one in (ids[0], 77, ids[1])]
    outcomes = answered(servicer, rows)
    assert len(row_by_row) == 1
    assert [isinstance(outcome, DraftTree) for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], UnknownSession)
    assert [servicer.sessions.get(one).context_length for one in ids] == [6, 6]


def test_a_session_that_stands_twice_in_a_message_is_committed_to_once(servicer, row_by_row):
    one = opened(servicer, [1, 2, 3, 1, 2])
    outcomes = answered(servicer, [wire.SessionStep(one, 5, as_int32([3]), 4)] * 2)
    assert len(row_by_row) == 1
    assert type(outcomes[1]).__name__ == "ContextMismatch"
    assert servicer.sessions.get(one).context.tolist() == [1, 2, 3, 1, 2, 3]


def test_a_datastore_that_is_replaced_is_drafted_from_with_the_next_step(servicer, row_by_row):
    one = opened(servicer, [9, 9, 9, 1, 2])
    before = answered(servicer, [wire.SessionStep(one, 5, as_int32([]), 4)])[0]
    corpus = next(source for source in servicer.engine.drafters.values() if isinstance(source, CorpusDrafter))
    corpus.take_up(CorpusDrafter(array_of([[1, 2, 66, 67, 68]] * 3)))
    for _ in range(2):
        tree = answered(servicer, [wire.SessionStep(one, 5, as_int32([]), 4)])[0]
        assert 66 in tree.token_ids.tolist()
    assert 66 not in before.token_ids.tolist()
    assert row_by_row == []


def test_what_another_corpus_proposed_is_not_drafted_once_the_first_one_is_back(store):
    engine, expected = Engine(VOCAB_SIZE, datastores=[store]), Engine(VOCAB_SIZE, datastores=[store])
    drafter = next(source for source in engine.drafters.values() if isinstance(source, CorpusDrafter))
    session, fresh = (one.open_session([9, 9, 1, 2]) for one in (engine, expected))
    first = drafter.corpus
    drafter.take_up(CorpusDrafter(ContextArrays([array_of([[1, 2, 66, 67]]), array_of([[1, 2, 68]])])))
    assert 66 in session.draft(8).token_ids.tolist()
    drafter.take_up(CorpusDrafter(first))
    for turn in range(2):
        stepped = engine.step_batch(seats_of([session]), [4], [0], [8], as_int32([]), 8)
        assert (stepped is None) == (turn == 0)
        trees = [session.draft(8)] if stepped is None else stepped.forest.trees([engine.source_names])
        assert trees == [fresh.draft(8)]


def broken(*arguments):
    raise MemoryError


def test_where_a_kernel_fails_the_sessions_of_the_step_end_and_teach_nobody(servicer, monkeypatch):
    ids = [opened(servicer, [1, 2, 3, 1, 2]) for _ in range(2)]
    bystander = opened(servicer, [1, 2, 3, 1, 2])
    answered(servicer, [wire.SessionStep(one, 5, as_int32([51, 52, 53]), 4) for one in ids])
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "take_steps", broken)
        outcomes = answered(servicer, [wire.SessionStep(one, 8, as_int32([3]), 4) for one in ids])
    assert all(isinstance(outcome, RetrievalSpecError) for outcome in outcomes)
    assert not any(isinstance(outcome, ContextMismatch) for outcome in outcomes)
    assert len(servicer.sessions) == servicer.engine.num_sessions == 1
    assert len(answered(servicer, [wire.SessionStep(bystander, 5, as_int32([3]), 4)])[0]) > 0
    assert 53 not in servicer.engine.open_session([51, 52]).draft(8).token_ids.tolist()


def test_where_learning_fails_the_sessions_of_the_step_end(servicer, monkeypatch):
    ids = [opened(servicer, [1, 2, 3, 1, 2]) for _ in range(2)]
    bystander = opened(servicer, [1, 2, 3, 1, 2])
    monkeypatch.setattr(stepping, "learn_outcomes", broken)
    step, result = pb.DraftStep(), pb.DraftStepResult()
    wire.write_step(step, [wire.SessionStep(one, 5, as_int32([3]), 4) for one in ids], 8)
    servicer.end_step(servicer.answer(step, result))
    assert set(result.statuses) == {0}
    assert [servicer.sessions.seats([one]) is None for one in (*ids, bystander)] == [True, True, False]


def test_a_session_that_cannot_be_tended_to_ends_alone(servicer, row_by_row, monkeypatch):
    writing, reading = (opened(servicer, [1, 2, 3, 1, 2]) for _ in range(2))
    monkeypatch.setattr(Session, "tend", broken)
    for length in range(5, 400):
        step, result = pb.DraftStep(), pb.DraftStepResult()
        rows = [
            wire.SessionStep(writing, length, as_int32([3]), 4),
            wire.SessionStep(reading, 5, as_int32([]), 4),
        ]
        wire.write_step(step, rows, 8)
        servicer.end_step(servicer.answer(step, result))
        if len(servicer.sessions) < 2:
            break
    assert set(result.statuses) == {0}
    assert row_by_row == []
    assert servicer.sessions.seats([writing]) is None
    assert servicer.sessions.get(reading).draft(4) is not None


def test_a_draft_that_fails_holds_no_datastore(store, monkeypatch):
    engine = Engine(VOCAB_SIZE, datastores=[store])
    session = engine.open_session([9, 1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "take_steps", broken)
        with pytest.raises(MemoryError):
            session.draft(4)
    drafter = next(source for source in engine.drafters.values() if isinstance(source, CorpusDrafter))
    replaced = weakref.ref(drafter.corpus)
    drafter.take_up(CorpusDrafter(array_of([[1, 2, 66]])))
    assert replaced() is None


def test_a_malformed_step_changes_no_cost_curve(servicer):
    one = opened(servicer, [1, 2, 3, 1, 2])
    step = pb.DraftStep(commit_token_ids=b"abc")
    wire.write_columns(step, wire.StepColumns([one], [5], [1], [4]), b"abc", 4)
    wire.write_cost_curve(step, CostCurve.linear(0.5))
    with pytest.raises(InvalidRequest):
        servicer.answer(step, pb.DraftStepResult())
    assert servicer.sessions.followed([one]) is None


def test_a_cut_session_is_counted_with_what_it_holds():
    engine = Engine(VOCAB_SIZE)
    session = engine.open_session([])
    session.commit(np.arange(50_000, dtype=np.int32) % 6_000)
    counted = engine.ledger.num_bytes
    session.truncate(49_999)
    assert engine.ledger.num_bytes > 0.9 * counted


@pytest.mark.parametrize("num_steps", [0, 1])
def test_open_sessions_keep_no_datastore_that_was_replaced(store, num_steps):
    engine = Engine(VOCAB_SIZE, datastores=[store])
    sessions = [engine.open_session([9, 1, 2]) for _ in range(2)]
    for length in range(3, 3 + num_steps):
        assert (
            engine.step_batch(seats_of(sessions), [length] * 2, [1, 1], [4, 4], as_int32([3, 3]), 8)
            is not None
        )
    drafter = next(source for source in engine.drafters.values() if isinstance(source, CorpusDrafter))
    replaced = weakref.ref(drafter.corpus)
    drafter.take_up(CorpusDrafter(array_of([[1, 2, 66]])))
    assert replaced() is None


def test_trees_in_common_columns_are_the_same_on_the_wire():
    trees = [DraftTree.from_lists([1, 2, 3], [-1, 0, -1]), DraftTree.empty(), DraftTree.chain([7], [0.5])]
    forest = Forest.of(trees)
    assert forest.trees([()] * 3) == trees
    together, apart = pb.DraftStepResult(), pb.DraftStepResult()
    wire.write_forest(together, forest)
    wire.write_result(apart, trees)
    assert together == apart
