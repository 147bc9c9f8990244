"""The blend against its readable twin: equal drafts, and equal tables after every commit."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters import stepping
from retrieval_spec.structures.blend_tables import shipped_prior
from tests.blended import BUDGETS, PRIORS, Both, Sessions, drafted_in_parts_from, lived_through, replayed
from tests.reference.blend_evidence import ANCHORED, OUTPUTS, OWN, PROMPTS
from tests.reference.blend_tables import SHAPES
from tests.replay import recorded


@st.composite
def sessions(draw) -> Sessions:
    """Prompts, each with what is committed after a draft of some budget, or after none."""
    alphabet = draw(st.sampled_from([1, 2, 3, 5, 9]))
    tokens = st.integers(0, alphabet - 1).map(lambda token: token * 30_011)
    step = st.tuples(st.one_of(st.none(), BUDGETS, BUDGETS), st.lists(tokens, max_size=12))
    session = st.tuples(st.lists(tokens, max_size=40), st.lists(step, min_size=1, max_size=4))
    return draw(st.lists(session, min_size=1, max_size=4))


@given(sessions(), st.booleans(), PRIORS)
@settings(max_examples=120, deadline=None)
def test_drafts_and_tables_are_those_of_the_twin(asked, with_others, prior):
    lived_through(Both(with_others, prior), asked)


@given(st.data(), st.booleans(), PRIORS, st.sampled_from([2, stepping.MANY_SESSIONS]))
@settings(max_examples=100, deadline=None)
def test_batches_are_those_of_the_twin(data, with_others, prior, many):
    both = Both(with_others, prior)
    lived_through(both, data.draw(sessions())[:2])
    tokens = st.lists(st.integers(0, 4).map(lambda token: token * 30_011), max_size=30)
    batch = [both.start(prompt) for prompt in data.draw(st.lists(tokens, min_size=2, max_size=5))]
    for total_nodes in data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4)):
        most = min(total_nodes, 4 * -(-total_nodes // len(batch)))
        with drafted_in_parts_from(many):
            both.draft_all(batch, most, total_nodes)
        for session in batch:
            session.commit(data.draw(tokens)[:6])
            session.settle()  # in a batch the next one drafts with it
    for session in batch:
        session.close()


def test_the_twin_is_compared_on_drafts_that_say_something():
    rng = np.random.default_rng(0)
    sizes: list[int] = []
    for with_others in (False, True):
        both = Both(with_others)
        for _ in range(6):
            session = both.start(rng.integers(0, 5, 30).tolist())
            sizes += replayed(session, rng.integers(0, 5, 40).tolist(), 16)
            session.close()
    assert np.mean(np.array(sizes) > 4) > 0.9


@pytest.mark.parametrize("many", [2, 37])
@pytest.mark.parametrize("seed", range(2))
def test_batches_expect_of_nodes_what_the_last_step_did_and_find_out_when_all_change(seed, many):
    rng = np.random.default_rng(seed)
    both = Both()
    batch = [both.start(rng.integers(0, 6, 40).tolist() * 2) for _ in range(36)]
    for _ in range(6):
        with drafted_in_parts_from(many):
            trees = both.draft_all(batch, 12, 360)
        follows = rng.random() < 0.7  # all go on as they did, or none does
        for session, tree in zip(batch, trees, strict=True):
            path = [int(tree.token_ids[node]) for node in tree.best_path()]
            session.commit(path if follows and path else rng.integers(0, 6, 3).tolist())
            session.settle()


def wide(rng: np.random.Generator, num_tokens: int) -> list[int]:
    """Few contexts with very many continuations, some of them common."""
    rare = np.minimum(rng.zipf(1.3, num_tokens), 400) + 10
    return [int(token) for pair in zip(rng.integers(0, 2, num_tokens), rare, strict=True) for token in pair]


def test_where_a_draft_had_no_room_left_to_record_a_place_nothing_is_learned():
    rng = np.random.default_rng(3)
    both = Both(
        prior=np.where(np.arange(shipped_prior().size) < prod(SHAPES["escapes"]), 0.3, shipped_prior())
    )
    num_full = 0
    for _ in range(4):
        session = both.start(wide(rng, 900))
        for step in range(16):
            session.draft((4, 8, 12)[step % 3])
            session.commit(wide(rng, 3))
        num_full += session.twin.num_full
        session.close()
    assert num_full > 20


def test_contexts_with_many_continuations_are_read_as_by_the_twin():
    rng = np.random.default_rng(1)
    both = Both()
    sizes: list[int] = []
    for _ in range(4):
        session = both.start(wide(rng, 300))
        for _ in range(8):
            sizes.append(len(session.draft(60, 3)))
            session.commit(wide(rng, 6))
            session.commit(wide(rng, 20)[:-1])
            sizes.append(len(session.draft(60, 3)))
            session.commit(wide(rng, 1))
        session.close()
    assert np.mean(sizes) > 30


def test_each_part_of_a_large_batch_reads_contexts_with_many_continuations_for_itself():
    rng = np.random.default_rng(2)
    both = Both()
    for _ in range(3):
        session = both.start(wide(rng, 200))
        session.commit(wide(rng, 200))
        session.close()
    batch = [both.start(wide(rng, 20)) for _ in range(4)]
    for _ in range(5):
        with drafted_in_parts_from(2):
            both.draft_all(batch, 30, 90)
        for session in batch:
            session.commit(wide(rng, 2))
            session.settle()
        batch.pop().close()  # a text that grows has rows that are out of date
        batch.append(both.start(wide(rng, 20)))
    for kind in (OUTPUTS, PROMPTS):
        tables = both.drafters[kind].namespaces.of("default").texts.automaton.commonest
        assert [table.any() for table in tables] == [True, True]
        assert all(rows[kind].by_place for rows in both.twin.rows)


def test_escapes_that_were_learned_often_go_on_following_what_changes():
    both = Both()
    seen = prod(SHAPES["seen"])
    for cells in (both.blend.cells_of("default"), both.twin.tables.cells):
        cells[-prod(SHAPES["outcomes"]) - seen :][:seen] = 1_997.0
    session = both.start([1, 2, 3] * 5)
    for _ in range(8):
        session.draft(8)
        session.commit([1, 2, 3])
    assert both.twin.tables.by_name["seen"].max() == 2_000.0


@pytest.mark.parametrize("escape", [0.9, 0.96, 0.9612, 0.9613, 0.999])
def test_what_long_matches_leave_over_is_learned_from_as_far_as_it_was_drafted(escape):
    prior = shipped_prior().copy()
    prior[: prod(SHAPES["escapes"])] = escape
    both = Both(prior=prior)
    # Three matches, each with a new token.
    session = both.start([1, 2, 3, 10, 9, 2, 3, 11, 8, 3, 12, 7, 3, 12, 6, 3, 12, 1, 2, 3])
    session.draft(8)
    session.commit([12])
    session.settle()
    num_learned = np.count_nonzero(both.twin.tables.by_name["seen"])
    assert num_learned == 1 + sum((1.0 - escape) ** contexts > 3 * 5e-4 for contexts in (1, 2))


@pytest.mark.parametrize("at", [0, 1, 126, 127, 128, 129])
def test_the_oldest_continuation_and_the_newest_are_read_up_to_a_bound(at):
    in_order = [10, *range(209, 10, -1)]
    text = [token for other in [*range(10, 210), *[in_order[at]] * 30] for token in (0, other)]
    tree = Both().start([*text, 9, 0]).draft(16, 1)
    assert (in_order[at] in tree.token_ids.tolist()) == (at < 128)


@pytest.mark.parametrize("run_tokens", range(10, 18))
def test_a_token_is_looked_for_after_so_many_shorter_matches(run_tokens):
    both = Both()
    before = both.start([])
    before.commit([*[1] * 20, 2])
    before.close()
    session = both.start([1, 2, 3, *[1] * run_tokens])
    assert 2 in session.draft(16, 1).token_ids.tolist()
    session.commit([2])


@pytest.mark.parametrize("count", [0, 1, 3, 8, 20, 34, 60, 110])
def test_shares_after_the_shorter_match_are_those_of_the_twin(count):
    often = [token for step in range(count) for token in (5, 1, 2, 1_000 + step)]
    session = Both().start([*often, 5, 1, 2, 6, 1, 3, 7, 1, 4, 8, 5, 1])
    assert 2 in session.draft(16, 1).token_ids.tolist()
    session.commit([2])


def test_commonest_continuations_are_read_anew_when_the_twin_does():
    rng = np.random.default_rng(2)
    both = Both()
    for num_outputs in range(110):
        session = both.start([0])
        if num_outputs > 55:
            assert len(session.draft(40, 1)) > 10
        session.commit([0, int(rng.integers(1, 60))])
        session.close()


@pytest.mark.parametrize("num_tokens", [62, 63, 64, 65, 66, 100])
def test_passages_beyond_the_longest_match_are_followed_as_by_the_twin(num_tokens):
    passage, both = np.random.default_rng(num_tokens).integers(0, 9, num_tokens).tolist(), Both()
    session = both.start([*passage, 1, 2])
    session.commit([*passage, 3, 1, *passage])
    session.draft(16)
    session.close()
    session = both.start([7, *passage, *passage, 5, *passage])
    assert len(session.draft(16)) == 16
    session.commit(passage + passage[:2])
    assert len(session.draft(16)) > 4


@pytest.mark.parametrize("with_texts", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_where_no_context_is_known_the_commonest_tokens_of_every_text_follow(with_texts):
    own, written, asked = (
        [10 + text] * 9 + [20 + text] * 3 if text in with_texts else [] for text in range(3)
    )
    both = Both()
    before = both.start(asked)
    before.commit(written)
    before.close()
    session = both.start([*own, 9])
    for token in (10, 8, 11, 7, 12):
        tree = session.draft(30, 2)
        commonest = [10 + text for text in with_texts]
        assert set(commonest) <= set(tree.token_ids[tree.parents < 0].tolist())
        session.commit([token])
        session.commit([6])
    empty = {(kind, 0) for kind in (OWN, OUTPUTS, PROMPTS) if kind == OWN or kind in with_texts}
    assert empty <= set(both.twin.contexts)


def test_candidates_are_as_many_as_of_the_twin_where_every_text_has_more():
    own, written, asked = (
        [100 * text + token for token in range(60) for _ in range(token // 6 + 1)] for text in range(3)
    )
    both = Both(
        prior=np.where(np.arange(shipped_prior().size) < prod(SHAPES["escapes"]), 0.3, shipped_prior())
    )
    before = both.start(asked)
    before.commit(written)
    before.close()
    session = both.start([*own, 9_999])
    assert len(session.draft(200, 1)) > 30
    session.commit([59])


SHARES = [1, 2, 3, 9, 10, 29, 30, 99, 100, 299, 300, 500]
"""How often tokens come, about the shares of 10,000 tokens between which is told."""


@pytest.mark.parametrize("num_tokens", [9_990, 10_000, 10_010, 16_000])
def test_shares_of_a_whole_text_that_knows_no_context_are_those_of_the_twin(num_tokens):
    asked = [token for token, count in enumerate(SHARES) for _ in range(count)]
    both = Both()
    before = both.start([*asked, *range(1_000, 1_000 + num_tokens - len(asked))])
    before.close()
    # The own text says what follows.
    session = both.start([token for other in range(len(SHARES) + 1) for token in (500, other)] + [500])
    tree = session.draft(40, 1)
    assert set(range(len(SHARES) + 1)) <= set(tree.token_ids.tolist())
    supports = both.twin.tables.by_name["supports"]
    untouched = supports[PROMPTS].copy()
    session.commit([3])
    learned = np.flatnonzero((supports[PROMPTS] != untouched)[0])
    smallest = 2 if num_tokens <= 10_000 else 1
    assert set(learned.tolist()) >= {0, *range(smallest, 8)}


def test_recorded_outputs_are_drafted_as_by_the_twin(data_dir):
    sizes: list[int] = []
    kinds: set[tuple[int, int]] = set()
    for family in ("code", "chat", "sql", "agent_tools", "translation"):
        both = Both()
        for prompt, output in recorded(data_dir, family, 4):
            session = both.start(prompt[-400:])
            sizes += replayed(session, output[:200], 16)
            session.close()
        kinds |= set(both.twin.contexts)
    assert np.mean(np.array(sizes) > 4) > 0.4
    assert {(ANCHORED, stage) for stage in range(13)} <= kinds
    assert {(OUTPUTS, 0), (OWN, 0), (PROMPTS, 0)} <= kinds
