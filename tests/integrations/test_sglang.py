"""SGLang: trees for requests with names, the same on all ranks, and nothing worse than padding."""

from __future__ import annotations

import enum
import importlib
import logging
import subprocess
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.integrations import sglang
from retrieval_spec.integrations.sglang import RetrievalCorpus, ancestors
from retrieval_spec.integrations.source import HostDrafts, HostSettings
from tests.integrations import hosts
from tests.integrations.generations import check_gain, recorded_generations
from tests.integrations.sglang_engine import NUM_NODES, SglangEngine, StandInWorker, Target, arguments_of
from tests.service_process import VOCAB_SIZE

WORKER, INFO, REGISTRY = (
    f"sglang.srt.speculative.{name}" for name in ("ngram_worker", "spec_info", "spec_registry")
)


def set_environment(monkeypatch, **settings):
    for name, value in settings.items():
        monkeypatch.setenv(f"RETRIEVAL_SPEC_{name.upper()}", str(value))


@pytest.fixture
def worker_class():
    with hosts.running("sglang", {WORKER: {"NGRAMWorker": StandInWorker}}):
        yield sglang.worker_class()


@pytest.mark.row("L1")
@pytest.mark.parametrize("overlaps", [False, True], ids=["in-turn", "overlapping"])
def test_requests_that_come_and_go_are_decided_as_recorded_in_fewer_steps(
    worker_class, settings, overlaps, monkeypatch
):
    set_environment(monkeypatch, **settings)
    target = Target(VOCAB_SIZE)
    worker = worker_class(arguments_of(disable_overlap_schedule=not overlaps), 0, 0, target)
    generations = recorded_generations(14, seed=2)
    decided = {one.name: one.tokens for one in generations}

    def sessions_hold_what_was_decided(number):
        for name, held in worker.ngram_corpus._book._held.items():
            assert held.session.context.tolist() == decided[name][: held.length]

    SglangEngine(worker, overlaps, seed=1).run(generations, sessions_hold_what_was_decided)
    check_gain(generations, 1.5)
    assert target.num_drafted > 200
    assert len(worker.ngram_corpus._book.names) <= 5
    worker.clear_cache_pool()
    assert not worker.ngram_corpus._book.names


def test_what_is_accepted_last_is_learned_when_a_request_leaves():
    corpus = RetrievalCorpus(HostDrafts(HostSettings(server="local"), VOCAB_SIZE), 4)
    request = SimpleNamespace(rid="a", origin_input_ids_unpadded=[1, 2, 3], output_ids=[4])
    corpus.see([request])
    corpus.batch_get(["a"], [[1, 2, 3, 4]], [4])
    request.output_ids = [4, 5, 6, 7, 8, 9, 10, 11]
    session = corpus._book._held["a"].session
    lengths = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostDrafts, "end", lambda self, session: lengths.append(session.context_length))
        corpus.erase_match_state(["a", "unknown"])
    assert lengths == [11]
    corpus._drafts.end(session)
    assert not session.is_open


def test_a_name_that_comes_back_with_another_text_is_another_request():
    corpus = RetrievalCorpus(HostDrafts(HostSettings(server="local"), VOCAB_SIZE), 8)
    for text in ([1, 2, 3, 4] * 9, [5, 6, 7, 8] * 10, [5, 6, 7, 8] * 8):
        corpus.see([SimpleNamespace(rid="a", origin_input_ids_unpadded=text, output_ids=[])])
        tokens, mask = corpus.batch_get(["a"], [text[-18:]], [len(text)])
        assert tokens[:5].tolist() == [text[-1], *text[:4]]
        assert mask.reshape(8, 8)[4].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_rows_of_which_too_little_is_shown_or_nothing_is_known_are_padded():
    corpus = RetrievalCorpus(HostDrafts(HostSettings(server="local"), VOCAB_SIZE), 4)
    text = [1, 2, 3, 4] * 9
    corpus.see([SimpleNamespace(rid="a", origin_input_ids_unpadded=text, output_ids=[])])
    padded = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    for names, end, length in ((["a"], [1, 2], 40), (["b"], [1, 2], 36), (["a"], [VOCAB_SIZE], 37)):
        tokens, mask = corpus.batch_get(names, [end], [length])
        assert tokens.tolist() == [end[-1], 0, 0, 0]
        assert np.array_equal(mask.reshape(4, 4), padded)
    assert corpus.batch_get([], [], [])[0].shape == (0,)


