"""The default preset as sessions see it: isolated, repeatable, within its budget, true about sources."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.budget import share_nodes
from retrieval_spec.drafters.base import Budget, TextCursor
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.prompts import PromptsDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import MAX_SHARE, Engine
from retrieval_spec.errors import ServiceUnavailable
from retrieval_spec.kernels.blend_tables import OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.features import MAX_HOPS
from retrieval_spec.replay import accepted_path
from retrieval_spec.structures import blend_tables
from retrieval_spec.structures.context import Context
from retrieval_spec.tree import DraftTree, Tokens
from tests.conftest import REPOSITORY
from tests.fake_drafters import CountingDrafter
from tests.strategies import as_int32
from tests.threads import in_threads

VOCAB_SIZE = 151_936
PASSAGE = [70_000 + step for step in range(40)]


def engine() -> Engine:
    return Engine(VOCAB_SIZE)


def write(engine, prompt, output, namespace="default"):
    session = engine.open_session(prompt, namespace)
    for token in output:
        session.draft(8)
        session.commit([token])
    session.close()


def drafted(engine, prompt, namespace="default", max_nodes=16):
    return engine.open_session(prompt, namespace).draft(max_nodes).check(VOCAB_SIZE)


def sums_of_children(tree: DraftTree) -> list[float]:
    sums = dict.fromkeys(tree.parents.tolist(), 0.0)
    for parent, prob in zip(tree.parents.tolist(), tree.probs.tolist(), strict=True):
        sums[parent] += prob
    return list(sums.values())


def with_paths(tree: DraftTree) -> list[tuple[list[int], int, int]]:
    """What stands before each node in the tree, its token and its sources."""
    paths: list[list[int]] = []
    columns = tree.parents.tolist(), tree.token_ids.tolist(), tree.sources.tolist()
    found = []
    for parent, token, sources in zip(*columns, strict=True):
        before = paths[parent] if parent >= 0 else []
        paths.append([*before, token])
        found.append((before, token, sources))
    return found


TOKENS = st.lists(st.integers(0, 5), max_size=25)
STEPS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4)


@pytest.mark.row("T1")
@given(STEPS, STEPS, TOKENS)
@settings(max_examples=40, deadline=None)
def test_nothing_that_another_namespace_writes_changes_a_draft(ours, theirs, prompt):
    alone, shared = engine(), engine()
    for step, (asked, written) in enumerate(ours):
        write(alone, asked, written)
        write(shared, *theirs[step % len(theirs)], namespace="theirs")
        write(shared, asked, written)
    assert drafted(alone, prompt) == drafted(shared, prompt)


@pytest.mark.row("T1")
def test_no_token_of_another_namespace_is_drafted():
    shared = engine()
    write(shared, [1, 2, *PASSAGE, 1, 2, 3], [1, 2, *PASSAGE, 1, 2, 3], namespace="theirs")
    assert len(drafted(shared, [1, 2, *PASSAGE[:10]], "theirs")) > 4
    tree = drafted(shared, [1, 2, *PASSAGE[:10], 5, 1, 2, PASSAGE[0]], "ours")
    assert set(tree.token_ids.tolist()) <= {1, 2, 5, *PASSAGE[:10]}
    assert set(drafted(shared, [1, 2], "ours").token_ids.tolist()) <= {1, 2}
    assert len(drafted(shared, [], "ours")) == 0


@given(STEPS, TOKENS)
@settings(max_examples=40, deadline=None)
def test_equal_states_give_equal_trees(steps, prompt):
    one, other = engine(), engine()
    for asked, written in steps:
        write(one, asked, written)
        write(other, asked, written)
    sessions = [either.open_session(prompt) for either in (one, other)]
    assert sessions[0].draft(16) == sessions[1].draft(16) == sessions[0].draft(16)


class FailingDrafter:
    """Fails in every draft but the first ones, which say nothing."""

    def __init__(self, num_good: int = 0) -> None:
        self.num_good, self.seen = num_good, []

    def start(self, context, namespace="default"):
        return self

    def observe(self, tokens, feedback=None):
        self.seen += tokens.tolist()

    def close(self):
        pass

    def propose(self, budget):
        self.num_good -= 1
        if self.num_good < 0:
            raise ServiceUnavailable("cannot draft")
        return DraftTree.empty()


@pytest.mark.parametrize("num_good", [0, 1])
def test_a_source_that_fails_is_done_without(num_good, caplog):
    failing, prompt = FailingDrafter(num_good), as_int32([5, 6, 7, 5, 6])
    alone = Blend(("session", "failing")).start(
        [SessionDrafter.open(9).start(prompt)], "default", Context(prompt)
    )
    cursors = [SessionDrafter.open(9).start(prompt), failing]
    beside = Blend(("session", "failing")).start(cursors, "default", Context(prompt))
    for token in (7, 5, 6):
        tree = beside.draft(Budget(8))
        assert len(tree) > 0
        assert tree == alone.draft(Budget(8))
        for either in (alone, beside):
            either.observe(as_int32([token]))
    assert failing.seen == [7, 5, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "a session goes on without one of its sources: cannot draft"
    ]


def test_what_another_source_proposes_is_drafted_beside_texts():
    prompt = as_int32([5, 6, 7, 5, 6])
    cursors = [SessionDrafter.open(99).start(prompt), CountingDrafter(99).start(prompt)]
    tree = Blend(("session", "counting")).start(cursors, "default", Context(prompt)).draft(Budget(40))
    assert tree.source_names == ("session", "counting")
    sources = {(*before, token): sources for before, token, sources in with_paths(tree)}
    assert (sources[7,], sources[7, 8], sources[7, 5]) == (0b11, 0b10, 0b01)


KINDS = {SessionDrafter: OWN, HistoryDrafter: OUTPUTS, PromptsDrafter: PROMPTS}


@pytest.mark.parametrize("source", KINDS, ids=lambda source: source.__name__)
def test_any_text_may_stand_alone(source):
    drafter, blend = source.open(VOCAB_SIZE), Blend(("counting", "text"))
    before = drafter.start(as_int32(PASSAGE))
    before.observe(as_int32(PASSAGE))
    before.close()
    prompt = as_int32([*PASSAGE[:20], PASSAGE[9]])
    text = drafter.start(prompt)
    assert isinstance(text, TextCursor)
    assert text.kind == KINDS[source]
    counting = CountingDrafter(VOCAB_SIZE, 0.5).start(as_int32([5]))
    assert not isinstance(counting, TextCursor)
    tree = blend.start([counting, text], "default", Context(prompt)).draft(Budget(8, 1)).check(VOCAB_SIZE)
    sources = dict(zip(tree.token_ids.tolist(), tree.sources.tolist(), strict=True))
    assert (sources[PASSAGE[10]], sources[6]) == (0b10, 0b01)


@given(STEPS, TOKENS, TOKENS, TOKENS)
@settings(max_examples=40, deadline=None)
def test_a_session_that_went_back_drafts_as_one_that_never_went_on(steps, prompt, kept, dropped):
    shared = engine()
    for asked, written in steps:
        write(shared, asked, written)
    fresh, back = (shared.open_session(prompt) for _ in range(2))
    for session in (fresh, back):
        session.commit(kept)
    expected = fresh.draft(16)
    back.commit(dropped)
    back.truncate(len(prompt) + len(kept))
    assert back.draft(16) == expected


def num_expected(trees: list[DraftTree]) -> float:
    """How many nodes will be accepted, as they themselves say."""
    return sum(float(tree.path_probs().sum()) for tree in trees)


@given(STEPS, st.lists(TOKENS, min_size=2, max_size=6), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_a_batch_expects_what_the_most_probable_nodes_of_single_drafts_do(steps, prompts, total_nodes):
    shared = engine()
    for asked, answer in steps:
        write(shared, asked, answer)
    sessions = [shared.open_session(prompt) for prompt in prompts]
    trees = shared.draft_batch(sessions, total_nodes)
    assert sum(map(len, trees)) <= total_nodes
    most = min(total_nodes, MAX_SHARE * -(-total_nodes // len(prompts)))
    best = share_nodes([session.draft(most) for session in sessions], total_nodes)
    assert num_expected(trees) >= 0.75 * num_expected(best)  # the fewer nodes, the more one of them weighs
    budgets = [Budget(most)] * len(sessions)
    assert shared.joining.draft_all([session.joint for session in sessions], budgets, total_nodes) == trees


def sources_as_tokens(num_sessions: int) -> list[Tokens]:
    """Parts of a file that everybody has, a token each byte."""
    text = as_int32(list(Path(argparse.__file__).read_bytes()))
    return [text[begin : begin + 700] for begin in range(0, 4_000 * num_sessions, 4_000)]


def test_a_batch_accepts_of_real_text_what_the_most_probable_nodes_of_single_drafts_do():
    texts = sources_as_tokens(16)
    together, alone = engine(), engine()
    num_together = num_alone = 0
    batch, singles = ([one.open_session(text[:400]) for text in texts] for one in (together, alone))
    for at in range(400, 600, 4):
        trees = together.draft_batch(batch, 64)
        assert together.draft_batch(batch, 64) == trees  # asking again changes nothing
        best = share_nodes([session.draft(16) for session in singles], 64)
        for number, text in enumerate(texts):
            num_together += len(accepted_path(trees[number], text[at:]))
            num_alone += len(accepted_path(best[number], text[at:]))
            batch[number].commit(text[at : at + 4])
            singles[number].keep(len(best[number]))
            singles[number].commit(text[at : at + 4])
    assert num_alone > 500
    assert num_together >= 0.98 * num_alone


def test_a_session_that_stands_in_a_batch_twice_moves_on_once():
    shared = engine()
    session, other = (shared.open_session([1, 2, 3] * 9) for _ in range(2))
    session.commit([1, 2])
    other.commit([1, 2])
    expected = other.draft(4)
    trees = shared.draft_batch([session, session], 16, [4, 4])
    assert [len(tree) for tree in trees] == [4, 4]
    assert trees == [expected, expected]
    session.commit([3, 1])
    assert session.draft(8, None).token_ids.tolist() == [2, 3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("end", ["close", "truncate"])
def test_what_was_committed_last_is_learned_although_no_draft_follows(end):
    one, other = engine(), engine()
    for either, is_drafted in ((one, True), (other, False)):
        session = either.open_session(PASSAGE)
        session.commit([*PASSAGE[:5], 7, *PASSAGE[:5]])
        session.draft(8)
        session.commit([7, 8])
        if is_drafted:
            session.draft(8)
        if end == "close":
            session.close()
        else:
            session.truncate(len(PASSAGE))
    np.testing.assert_array_equal(one.joining.cells_of("default"), other.joining.cells_of("default"))
    assert not np.array_equal(one.joining.cells_of("default"), engine().joining.cells_of("default"))
    if end == "close":
        assert drafted(one, [8, 9, PASSAGE[4]]) == drafted(other, [8, 9, PASSAGE[4]])


def test_sessions_of_several_namespaces_share_the_nodes_of_a_batch():
    shared = engine()
    sessions = [shared.open_session([1, 2, 3] * 9, name) for name in ("one", "other", "one")]
    trees = shared.draft_batch(sessions, 10)
    assert sum(map(len, trees)) == 10
    assert trees == share_nodes([session.draft(10) for session in sessions], 10)


def test_a_run_of_one_token_is_drafted_on():
    session = engine().open_session([1] * 600)
    for _ in range(10):
        tree = session.draft(64).check(VOCAB_SIZE)
        assert tree.token_ids.tolist()[:8] == [1] * 8
        session.commit([1] * 50)


@pytest.mark.row("K2")
def test_two_sessions_of_a_namespace_draft_and_commit_in_two_threads():
    shared = engine()

    def work(number: int) -> int:
        rng, num_nodes = np.random.default_rng(number), 0
        for _ in range(6):
            session = shared.open_session(rng.integers(0, 6, 60).tolist())
            for _ in range(60):
                tree = session.draft(int(rng.integers(1, 40))).check(VOCAB_SIZE)
                num_nodes += len(tree)
                session.commit(tree.token_ids[:1].tolist() + rng.integers(0, 6, 3).tolist())
            session.close()
        return num_nodes

    assert min(in_threads(work, range(2))) > 5_000


@pytest.mark.row("K2")
def test_batches_over_several_namespaces_are_drafted_in_several_threads():
    shared, names = engine(), ("one", "two", "three")

    def work(number: int) -> int:
        rng, num_nodes = np.random.default_rng(number), 0
        for _ in range(8):
            order = rng.permutation(names).tolist()  # locks are taken in one order all the same
            sessions = [shared.open_session(rng.integers(0, 6, 60).tolist(), name) for name in order * 2]
            for _ in range(20):
                trees = shared.draft_batch(sessions, 24)
                for session, tree in zip(sessions, trees, strict=True):
                    num_nodes += len(tree.check(VOCAB_SIZE))
                    session.commit(tree.token_ids[:1].tolist() + rng.integers(0, 6, 2).tolist())
            for session in sessions:
                session.close()
        return num_nodes

    assert min(in_threads(work, range(4))) > 3_000


@pytest.mark.parametrize("max_nodes", [0, 1, 2, 7, 64, 256])
@pytest.mark.parametrize("max_depth_nodes", [0, 1, 2, 64])
def test_trees_keep_their_budget(max_nodes, max_depth_nodes):
    prompt = as_int32(np.random.default_rng(0).integers(0, 4, 300).tolist())
    joint = Blend(("session",)).start([SessionDrafter.open(9).start(prompt)], "default", Context(prompt))
    tree = joint.draft(Budget(max_nodes, max_depth_nodes)).check(9)
    assert len(tree) <= max_nodes
    assert max(tree.depths(), default=0) <= max_depth_nodes
    assert (len(tree) > 0) == (max_nodes > 0 and max_depth_nodes > 0)
    joint.observe(as_int32([1, 2]))


@given(STEPS, TOKENS, st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_probabilities_are_such_and_nodes_come_best_first(steps, prompt, max_nodes):
    both = engine()
    for asked, written in steps:
        write(both, asked, written)
    tree = drafted(both, prompt, max_nodes=max_nodes)
    assert np.all((tree.probs >= 0.0) & (tree.probs <= 1.0))
    assert np.all(np.diff(tree.path_probs()) <= 1e-6)


@given(TOKENS, st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_children_are_together_at_most_certain_before_outcomes_correct_them(prompt, max_nodes):
    assert max(sums_of_children(drafted(engine(), prompt, max_nodes=max_nodes)), default=0.0) <= 1.0 + 1e-5


@given(TOKENS, TOKENS, TOKENS)
@settings(max_examples=60, deadline=None)
def test_sources_are_the_texts_that_know_the_token_at_this_place_or_else_at_all(asked, written, prompt):
    shared = engine()
    write(shared, asked, written)
    tree = drafted(shared, prompt, max_nodes=30)
    assert tree.source_names == ("session", "history", "prompts")
    texts = [prompt, written, asked]
    for before, token, sources in with_paths(tree):
        last = [*prompt, *before][-1:]
        here = [(*last, token) in pairwise(text) for text in texts]
        holders = [token in text for text in texts]
        found = [bool(sources >> bit & 1) for bit in range(3)]
        assert any(found)
        if len(prompt) + len(before) <= MAX_HOPS:  # so that every suffix is looked at
            assert found == (here if any(here) else holders)
        else:
            assert found == holders or all(here[bit] for bit in range(3) if found[bit])


def test_what_a_namespace_learned_changes_its_probabilities_alone():
    shared, context = engine(), [1, 2, 3, 1, 2]
    before = drafted(shared, context)
    for number in range(20):
        write(shared, context, [20 + number])  # what the prompt says never happens
    after = drafted(shared, context)
    told = [tree.probs[(tree.parents < 0) & (tree.token_ids == 3)].sum() for tree in (before, after)]
    assert told[1] < 0.7 * told[0]
    assert drafted(shared, context, "ours") == before


def test_a_commit_of_no_tokens_says_nothing_of_the_draft():
    one, other = engine(), engine()
    context = [*PASSAGE, 1, *PASSAGE[:20]]
    for either, num_empty in ((one, 0), (other, 5)):
        session = either.open_session(context)
        session.draft(16)
        for _ in range(num_empty):
            session.commit([])
            session.draft(16)
        session.commit([*PASSAGE[20:25], 9])
    assert drafted(one, context) == drafted(other, context)


def test_a_prior_of_another_shape_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "prior.npy", np.zeros(blend_tables.shipped_prior().size - 1, np.float16))
    monkeypatch.setattr(blend_tables, "PRIOR", tmp_path / "prior.npy")
    with pytest.raises(ValueError, match=r"prior\.npy holds .* cells instead of"):
        blend_tables.shipped_prior.__wrapped__()


def test_the_prior_ships_with_the_package_and_belongs_to_all():
    prior = blend_tables.shipped_prior()
    assert prior is blend_tables.shipped_prior()
    assert not prior.flags.writeable
    assert np.isfinite(prior).all()
    package = Path(blend_tables.__file__).parents[1]
    assert blend_tables.PRIOR.is_relative_to(package)
    # The wheel takes the whole folder, but what git ignores.
    assert 'packages = ["retrieval_spec"]' in (REPOSITORY / "pyproject.toml").read_text()
    ignored = REPOSITORY / ".gitignore"
    patterns = ignored.read_text().split() if ignored.is_file() else []
    assert not any(blend_tables.PRIOR.match(pattern) for pattern in patterns)
