"""A server that dies while engines generate costs drafts and one line in the log, whatever the host is."""

from __future__ import annotations

import logging

import pytest

from retrieval_spec.integrations import sglang, tensorrt_llm
from retrieval_spec.integrations.source import HostDrafts, HostSettings
from retrieval_spec.integrations.vllm import RetrievalProposer, SuffixDecodingCache
from tests.integrations import hosts, sglang_engine, vllm_engine
from tests.integrations.generations import recorded_generations
from tests.integrations.test_sglang import WORKER
from tests.integrations.test_tensorrt_llm import NUM_TOKENS, Drafter, Engine, made
from tests.service_process import VOCAB_SIZE, server_process

pytestmark = pytest.mark.row("V1")

TIMEOUT_S = 2.0


def vllm_rows(address, monkeypatch):
    config = vllm_engine.config_of(VOCAB_SIZE, server=address, timeout_s=TIMEOUT_S)
    engine = vllm_engine.VllmEngine(vllm_engine.custom_class(RetrievalProposer(config)), seed=5)
    yield engine.run, lambda: engine.num_drafted


def vllm_requests(address, monkeypatch):
    drafts = HostDrafts(HostSettings(server=address, timeout_s=TIMEOUT_S), VOCAB_SIZE)
    cache = SuffixDecodingCache(24, 100, drafts=drafts)
    engine = vllm_engine.VllmEngine(vllm_engine.suffix_method(cache), seed=6)
    yield engine.run, lambda: engine.num_drafted


def sglang_trees(address, monkeypatch):
    monkeypatch.setenv("RETRIEVAL_SPEC_SERVER", address)
    monkeypatch.setenv("RETRIEVAL_SPEC_TIMEOUT_S", str(TIMEOUT_S))
    target = sglang_engine.Target(VOCAB_SIZE)
    with hosts.running("sglang", {WORKER: {"NGRAMWorker": sglang_engine.StandInWorker}}):
        worker = sglang.worker_class()(sglang_engine.arguments_of(), 0, 0, target)
        yield sglang_engine.SglangEngine(worker, overlaps=False, seed=7).run, lambda: target.num_drafted


def tensorrt_llm_paths(address, monkeypatch):
    for drafter_class in made(Drafter):
        assert drafter_class is tensorrt_llm.RetrievalDrafter
        engine = Engine(drafter_class(NUM_TOKENS, VOCAB_SIZE, server=address, timeout_s=TIMEOUT_S), seed=8)
        yield engine.run, lambda engine=engine: engine.num_drafted


@pytest.mark.parametrize("host", [vllm_rows, vllm_requests, sglang_trees, tensorrt_llm_paths])
def test_a_server_that_dies_costs_drafts_and_one_warning(host, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "retrieval_spec")
    generations, drafted = recorded_generations(8, seed=9), []
    with server_process(f"unix:{tmp_path}/s.sock", "default") as (process, address):
        for run, num_drafted in host(address, monkeypatch):

            def on_step(number, num_drafted=num_drafted):
                drafted.append(num_drafted())
                if number == 8:
                    process.kill()
                    process.wait()

            run(generations, on_step)
    for one in generations:
        one.check()
    assert drafted[8] > 10
    assert drafted[-1] == drafted[9], "drafts of a dead server"
    assert len(drafted) > 20
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "generation goes on without" in caplog.text