def test_a_host_that_verifies_one_path_gets_one(worker_class, monkeypatch):
    set_environment(monkeypatch, server="local")
    corpus = worker_class(arguments_of(speculative_eagle_topk=1), 0, 0, Target(VOCAB_SIZE)).ngram_corpus
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 4, 9, 1, 2]
    corpus.see([SimpleNamespace(rid="a", origin_input_ids_unpadded=text, output_ids=[])])
    tokens, mask = corpus.batch_get(["a"], [text], [len(text)])
    num_drafted = int(np.flatnonzero(tokens)[-1])
    assert num_drafted >= 1
    drafted = mask.reshape(NUM_NODES, NUM_NODES)[: num_drafted + 1, : num_drafted + 1]
    assert np.array_equal(drafted, np.tri(num_drafted + 1, dtype=int))


class Ranks:
    """A group of two threads, and the one operation that is asked of it."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=30)
        self.sent = None

    def share_as(self, rank):
        def share(columns):
            if rank == 0:
                self.sent = columns.copy()
            self.barrier.wait()
            columns[:] = self.sent
            self.barrier.wait()
            return columns

        return share


def test_all_ranks_verify_what_the_first_one_drafted():
    ranks, text, found = Ranks(), [1, 2, 3, 4] * 9, {}

    def ask(rank):
        drafts = HostDrafts(HostSettings(server="local"), VOCAB_SIZE) if rank == 0 else None
        corpus = RetrievalCorpus(drafts, 4, share=ranks.share_as(rank))
        corpus.see([SimpleNamespace(rid="a", origin_input_ids_unpadded=text, output_ids=[])])
        found[rank] = [column.tolist() for column in corpus.batch_get(["a"], [text[-18:]], [36])]
        corpus.erase_match_state(["a"])
        corpus.reset()

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    assert found[0][0] == [4, 1, 2, 3]


SHARE = """
import sys
from types import SimpleNamespace
import numpy as np, torch
from retrieval_spec.integrations.sglang import _share_in

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
share = _share_in(SimpleNamespace(ranks=[0, 1], cpu_group=torch.distributed.group.WORLD))
print(share(np.arange(12).reshape(2, 3, 2) * (1 - rank)).tolist())
"""


@pytest.mark.long
def test_processes_of_a_group_get_the_first_ones_drafts(tmp_path):
    pytest.importorskip("torch")
    commands = [[sys.executable, "-c", SHARE, str(rank), f"{tmp_path}/meeting"] for rank in (0, 1)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert said[0] == said[1] == str(np.arange(12).reshape(2, 3, 2).tolist())


def test_ancestors_are_the_path_to_a_node():
    masks = ancestors(np.array([[0, 0, 1, 1, 0], [0, 0, 0, 2, 3]]))
    assert masks[0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    assert masks[1].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 1],
    ]


def test_sglangs_own_corpora_are_none_of_ours():
    corpus = RetrievalCorpus(HostDrafts(HostSettings(server="local"), VOCAB_SIZE), 4)
    with pytest.raises(ValueError, match="build one, and serve it"):
        corpus.load_external_corpus_named("name", [[1]])
    corpus.commit_external_corpus_load("name", 1)
    corpus.remove_external_corpus("name")
    assert corpus.list_external_corpora() == {}
    corpus.synchronize()
    corpus.batch_put([[1]])


def test_another_vocabulary_is_refused_at_the_start(worker_class, address, monkeypatch):
    set_environment(monkeypatch, server=address)
    with pytest.raises(TokenizerMismatch, match="another vocabulary"):
        worker_class(arguments_of(), 0, 0, Target(VOCAB_SIZE - 1))


def test_arguments_without_drafts_are_refused_at_the_start(monkeypatch):
    monkeypatch.delenv("RETRIEVAL_SPEC_SERVER", raising=False)
    with pytest.raises(InvalidRequest, match="set RETRIEVAL_SPEC_SERVER"):
        sglang.check_arguments(arguments_of())
    monkeypatch.setenv("RETRIEVAL_SPEC_SERVER", "local")
    sglang.check_arguments(arguments_of())
    with pytest.raises(InvalidRequest, match="own corpora"):
        sglang.check_arguments(arguments_of(speculative_ngram_external_corpus_path="corpus.jsonl"))


def test_a_host_without_the_hooks_is_told_why_and_what_to_do(caplog):
    class Older(enum.Enum):
        NGRAM = 1

    for info in ({}, {"SpeculativeAlgorithm": Older}):
        with hosts.running("sglang", {INFO: info, REGISTRY: {"CustomSpecAlgo": object}}):
            sglang.register()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert all("use SGLang 0.5.23 or later" in record.message for record in caplog.records)


def test_the_plugin_is_found_by_its_entry_point_and_costs_other_processes_nothing():
    points = metadata.entry_points(group="sglang.srt.plugins")
    if points:  # an installation from before there was one has none
        assert [point.value for point in points] == ["retrieval_spec.integrations.sglang:register"]
    code = (
        "import sys, retrieval_spec.integrations.sglang;"
        "print({'grpc', 'numba', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture
def real():
    """SGLang's own registry, algorithms and n-gram worker, around hollow modules."""
    torch = pytest.importorskip("torch")
    paths = {name: f"{name.replace('.', '/')}.py" for name in (REGISTRY, INFO, WORKER)}
    base = {
        "sglang.srt.arg_groups.overrides": {"resolving_view": lambda server_args: server_args},
        "sglang.srt.speculative.base_spec_worker": {"BaseSpecWorker": object, "EagleDraftWorkerBase": object},
    }
    texts = {name: hosts.host_text("sglang", path) for name, path in paths.items()}
    with hosts.running("sglang", {**base, **texts}) as modules:
        modules["torch"] = torch
        yield modules


