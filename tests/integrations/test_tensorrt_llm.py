"""TensorRT-LLM: one path for requests with names, in processes that the drafter travels to."""

from __future__ import annotations

import abc
import pickle
import random
from types import SimpleNamespace

import pytest

from retrieval_spec.errors import InvalidRequest, MissingDependency, TokenizerMismatch
from retrieval_spec.integrations import tensorrt_llm
from tests.integrations import hosts
from tests.integrations.generations import check_gain, recorded_generations
from tests.service_process import VOCAB_SIZE

NUM_TOKENS, MAX_REQUESTS = 6, 5
DRAFTER = "tensorrt_llm._torch.speculative.drafter"


class Drafter(abc.ABC):
    """TensorRT-LLM's own, from its signature: `tensorrt_llm/_torch/speculative/drafter.py` of 1.2."""

    def __init__(
        self, max_draft_len=None, max_total_draft_tokens=None, max_concurrency=None, draft_len_schedule=None
    ) -> None:
        self.max_draft_len = max_draft_len
        self.max_total_draft_tokens = max_total_draft_tokens
        self.max_concurrency = max_concurrency

    @abc.abstractmethod
    def prepare_draft_tokens(self, scheduled_requests, resource_manager=None) -> None: ...

    def pad_draft_tokens_for_cuda_graph(self, scheduled_requests) -> None:
        for request in scheduled_requests.generation_requests:
            request.py_draft_tokens.extend([0] * (self.max_draft_len - len(request.py_draft_tokens)))


@pytest.fixture
def drafter_class():
    yield from made(Drafter)


def made(drafter, world_size=1):
    utils = {"mpi_world_size": lambda: world_size}
    with hosts.running("tensorrt_llm", {DRAFTER: {"Drafter": drafter}, "tensorrt_llm._utils": utils}):
        tensorrt_llm._drafter_class.cache_clear()
        yield tensorrt_llm.RetrievalDrafter
    tensorrt_llm._drafter_class.cache_clear()


class HostRequest:
    """What a drafter reads of a request, and the one thing that it writes."""

    def __init__(self, request_id, generation) -> None:
        self.request_id = request_id
        self.generation = generation
        self.py_orig_prompt_len = len(generation.prompt)
        self.py_max_new_tokens = len(generation.output)
        self.py_draft_tokens = []

    def get_tokens(self, beam):
        return list(self.generation.tokens)

    def get_num_tokens(self, beam):
        return len(self.generation.tokens)


class Engine:
    """Steps as the executor's: room is reserved, drafts are asked for and padded, then all are verified."""

    def __init__(self, drafter, seed=0) -> None:
        self._drafter = drafter
        self._rng = random.Random(seed)
        self.num_drafted = 0

    def run(self, generations, on_step=lambda number: None) -> None:
        waiting = [HostRequest(2_000 + number, one) for number, one in enumerate(generations)]
        running, number = [], 0
        while waiting or running:
            context = []
            while waiting and len(running) < MAX_REQUESTS and self._rng.random() < 0.7:
                context.append(waiting.pop(0))
                running.append(context[-1])
            if len(running) > 1 and self._rng.random() < 0.1:
                paused = running.pop(self._rng.randrange(len(running)))
                context = [request for request in context if request is not paused]
                waiting.insert(self._rng.randrange(3), paused)
            self._rng.shuffle(running)
            on_step(number)
            self._step(context, [request for request in running if request not in context])
            running = [request for request in running if not request.generation.is_done]
            number += 1

    def _step(self, context, generating) -> None:
        for request in generating:
            request.py_draft_tokens = [0] * NUM_TOKENS
        scheduled = SimpleNamespace(context_requests=context, generation_requests=generating)
        self._drafter.prepare_draft_tokens(scheduled, None)
        for request in generating:
            assert type(request.py_draft_tokens) is list
            assert len(request.py_draft_tokens) <= NUM_TOKENS
            self.num_drafted += len(request.py_draft_tokens)
        self._drafter.pad_draft_tokens_for_cuda_graph(scheduled)
        for request in generating:
            request.generation.verify([request.py_draft_tokens])
        for request in context:
            request.generation.verify([])


@pytest.mark.row("L1")
def test_requests_that_come_and_go_are_decided_as_recorded_in_fewer_steps(drafter_class, settings):
    drafter = drafter_class(NUM_TOKENS, VOCAB_SIZE, **settings)
    engine = Engine(pickle.loads(pickle.dumps(drafter)), seed=1)  # as the host sends it to its workers
    generations = recorded_generations(14, seed=2)
    engine.run(generations)
    check_gain(generations, 1.4)
    assert engine.num_drafted > 150


