"""Edited copies of the own text, drafted by the blend as by its readable twin: where a copy goes on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blended import BUDGETS, PRIORS, Both, BothSessions, Sessions, lived_through
from tests.reference.blend_anchor import MAX_MISSES, MAX_SKIPPED, MIN_COPY_TOKENS
from tests.reference.blend_evidence import ANCHORED, OUTPUTS, OWN, PROMPTS

PASSAGE = list(range(100, 160))
NEW = list(range(900, 960))
"""Tokens that no text holds before."""


def edited(copied: int, inserted: int, left_out: int) -> list[int]:
    """The passage with one edit after so many tokens, and much of it after the edit."""
    return [*PASSAGE[:copied], *NEW[:inserted], *PASSAGE[copied + left_out :][:20]]


def copying() -> BothSessions:
    return Both().start([*PASSAGE, 1])


def write(session: BothSessions, tokens: list[int], per_commit: int = 1) -> None:
    for at in range(0, len(tokens), per_commit):
        session.draft(16)
        session.commit(tokens[at : at + per_commit])


def drafted_next(session: BothSessions) -> list[int]:
    tree = session.draft(16)
    return tree.token_ids[tree.parents < 0].tolist()


EDITS = st.tuples(
    st.integers(4, 12),  # tokens that are copied
    st.integers(0, 10),  # tokens that are inserted
    st.integers(0, 10),  # tokens that are left out
)


@st.composite
def edited_copies(draw) -> Sessions:
    """Sessions that copy their prompt with edits, in commits of some tokens; they know each other's texts."""
    alphabet = st.integers(0, draw(st.sampled_from([20, 1_000])))
    asked: Sessions = []
    for _ in range(draw(st.integers(1, 2))):
        text = draw(st.lists(alphabet, min_size=20, max_size=50))
        copy, at = [], draw(st.integers(0, 5))
        for copied, inserted, left_out in draw(st.lists(EDITS, min_size=1, max_size=3)):
            copy += text[at : at + copied]
            copy += draw(
                st.lists(st.one_of(alphabet, st.sampled_from(NEW)), min_size=inserted, max_size=inserted)
            )
            at += copied + left_out
        copy += text[at : at + 10]
        size = draw(st.sampled_from([1, 2, 3, 7, 70]))
        budgets = st.one_of(BUDGETS, BUDGETS, BUDGETS, st.none())
        commits = [(draw(budgets), copy[begin : begin + size]) for begin in range(0, len(copy), size)]
        asked.append((text, commits))
    return asked


def test_drafts_of_edited_copies_and_tables_are_those_of_the_twin():
    contexts: Counter[tuple[int, int]] = Counter()

    @given(edited_copies(), PRIORS)
    @settings(max_examples=60, deadline=None, derandomize=True)  # what is counted below must not be chance
    def check(asked, prior):
        both = Both(prior=prior)
        lived_through(both, asked)
        contexts.update(both.twin.contexts)

    check()
    for stages in (range(5), range(5, 9), range(9, 13)):  # followed since; inserted; replaced
        assert sum(contexts[ANCHORED, stage] for stage in stages) > 0
    for kind in (OUTPUTS, OWN, PROMPTS):
        assert contexts[kind, 0] > 0


@pytest.mark.parametrize("per_commit", [1, 4])
@pytest.mark.parametrize("copied", range(3, 9))
def test_a_mismatch_leaves_an_anchor_if_the_match_was_long(copied, per_commit):
    session = copying()
    write(session, PASSAGE[:copied])
    session.draft(16)
    session.commit(NEW[:1])
    assert (session.twin.anchor is not None) == (copied >= MIN_COPY_TOKENS)
    assert (PASSAGE[copied] in drafted_next(session)) == (copied >= MIN_COPY_TOKENS)
    write(session, [*PASSAGE[copied:][:12], 2, 3, *PASSAGE[30:50]], per_commit)


@pytest.mark.parametrize("inserted", range(1, 12))
def test_what_follows_an_insertion_is_drafted_unless_it_is_long(inserted):
    session = copying()
    write(session, [*PASSAGE[:10], *NEW[:inserted]])
    has_anchor = inserted <= MAX_MISSES
    assert (session.twin.anchor is not None) == has_anchor
    if inserted < 4:
        assert PASSAGE[10] in drafted_next(session)
    write(session, PASSAGE[10:20])