def test_sglangs_own_registry_takes_the_algorithm(real):
    sglang.register()
    algorithms = real[INFO].SpeculativeAlgorithm
    algorithm = algorithms.from_string("retrieval_spec")
    assert isinstance(algorithm, real[REGISTRY].CustomSpecAlgo)
    assert algorithm.is_ngram()
    for name in vars(algorithms):
        # All that is asked of an algorithm is answered as it is for n-grams.
        if name.startswith(("is_", "supports_", "need_", "has_", "carries_")):
            assert getattr(algorithm, name)() == getattr(algorithms.NGRAM, name)(), name
    algorithm.create_future_map("cpu", None)  # which a registered algorithm does not have of itself
    server_args = arguments_of(disable_overlap_schedule=False)
    assert issubclass(algorithm.create_worker(server_args), real[WORKER].NGRAMWorker)
    with pytest.raises(ValueError, match="already registered"):
        algorithms.register("RETRIEVAL_SPEC")


def test_sglangs_defaults_for_ngrams_are_taken_over(real):
    sglang.register()
    algorithm = real[INFO].SpeculativeAlgorithm.from_string("RETRIEVAL_SPEC")
    hook = importlib.import_module("sglang.srt.arg_groups.speculative_hook")
    declared = []

    def handle(server_args):
        server_args._resolved_overrides.append(("_handle_ngram", {"speculative_num_draft_tokens": 24}))

    hook._handle_ngram = handle
    server_args = arguments_of(_resolved_overrides=declared, speculative_ngram_max_trie_depth=18)
    algorithm.handle_server_args(server_args)
    assert server_args.speculative_num_draft_tokens == 24
    assert server_args.speculative_ngram_max_trie_depth == 24
    assert server_args.speculative_ngram_capacity == sglang.UNUSED_CAPACITY


@pytest.mark.parametrize("overlaps", [False, True], ids=["in-turn", "overlapping"])
def test_sglangs_own_worker_decides_as_recorded_in_fewer_steps(real, settings, overlaps, monkeypatch):
    set_environment(monkeypatch, **settings)
    target = Target(VOCAB_SIZE)
    worker = own_worker(real, target, overlaps)
    assert type(worker.ngram_corpus) is RetrievalCorpus
    generations = recorded_generations(10, seed=12)
    SglangEngine(worker, overlaps, seed=11).run(generations)
    check_gain(generations, 1.3)
    assert len(worker.ngram_corpus._book.names) <= 5


