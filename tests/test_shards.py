"""Several servers behind one interface: fused drafts, and one of them in trouble."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftSession, DraftSource, LocalClient, ShardedClient
from retrieval_spec.client.shards import relabelled
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    InvalidFeedback,
    InvalidRequest,
    InvalidTokens,
    ServiceUnavailable,
    TokenizerMismatch,
    UnknownSession,
)
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import fuse
from retrieval_spec.tree import DraftTree
from tests.fake_drafters import CountingDrafter
from tests.service_process import server_process, server_thread, session_engine

PATIENCE_S = 20.0


def counting(vocab_size=70_000, **probs):
    return Engine(vocab_size, {name: CountingDrafter(vocab_size, prob) for name, prob in probs.items()})


@pytest.fixture
def two(tmp_path):
    """Two servers with one source of a common name and one of their own, and their addresses."""
    engines = counting(common=0.5, low=0.25), session_engine()
    with (
        server_thread(f"unix:{tmp_path}/a.sock", engines[0]) as first,
        server_thread(f"unix:{tmp_path}/b.sock", engines[1]) as second,
    ):
        yield [first, second]


def test_trees_are_those_of_both_fused_node_by_node(two):
    local = [LocalClient(engine) for engine in (counting(common=0.5, low=0.25), session_engine())]
    with ShardedClient(two, timeout_s=PATIENCE_S) as client:
        assert isinstance(client, DraftSource)
        assert client.source_names == ("common", "low", "session", "counting", "taught")
        assert client.vocab_size == 70_000
        prompt = [7, 8, 20, 7, 8, 21, 7, 8]
        session, alone = client.open_session(prompt), [one.open_session(prompt) for one in local]
        assert isinstance(session, DraftSession)
        seen = set()
        for step in range(30):
            tokens = [prompt[step % 5], prompt[(step * 3) % 8]]
            for one in (session, *alone):
                one.commit(tokens)
            expected = fuse([relabelled(one.draft(8), client.source_names) for one in alone], 8)
            assert session.draft(8) == expected
            seen |= set(expected.sources.tolist())
        assert len(seen) > 2
        assert session.context_length == alone[0].context_length
        session.truncate(4)
        for one in alone:
            one.truncate(4)
        expected = fuse([relabelled(one.draft(8), client.source_names) for one in alone], 8)
        assert session.draft(8) == expected
        session.close()
        with pytest.raises(UnknownSession):
            session.draft(8)


def test_a_batch_shares_one_budget(two):
    with ShardedClient(two, timeout_s=PATIENCE_S) as client:
        sessions = [client.open_session([token]) for token in (5, 50, 500)]
        trees = client.draft_batch(sessions, 12)
        assert 3 <= sum(map(len, trees)) <= 12
        assert [tree.token_ids[0] for tree in trees] == [6, 51, 501]
        assert sum(map(len, client.draft_batch(sessions, 12, CostCurve.linear(5.0)))) == 0
        assert len(sessions[0].draft(12, CostCurve.linear(5.0))) == 0


def test_one_dead_server_leaves_the_drafts_to_the_other(tmp_path):
    with server_thread(f"unix:{tmp_path}/a.sock", counting(common=0.5)) as first:
        with server_process(f"unix:{tmp_path}/b.sock", "counting") as (process, second):
            client = ShardedClient([first, second], timeout_s=PATIENCE_S)
            session = client.open_session([1])
            assert set(session.draft(4).sources.tolist()) == {0b11 | 0b100}, "both draft"
            process.send_signal(signal.SIGKILL)
            process.wait()
            began_s = time.monotonic()
            for token in range(50):
                session.commit([token])
                assert session.draft(4).token_ids.tolist() == [token + step for step in range(1, 5)]
            assert time.monotonic() - began_s < 5.0, "nobody waits for the dead one"
        other = client.open_session([9])
        assert other.draft(2).token_ids.tolist() == [10, 11]
        client.close()


def test_a_server_that_was_never_there_is_left_out(tmp_path):
    with (
        server_thread(f"unix:{tmp_path}/a.sock", counting(common=0.5)) as first,
        ShardedClient([first, f"unix:{tmp_path}/none.sock"], timeout_s=PATIENCE_S) as client,
    ):
        assert client.open_session([1]).draft(2).token_ids.tolist() == [2, 3]


def test_what_cannot_be_is_refused(two, tmp_path):
    for addresses in ([], "unix:/run/one.sock"):
        with pytest.raises(InvalidRequest):
            ShardedClient(addresses)
    with pytest.raises(InvalidRequest, match="share no socket"):
        ShardedClient(two, transport="unix:/run/frames.sock")
    with (
        ShardedClient([f"unix:{tmp_path}/none.sock"]) as client,
        pytest.raises(ServiceUnavailable, match="none of the servers"),
    ):
        client.open_session([1])
    with (
        server_thread(f"unix:{tmp_path}/c.sock", counting(9, one=0.5)) as other,
        ShardedClient([two[0], other]) as client,
        pytest.raises(TokenizerMismatch),
    ):
        client.open_session([1])


def test_feedback_goes_to_those_that_can_use_it(two):
    with ShardedClient(two, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1, 2])
        assert client.wanted_topk == 2
        session.commit([3], Feedback(hidden_state=np.array([11, 12, 13], np.float32)))
        taught = client.source_names.index("taught")
        assert (session.draft(16).sources >> taught & 1).any()
        with pytest.raises(InvalidFeedback):
            session.commit([4], Feedback(topk_ids=np.ones((1, 2), np.int32)))
        with pytest.raises(InvalidTokens):
            session.commit([-1])
        assert session.context_length == 3
        assert session.draft(1).token_ids.tolist() == [4]


def test_source_bits_are_counted_by_name():
    tree = DraftTree.from_lists([1, 2, 3], [-1, 0, 1], [0.5] * 3, [1, 2, 7], ("a", "b", "c"))
    found = relabelled(tree, ("c", "x", "a"))
    assert found.sources.tolist() == [4, 0, 5]
    assert found.source_names == ("c", "x", "a")