@pytest.mark.parametrize("replaced", range(1, 12))
def test_what_follows_a_replacement_is_drafted_unless_it_is_long(replaced):
    session = copying()
    write(session, [*PASSAGE[:10], *NEW[:replaced]])
    if replaced < 4:
        assert PASSAGE[10 + replaced] in drafted_next(session)
    write(session, PASSAGE[10 + replaced : 20 + replaced])


@pytest.mark.parametrize("left_out", range(1, 12))
def test_a_copy_that_leaves_out_some_tokens_moves_its_anchor_along(left_out):
    session = copying()
    write(session, [*PASSAGE[:10], PASSAGE[10 + left_out]])
    assert session.twin.anchor
    assert session.twin.anchor.followed == (left_out < MAX_SKIPPED)
    write(session, PASSAGE[11 + left_out :][:10])


@pytest.mark.parametrize("per_commit", [1, 3, 64])
@pytest.mark.parametrize("copied", [5, 6, 30])
@pytest.mark.parametrize(("inserted", "left_out"), [(1, 1), (3, 1), (2, 6), (8, 8), (0, 7), (9, 2)])
def test_edits_are_drafted_through_as_by_the_twin(copied, inserted, left_out, per_commit):
    session = copying()
    write(session, edited(copied, inserted, left_out), per_commit)
    write(session, [2, *edited(copied + 2, left_out, inserted)], per_commit)


def test_a_long_match_that_goes_on_needs_no_anchor():
    session = copying()
    write(session, [*PASSAGE[:10], NEW[0]])
    followed = []
    for token in PASSAGE[11:18]:
        write(session, [token])
        followed.append(session.twin.anchor and session.twin.anchor.followed)
    assert followed == [1, 2, 3, 4, 5, None, None]


@pytest.mark.parametrize("at_end", [0, 1, 2, 3])
def test_at_the_end_of_a_text_an_anchor_knows_no_further(at_end):
    session = Both().start(PASSAGE)
    write(session, [*PASSAGE[:20], NEW[0], *PASSAGE[21:23]])
    write(session, [*PASSAGE[48 : 60 - at_end], *NEW[1:5], *PASSAGE[:3]])


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 66])
def test_an_anchor_is_kept_over_commits_that_are_learned_from_to_the_end(num_tokens):
    session = copying()
    write(session, [*PASSAGE[:10], NEW[0], PASSAGE[12]])
    assert session.twin.anchor
    session.draft(16)
    session.commit([*range(2_000, 2_000 + num_tokens - 12), *PASSAGE[30:40], 1, 2][-num_tokens:])
    session.draft(16)
    session.commit(PASSAGE[40:42])
    session.draft(16)


def test_an_anchor_is_forgotten_when_nothing_was_drafted():
    session = copying()
    write(session, [*PASSAGE[:10], NEW[0]])
    assert session.twin.anchor
    session.commit([])
    session.draft(16)
    session.commit([])
    assert session.twin.anchor
    assert PASSAGE[11] in drafted_next(session)
    session.commit([NEW[1]])
    session.commit([NEW[2]])
    assert session.twin.anchor is None
    assert PASSAGE[10] not in drafted_next(session)


@pytest.mark.parametrize("matched", [4, 7, 10, 13, 14, 15, 16, 17])
def test_an_anchor_is_worth_a_match_that_grows_up_to_a_bound(matched):
    """Another output matches so far when five tokens have followed the anchor: which one is asked first?"""
    both = Both()
    before = both.start([])
    before.commit([*PASSAGE[5:15], NEW[0], *PASSAGE[15:20]][-matched:] + NEW[1:3])
    before.close()
    session = both.start([*PASSAGE, 1])
    write(session, [*PASSAGE[4:15], NEW[0], *PASSAGE[15:20]])
    assert session.twin.anchor
    assert session.twin.anchor.followed == 5
    assert PASSAGE[20] in drafted_next(session)
    session.commit(PASSAGE[20:22])