def own_worker(real, target, overlaps):
    """The worker over SGLang's own, in which a recorded target stands in for the model and its kernels."""
    torch, host = real["torch"], real[WORKER]
    told = SimpleNamespace(
        disable_overlap_schedule=not overlaps,
        page_size=1,
        device="cpu",
        speculative_num_draft_tokens=NUM_NODES,
        speculative_ngram_max_trie_depth=18,
        speculative_eagle_topk=10,
        speculative_num_steps=1,
        speculative_ngram_external_corpus_path=None,
        **{
            f"speculative_ngram_{name}": 1
            for name in (
                "min_bfs_breadth",
                "max_bfs_breadth",
                "match_type",
                "capacity",
                "external_sam_budget",
                "external_corpus_max_tokens",
            )
        },
    )
    host.get_schedule = host.get_spec = host.get_device = lambda: told
    host.set_time_batch = host.record_stream_for_v2_verify = lambda *_, **__: None
    host._is_cpu = True

    def sample(verify_input, batch, *_, **__):
        num_rows = len(batch.reqs)
        mask = verify_input.custom_mask.to(torch.int64).numpy()
        decided = target.verify(batch, verify_input.draft_token.numpy(), mask)
        predict = torch.zeros(num_rows * NUM_NODES, dtype=torch.int64)
        index = torch.arange(num_rows * NUM_NODES).reshape(num_rows, NUM_NODES)
        for row, tokens in enumerate(decided):
            predict[row * NUM_NODES : row * NUM_NODES + len(tokens)] = torch.tensor(tokens)
        return predict, torch.tensor([len(tokens) for tokens in decided]), index

    host.eagle_sample = sample
    host.NgramVerifyInput = lambda **fields: SimpleNamespace(**fields)
    host.GenerationBatchResult = lambda **fields: SimpleNamespace(**fields)
    target.model_runner.max_running_requests = 8
    target.model_runner.watermark_state = None
    target.get_memory_pool = lambda: (None, None)
    target.forward_batch_generation = lambda *_, **__: SimpleNamespace(
        logits_output=SimpleNamespace(next_token_logits=None),
        can_run_cuda_graph=False,
        next_token_ids=torch.zeros(1, dtype=torch.int64),
    )
    host.NGRAMWorker.target_worker = property(lambda self: self._target_worker)
    worker = sglang.worker_class()(arguments_of(), 0, 0, target)
    worker.alloc_memory_pool()
    return OwnWorker(worker, host, torch)


class OwnWorker:
    """Hands SGLang's own worker batches as its scheduler does, and its results back."""

    def __init__(self, worker, host, torch):
        self._worker, self._host, self._torch = worker, host, torch
        self.ngram_corpus = worker.ngram_corpus

    def forward_batch_generation(self, batch):
        torch = self._torch
        is_decode = batch.forward_mode.is_decode()
        lengths = torch.tensor([len(one.generation.tokens) for one in batch.reqs])
        batch.seq_lens = batch.seq_lens_cpu = lengths
        batch.forward_mode = SimpleNamespace(is_decode=lambda: is_decode, is_target_verify=lambda: False)
        self._host.ForwardMode = SimpleNamespace(
            TARGET_VERIFY=SimpleNamespace(is_target_verify=lambda: True), DECODE=None
        )
        batch.req_pool_indices = batch.req_to_token_pool = SimpleNamespace(req_to_token=None)
        batch.return_logprob = False
        accepted = torch.zeros(len(batch.reqs), NUM_NODES, dtype=torch.int64)
        for row, tokens in enumerate(batch.accepted):
            accepted[row, : len(tokens)] = torch.tensor(tokens)
        batch.spec_info = SimpleNamespace(
            accept_tokens=accepted.flatten(), accept_lens=torch.tensor([len(one) for one in batch.accepted])
        )
        result = self._worker.forward_batch_generation(batch)
        if not is_decode:
            return None
        tokens = result.next_token_ids.reshape(len(batch.reqs), NUM_NODES).tolist()
        return [row[:length] for row, length in zip(tokens, result.accept_lens.tolist(), strict=True)]
