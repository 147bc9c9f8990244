"""vLLM: rows without names, requests one at a time, and nothing worse than no draft."""

from __future__ import annotations

import importlib
import inspect
import logging
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, MissingDependency, TokenizerMismatch
from retrieval_spec.integrations import vllm
from retrieval_spec.integrations.source import HostDrafts, HostSettings
from retrieval_spec.integrations.vllm import RetrievalProposer, SuffixDecodingCache
from tests.integrations import hosts
from tests.integrations.generations import check_gain, recorded_generations
from tests.integrations.vllm_engine import NUM_TOKENS, VllmEngine, config_of, custom_class, suffix_method
from tests.service_process import VOCAB_SIZE, server_thread

SLOW = {"timeout_s": 20.0}  # a test waits for each draft, however busy the machine is


def proposer_of(vocab_size=VOCAB_SIZE, **settings):
    return RetrievalProposer(config_of(vocab_size, **settings))


def cache_of(**settings):
    return SuffixDecodingCache(24, 1_000, drafts=HostDrafts(HostSettings(**settings), VOCAB_SIZE))


@pytest.mark.row("L1")
def test_rows_that_change_places_are_decided_as_recorded_in_fewer_steps(settings):
    engine = VllmEngine(custom_class(proposer_of(**settings)), seed=1)
    generations = recorded_generations(14, seed=2)
    engine.run(generations)
    check_gain(generations, 1.5)
    assert engine.num_drafted > 200


def test_requests_asked_about_one_at_a_time_are_decided_as_recorded_in_fewer_steps(settings):
    cache = cache_of(**settings)
    engine = VllmEngine(suffix_method(cache), seed=3)
    generations = recorded_generations(14, seed=4)
    engine.run(generations)
    check_gain(generations, 1.4)
    assert len(cache.active_requests) <= 5
    assert cache.cached_requests == {one.name for one in generations}


@pytest.mark.row("V1")
def test_a_server_that_was_never_there_costs_drafts_and_is_found_later(tmp_path, caplog):
    listen, row = f"unix:{tmp_path}/s.sock", [1, 2, 3, 4] * 9
    proposer = proposer_of(server=listen, **SLOW)
    ids, lengths = np.array([row], np.int32), np.array([len(row)])
    assert proposer.propose([[4]], lengths, ids) == [[]]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with server_thread(listen, Engine(VOCAB_SIZE)):
        found = wait_for(lambda: proposer.propose([[4]], lengths, ids)[0])
    assert found == [1, 2, 3, 4, 1, 2]


def wait_for(ask):
    give_up_s = time.monotonic() + 30
    while time.monotonic() < give_up_s:
        if found := ask():
            return found
        time.sleep(0.05)
    pytest.fail("nothing came")


def test_rows_without_room_and_rows_in_prefill_get_no_draft():
    proposer = proposer_of(server="local")
    row = np.array([1, 2, 3, 4] * 99 + [1, 2, 3, 4], np.int32)
    ids, lengths = np.stack([row, row, row, row]), np.array([400, 399, 397, 200])
    drafts = proposer.propose([[4], [3], [1], []], lengths, ids)
    assert drafts == [[], [], [2, 3], []]


def test_rows_with_ids_that_the_datastore_does_not_know_cost_only_their_own_drafts(address):
    proposer = proposer_of(vocab_size=VOCAB_SIZE + 100, server=address, namespace="unknown-ids", **SLOW)
    row = [1, 2, 3, 4] * 9
    ids = np.array([row, [*row[:-1], VOCAB_SIZE + 7]], np.int32)
    assert proposer.propose([[4], [4]], np.array([36, 36]), ids) == [[1, 2, 3, 4, 1, 2], []]


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 1, 2 * VOCAB_SIZE])
def test_another_vocabulary_is_refused_at_the_start(address, vocab_size):
    with pytest.raises(TokenizerMismatch, match="another vocabulary"):
        proposer_of(vocab_size=vocab_size, server=address)


def test_what_cannot_be_a_setting_is_refused_at_the_start(address, monkeypatch):
    for settings in ({}, {"sever": address}, {"server": address, "cost_per_node": "dear"}):
        with pytest.raises(InvalidRequest):
            proposer_of(**settings)
    with pytest.raises(InvalidRequest, match="namespace"):
        proposer_of(server=address, namespace="no name", **SLOW)
    monkeypatch.setenv("RETRIEVAL_SPEC_SERVER", address)
    monkeypatch.setenv("RETRIEVAL_SPEC_NAMESPACE", "no name")
    with pytest.raises(InvalidRequest, match="namespace"):
        proposer_of(**SLOW)
    proposer_of(namespace="fine", **SLOW)  # the host's own option goes first


def test_a_host_that_is_too_old_is_refused_with_a_remedy():
    config = config_of(VOCAB_SIZE, server="local")
    del config.speculative_config.num_speculative_tokens
    with pytest.raises(MissingDependency, match=r"use vLLM 0\.22\.1 or later"):
        RetrievalProposer(config)
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(MissingDependency, match="use vLLM"):
            SuffixDecodingCache()


