"""The prompts drafter: what sessions were asked helps later ones of their namespace, and nobody else."""

from __future__ import annotations

import pytest

from retrieval_spec.drafters.base import Budget, TextCursor
from retrieval_spec.drafters.history import MIN_BYTES
from retrieval_spec.drafters.prompts import MAX_LEARNED_TOKENS, PromptsDrafter
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels.blend_tables import PROMPTS
from tests.strategies import as_int32
from tests.threads import in_threads

VOCAB_SIZE = 151_936
PASSAGE = [70_000 + step for step in range(40)]


def opened(**params):
    return PromptsDrafter.open(VOCAB_SIZE, **params)


def ask(drafter, prompt, output=(), namespace="default"):
    cursor = drafter.start(as_int32(list(prompt)), namespace)
    cursor.observe(as_int32(list(output)))
    cursor.close()


def drafted(drafter, context, namespace="default"):
    tree = drafter.start(as_int32(context), namespace).propose(Budget(8)).check(VOCAB_SIZE)
    return tree.token_ids.tolist()


def test_what_one_session_was_asked_is_drafted_for_the_next():
    drafter = opened()
    ask(drafter, [3, *PASSAGE])
    assert drafted(drafter, [9, *PASSAGE[:20]]) == PASSAGE[20:28]


def test_a_prompt_is_learned_when_its_session_closes_and_not_before():
    drafter = opened()
    cursor = drafter.start(as_int32(PASSAGE))
    assert drafted(drafter, PASSAGE[:20]) == []
    cursor.close()
    assert drafted(drafter, PASSAGE[:20]) == PASSAGE[20:28]


def test_outputs_are_matched_but_never_learned():
    drafter = opened()
    ask(drafter, PASSAGE[:5], output=PASSAGE[5:])
    assert drafted(drafter, PASSAGE[:3]) == PASSAGE[3:5]
    assert drafted(drafter, PASSAGE[:10]) == []
    cursor = drafter.start(as_int32([]))
    cursor.observe(as_int32(PASSAGE[:3]))
    assert cursor.propose(Budget(8)).token_ids.tolist() == PASSAGE[3:5]


def test_a_prompt_that_is_closed_twice_is_learned_once():
    drafter = opened()
    for prompt, num_closes in (([1, 2, 3, 4], 2), ([1, 2, 3, 5], 1)):
        cursor = drafter.start(as_int32(prompt))
        for _ in range(num_closes):
            cursor.close()
    tree = drafter.start(as_int32([1, 2, 3])).propose(Budget(8))
    assert sorted(tree.token_ids.tolist()) == [4, 5]
    assert tree.probs[0] == tree.probs[1]


@pytest.mark.parametrize(
    ("num_tokens", "first"), [(MAX_LEARNED_TOKENS, 0), (MAX_LEARNED_TOKENS + 1, 1), (40_000, 23_616)]
)
def test_of_a_long_prompt_the_newest_tokens_are_learned(num_tokens, first):
    drafter = opened()
    ask(drafter, range(num_tokens))
    assert drafted(drafter, [first]) == list(range(first + 1, first + 9))
    if first:
        assert drafted(drafter, [first - 1]) == []
    assert drafted(drafter, [num_tokens - 2]) == [num_tokens - 1]


@pytest.mark.row("T1")
def test_no_namespace_reads_another():
    drafter = opened()
    ask(drafter, PASSAGE, namespace="theirs")
    assert drafted(drafter, PASSAGE[:20], "ours") == []
    assert drafted(drafter, PASSAGE[:20], "theirs") == PASSAGE[20:28]


def test_memory_is_bounded():
    drafter = opened(max_bytes=MIN_BYTES)
    for begin in range(0, 100_000, 2_000):
        ask(drafter, range(begin, begin + 2_000))
        assert drafted(drafter, [begin + 1_000])[:1] == [begin + 1_001]
    assert drafted(drafter, [1_000]) == []


def test_too_little_memory_is_refused():
    with pytest.raises(InvalidRequest, match="too little memory"):
        opened(max_bytes=MIN_BYTES - 1)


def test_a_cursor_is_one_that_the_blend_reads_as_prompts():
    cursor = opened().start(as_int32(PASSAGE))
    assert isinstance(cursor, TextCursor)
    assert cursor.kind == PROMPTS


@pytest.mark.row("K2")
def test_threads_ask_at_the_same_time():
    drafter = opened()

    def work(number: int) -> None:
        for step in range(30):
            prompt = [number * 1_000 + step * 10 + token for token in range(10)]
            ask(drafter, prompt)
            drafted(drafter, prompt[:5])

    in_threads(work, range(4))
    for number in range(4):
        assert drafted(drafter, [number * 1_000]) == [number * 1_000 + token for token in range(1, 9)]
