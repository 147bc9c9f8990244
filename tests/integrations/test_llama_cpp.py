"""llama-cpp-python's draft model, in a loop written from the host's own signatures."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, UnknownSession
from retrieval_spec.integrations.llama_cpp import RetrievalDraftModel
from retrieval_spec.step_costs import StepCostMeter
from tests.fake_drafters import CountingDrafter
from tests.service_process import server_thread

VOCAB_SIZE = 64
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def hashed(context: list[int]) -> int:
    """A target that repeats itself: its next token follows from the last one, and now and then from more."""
    return (7 * context[-1] + (len(context) % 11 == 0) * context[-2] + 1) % VOCAB_SIZE


def counting(context: list[int]) -> int:
    return (context[-1] + (1 if len(context) % 6 else 2)) % VOCAB_SIZE


class StandIn:
    """Decodes greedily as the host does: one buffer of ids, which drafts are written to and cut from."""

    def __init__(self, target: Callable[[list[int]], int], draft_model=None, num_ids: int = 400) -> None:
        self.target, self.draft_model = target, draft_model
        self.input_ids = np.full(num_ids, -1, np.intc)
        self.num_evals = 0

    def generate(self, prompt: list[int]) -> Iterator[int]:
        decided, pending = len(prompt), list(prompt)
        length = 0
        while True:
            self.input_ids[length : length + len(pending)] = pending
            length += len(pending)
            self.num_evals += 1
            while decided <= length:
                token = self.target(self.input_ids[:decided].tolist())
                yield token
                is_wrong = decided < length and token != self.input_ids[decided]
                decided += 1
                if is_wrong:
                    break
            length, pending = decided - 1, [token]
            if self.draft_model is not None:
                self.input_ids[length] = token
                draft = self.draft_model(self.input_ids[:decided])
                assert draft.dtype == np.intc
                assert draft.ndim == 1
                pending += draft.tolist()[: len(self.input_ids) - decided]


def written(loop: StandIn, prompt: list[int] = PROMPT, num_tokens: int = 80) -> list[int]:
    return [token for token, _ in zip(loop.generate(prompt), range(num_tokens), strict=False)]


def local(**engine) -> LocalClient:
    return LocalClient(Engine(VOCAB_SIZE, **engine))


def counter() -> LocalClient:
    return local(drafters={"counting": CountingDrafter(VOCAB_SIZE, 0.875)})


@pytest.mark.row("L1")
@pytest.mark.parametrize("target", [hashed, counting])
@pytest.mark.parametrize("source", [local, counter])
def test_the_output_is_that_of_plain_decoding_and_takes_fewer_evaluations(target, source):
    plain, drafted = StandIn(target), StandIn(target, RetrievalDraftModel(source(), VOCAB_SIZE))
    assert written(drafted) == written(plain)
    if (target, source) != (hashed, counter):
        assert drafted.num_evals < 0.8 * plain.num_evals


def test_drafts_from_a_server_are_those_from_this_process(tmp_path):
    def engine() -> Engine:
        return Engine(VOCAB_SIZE, {"session": SessionDrafter.open(vocab_size=VOCAB_SIZE)})

    def drafts_of(source) -> list[list[int]]:
        model = RetrievalDraftModel(source, VOCAB_SIZE)
        recorded = []

        def draft_model(input_ids):
            recorded.append(model(input_ids).tolist())
            return np.array(recorded[-1], np.intc)

        for prompt in (PROMPT, PROMPT[:4]):
            written(StandIn(hashed, draft_model), prompt)
        model.close()
        return recorded

    with server_thread(f"unix:{tmp_path}/s.sock", engine()) as address:
        client = DraftClient(address, timeout_s=5.0)
        remote = drafts_of(client)
        client.close()
    assert remote == drafts_of(LocalClient(engine()))
    assert sum(map(bool, remote)) > 10


class Sessions:
    """A source that keeps what its sessions were told, and drafts the last token again and again."""

    vocab_size = VOCAB_SIZE

    def __init__(self, fails: Callable[[], bool] = lambda: False) -> None:
        self.fails = fails
        self.told: list[tuple[list[int], list[list[int]]]] = []
        self.closed: list[int] = []

    def open_session(self, prompt_ids, namespace):
        if self.fails():
            raise UnknownSession("no such session")
        assert namespace == "ours"
        self.told.append((list(map(int, prompt_ids)), []))
        return Session(self, len(self.told) - 1)


class Session:
    def __init__(self, source: Sessions, number: int) -> None:
        self.source, self.number = source, number

    def commit(self, token_ids) -> None:
        self.source.told[self.number][1].append(list(map(int, token_ids)))

    def draft(self, max_nodes: int):
        from retrieval_spec.tree import DraftTree

        if self.source.fails():
            raise UnknownSession("no such session")
        last = self.source.told[self.number][1][-1][-1]
        return DraftTree.chain([last] * min(3, max_nodes), [0.5] * min(3, max_nodes))

    def close(self) -> None:
        self.source.closed.append(self.number)


def asked(model: RetrievalDraftModel, *contexts: list[int]) -> list[list[int]]:
    return [model(np.array(context, np.intc)).tolist() for context in contexts]


def test_a_context_that_grew_by_what_a_step_can_decide_goes_on_and_any_other_begins_anew():
    source = Sessions()
    model = RetrievalDraftModel(source, VOCAB_SIZE, namespace="ours")
    assert asked(model, [1, 2, 3]) == [[3, 3, 3]]
    asked(model, [1, 2, 3, 3, 3, 3, 7], [1, 2, 3, 3, 3, 3, 7, 8])  # all accepted, then nothing
    assert source.told == [([1, 2], [[3], [3, 3, 3, 7], [8]])]
    asked(model, [1, 2, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9, 9])  # one token more than a step can decide
    assert source.closed == [0]
    asked(model, [1, 2, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9, 9])  # nothing new: the same prompt again
    asked(model, [1, 5, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9, 9, 9])  # another token at the beginning
    asked(model, [1, 5])  # shorter
    assert source.closed == [0, 1, 2, 3]
    assert [prompt for prompt, _ in source.told[1:]] == [
        [1, 2, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9],
        [1, 2, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9],
        [1, 5, 3, 3, 3, 3, 7, 8, 8, 8, 8, 9, 9],
        [1],
    ]
    model.close()
    model.close()
    assert source.closed == [0, 1, 2, 3, 4]


def test_what_the_host_writes_over_its_buffer_is_not_taken_for_the_context_before():
    source = Sessions()
    model = RetrievalDraftModel(source, VOCAB_SIZE, namespace="ours")
    buffer = np.array([1, 2, 3, 0, 0], np.intc)
    model(buffer[:3])
    buffer[:] = [9, 9, 9, 9, 0]
    model(buffer[:4])
    assert [prompt for prompt, _ in source.told] == [[1, 2], [9, 9, 9]]


def test_what_was_written_is_drafted_when_it_is_asked_for_again():
    model = RetrievalDraftModel(local(), VOCAB_SIZE)
    evals = []
    for _ in range(2):
        loop = StandIn(hashed, model)
        written(loop, PROMPT)
        evals.append(loop.num_evals)
    assert evals[1] < evals[0]


@pytest.mark.row("V1")
def test_a_source_that_fails_costs_drafts_and_one_warning(caplog):
    trouble = [False]
    source = Sessions(lambda: trouble[0])
    model = RetrievalDraftModel(source, VOCAB_SIZE, namespace="ours")
    with caplog.at_level(logging.WARNING):
        assert asked(model, [1, 2]) == [[2, 2, 2]]
        trouble[0] = True
        assert asked(model, [1, 2, 2], [1, 2, 2, 2], [5, 6], [5, 6, 7]) == [[], [], [], []]
        trouble[0] = False
        assert asked(model, [5, 6, 7, 8], [7, 7]) == [[], [7, 7, 7]]  # the next generation tries again
    assert len(caplog.records) == 1


@pytest.mark.row("V1")
def test_without_a_server_the_output_is_that_of_plain_decoding_and_there_is_one_warning(tmp_path, caplog):
    client = DraftClient(f"unix:{tmp_path}/nobody.sock")
    model = RetrievalDraftModel(client, VOCAB_SIZE)
    with caplog.at_level(logging.WARNING, "retrieval_spec.integrations"):
        for prompt in (PROMPT, PROMPT[:5]):
            assert written(StandIn(hashed, model), prompt, 20) == written(StandIn(hashed), prompt, 20)
    client.close()
    assert len([one for one in caplog.records if "integrations" in one.name]) == 1


def test_ids_that_the_source_does_not_know_cost_the_drafts():
    model = RetrievalDraftModel(local(), 2 * VOCAB_SIZE)  # a padded vocabulary
    assert asked(model, [1, 1, 1, 1, VOCAB_SIZE + 1], [1, 1, 1, 1, VOCAB_SIZE + 1, 1]) == [[], []]
    assert asked(model, [1] * 12) != [[]]


def test_a_source_with_a_larger_vocabulary_is_refused_at_the_start():
    with pytest.raises(InvalidRequest, match="larger vocabulary"):
        RetrievalDraftModel(local(), VOCAB_SIZE - 1)


@pytest.mark.parametrize("name", ["max_tokens", "max_nodes"])
def test_numbers_that_leave_no_draft_are_refused(name):
    with pytest.raises(InvalidRequest, match=name):
        RetrievalDraftModel(local(), VOCAB_SIZE, **{name: 0})


def test_only_tokens_that_pay_are_drafted():
    def drafted(step_costs=None, **bounds) -> int:
        model = RetrievalDraftModel(counter(), VOCAB_SIZE, step_costs=step_costs, **bounds)
        return len(asked(model, [1])[0])

    assert drafted() == 16
    assert drafted(max_tokens=5) == 5
    assert drafted(max_nodes=7) == 7
    assert drafted(CostCurve.linear(10.0)) == 0
    assert 0 < drafted(CostCurve.linear(0.1)) < 16


def test_a_meter_learns_what_steps_cost_and_changes_no_token():
    meter = StepCostMeter()
    model = RetrievalDraftModel(counter(), VOCAB_SIZE, step_costs=meter)
    assert written(StandIn(counting, model), num_tokens=150) == written(StandIn(counting), num_tokens=150)
    assert meter.cost_curve is not None


def test_it_has_the_signature_that_the_host_calls():
    speculative = pytest.importorskip("llama_cpp.llama_speculative", reason="pip install llama-cpp-python")
    theirs = inspect.signature(speculative.LlamaDraftModel.__call__).parameters.values()
    ours = inspect.signature(RetrievalDraftModel.__call__).parameters.values()
    assert [(one.name, one.kind) for one in ours] == [(one.name, one.kind) for one in theirs]
    assert isinstance(RetrievalDraftModel(local(), VOCAB_SIZE), speculative.LlamaDraftModel)
