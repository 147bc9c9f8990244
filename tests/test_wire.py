from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import wire
from retrieval_spec.budget import MAX_CURVE_POINTS, CostCurve
from retrieval_spec.errors import (
    InvalidRequest,
    InvalidTokens,
    InvalidTree,
    LimitExceeded,
    RetrievalSpecError,
    ServiceUnavailable,
    UnknownSession,
    error_types,
)
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftStepResult
from tests.strategies import draft_trees, feedbacks

NAMES = ("a", "b", "c")
VOCAB_SIZE = 5
INT32 = st.integers(-(2**31), 2**31 - 1)
TOKENS = st.lists(INT32, max_size=6).map(lambda values: np.array(values, np.int32))
ROWS = st.lists(
    st.builds(
        wire.SessionStep,
        session_id=st.integers(0, 2**64 - 1),
        context_length=st.integers(-(2**63), 2**63 - 1),
        commit=TOKENS,
        max_nodes=st.integers(0, 2**31 - 1),
        feedback=st.none() | feedbacks(),
    ),
    max_size=5,
)
NAMED_TREES = draft_trees(vocab_size=VOCAB_SIZE).map(
    lambda tree: DraftTree(tree.token_ids, tree.parents, tree.probs, tree.sources, NAMES)
)
ERRORS = st.sampled_from(sorted(error_types().values(), key=lambda error_type: error_type.__name__)).map(
    lambda error_type: error_type("it failed", got=3)
)
OUTCOMES = st.lists(NAMED_TREES | ERRORS, max_size=5)


def rows_of(step, max_sessions):
    columns = wire.read_columns(step, max_sessions)
    return wire.read_step(step, columns, wire.read_commits(step, columns))


def step_of(rows, total_nodes=8) -> DraftStep:
    step = DraftStep()
    wire.write_step(step, rows, total_nodes)
    return DraftStep.FromString(step.SerializeToString())


def result_of(outcomes) -> DraftStepResult:
    result = DraftStepResult()
    wire.write_result(result, outcomes)
    return DraftStepResult.FromString(result.SerializeToString())


def read(result, sessions, cap=64, total=10_000):
    return wire.read_result(result, [cap] * sessions, total, VOCAB_SIZE, NAMES)


def plain(row):
    return row._replace(commit=row.commit.tolist(), feedback=plain_feedback(row.feedback))


def plain_feedback(feedback):
    columns = [] if feedback is None else [getattr(feedback, field.name) for field in fields(feedback)]
    return [(column.dtype, column.shape, column.tolist()) for column in columns]


@given(ROWS)
def test_a_step_comes_back_as_it_was(rows):
    again = rows_of(step_of(rows), 5)
    assert list(map(plain, again)) == list(map(plain, rows))


CURVES = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=9).map(
    lambda costs: CostCurve(tuple(7 * point for point in range(len(costs))), tuple(costs))
)


@given(st.none() | CURVES)
def test_a_cost_curve_comes_back_as_it_was(cost_curve):
    step = DraftStep()
    wire.write_cost_curve(step, cost_curve)
    again = DraftStep.FromString(step.SerializeToString())
    assert again.HasField("cost_curve")
    assert wire.read_cost_curve(again) == cost_curve
    assert not step_of([]).HasField("cost_curve")


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    ("counts", "costs"),
    [
        ([0, 1], [1.0]),
        ([0], [1.0, 2.0]),
        ([1, 2], [1.0, 2.0]),
        ([0, 0], [1.0, 2.0]),
        ([0, -1], [1.0, 2.0]),
        ([0, 1], [1.0, float("nan")]),
        ([0, 1], [0.0, 1.0]),
        (range(MAX_CURVE_POINTS + 1), [1.0] * (MAX_CURVE_POINTS + 1)),
    ],
)
def test_a_malformed_cost_curve_is_refused(counts, costs):
    step = DraftStep()
    step.cost_curve.node_counts = np.array(counts, "<i4").tobytes()
    step.cost_curve.costs = np.array(costs, "<f8").tobytes()
    with pytest.raises(InvalidRequest):
        wire.read_cost_curve(step)


