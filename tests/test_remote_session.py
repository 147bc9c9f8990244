"""The context of a remote session: the same tokens, wherever they wait for their place."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.client.session import RemoteSession
from retrieval_spec.tree import DraftTree
from tests.strategies import as_int32

VOCAB_SIZE = 50
CLIENT = SimpleNamespace(
    vocab_size=VOCAB_SIZE, no_draft=DraftTree.empty(), truncate_session=lambda session, length: session.lose()
)
ACTS = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, 100)),
    st.tuples(st.just("tail"), st.floats(0, 1)),
    st.tuples(st.just("arrived"), st.none()),
    st.tuples(st.just("truncate"), st.floats(0, 1)),
)


@given(st.integers(0, 5), st.lists(ACTS, max_size=30))
def test_what_was_committed_is_the_context_and_ends_as_it_does(num_prompt, acts):
    expected = list(range(num_prompt))
    session = RemoteSession(CLIENT, as_int32(expected), "default")
    session.confirm(1, 1, num_prompt)
    for act, argument in acts:
        if act == "commit":
            tokens = [(len(expected) + offset) % VOCAB_SIZE for offset in range(argument)]
            expected += tokens
            session.commit(tokens)
        elif act == "arrived":
            session.arrived(session.context_length)
        elif act == "truncate":
            del expected[int(argument * len(expected)) :]
            session.truncate(len(expected))
        else:
            begin = int(argument * len(expected))
            assert session.tail(begin) == expected[begin:]
        assert session.context_length == len(expected)
    assert session.context.tolist() == session.tail(0) == expected
