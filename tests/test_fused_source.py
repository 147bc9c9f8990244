"""RASD where the target runs: any retrieval source, pruned by a draft model and fused with its tree."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from retrieval_spec.client import DraftSession, DraftSource, LocalClient
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidDistribution, InvalidRequest, ServiceUnavailable
from retrieval_spec.fusion import Pruning
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier.fused_source import Draws, FusedSource
from tests.exactness.sources import FakeSource
from tests.pseudo_models import PseudoModel, hashed_law, repeating_law
from tests.reference.acceptance import drafted_paths
from tests.reference.fusion import paths_of
from tests.reference.opt_tree import opt_tree
from tests.reference.rasd import rasd
from tests.replay import random_streams
from tests.stores import identity

VOCAB_SIZE = 9
TEXT = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


def retrieval(preset="session"):
    return LocalClient(Engine(VOCAB_SIZE, preset=preset))


def model():
    return PseudoModel(VOCAB_SIZE, hashed_law(VOCAB_SIZE, 1.0))


def probs_of(tree):
    return {path: prob for path, (prob, _) in paths_of(tree).items()}


def test_it_is_a_source_and_opens_sessions():
    source = FusedSource([retrieval()], model())
    assert isinstance(source, DraftSource)
    assert isinstance(source.open_session([1, 2]), DraftSession)
    assert source.vocab_size == VOCAB_SIZE
    assert source.source_names == ("session", "model")


@pytest.mark.parametrize("presets", [("session",), ("session", "anpd")], ids=len)
def test_it_drafts_what_the_twin_drafts(presets):
    law = hashed_law(VOCAB_SIZE, 1.0)
    sources = [retrieval(preset) for preset in presets]
    fused = FusedSource(sources, PseudoModel(VOCAB_SIZE, law), pruning=Pruning(top_k=3))
    from_all = 0
    for index, pieces in enumerate(random_streams(60, seed=3)):
        session = fused.open_session(pieces[0], f"f{index}")
        alone = [source.open_session(pieces[0], f"a{index}") for source in sources]
        context = list(pieces[0])
        for piece in pieces[1:]:
            for each in (session, *alone):
                each.commit(piece)
            context += piece
            if not context:
                continue
            tree = session.draft(12).check(VOCAB_SIZE)
            expected = rasd([probs_of(each.draft(12)) for each in alone], law, context, 12, top_k=3)
            assert drafted_paths(tree) == set(expected)
            from_all += len(set(tree.sources.tolist())) > 1
        session.close()
        for each in alone:
            each.close()
    assert from_all > 50


def test_each_node_says_who_drafted_it():
    sources = [FakeSource(VOCAB_SIZE, lambda context, n: DraftTree.chain([3, 4], [0.9, 0.9])) for _ in "ab"]
    fused = FusedSource(sources, PseudoModel(VOCAB_SIZE, repeating_law(VOCAB_SIZE)))
    tree = fused.open_session(TEXT).draft(2)
    assert fused.source_names == tree.source_names == ("fake", "fake", "model")
    assert dict(zip(tree.token_ids.tolist(), tree.sources.tolist(), strict=True)) == {3: 7, 4: 7}


def test_two_sources_and_no_model_are_fused_unpruned():
    first = FakeSource(VOCAB_SIZE, lambda context, n: DraftTree.chain([1, 2], [0.5, 0.5]))
    second = FakeSource(VOCAB_SIZE, lambda context, n: DraftTree.chain([1, 3], [0.75, 0.5]))
    tree = FusedSource([first, second]).open_session([5]).draft(8)
    assert paths_of(tree) == {(1,): (0.75, 3), (1, 2): (0.5, 1), (1, 3): (0.5, 2)}


def test_a_model_alone_drafts_its_own_tree():
    law = hashed_law(VOCAB_SIZE, 1.0)
    tree = FusedSource([], PseudoModel(VOCAB_SIZE, law)).open_session(TEXT).draft(8)
    assert drafted_paths(tree) == set(opt_tree(law, TEXT, 8))


def test_a_source_that_is_gone_leaves_the_drafts_to_the_others(caplog):
    class Gone(FakeSource):
        @property
        def source_names(self):
            raise ServiceUnavailable("nobody listens")

        vocab_size = source_names

        def __init__(self):
            self.sessions = []

        def open_session(self, prompt_ids, namespace="default"):
            raise ServiceUnavailable("nobody listens")

    fused = FusedSource([Gone(), retrieval()], model())
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        tree = fused.open_session(TEXT).draft(8)
    assert tree == FusedSource([retrieval()], model()).open_session(TEXT).draft(8)
    assert len(caplog.records) == 1
    with pytest.raises(ServiceUnavailable):
        _ = FusedSource([Gone()]).vocab_size


@pytest.mark.parametrize("error", [InvalidDistribution("no sum"), ServiceUnavailable("gone")], ids=str)
def test_a_model_that_fails_leaves_the_drafts_to_retrieval(error, caplog):
    broken = model()
    right = broken.law

    def law(context):
        if len(context) > len(TEXT):
            raise error
        return right(context)

    broken.law = law
    session = FusedSource([retrieval()], broken).open_session(TEXT)
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        session.draft(8)
        session.commit([3])
        session.draft(8)
    assert drafted_paths(session.draft(8)) == drafted_paths(retrieval().open_session([*TEXT, 3]).draft(8))
    assert len(caplog.records) == 1


def test_going_back_and_on_is_as_if_one_had_never_been_there():
    fused = FusedSource([retrieval(), retrieval()], model())
    session, straight = fused.open_session(TEXT), fused.open_session(TEXT)
    session.commit([5, 6, 7])
    session.draft(8)
    session.truncate(len(TEXT) + 1)
    session.commit([1])
    straight.commit([5, 1])
    assert session.context_length == straight.context_length == len(TEXT) + 2
    assert session.draft(8) == straight.draft(8)
    session.truncate(3)
    assert session.draft(8) == fused.open_session(TEXT[:3]).draft(8)


def test_without_a_model_too_one_goes_back():
    session = FusedSource([retrieval()]).open_session(TEXT)
    session.commit([5, 6, 7])
    session.truncate(len(TEXT))
    assert session.draft(8) == FusedSource([retrieval()]).open_session(TEXT).draft(8)
    assert len(session.draft(8)) > 0


def test_sources_that_are_asked_with_different_projections_are_not_fused():
    class Asked(FakeSource):
        def __init__(self, projection):
            super().__init__(VOCAB_SIZE, lambda context, max_nodes: DraftTree.empty())
            self.projection = projection

    one, equal, other = identity(3), identity(3), identity(4)
    assert FusedSource([Asked(one), Asked(None), Asked(equal)]).projection is one
    assert FusedSource([Asked(None)]).projection is None
    with pytest.raises(InvalidRequest, match="different projections; fuse dense datastores of one build"):
        _ = FusedSource([Asked(one), Asked(other)]).projection


def test_what_was_written_is_learned_when_the_session_ends():
    history = FakeSource(VOCAB_SIZE, lambda context, n: DraftTree.empty())
    session = FusedSource([history], model()).open_session([1, 2])
    session.commit([3, 4])
    session.close()
    session.close()
    assert history.sessions[0].context == [1, 2, 3, 4]
    assert history.sessions[0].is_closed


def test_drawn_children_come_with_what_they_were_drawn_from():
    law = hashed_law(VOCAB_SIZE, 0.5)
    fused = FusedSource([], PseudoModel(VOCAB_SIZE, law), draws=Draws((2, 1), seed=3))
    session = fused.open_session(TEXT)
    tree = session.draft(8)
    assert tree == fused.open_session(TEXT).draft(8)
    assert session.proposals.keys() == {(), *((token,) for token in session.proposals[()].token_ids.tolist())}
    for path, proposal in session.proposals.items():
        assert np.array_equal(proposal.q, law([*TEXT, *path]).astype(np.float32))
    assert {path for path in drafted_paths(tree) if len(path) == 1} >= {
        (token,) for token in session.proposals[()].token_ids.tolist()
    }
    other = FusedSource([], PseudoModel(VOCAB_SIZE, law), draws=Draws((2, 1), seed=4)).open_session(TEXT)
    other.draft(8)
    assert other.proposals.keys() != session.proposals.keys()


def test_a_batch_shares_the_nodes():
    fused = FusedSource([retrieval()], model())
    sessions = [fused.open_session(TEXT), fused.open_session(TEXT[:5])]
    trees = fused.draft_batch(sessions, 10)
    assert [len(tree) for tree in trees] == [5, 5]


@pytest.mark.parametrize("options", [{}, {"draws": Draws()}])
def test_nothing_to_draft_with_is_refused(options):
    with pytest.raises(InvalidRequest, match="nothing to draft with"):
        FusedSource([], None, **options)


def test_more_names_than_bits_are_refused():
    with pytest.raises(InvalidRequest, match="too many drafting sources"):
        FusedSource([retrieval() for _ in range(17)]).open_session([1])