def test_one_rank_asks_for_all(monkeypatch):
    distributed = SimpleNamespace(get_tensor_model_parallel_rank=lambda: 1)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(distributed=distributed))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    proposer = proposer_of(server="unix:/nowhere")
    row = np.array([[1, 2, 3, 4] * 9], np.int32)
    assert proposer.propose([[4]], np.array([36]), row) == [[]]
    cache = SuffixDecodingCache()
    cache.start_request("a", [1, 2])
    assert cache.speculate("a", [1, 2]).token_ids == []
    cache.stop_request("a")


def test_names_are_remembered_and_refused_as_arctic_does():
    cache = SuffixDecodingCache(8, 2, drafts=HostDrafts(HostSettings(server="local"), VOCAB_SIZE))
    for name in "abc":
        cache.start_request(name, [1, 2])
    assert list(cache.cached_requests) == ["b", "c"]
    assert list(cache.active_requests) == ["a", "b", "c"]
    cache.stop_request("b")
    assert list(cache.active_requests) == ["a", "c"]
    cache.evict_cached_response("b")
    for refused in (
        lambda: cache.start_request("a", []),
        lambda: cache.stop_request("b"),
        lambda: cache.add_active_response("b", [1]),
        lambda: cache.evict_cached_response("b"),
        lambda: cache.speculate("b", [1]),
    ):
        with pytest.raises(ValueError, match="Request"):
            refused()


def test_a_tree_is_given_where_one_is_asked_for_and_improbable_nodes_never():
    cache = cache_of(server="local")
    cache.start_request("a", [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 4, 9])
    cache.add_active_response("a", [1, 2])
    tree = cache.speculate("a", [1, 2], max_spec_tokens=8, min_token_prob=0.0, use_tree_spec=True)
    assert tree.parents.count(-1) == 2
    assert {3, 4} <= set(tree.token_ids)
    assert all(parent < node for node, parent in enumerate(tree.parents))
    chain = cache.speculate("a", [1, 2], max_spec_tokens=8, min_token_prob=0.0)
    assert chain.parents == list(range(-1, len(chain.parents) - 1))
    assert cache.speculate("a", [1, 2], max_spec_tokens=8, min_token_prob=1.1).token_ids == []
    assert cache.speculate("a", [1, 2], max_spec_tokens=0).token_ids == []
    assert len(cache.speculate("a", [1, 2]).token_ids) <= 24  # the length that has no name


def test_the_module_that_the_suffix_method_imports_is_there_and_pulls_in_nothing_heavy():
    code = (
        "import sys; from arctic_inference.suffix_decoding import SuffixDecodingCache;"
        "print(SuffixDecodingCache.__module__, {'numba', 'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{vllm.SHIM}:{vllm.SHIM.parents[2]}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "retrieval_spec.integrations.vllm set()", done.stderr


def test_vllm_calls_a_proposer_as_it_is_written():
    runner = hosts.host_text("vllm", "vllm/v1/worker/gpu_model_runner.py")
    (call,) = [
        call
        for call in hosts.calls_of(runner, "propose")
        if [getattr(one, "attr", getattr(one, "id", None)) for one in call.args]
        == ["sampled_token_ids", "num_tokens_no_spec", "token_ids_cpu"]
    ]
    inspect.signature(RetrievalProposer.propose).bind(
        None, 1, 2, 3, **{name: 4 for name in hosts.keywords_of(call)}
    )


def test_vllms_own_loader_accepts_the_proposer():
    text = hosts.host_text("vllm", "vllm/v1/spec_decode/custom_class_proposer.py")
    config = config_of(VOCAB_SIZE, server="local")
    config.speculative_config.model = "retrieval_spec.integrations.vllm.RetrievalProposer"
    stubs = {
        "vllm": {},
        "vllm.config": {"VllmConfig": object},
        "vllm.logger": {"init_logger": logging.getLogger},
    }
    host = hosts.module_of(text, "custom_class_proposer", stubs)
    engine = VllmEngine(custom_class(host.create_custom_proposer(config)), seed=1)
    generations = recorded_generations(6, seed=2)
    engine.run(generations)
    check_gain(generations, 1.3)


def test_vllms_own_suffix_method_drives_the_cache(settings, monkeypatch):
    text = hosts.host_text("vllm", "vllm/v1/spec_decode/suffix_decoding.py")
    config = config_of(VOCAB_SIZE, **settings)
    config_module = {"VllmConfig": object, "get_current_vllm_config": lambda: config}
    stubs = {
        "vllm": {},
        "vllm.config": config_module,
        "torch": {"Tensor": object},
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.gpu_input_batch": {"InputBatch": object},
    }
    host = hosts.module_of(text, "suffix_decoding", stubs)
    monkeypatch.syspath_prepend(str(vllm.SHIM))
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(**config_module))
    proposer = host.SuffixDecodingProposer(config)
    assert type(proposer.suffix_cache) is SuffixDecodingCache
    engine = VllmEngine(lambda batch, sampled: proposer.propose(NUM_TOKENS, batch, sampled), seed=7)
    generations = recorded_generations(6, seed=8)
    engine.run(generations)
    check_gain(generations, 1.2)
    assert len(proposer.suffix_cache.active_requests) <= 5
