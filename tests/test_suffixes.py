"""Rows without names: found by what stands in them, in process."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import suffixes
from retrieval_spec.client import LocalClient, SuffixSource
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, InvalidTokens, LimitExceeded
from retrieval_spec.limits import Limits
from retrieval_spec.suffixes import EngineSessions, SuffixBook, SuffixRow
from retrieval_spec.tree import DraftTree
from tests.fake_drafters import CountingDrafter

VOCAB_SIZE = 1_000


def counting(**limits):
    return Engine(VOCAB_SIZE, {"counting": CountingDrafter(VOCAB_SIZE, 0.5)}, limits=Limits(**limits))


def book_of(engine):
    sessions = EngineSessions(engine)
    return SuffixBook(engine, sessions, engine.draft_batch), sessions


def whole(tokens, max_nodes=4):
    return SuffixRow(np.array(tokens, np.int32), len(tokens), max_nodes)


def end_of(tokens, num_tokens, max_nodes=4):
    return SuffixRow(np.array(tokens[-num_tokens:], np.int32), len(tokens), max_nodes)


def step(book, *rows, namespace="n"):
    return book.draft_step(rows, namespace, 64)


def facts(tree):
    return tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist(), tree.sources.tolist()


class Generations:
    """Texts with much repetition that grow by a few tokens at a time, some in each step, in any order."""

    def __init__(self, seed, count):
        self._rng = random.Random(seed)
        self._phrases = [[self._rng.randrange(60) for _ in range(9)] for _ in range(5)]
        self.texts = {name: self._some(30) for name in range(count)}

    def _some(self, length):
        return [token for _ in range(length // 9 + 1) for token in self._rng.choice(self._phrases)]

    def step(self):
        names = self._rng.sample(sorted(self.texts), self._rng.randint(1, len(self.texts)))
        for name in names:
            self.texts[name] = self.texts[name] + self._some(1)[: self._rng.randint(1, 7)]
            if self._rng.random() < 0.05:
                self.texts[name] = self.texts[name][:-10]
        return names


def stateful_step(engine, sessions, names, texts):
    """What a host does that knows its requests: cuts and commits, and opens what is new."""
    for name in names:
        if name in sessions and sessions[name].context_length <= len(texts[name]):
            sessions[name].commit(texts[name][sessions[name].context_length :])
    for name in names:
        if name in sessions and sessions[name].context_length > len(texts[name]):
            sessions[name].truncate(len(texts[name]))
    for name in names:
        if name not in sessions:
            sessions[name] = engine.open_session(texts[name])
    return engine.draft_batch([sessions[name] for name in names], 8 * len(names), [8] * len(names))


def test_rows_get_the_trees_that_named_sessions_get():
    stateless, stateful = LocalClient(Engine(VOCAB_SIZE)), Engine(VOCAB_SIZE)
    generations, sessions, num_nodes = Generations(1, 6), {}, 0
    for _ in range(80):
        names = generations.step()
        found = stateless.draft_suffixes([generations.texts[name] for name in names], max_nodes=8)
        expected = stateful_step(stateful, sessions, names, generations.texts)
        assert list(map(facts, found)) == list(map(facts, expected))
        num_nodes += sum(map(len, found))
    assert num_nodes > 500
    assert isinstance(stateless, SuffixSource)
    assert stateless._engine.num_sessions == 6
    stateless.close()
    assert stateless._engine.num_sessions == 0


TEXTS = st.lists(st.integers(0, 1), max_size=40)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.tuples(TEXTS, st.integers(0, 40)), max_size=5), max_size=12), st.booleans())
def test_each_row_has_a_session_of_its_own_that_holds_its_text(steps, are_whole):
    """Two token ids, so that rows are equal, prefixes of each other, and grow and shrink into one another."""
    engine = counting()
    book, sessions = book_of(engine)
    for texts in steps:
        rows = [whole(text) if are_whole else end_of(text, min(shown, len(text))) for text, shown in texts]
        answers = step(book, *rows)
        assert len({answer.session_id for answer in answers}) == len(rows)
        for answer, row in zip(answers, rows, strict=True):
            context = sessions.get(answer.session_id).context
            assert answer.missing_tokens == row.context_length - len(context)
            assert answer.missing_tokens <= row.start
            assert np.array_equal(context[len(context) - row.token_ids.size :], row.token_ids)
            assert isinstance(answer.outcome, DraftTree)
        assert book.num_hidden == engine.num_sessions <= suffixes.MAX_HIDDEN


def test_equal_rows_keep_apart_and_find_each_its_own_again():
    book, _ = book_of(counting())
    prompt = list(range(30))
    first = [answer.session_id for answer in step(book, whole(prompt), whole(prompt))]
    assert len(set(first)) == 2
    grown = step(book, whole([*prompt, 7]), whole([*prompt, 8]))
    assert [answer.session_id for answer in grown] == first
    # In another order, and one of them alone.
    again = step(book, whole([*prompt, 8, 9]), whole([*prompt, 7, 9]))
    assert [answer.session_id for answer in again] == first[::-1]
    assert [answer.added.tolist() for answer in again] == [[9], [9]]
    assert step(book, whole([*prompt, 7, 9, 1]))[0].session_id == first[0]


def test_a_row_that_shrinks_cuts_its_session_and_takes_none_that_another_row_continues():
    engine = counting()
    book, sessions = book_of(engine)
    text = list(range(50))
    long = step(book, whole(text))[0].session_id
    cut = step(book, whole(text[:40]))[0]
    assert (cut.session_id, cut.missing_tokens) == (long, 0)
    assert sessions.get(long).context.tolist() == text[:40]
    both = step(book, whole(text[:30]), whole([*text[:40], 5]))
    assert both[1].session_id == long != both[0].session_id
    far = step(book, whole([*text, *text, *text]))[0].session_id
    assert step(book, whole(text))[0].session_id != far, "so far back is a row of its own"


def test_a_row_of_which_only_the_end_is_shown_drafts_from_that_until_more_is_told():
    book, sessions = book_of(counting())
    text = list(range(100))
    unknown = step(book, end_of(text, 20))[0]
    assert unknown.missing_tokens == 80
    assert unknown.outcome.token_ids[0] == 100
    text += [7, 8]
    grown = step(book, end_of(text, 20))[0]
    assert (grown.session_id, grown.missing_tokens, grown.added.tolist()) == (unknown.session_id, 80, [7, 8])
    told = step(book, whole(text))[0]
    assert (told.missing_tokens, sessions.get(told.session_id).context.tolist()) == (0, text)
    assert book.num_hidden == 1
    text += [9]
    known = step(book, end_of(text, 20))[0]
    assert (known.session_id, known.missing_tokens) == (told.session_id, 0)
    assert sessions.get(told.session_id).context.tolist() == text


def test_a_row_whose_end_shows_another_text_is_another_row():
    book, _ = book_of(counting())
    text = list(range(100))
    first = step(book, whole(text))[0].session_id
    changed = [*text[:70], 5, *text[71:], 3]
    assert step(book, end_of(changed, 20))[0].session_id == first, "what is not shown cannot be told apart"
    assert step(book, end_of([*changed, 4], 60))[0].session_id != first


def test_the_longest_unused_sessions_of_the_namespace_make_room(monkeypatch):
    monkeypatch.setattr(suffixes, "MAX_HIDDEN", 3)
    engine = counting()
    book, _ = book_of(engine)
    texts = [[number] * 20 for number in range(4)]
    ids = [step(book, whole(text))[0].session_id for text in texts[:3]]
    assert step(book, whole(texts[0]))[0].session_id == ids[0]
    step(book, whole(texts[3]))  # in place of the second
    assert step(book, whole(texts[0]))[0].session_id == ids[0]
    assert step(book, whole(texts[1]))[0].session_id not in ids
    assert engine.num_sessions == book.num_hidden == 3
    too_many = step(book, *[whole([9, number] * 9) for number in range(4)])
    assert [type(answer.outcome) for answer in too_many] == [DraftTree] * 3 + [LimitExceeded]
    assert too_many[3].missing_tokens == 18


def test_sessions_that_no_row_continues_end_and_teach(monkeypatch):
    monkeypatch.setattr(suffixes, "KEPT_STEPS", 5)
    engine = counting()
    book, _ = book_of(engine)
    step(book, *[whole([number] * 20) for number in range(7)])
    for _ in range(5):
        step(book, whole([500] * 20))
    assert engine.num_sessions == 8
    for left in (6, 4, 2, 1, 1):  # few at a time
        step(book, whole([500] * 20))
        assert engine.num_sessions == left
    other = book_of(engine)[0]
    other.close()


def test_what_was_closed_elsewhere_is_opened_again_and_forgotten():
    engine = counting()
    book, sessions = book_of(engine)
    ids = [answer.session_id for answer in step(book, *[whole([number] * 20) for number in range(5)])]
    for session_id in ids:
        sessions.close(session_id)
    again = step(book, whole([0] * 21))[0]
    assert again.session_id not in ids
    for _ in range(3):
        step(book, whole([700] * 20), namespace="other")
    assert book.num_hidden == engine.num_sessions == 2


def test_namespaces_share_no_session():
    engine = counting()
    book, _ = book_of(engine)
    ids = {step(book, whole([1] * 20), namespace=name)[0].session_id for name in ("a", "b", "a/b")}
    assert len(ids) == engine.num_sessions == 3
    assert isinstance(step(book, whole([1] * 20), namespace="no name")[0].outcome, InvalidRequest)
    assert "no name" not in book._shelves


def test_what_is_wrong_with_a_row_costs_only_its_own_draft():
    engine = counting(max_context_tokens=100, max_append_tokens=30)
    book, _ = book_of(engine)
    good = list(range(20))
    step(book, whole(good))
    rows = [whole([VOCAB_SIZE]), whole([5] * 101), whole([*good, 3, -1]), whole([*good, 4])]
    outcomes = [answer.outcome for answer in step(book, *rows)]
    assert [type(one) for one in outcomes] == [InvalidTokens, LimitExceeded, InvalidTokens, DraftTree]
    step(book, whole([2] * 20))
    grown = step(book, whole([2] * 60))[0]
    assert isinstance(grown.outcome, LimitExceeded)
    assert isinstance(step(book, whole([2] * 61))[0].outcome, DraftTree), "it is opened anew"


def test_what_is_learned_in_one_step_is_bounded(monkeypatch):
    monkeypatch.setattr(suffixes, "MAX_OPENED", 3)
    monkeypatch.setattr(suffixes, "MAX_OPENED_TOKENS", 50)
    engine = counting()
    book, _ = book_of(engine)
    rows = [whole([number] * 20) for number in range(5)]
    assert [answer.missing_tokens for answer in step(book, *rows)] == [0, 0, 20, 20, 20]
    assert [answer.missing_tokens for answer in step(book, *rows)] == [0, 0, 0, 0, 20]
    assert [answer.missing_tokens for answer in step(book, *rows)] == [0] * 5
    assert step(book, whole([30] * 90))[0].missing_tokens == 0, "one at least"
    short = [whole([number] * 2) for number in range(100, 105)]
    assert [answer.missing_tokens for answer in step(book, *short)] == [0, 0, 0, 2, 2]


def test_a_session_that_the_engine_has_no_room_for_takes_the_place_of_an_unused_one():
    engine = counting(max_tenant_sessions=2)
    book, _ = book_of(engine)
    for number in range(5):
        assert isinstance(step(book, whole([number] * 20))[0].outcome, DraftTree)
    assert engine.num_sessions == book.num_hidden == 2
    outcomes = [answer.outcome for answer in step(book, *[whole([n, 9] * 9) for n in range(3)])]
    assert [type(one) for one in outcomes] == [DraftTree, DraftTree, LimitExceeded]