@pytest.mark.parametrize("data", [b"1", b"12345678" * 2 + b"1"])
def test_half_a_number_of_a_cost_curve_is_refused(data):
    step = DraftStep()
    step.cost_curve.node_counts = bytes(4)
    step.cost_curve.costs = data
    with pytest.raises(InvalidRequest):
        wire.read_cost_curve(step)


def outcome_key(outcome):
    return outcome if isinstance(outcome, DraftTree) else (type(outcome), str(outcome))


@given(OUTCOMES)
def test_an_answer_comes_back_as_it_was(outcomes):
    again = read(result_of(outcomes), len(outcomes))
    assert list(map(outcome_key, again)) == list(map(outcome_key, outcomes))


@pytest.mark.parametrize(
    ("column", "data"),
    [
        ("node_token_ids", b"123"),
        ("node_parents", b"1234"),
        ("topk_ids", b"1234567"),
        ("topk_logprobs", b"1234"),
        ("hidden_state", b"12345"),
        ("phrases", b"1234"),
    ],
)
def test_a_feedback_column_of_a_wrong_length_is_named(column, data):
    tokens = np.array([1, 2], np.int32)
    feedback = Feedback(tokens, tokens, np.ones((2, 2), np.int32), phrases=np.ones((1, 2), np.int32))
    step = step_of([wire.SessionStep(1, 2, tokens, 3, feedback)])
    setattr(step.feedback[0], column, data)
    with pytest.raises(InvalidRequest, match="column"):
        rows_of(step, 5)


def test_feedback_on_no_session_is_refused():
    step = step_of([wire.SessionStep(1, 2, np.array([1], np.int32), 3, Feedback())])
    step.feedback[0].session_index = 1
    with pytest.raises(InvalidRequest, match="no session"):
        rows_of(step, 5)


def test_the_columns_are_little_endian():
    step = step_of([wire.SessionStep(2**63 - 1, 258, np.array([1, 65_536], np.int32), 16)])
    assert step.session_ids == b"\xff\xff\xff\xff\xff\xff\xff\x7f"
    assert step.context_lengths == b"\x02\x01\x00\x00\x00\x00\x00\x00"
    assert step.commit_lengths == b"\x02\x00\x00\x00"
    assert step.commit_token_ids == b"\x01\x00\x00\x00\x00\x00\x01\x00"
    assert step.max_nodes == b"\x10\x00\x00\x00"
    result = result_of([DraftTree.from_lists([7], [-1], [0.5], [2], NAMES)])
    columns = (result.token_ids, result.parents, result.probs, result.sources, result.node_counts)
    assert columns == (b"\x07\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0?", b"\x02\0", b"\x01\0\0\0")


def test_budgets_past_the_column_are_clamped():
    step = step_of([wire.SessionStep(1, 0, np.zeros(0, np.int32), 10**12)], total_nodes=-4)
    assert (rows_of(step, 1)[0].max_nodes, step.total_nodes) == (2**31 - 1, 0)


def test_token_ids_that_were_read_may_be_written_to():
    """Kernels would compile a second time for read-only arrays."""
    tokens = wire.read_tokens(b"\x01\0\0\0", "prompt")
    assert tokens.flags.writeable
    assert tokens.dtype == np.int32


STEP_COLUMNS = ["session_ids", "context_lengths", "commit_lengths", "commit_token_ids", "max_nodes"]


@pytest.mark.row("C1")
@pytest.mark.parametrize("column", STEP_COLUMNS)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_step_with_a_short_column_is_refused(column, cut):
    step = step_of([wire.SessionStep(1, 2, np.array([3], np.int32), 4)] * 2)
    setattr(step, column, getattr(step, column)[:-cut])
    with pytest.raises(InvalidRequest, match=r"column \w+ has a wrong length"):
        rows_of(step, 5)


@pytest.mark.row("C1")
def test_negative_lengths_are_refused():
    step = step_of([wire.SessionStep(1, 2, np.array([3, 4], np.int32), 4)] * 2)
    step.commit_lengths = np.array([-1, 5], "<i4").tobytes()
    with pytest.raises(InvalidRequest, match="negative"):
        rows_of(step, 5)


@pytest.mark.row("C1")
def test_a_step_may_not_hold_more_sessions_than_the_server():
    rows = [wire.SessionStep(1, 2, np.zeros(0, np.int32), 4)] * 3
    assert len(rows_of(step_of(rows), 3)) == 3
    with pytest.raises(LimitExceeded, match="too many sessions"):
        rows_of(step_of(rows), 2)


