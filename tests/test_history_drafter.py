"""The history drafter: what sessions wrote helps later ones of their namespace, and nobody else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.history import MIN_BYTES, HistoryDrafter
from retrieval_spec.errors import InvalidRequest
from tests.strategies import as_int32, token_streams
from tests.threads import in_threads

VOCAB_SIZE = 151_936
PASSAGE = [70_000 + step for step in range(40)]


def opened(**params):
    return HistoryDrafter.open(VOCAB_SIZE, **params)


def write(drafter, output, prompt=(), namespace="default"):
    cursor = drafter.start(as_int32(list(prompt)), namespace)
    cursor.observe(as_int32(output))
    cursor.close()


def drafted(drafter, context, namespace="default", max_nodes=16):
    return drafter.start(as_int32(context), namespace).propose(Budget(max_nodes)).check(VOCAB_SIZE)


def test_what_one_session_wrote_is_drafted_for_the_next():
    drafter = opened()
    write(drafter, [*PASSAGE, 3])
    tree = drafted(drafter, [9, *PASSAGE[:20]], max_nodes=10)
    assert tree.token_ids.tolist() == PASSAGE[20:30]
    assert tree.parents.tolist() == list(range(-1, 9))


def test_a_session_that_is_open_while_old_outputs_are_forgotten_drafts_as_a_fresh_one():
    drafter, rng = opened(max_bytes=MIN_BYTES), np.random.default_rng(0)
    write(drafter, [*PASSAGE, 3])
    running = drafter.start(as_int32(PASSAGE[:20]))
    texts = drafter.namespaces.of("default").texts
    former = texts.automaton
    assert running.propose(Budget(8)).token_ids.tolist() == PASSAGE[20:28]
    while texts.automaton is former:
        write(drafter, rng.integers(0, 60_000, 300))
    for output in ([*PASSAGE[5:18], 1, 2], [*PASSAGE[9:20], 4, 5, 6]):
        write(drafter, output)
        assert running.propose(Budget(8)) == drafted(drafter, PASSAGE[:20], max_nodes=8)
    assert running.propose(Budget(8)).token_ids.tolist()[:3] == [4, 5, 6]


@pytest.mark.row("T1")
def test_no_namespace_reads_another():
    drafter = opened(learn="live")
    write(drafter, PASSAGE, namespace="theirs")
    running = drafter.start(as_int32([]), "theirs")
    running.observe(as_int32(PASSAGE))
    assert len(drafted(drafter, PASSAGE[:20], "ours")) == 0
    assert len(drafted(drafter, PASSAGE[:20], "theirs")) > 0


def test_an_output_is_known_when_its_session_closes_and_its_prompt_never():
    drafter = opened()
    cursor = drafter.start(as_int32(PASSAGE[:20]))
    cursor.observe(as_int32(PASSAGE[20:]))
    assert len(drafted(drafter, PASSAGE[:30])) == 0
    cursor.close()
    assert len(drafted(drafter, PASSAGE[:30])) > 0
    assert len(drafted(drafter, PASSAGE[:10])) == 0


def test_a_live_output_is_known_while_it_is_written():
    drafter = opened(learn="live")
    writer = drafter.start(as_int32([]))
    reader = drafter.start(as_int32([1]))
    writer.observe(as_int32(PASSAGE[:10]))
    reader.observe(as_int32(PASSAGE[:5]))
    assert reader.propose(Budget(3)).token_ids.tolist() == PASSAGE[5:8]
    writer.observe(as_int32(PASSAGE[10:]))
    reader.observe(as_int32(PASSAGE[5:10]))
    assert reader.propose(Budget(3)).token_ids.tolist() == PASSAGE[10:13]


def test_what_others_write_meanwhile_is_drafted_without_a_further_token():
    drafter = opened()
    write(drafter, [*PASSAGE[10:20], 3])
    reader = drafter.start(as_int32(PASSAGE[:20]))
    assert reader.propose(Budget(1)).token_ids.tolist() == [3]
    write(drafter, [*PASSAGE[:20], 4])
    assert reader.propose(Budget(1)).token_ids.tolist() == [4]
    assert reader.propose(Budget(16)) == drafted(drafter, PASSAGE[:20])


def test_no_match_crosses_from_one_output_into_the_next():
    drafter = opened()
    write(drafter, PASSAGE[:10])
    write(drafter, PASSAGE[10:20])
    assert len(drafted(drafter, PASSAGE[:10])) == 0


@given(
    st.lists(token_streams(max_size=40), max_size=5),
    token_streams(max_size=150),
    st.sampled_from(["close", "live"]),
)
@settings(deadline=None)
def test_a_cursor_that_moved_drafts_like_one_that_started_there(outputs, context, learn):
    drafter = opened(learn=learn)
    mover = drafter.start(as_int32([]))
    writers = [drafter.start(as_int32([])) for _ in outputs]
    for at, token in enumerate(context):
        for writer, output in zip(writers, outputs, strict=False):
            writer.observe(as_int32(output[at : at + 1]))
        if at % 20 == 0 and writers:
            writers.pop().close()
        mover.observe(as_int32([token]))
        if at % 3 == 0:
            assert mover.propose(Budget(8)) == drafter.start(as_int32(context[: at + 1])).propose(Budget(8))


def test_two_drafters_with_one_history_draft_alike():
    outputs = np.random.default_rng(3).integers(0, 40, (30, 400)).astype(np.int32)
    first, second = opened(), opened()
    for output in outputs:
        write(first, output.tolist())
        write(second, output.tolist())
    for output in outputs:
        assert drafted(first, output[:50].tolist()) == drafted(second, output[:50].tolist())


def bytes_of(drafter, namespace="default"):
    return drafter.namespaces.of(namespace).texts.allocated_bytes


def test_memory_is_bounded_and_the_newest_outputs_stay():
    drafter = opened(max_bytes=MIN_BYTES)
    rng = np.random.default_rng(4)
    outputs = [rng.integers(0, VOCAB_SIZE, 900).astype(np.int32).tolist() for _ in range(60)]
    running = drafter.start(as_int32([]))
    running.observe(as_int32(PASSAGE))
    for output in outputs:
        write(drafter, output)
        assert bytes_of(drafter) <= MIN_BYTES
        assert drafted(drafter, output[400:420], max_nodes=4).token_ids.tolist() == output[420:424]
        running.propose(Budget())
    assert len(drafted(drafter, outputs[0][:20])) == 0
    known = [len(drafted(drafter, output[:20])) > 0 for output in outputs]
    assert known == sorted(known)  # the oldest are forgotten first
    assert sum(known) >= 3
    running.observe(as_int32(outputs[-1][:20]))
    assert running.propose(Budget(2)).token_ids.tolist() == outputs[-1][20:22]


def test_a_live_output_outlives_the_automaton_that_it_began_in():
    drafter = opened(max_bytes=MIN_BYTES, learn="live")
    output = np.random.default_rng(5).integers(0, VOCAB_SIZE, 40_000).astype(np.int32)
    writer = drafter.start(as_int32([]))
    for begin in range(0, output.shape[0], 37):
        writer.observe(output[begin : begin + 37])
    assert bytes_of(drafter) <= MIN_BYTES
    assert drafted(drafter, output[-2_000:-1_980].tolist(), max_nodes=2).token_ids.tolist() == (
        output[-1_980:-1_978].tolist()
    )
    assert len(drafted(drafter, output[:20].tolist())) == 0


@pytest.mark.row("K1", "K2")
def test_threads_share_one_history():
    drafter = opened(max_bytes=MIN_BYTES, learn="live")

    def run(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            cursor = drafter.start(as_int32([]))
            for _ in range(40):
                cursor.observe(rng.integers(0, 30, 5).astype(np.int32))
                cursor.propose(Budget(16)).check(VOCAB_SIZE)
            cursor.close()

    in_threads(run, range(4))


@pytest.mark.parametrize("params", [{"max_bytes": 1_000}, {"learn": "sometimes"}])
def test_nonsense_is_refused(params):
    with pytest.raises(InvalidRequest):
        opened(**params)
