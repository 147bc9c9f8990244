"""What a generation loop sees of a source that fails: empty trees, one warning, and drafts again."""

from __future__ import annotations

import logging

import pytest

from retrieval_spec.errors import (
    ContextMismatch,
    InvalidRequest,
    InvalidTokens,
    RetrievalSpecError,
    ServiceUnavailable,
)
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier.drafts import GuardedSession, OneWarning, draft_together
from tests.exactness.sources import FakeSource

VOCAB_SIZE = 50
GONE = ServiceUnavailable("gone")
REFUSED = InvalidTokens("what is that")


class Source(FakeSource):
    """Drafts the last token plus 1, plus 2, ..., and fails where `failing` says so, by a session's prompt."""

    def __init__(self):
        super().__init__(VOCAB_SIZE, self.counted)
        self.failing: dict[tuple[str, int], RetrievalSpecError] = {}
        self.batch_error: RetrievalSpecError | None = None
        self.num_batches = 0

    def counted(self, context, max_nodes):
        return DraftTree.chain([(context[-1] + 1 + depth) % VOCAB_SIZE for depth in range(max_nodes)])

    def open_session(self, prompt_ids, namespace="default"):
        session, number = super().open_session(prompt_ids, namespace), prompt_ids[0]
        for call in ("commit", "draft", "truncate"):
            setattr(session, call, self.failing_call(call, number, getattr(session, call)))
        return session

    def failing_call(self, call, number, real):
        def answer(*arguments):
            if (call, number) in self.failing:
                raise self.failing[call, number]
            return real(*arguments)

        return answer

    def draft_batch(self, sessions, total_nodes, cost_curve=None, max_nodes=None):
        self.num_batches += 1
        if self.batch_error is not None:
            raise self.batch_error
        return super().draft_batch(sessions, total_nodes, cost_curve, max_nodes)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def warned(caplog):
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        yield lambda: [record.getMessage().rpartition(": ")[2] for record in caplog.records]


def sessions_of(source, *prompts):
    warn = OneWarning()
    return [GuardedSession(source, list(prompt), "default", VOCAB_SIZE, warn) for prompt in prompts], warn


def drafted(source, sessions, warn, max_nodes=2):
    trees = draft_together(source, sessions, max_nodes, max_nodes * len(sessions), None, warn)
    return [tree.token_ids.tolist() for tree in trees]


def test_a_batch_is_one_question(source, warned):
    sessions, warn = sessions_of(source, [1], [2], [3])
    assert drafted(source, sessions, warn) == [[2, 3], [3, 4], [4, 5]]
    assert source.num_batches == 1
    assert warned() == []


def test_a_source_that_is_gone_costs_a_batch_its_drafts_until_it_is_back(source, warned):
    sessions, warn = sessions_of(source, [1], [2])
    source.batch_error = GONE
    for _ in range(3):
        assert drafted(source, sessions, warn) == [[], []]
    source.batch_error = None
    assert drafted(source, sessions, warn) == [[2, 3], [3, 4]]
    assert warned() == ["gone"]


def test_what_is_refused_for_one_is_asked_again_one_by_one(source, warned):
    sessions, warn = sessions_of(source, [1], [2], [3])
    source.batch_error = InvalidRequest("one of them is wrong")
    source.failing["draft", 2] = REFUSED
    assert drafted(source, sessions, warn) == [[2, 3], [], [4, 5]]
    assert source.sessions[1].is_closed, "what was refused once would be refused in every step"
    source.batch_error = None
    assert drafted(source, sessions, warn) == [[2, 3], [], [4, 5]]
    assert warned() == ["what is that"]


@pytest.mark.parametrize(("error", "comes_back"), [(GONE, True), (REFUSED, False)], ids=["gone", "refused"])
def test_a_session_that_cannot_be_told_leaves_the_batch_to_the_others(source, warned, error, comes_back):
    sessions, warn = sessions_of(source, [1], [2])
    for session in sessions:
        session.commit([10])
    source.failing["commit", 2] = error
    assert drafted(source, sessions, warn) == [[11, 12], []]
    source.failing.clear()
    sessions[1].commit([20])
    assert drafted(source, sessions, warn) == [[11, 12], [21, 22] if comes_back else []]
    assert source.sessions[1].context == ([2, 10, 20] if comes_back else [2])
    assert warned() == [str(error)]


def test_a_batch_of_which_nobody_can_be_told_asks_nothing(source, warned):
    sessions, warn = sessions_of(source, [1], [2])
    for number, session in enumerate(sessions, 1):
        session.commit([10])
        source.failing["commit", number] = GONE
    assert drafted(source, sessions, warn) == [[], []]
    assert source.num_batches == 0
    for session in sessions:
        session.close()
    assert drafted(source, sessions, warn) == [[], []]
    assert warned() == ["gone"]


def test_a_broken_tree_costs_its_own_session_alone(source, warned):
    sessions, warn = sessions_of(source, [1], [2])
    source.sessions[0].make = lambda context, max_nodes: DraftTree.chain([VOCAB_SIZE])
    assert drafted(source, sessions, warn) == [[], [3, 4]]
    source.sessions[0].make = source.make
    assert drafted(source, sessions, warn)[1] == [3, 4]
    assert len(warned()) == 1
    assert "vocabulary" in warned()[0]


def test_a_cut_that_the_source_was_not_told_of_yet_is_not_asked_of_it(source):
    (session,), _ = sessions_of(source, [1, 2])
    session.commit([3, 4])
    source.failing["truncate", 1] = GONE
    session.truncate(3)
    source.failing.clear()
    assert session.draft(2).token_ids.tolist() == [4, 5]
    assert source.sessions[0].context == [1, 2, 3]


def test_a_source_that_cannot_go_back_drafts_nothing_more(source, warned):
    (session,), _ = sessions_of(source, [1, 2])
    source.failing["truncate", 1] = ContextMismatch("lost")
    session.truncate(1)
    assert source.sessions[0].is_closed
    assert len(session.draft(2)) == 0
    session.truncate(0)
    session.finish()
    assert len(warned()) == 1


def test_the_first_row_of_a_batch_may_be_the_one_without_a_draft(source, warned):
    sessions, warn = sessions_of(source, [1], [2], [3])
    sessions[0].commit([10])
    source.failing["commit", 1] = GONE
    assert drafted(source, sessions, warn) == [[], [3, 4], [4, 5]]


def test_truncating_cuts_what_was_not_told_yet_and_reaches_into_the_prompt(source):
    (session,), _ = sessions_of(source, [1, 2, 3])
    session.commit([10, 20])
    session.truncate(4)
    assert session.draft(1).token_ids.tolist() == [11]
    assert source.sessions[0].context == [1, 2, 3, 10]
    session.truncate(2)
    session.commit([30])
    assert session.draft(1).token_ids.tolist() == [31]
    assert source.sessions[0].context == [1, 2, 30]


def test_feedback_is_told_beside_the_tokens_of_its_own_step_alone(source, monkeypatch):
    (session,), _ = sessions_of(source, [1])
    told = []
    monkeypatch.setattr(source.sessions[0], "commit", lambda *arguments: told.append(arguments))
    session.commit([10], "after 1")
    session.draft(1)
    session.commit([20], "after 10")
    session.draft(1)
    assert told == [([10], "after 1"), ([10, 20],)], "the source has forgotten 10, and is told it again"