RESULT_COLUMNS = ["statuses", "node_counts", "token_ids", "parents", "probs", "sources"]
TREE = DraftTree.from_lists([1, 2], [-1, 0], [0.5, 0.5], [1, 1], NAMES)


@pytest.mark.row("V3")
@pytest.mark.parametrize("column", RESULT_COLUMNS)
def test_an_answer_with_a_short_column_is_refused(column):
    result = result_of([TREE])
    setattr(result, column, getattr(result, column)[:-1])
    with pytest.raises(InvalidRequest, match=f"column {column} has a wrong length"):
        read(result, 1)


def test_an_answer_for_another_number_of_sessions_is_refused():
    with pytest.raises(InvalidRequest):
        read(result_of([TREE]), 2)


@pytest.mark.row("V3")
def test_more_nodes_than_asked_for_are_refused():
    assert read(result_of([TREE, TREE]), 2, cap=2, total=4) == [TREE, TREE]
    with pytest.raises(InvalidTree, match="more nodes"):
        read(result_of([TREE]), 1, cap=1)
    with pytest.raises(InvalidTree, match="more nodes"):
        read(result_of([TREE, TREE]), 2, total=3)


def test_nodes_of_a_failed_session_are_refused():
    result = result_of([TREE])
    result.statuses = b"\x05\0\0\0"
    with pytest.raises(InvalidTree, match="more nodes"):
        read(result, 1)


def test_node_counts_that_only_add_up_are_refused():
    result = result_of([TREE, TREE])
    result.node_counts = np.array([5, -1], "<i4").tobytes()
    with pytest.raises(InvalidRequest, match="negative"):
        read(result, 2)


@pytest.mark.parametrize("num_others", [0, 4])
def test_siblings_that_are_alike_and_no_numbers_are_found_wherever_they_stand(num_others):
    others = [DraftTree.chain([1])] * num_others
    alike = DraftTree.from_lists([1, 2, 1], [-1, -1, -1], [0.5, 0.25, 0.125], [1, 1, 1])
    no_number = DraftTree.from_lists([1, 2, 3], [-1, -1, -1], [0.5, float("nan"), 0.25], [1, 1, 1])
    for tree in (alike, no_number):
        with pytest.raises(InvalidTree):
            read(result_of([*others, tree]), num_others + 1)


@pytest.mark.row("V3")
@pytest.mark.parametrize("num_others", [0, 4])
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 2**31 - 1])
def test_tokens_next_to_the_vocabulary_are_refused(num_others, token):
    others = [DraftTree.chain([VOCAB_SIZE - 1, 0])] * num_others
    assert (
        len(read(result_of([*others, DraftTree.chain([VOCAB_SIZE - 1])]), num_others + 1)) == num_others + 1
    )
    with pytest.raises(InvalidTokens):
        read(result_of([*others, DraftTree.chain([token])]), num_others + 1)


@pytest.mark.parametrize("num_trees", [1, 4])
def test_a_zero_with_a_sign_is_a_probability(num_trees):
    trees = [DraftTree.from_lists([1], [-1], [-0.0], [1], NAMES)] * num_trees
    assert read(result_of(trees), num_trees) == trees


def test_a_failed_session_needs_no_words():
    result = result_of([UnknownSession("gone")])
    del result.errors[:]
    (error,) = read(result, 1)
    assert type(error).grpc_status == "NOT_FOUND"


def result_of_columns(trees) -> DraftStepResult:
    """An answer from columns that need not make sense: what an attacker sends."""
    result = result_of([DraftTree.empty()] * len(trees))
    result.node_counts = np.array([len(tree) for tree in trees], "<i4").tobytes()
    for name, dtype in (("token_ids", "<i4"), ("parents", "<i4"), ("probs", "<f4"), ("sources", "<u2")):
        values = [value for tree in trees for value in getattr(tree, name).tolist()]
        setattr(result, name, np.array(values, dtype).tobytes())
    return result


