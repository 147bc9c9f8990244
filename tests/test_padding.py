"""Answers whose size tells nobody how much was drafted, and the trees that come out of them."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.limits import Limits
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import server_thread

pytestmark = pytest.mark.row("T4")

VOCAB_SIZE = 1_000
SESSIONS = 3
NODES = 12


def texts():
    """Prompts after which much, little and nothing is drafted."""
    rng = np.random.default_rng(0)
    phrase = rng.permutation(VOCAB_SIZE)[:20]
    return [np.tile(phrase, 5), np.concatenate([phrase, phrase[:1]]), rng.permutation(VOCAB_SIZE)[:50]]


def opened(servicer, prompts):
    return [
        servicer.open_session(
            pb.OpenSessionRequest(prompt_token_ids=prompt.astype("<i4").tobytes())
        ).session_id
        for prompt in prompts
    ]


def answer(servicer, ids, prompts, pad_to_nodes, total_nodes=1_000):
    step, result = pb.DraftStep(step_number=5, pad_to_nodes=pad_to_nodes), pb.DraftStepResult()
    rows = [
        wire.SessionStep(session_id, prompt.size, np.zeros(0, np.int32), NODES)
        for session_id, prompt in zip(ids, prompts, strict=True)
    ]
    wire.write_step(step, rows, total_nodes)
    servicer.answer(step, result)
    return result


def trees(servicer, result):
    caps = [NODES] * SESSIONS
    return wire.read_result(result, caps, NODES * SESSIONS, VOCAB_SIZE, servicer.engine.source_names)


def test_padded_answers_have_one_size_whatever_was_drafted():
    servicer = Servicer(Engine(VOCAB_SIZE))
    sizes, drafted = set(), set()
    for prompt in texts():
        prompts = [prompt] * SESSIONS
        ids = opened(servicer, prompts)
        for total_nodes in (0, 1, 7, 1_000):
            result = answer(servicer, ids, prompts, NODES, total_nodes)
            sizes.add(len(pb.DraftStreamResponse(result=result).SerializeToString()))
            drafted.add(int(np.frombuffer(result.node_counts, "<i4").sum()))
    assert len(sizes) == 1
    assert len(drafted) >= 4, "they hold nothing, little and much"


def test_the_trees_are_those_of_answers_without_padding():
    servicer = Servicer(Engine(VOCAB_SIZE))
    ids = opened(servicer, texts())
    plain, padded = (answer(servicer, ids, texts(), pad, total_nodes=20) for pad in (0, NODES))
    assert len(padded.SerializeToString()) > len(plain.SerializeToString())
    with pytest.raises(InvalidRequest):
        trees(servicer, padded)
    wire.unpad(padded)
    assert trees(servicer, padded) == trees(servicer, plain)
    assert len(trees(servicer, plain)[0])


def test_no_more_nodes_are_drafted_than_there_is_room_for():
    servicer = Servicer(Engine(VOCAB_SIZE, limits=Limits(max_nodes=4)))
    ids = opened(servicer, texts())
    for pad, room in ((2, 6), (1_000_000, 12), (2**31 - 1, 12)):
        result = answer(servicer, ids, texts(), pad)
        assert len(result.token_ids) == 4 * room
        assert np.frombuffer(result.node_counts, "<i4").sum() <= room
    assert len(answer(servicer, ids, texts(), -1, total_nodes=5).token_ids) == 4 * 5


@pytest.mark.row("V3")
def test_hostile_padding_is_refused_like_any_hostile_answer():
    names = ("one",)
    for counts in ([-5], [2**31 - 1], [3]):
        result = pb.DraftStepResult()
        wire.write_result(result, [DraftTree.chain([1, 2])])
        wire.pad(result, 2)
        result.node_counts = np.array(counts, "<i4").tobytes()
        wire.unpad(result)
        with pytest.raises(Exception, match=r"negative|more nodes|wrong length"):
            wire.read_result(result, [8], 8, 10, names)
    result.node_counts = b"123"
    wire.unpad(result)
    with pytest.raises(InvalidRequest):
        wire.read_result(result, [8], 8, 10, names)


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_client_that_asks_for_padding_gets_the_same_trees(tmp_path, transport):
    prompt = texts()[0]
    with server_thread(f"unix:{tmp_path}/s.sock", Engine(VOCAB_SIZE)) as address:
        found = []
        for pad_to_nodes in (0, 16):
            with DraftClient(address, timeout_s=10, transport=transport, pad_to_nodes=pad_to_nodes) as client:
                session = client.open_session(prompt, namespace=f"pad-{pad_to_nodes}")
                drafts = [session.draft(8)]
                session.commit(drafts[0].token_ids[:1].tolist())
                found.append([*drafts, session.draft(8), *client.draft_batch([session], 4)])
                session.close()
        assert found[0] == found[1]
        assert min(map(len, found[0])) > 1


@pytest.mark.row("C1")
def test_impossible_padding_is_refused_at_the_door():
    for wrong in (-1, 4_097):
        with pytest.raises(InvalidRequest, match="pad_to_nodes"):
            DraftClient("unix:/nowhere.sock", pad_to_nodes=wrong)
