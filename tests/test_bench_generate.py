"""Forced generation on a tiny model: every way writes the recording, and accepts as a replay does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
# ruff: noqa: E402
import bench_generate as tool
from forced import report, texts, ways
from forced.measuring import measure
from forced.models import SHAPES, random_model
from forced.target import ForcedTarget

from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.engine import Engine
from retrieval_spec.replay import replay
from retrieval_spec.step_costs import BatchCostMeter
from retrieval_spec.traces import Trace
from tests.service_process import server_thread

VOCAB_SIZE = 300
END_ID = VOCAB_SIZE - 1
CHEAP = CostCurve((0, 16), (1.0, 1.2))


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)
    return ForcedTarget(random_model(SHAPES["tiny"], VOCAB_SIZE, "float32", "cpu", 512))


@pytest.fixture(scope="module")
def client():
    with (
        server_thread("127.0.0.1:0", Engine(VOCAB_SIZE)) as address,
        DraftClient(address, timeout_s=5.0) as found,
    ):
        yield found


def made_up(count, seed=0):
    """Outputs that copy from their prompts, now and then with another token between."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = rng.integers(0, END_ID, rng.integers(20, 60)).tolist()
        output = []
        while len(output) < 30:
            begin = int(rng.integers(0, 15))
            output += [*prompt[begin : begin + int(rng.integers(3, 12))], int(rng.integers(0, END_ID))]
        found.append(texts.Recorded(prompt, output[: int(rng.integers(20, 31))]))
    return found


def all_ways(client, step_costs):
    return [
        ways.Host("plain"),
        ways.WithoutDrafts("own loop", VOCAB_SIZE),
        ways.InProcess("trees", VOCAB_SIZE, 16, step_costs()),
        ways.Sidecar("sidecar", client, 16, step_costs()),
    ]


class Watched:
    """A draft source that notes how long the context was whenever a tree was asked for."""

    def __init__(self, engine):
        self._client = LocalClient(engine)
        self.lengths = []

    def __getattr__(self, name):
        return getattr(self._client, name)

    def open_session(self, prompt_ids, namespace="default"):
        return WatchedSession(self._client.open_session(prompt_ids, namespace), self.lengths)


class WatchedSession:
    def __init__(self, session, lengths):
        self._session = session
        self._lengths = lengths

    def __getattr__(self, name):
        return getattr(self._session, name)

    def draft(self, *arguments):
        self._lengths.append(self._session.context_length)
        return self._session.draft(*arguments)


class AfterPrompt(Watched):
    """The same for a replay: the prompt's pass has decided the first token before anything is drafted."""

    def open_session(self, prompt_ids, namespace="default"):
        session = super().open_session(prompt_ids[:-1], namespace)
        session.commit(prompt_ids[-1:])
        return session


def test_one_generation_is_what_was_recorded_in_every_way(target, client):
    compared = [*all_ways(client, lambda: CHEAP), ways.Host("lookup", prompt_lookup_num_tokens=5)]
    batches = {"made_up": list(texts.batches(made_up(2), 1, END_ID))}
    samples = measure(target, compared, batches, repeats=range(2))
    assert len(samples) == len(compared) * 2 * 2
    lengths = {
        way.name: report.figures(samples, way.name, batches).mean_acceptance_length for way in compared
    }
    assert lengths["plain"] == lengths["own loop"] == 1.0
    assert min(lengths["lookup"], lengths["trees"], lengths["sidecar"]) > 1.2
    table = report.table(samples, "plain", ["lookup", "trees", "sidecar"], "lookup")
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1


def test_three_generations_of_different_lengths_share_their_passes(target, client):
    batches = list(texts.batches(made_up(6), 3, END_ID))
    assert len({len(item.output) for item in batches[0].items}) > 1
    assert len({len(item.prompt) for item in batches[0].items}) > 1
    samples = measure(target, all_ways(client, BatchCostMeter), {"made_up": batches}, repeats=range(1))
    assert len(samples) == 4 * 2
    assert report.figures(samples, "trees", ["made_up"]).mean_acceptance_length > 1.0


@pytest.mark.parametrize("curve", [None, CHEAP, CostCurve((0, 1, 16), (1.0, 2.0, 2.2))])
def test_a_step_accepts_what_it_accepts_in_a_replay_of_the_same_recording(target, curve):
    num_steps = num_tokens = 0
    for item in made_up(8, seed=1):
        way = ways.Trees("trees", 16, curve)
        way.source = Watched(Engine(VOCAB_SIZE))
        batch = texts.Batch([item], END_ID)
        target.record(batch.rows(), END_ID)
        batch.check(way(target.model, batch.inputs("cpu")), way.name)
        replayed = AfterPrompt(Engine(VOCAB_SIZE))
        tokens = np.array([*item.prompt, *item.output], np.int32)
        begin = len(item.prompt) + 1
        tally = replay(replayed, [Trace("made_up", tokens[:begin], tokens[begin:])], 16, curve)
        # Behind the last place where a draft can save a step the loop does not ask.
        assert way.source.lengths == replayed.lengths[: len(way.source.lengths)]
        assert len(replayed.lengths) - len(way.source.lengths) <= 1
        assert way.counts.steps == tally.steps
        num_steps, num_tokens = num_steps + tally.steps, num_tokens + tally.tokens
    assert num_tokens > 1.3 * num_steps, "hardly any draft was accepted"


def test_another_output_than_the_recorded_one_ends_the_run(target):
    batch = texts.Batch(made_up(1), END_ID)
    rows = batch.rows()
    rows[0][-1] = (rows[0][-1] + 1) % END_ID
    target.record(rows, END_ID)
    with pytest.raises(SystemExit, match="another output"):
        batch.check(ways.Host("plain")(target.model, batch.inputs("cpu")), "plain")


def test_recordings_are_taken_evenly_and_cut(tmp_path):
    items = [{"prompt_ids": list(range(9)), "output_ids": [number] * 40} for number in range(10)]
    items[4]["output_ids"] = [4]  # next to nothing
    path = tmp_path / "made_up.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    found = texts.read(path, 3, texts.Cut(5, 20))
    assert [item.output[0] for item in found] == [0, 3, 7]
    assert all(item.prompt == [4, 5, 6, 7, 8] and len(item.output) == 20 for item in found)


def test_bars_are_judged_on_everything_together(capsys):
    def one(way, family, seconds):
        return tool.Sample(way, family, 0, 0, 1, 10, seconds, 0.1, 9, 0)

    faster = [one(tool.PLAIN, "a", 1.0), one(tool.PLAIN, "b", 3.0), one(tool.TREES, "a", 1.1)]
    assert tool.show([*faster, one(tool.TREES, "b", 1.0)], 1)
    assert "| **all** | 5.0 | 1.90 | 1.00 | 0.0 |" in capsys.readouterr().out
    assert not tool.show([*faster, one(tool.TREES, "b", 3.0)], 1)