@st.composite
def any_trees(draw):
    """Trees that break the contract about as often as they keep it."""
    count = draw(st.integers(0, 4))
    column = st.lists(st.integers(-1, VOCAB_SIZE), min_size=count, max_size=count)
    parents = [draw(st.integers(-1, max(node - 1, 0))) for node in range(count)]
    probs = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0, float("nan"), -0.5, float("inf")])
    return DraftTree.from_lists(
        draw(column), parents, draw(st.lists(probs, min_size=count, max_size=count)), None, NAMES
    )


def keeps_the_contract(tree) -> bool:
    try:
        tree.check(VOCAB_SIZE)
    except RetrievalSpecError:
        return False
    return True


@pytest.mark.row("V3")
@settings(max_examples=200)
@given(st.lists(any_trees() | NAMED_TREES, max_size=6))
def test_answers_are_checked_as_the_trees_check_themselves(trees):
    result = result_of_columns(trees)
    if all(map(keeps_the_contract, trees)):
        assert read(result, len(trees)) == trees
    else:
        with pytest.raises((InvalidTree, InvalidTokens)):
            read(result, len(trees))


def test_a_foreign_token_is_named_before_any_other_fault():
    """It says that client and server use different tokenizers, wherever it stands."""
    faulty = DraftTree.from_lists([1, 1], [-1, -1], [0.5, float("nan")], None, NAMES)
    foreign = DraftTree.from_lists([VOCAB_SIZE], [-1], [0.5], None, NAMES)
    with pytest.raises(InvalidTokens, match="index 2"):
        read(result_of_columns([faulty, foreign]), 2)


@pytest.mark.row("V3")
def test_unknown_sources_are_refused():
    with pytest.raises(InvalidTree, match="unknown source"):
        read(result_of([DraftTree.from_lists([1], [-1], [0.5], [8], NAMES)]), 1)


@st.composite
def damaged(draw, messages):
    """A serialised message with bytes changed, cut off or put in."""
    data = bytearray(draw(messages).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        patch = draw(st.binary(max_size=4))
        data[place : place + draw(st.integers(0, 4))] = patch
    return bytes(data)


@pytest.mark.row("C2/C3", "V3")
@settings(max_examples=200)
@given(damaged(st.lists(NAMED_TREES, min_size=1, max_size=3).map(result_of)), st.integers(1, 3))
def test_a_damaged_answer_gives_checked_trees_or_a_typed_error(data, sessions):
    try:
        outcomes = read(DraftStepResult.FromString(data), sessions)
    except (DecodeError, RetrievalSpecError):
        return
    for outcome in outcomes:
        if isinstance(outcome, DraftTree):
            outcome.check(VOCAB_SIZE)  # raises, and no error is expected any more


@pytest.mark.row("C2/C3")
@settings(max_examples=200)
@given(damaged(ROWS.map(step_of)) | st.binary(max_size=80))
def test_a_damaged_step_gives_rows_or_a_typed_error(data):
    try:
        rows = rows_of(DraftStep.FromString(data), 100)
    except (DecodeError, RetrievalSpecError):
        return
    assert all(row.commit.dtype == np.int32 for row in rows)


@pytest.mark.row("C6")
@pytest.mark.parametrize("error_type", error_types().values(), ids=lambda error_type: error_type.__name__)
def test_every_error_travels_as_itself(error_type):
    error = error_type("what", got=1, expected=2, remedy="do this")
    again = wire.error_from(error_type.__name__, error_type.grpc_status, str(error))
    assert (type(again), str(again)) == (error_type, str(error))
    result = result_of([error])
    code = grpc.StatusCode[error_type.grpc_status].value[0]
    assert np.frombuffer(result.statuses, "<i4").tolist() == [code]


@pytest.mark.row("C6")
@pytest.mark.parametrize("status", [code.name for code in grpc.StatusCode])
def test_every_status_without_a_class_is_some_typed_error(status):
    assert isinstance(wire.error_from("", status, "no words"), RetrievalSpecError)
    assert isinstance(wire.error_from("KeyError", status, "no words"), RetrievalSpecError)


def test_a_status_of_grpc_itself_says_that_the_service_is_away():
    assert type(wire.error_from("", "DEADLINE_EXCEEDED", "")) is ServiceUnavailable


def test_generated_code_is_what_the_proto_files_give():
    pytest.importorskip("grpc_tools")
    tool = Path(__file__).parent.parent / "tools" / "generate_proto"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    if "is needed" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
