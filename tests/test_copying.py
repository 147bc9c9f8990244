"""Published copying from the own context, against the search by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.copying import Copy
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from tests.reference.copying import copied_chain, longest_match, prompt_lookup
from tests.replay import chain_paths, drafted_paths, random_streams, recorded, replayed
from tests.strategies import as_int32, token_streams

VOCAB_SIZE = 151_936

RULES = {
    "prompt lookup decoding": Copy(max_match_tokens=3, if_short="require"),
    "transformers": Copy(max_match_tokens=2),
    "a range of lengths, all required": Copy(min_match_tokens=2, max_match_tokens=4, if_short="require"),
    "max-gram": Copy(),
    "by match length": Copy(chain_tokens=59, chain_tokens_per_match_token=1.5),
    "climbing": Copy(chain_tokens=7, if_short="climb"),
    "climbing from a capped match": Copy(min_match_tokens=2, max_match_tokens=5, if_short="climb"),
    "wrapping": Copy(min_match_tokens=2, if_short="wrap"),
    "the last occurrence": Copy("last"),
    "the last occurrence of a few tokens": Copy("last", min_match_tokens=2, max_match_tokens=3),
    "the last occurrence, wrapping": Copy("last", if_short="wrap"),
    "the commonest tokens": Copy("commonest"),
    "the commonest tokens after a few": Copy("commonest", max_match_tokens=2),
}


def expected_chain(rule, context):
    return copied_chain(
        context,
        rule.occurrence,
        rule.min_match_tokens,
        rule.max_match_tokens,
        rule.chain_length,
        rule.if_short,
    )


def drafter_of(rule):
    return SessionDrafter.open(VOCAB_SIZE, rule)


@pytest.mark.parametrize("name", RULES)
def test_random_contexts_are_copied_like_by_brute_force(name):
    rule = RULES[name]
    num_drafts = 0
    for stream in random_streams(500, seed=1):
        context, cursor = [], drafter_of(rule).start(as_int32([]))
        for news in stream:
            cursor.observe(as_int32(news))
            context += news
            chain = expected_chain(rule, context)
            tree = cursor.propose(Budget(64)).check(VOCAB_SIZE)
            assert tree.token_ids.tolist() == chain
            assert tree.parents.tolist() == list(range(-1, len(chain) - 1))
            assert cursor.match_length == longest_match(context, rule.max_match_tokens)
            num_drafts += len(chain) > 0
    assert num_drafts > 500


@given(token_streams(max_size=150, alphabet=2), st.sampled_from(sorted(RULES)), st.integers(0, 12))
@settings(deadline=None)
def test_a_smaller_budget_is_the_beginning_of_the_chain(tokens, name, size):
    cursor = drafter_of(RULES[name]).start(as_int32(tokens))
    whole = cursor.propose(Budget(64))
    assert whole.token_ids.tolist() == expected_chain(RULES[name], tokens)
    assert cursor.propose(Budget(size)) == whole.prefix(size)
    assert cursor.propose(Budget(64, max_depth_nodes=size)) == whole.prefix(size)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("context", [[], [5], [VOCAB_SIZE - 1], [1, 2, 3]], ids=str)
def test_nothing_is_copied_where_nothing_repeats(name, context):
    cursor = drafter_of(RULES[name]).start(as_int32(context))
    assert len(cursor.propose(Budget(16))) == 0
    assert cursor.match_length == 0


def test_runs_wrap_to_any_length():
    tree = drafter_of(Copy(chain_tokens=64, if_short="wrap")).start(as_int32([7, 8] * 3)).propose(Budget(64))
    assert tree.token_ids.tolist() == [7, 8] * 32


def test_a_long_run_is_copied_with_any_rule():
    context = [*range(10, 30), *[4] * 3_000]
    for rule in RULES.values():
        tree = drafter_of(rule).start(as_int32(context)).propose(Budget(16))
        assert set(tree.token_ids.tolist()) == {4}


def test_a_longer_match_is_trusted_more():
    text = list(range(100, 130))
    probs = [drafter_of(Copy()).start(as_int32(text + text[:n])).propose(Budget(9)).probs for n in (1, 6)]
    assert np.all(probs[0] < probs[1])
    assert np.all(np.diff(probs[0]) > 0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"min_match_tokens": 0},
        {"min_match_tokens": 4, "max_match_tokens": 3},
        {"chain_tokens": 0},
        {"chain_tokens": 65},
        {"occurrence": "last", "if_short": "climb"},
        {"occurrence": "commonest", "if_short": "wrap"},
        {"occurrence": "middle"},
    ],
    ids=str,
)
def test_what_cannot_be_copied_is_refused(parameters):
    with pytest.raises(InvalidRequest, match=r"out of range|no such way"):
        Copy(**parameters)


def prompt_lookup_paths(context):
    return chain_paths(prompt_lookup(context))


def test_random_contexts_give_the_drafts_of_prompt_lookup_decoding():
    engine = Engine(VOCAB_SIZE, preset="pld")
    num_drafts = 0
    for stream in random_streams(500, seed=2):
        context, session = list(stream[0]), engine.open_session(stream[0])
        for news in stream[1:]:
            session.commit(news)
            context += news
            paths = drafted_paths(session.draft(64))
            assert paths == prompt_lookup_paths(context)
            num_drafts += len(paths) > 0
        session.close()
    assert num_drafts > 1_000


def test_real_traces_give_the_drafts_of_prompt_lookup_decoding(data_dir):
    engine = Engine(VOCAB_SIZE, preset="pld")
    accepted = []
    for family in ("code", "rag", "chat", "summarization"):
        for prompt, output in recorded(data_dir, family, 5):
            session = engine.open_session(prompt[-300:])
            accepted += replayed(session, prompt[-300:], output[:150], prompt_lookup_paths, 64)
            session.close()
    assert len(accepted) > 1_000
    assert sum(accepted) > 0.2 * len(accepted)
