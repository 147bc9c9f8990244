"""What a client believes a server of itself."""

from __future__ import annotations

import pytest

from retrieval_spec.client.peer import MAX_SOURCES, MAX_STATE_DIMENSIONS, Peer
from retrieval_spec.errors import ServiceUnavailable, TokenizerMismatch
from retrieval_spec.feedback import MAX_TOPK
from retrieval_spec.v1 import draft_pb2 as pb


def said(vocab_size=100, names=("a",), **fields) -> pb.ServerInfo:
    return pb.ServerInfo(vocab_size=vocab_size, source_names=names, **fields)


LIES = {
    "no vocabulary": (said(0), "names no vocabulary; got 0"),
    "a negative one": (said(-1), "names no vocabulary"),
    "sources": (
        said(names=["s"] * (MAX_SOURCES + 1)),
        f"too many sources; got {MAX_SOURCES + 1}; expected <= 16",
    ),
    "top-k": (said(wanted_topk=MAX_TOPK + 1), "too many top-k ids"),
    "less than none": (said(wanted_topk=-1), "too many top-k ids"),
    "dimensions": (said(state_dimensions=MAX_STATE_DIMENSIONS + 1), "too many dimensions of a state"),
}


@pytest.mark.parametrize("lie", LIES)
def test_nonsense_is_not_believed_and_changes_nothing(lie):
    info, words = LIES[lie]
    peer = Peer()
    peer.learn(said())
    for one in (peer, Peer()):
        before = one.info
        with pytest.raises(ServiceUnavailable, match=words):
            one.learn(info)
        assert one.info is before
    assert (peer.vocab_size, peer.source_names) == (100, ("a",))


def test_a_successor_drafts_for_the_same_vocabulary_and_may_have_more_sources():
    peer = Peer()
    peer.learn(said(incarnation=1))
    peer.learn(said(names=("a", "b"), incarnation=2))
    assert (peer.source_names, peer.no_draft.source_names, peer.incarnation_seen) == (
        ("a", "b"),
        ("a", "b"),
        2,
    )
    with pytest.raises(
        TokenizerMismatch, match="another vocabulary; got 101; expected 100; open a new client"
    ):
        peer.learn(said(101, incarnation=3))
    assert (peer.vocab_size, peer.incarnation_seen) == (100, 2)