def test_requests_that_nobody_names_any_more_are_ended(drafter_class, monkeypatch):
    monkeypatch.setattr(tensorrt_llm, "KEPT_STEPS", 3)
    drafter = drafter_class(NUM_TOKENS, VOCAB_SIZE, server="local")
    Engine(drafter, seed=3).run(recorded_generations(8, seed=4))
    assert len(drafter._book.names) <= MAX_REQUESTS
    for _ in range(5):
        drafter.prepare_draft_tokens(SimpleNamespace(generation_requests=[]))
    assert not drafter._book.names


def asked(drafter, **fields):
    request = HostRequest(1, recorded_generations(1, seed=5)[0])
    request.generation.tokens = [1, 2, 3, 4] * 9
    request.py_orig_prompt_len, request.py_max_new_tokens = 36, 100
    vars(request).update(fields)
    drafter.prepare_draft_tokens(SimpleNamespace(generation_requests=[request]))
    return request.py_draft_tokens


def test_room_and_wishes_are_kept_to(drafter_class):
    drafter = drafter_class(NUM_TOKENS, VOCAB_SIZE, server="local")
    assert asked(drafter) == [1, 2, 3, 4, 1, 2]
    assert asked(drafter, py_max_new_tokens=3) == [1, 2]
    assert asked(drafter, py_max_new_tokens=1) == []
    assert asked(drafter, py_disable_speculative_decoding=True) == []
    assert asked(drafter, is_attention_dp_dummy=True) == []
    drafter.max_draft_len = 2  # as the host does for larger batches
    assert asked(drafter) == [1, 2]
    assert asked(drafter, get_tokens=None) == []


def test_drafts_of_several_ranks_would_differ_so_there_are_none(caplog):
    for drafter_class in made(Drafter, world_size=2):
        drafter = drafter_class(NUM_TOKENS, VOCAB_SIZE, server="local")
        assert [asked(drafter), asked(drafter)] == [[], []]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "several ranks" in caplog.text


def test_what_would_draft_nonsense_is_refused_at_the_start(drafter_class, address):
    with pytest.raises(TokenizerMismatch, match="another vocabulary"):
        drafter_class(NUM_TOKENS, VOCAB_SIZE - 1, server=address)
    for arguments in ({"server": ""}, {"sever": address}):
        with pytest.raises(InvalidRequest):
            drafter_class(NUM_TOKENS, VOCAB_SIZE, **arguments)
    with pytest.raises(InvalidRequest, match="no room"):
        drafter_class(0, VOCAB_SIZE, server=address)


def test_a_host_that_is_too_old_is_refused_with_a_remedy():
    class Older(abc.ABC):
        @abc.abstractmethod
        def prepare_draft_tokens(self, scheduled_requests, iter_stats) -> None: ...

    with pytest.raises(MissingDependency, match=r"use TensorRT-LLM 1\.0 or later"):
        next(made(Older))
    tensorrt_llm._drafter_class.cache_clear()
    with pytest.raises(MissingDependency, match="PyTorch backend"):
        _ = tensorrt_llm.RetrievalDrafter
    with pytest.raises(AttributeError):
        _ = tensorrt_llm.NoSuchDrafter


def test_a_host_whose_drafters_take_less_is_told_less():
    class Lean(Drafter):
        def __init__(self, max_concurrency=None) -> None:
            self.max_concurrency = max_concurrency

    for drafter_class in made(Lean):
        drafter = drafter_class(NUM_TOKENS, VOCAB_SIZE, server="local", max_concurrency=4)
        assert (drafter.max_concurrency, drafter.max_draft_len) == (4, NUM_TOKENS)
        assert asked(drafter) == [1, 2, 3, 4, 1, 2]


def test_tensorrt_llms_own_drafter_is_as_its_stand_in():
    text = hosts.host_text("tensorrt_llm", "tensorrt_llm/_torch/speculative/drafter.py")
    with hosts.running("tensorrt_llm", {DRAFTER: text}) as modules:
        own = modules[DRAFTER].Drafter
        for name in ("__init__", "prepare_draft_tokens", "pad_draft_tokens_for_cuda_graph"):
            code, ours = getattr(own, name).__code__, getattr(Drafter, name).__code__
            assert code.co_varnames[: code.co_argcount] == ours.co_varnames[: ours.co_argcount]
