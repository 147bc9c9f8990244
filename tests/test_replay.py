"""Replays without a model: what is accepted, what is counted, and what the command prints of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.budget import CostCurve
from retrieval_spec.cli import main
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidTokens
from retrieval_spec.match_lengths import RANGES
from retrieval_spec.replay import Tally, accepted_path, replay
from retrieval_spec.traces import Trace
from retrieval_spec.tree import DraftTree
from tests.conftest import REPOSITORY
from tests.fake_drafters import CountingDrafter
from tests.reference.acceptance import accept_by_paths
from tests.strategies import as_int32, draft_trees

MODEL = str(REPOSITORY / "retrieval_spec" / "demo_model")


def trace(prompt, output, family="code") -> Trace:
    return Trace(family, as_int32(prompt), as_int32(output))


@given(draft_trees(), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_a_step_accepts_what_the_verifier_would(tree: DraftTree, continuation):
    path = accepted_path(tree, as_int32(continuation))
    decided, num_drafted = accept_by_paths(
        tree, lambda so_far: continuation[len(so_far)], lambda so_far: len(so_far) == len(continuation)
    )
    assert [tree.token_ids[node] for node in path] == decided[:num_drafted]
    assert not path or tree.path_to(path[-1]) == path


def test_steps_nodes_and_positions_are_counted():
    engine = Engine(
        100, drafters={"counting": CountingDrafter(100, 0.5), "other": CountingDrafter(100, 0.25)}
    )
    # Four drafted a step: 11 12 13 come true, then nothing, then the last two.
    tally = replay(engine, [trace([10], [11, 12, 13, 50, 70, 71, 72])], 4)
    assert (tally.traces, tally.tokens, tally.steps) == (1, 7, 3)
    assert (tally.drafted_nodes, tally.accepted_tokens) == (12, 5)
    assert tally.mean_acceptance_length == 1 + 5 / 3
    assert tally.accepted_at[:4].tolist() == [2, 2, 1, 0]
    counting, other = tally.sources["counting"], tally.sources["other"]
    assert (counting.drafted_nodes, counting.accepted_nodes, counting.won_nodes) == (12, 5, 0)
    assert (other.drafted_nodes, other.accepted_nodes, other.won_nodes) == (12, 5, 0)
    assert tally.speedup == 1.0  # nobody said what a pass costs
    assert len(tally.draft_us) == 3


def test_an_observer_is_told_of_every_step():
    told: list[tuple] = []

    class Observer:
        def step(self, trace, at, tree, path, latency_us) -> None:
            told.append((trace.output.shape[0], at, tree.token_ids.tolist(), path, latency_us >= 0))

    engine = Engine(100, drafters={"counting": CountingDrafter(100, 0.5)})
    tally = replay(engine, [trace([10], [11, 12, 50, 51, 52])], 2, observers=[Observer()])
    assert told == [(5, 0, [11, 12], [0, 1], True), (5, 3, [51, 52], [0, 1], True)]
    assert tally.tree_sizes == {2: 2}


def test_with_a_cost_curve_what_pays_is_drafted_and_the_gain_is_projected():
    engine = Engine(100, drafters={"counting": CountingDrafter(100, 0.5)})
    told = [trace([10], [11, 12, 13, 14, 15])]
    cheap, dear = (replay(engine, told, 4, CostCurve.linear(cost)) for cost in (0.01, 5.0))
    assert (cheap.steps, cheap.drafted_nodes, cheap.cost) == (1, 4, 1.04)
    assert cheap.speedup == 5 / 1.04
    assert (dear.steps, dear.drafted_nodes, dear.speedup) == (5, 0, 1.0)


def test_a_source_wins_what_it_alone_drafted():
    engine = Engine(100, drafters={"counting": CountingDrafter(100), "small": CountingDrafter(20)})
    tally = replay(engine, [trace([18], [19, 20, 21])], 16)
    assert tally.sources["counting"].won_nodes == 2
    assert tally.sources["small"].won_nodes == 0


def test_the_calibration_error_is_that_of_the_predictions():
    tally = replay(Engine(100, drafters={"c": CountingDrafter(100, 1.0)}), [trace([10], [11, 50])], 4)
    assert tally.calibration_error == pytest.approx(3 / 4)
    assert Tally().calibration_error == 0.0


def test_an_output_is_learned_when_it_ends():
    text = np.random.default_rng(0).permutation(100).tolist()
    engine = Engine(100)
    first = replay(engine, [trace(text[:3], text[3:])], 8)
    second = replay(engine, [trace(text[:3], text[3:])], 8)
    assert first.accepted_tokens == 0
    assert second.accepted_tokens > 70
    first.merge(second)
    assert (first.traces, first.tokens) == (2, 194)
    assert first.sources["history"].accepted_nodes == second.sources["history"].accepted_nodes > 0


def test_a_trace_of_another_vocabulary_is_refused():
    with pytest.raises(InvalidTokens):
        replay(Engine(50), [trace([1], [60])], 4)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(1)
    paths = []
    for family in ("code", "chat"):
        rows = [
            {"prompt_ids": rng.integers(0, 4, 20).tolist(), "output_ids": rng.integers(0, 4, 30).tolist()}
            for _ in range(4)
        ]
        paths.append(tmp_path / f"{family}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)))
    return list(map(str, paths))


def replayed(capsys, *arguments: str) -> dict:
    assert main(["replay", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_says_the_same_however_many_processes_there_are(files, capsys):
    alone, shared = (replayed(capsys, *files, "--processes", number) for number in ("1", "2"))
    for result in (alone, shared):
        for facts in (result["all"], *result["families"].values()):
            assert facts.pop("draft_us_p50") <= facts.pop("draft_us_p99")
    assert alone == shared
    assert list(alone["families"]) == ["code", "chat"]
    assert alone["all"]["tokens"] == 240
    assert alone["all"]["mean_acceptance_length"] > 1.2


def test_the_command_shows_a_table(files, capsys):
    assert main(["replay", *files, "--cost-per-node", "0.01", "--preset", "session+history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["family", "traces", "tokens"]
    assert [line.split()[0] for line in lines[1:4]] == ["code", "chat", "all"]
    assert float(lines[3].split()[-1]) > 1.0
    assert not lines[4]
    assert [line.split()[0] for line in lines[5:8]] == ["source", "session", "history"]
    assert [line.split()[0] for line in lines[9:]] == ["match", *RANGES]


def test_outputs_may_be_cut(files, capsys):
    assert replayed(capsys, *files, "--max-output-tokens", "7")["all"]["tokens"] == 8 * 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-nodes", "0"], "--max-nodes is out of range"),
        (["--processes", "0"], "--processes is out of range"),
        (["--preset", "nobody"], "nobody"),
        (["--cost-curve", "nowhere"], "nowhere holds no cost curve"),
        (["--cost-per-node", "-1"], "cost"),
        (["--preset", "session+nobody"], "nobody"),
        (["--datastore", "nowhere"], "nowhere"),
        (["--vocab-size", "2"], "code.jsonl:1"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(files, capsys, arguments, words):
    assert main(["replay", *files, *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert said.startswith("retrieval-spec replay: ")
    assert "\n" not in said


def test_a_measured_curve_is_replayed_with(files, tmp_path, capsys):
    measure = ["measure-cost", "--model", MODEL, "--nodes", "0", "64", "--rounds", "1"]
    assert main([*measure, "--context-tokens", "40", "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)
    assert curve["node_counts"] == [0, 64]
    assert 0 < curve["costs"][0] < curve["costs"][1]
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    facts = replayed(capsys, *files, "--cost-curve", str(tmp_path / "curve.json"))["all"]
    assert facts["tokens"] / facts["steps"] > facts["projected_speedup"] > 0.8  # drafts cost something


def test_batches_say_up_to_which_size_drafting_pays(files, tmp_path, capsys):
    # Nodes are free for one row, cheap for four, and for sixteen each costs as much as a pass.
    costs = {1: [1.0, 1.0], 4: [1.0, 3.6], 16: [1.0, 17.0]}
    batches = [{"rows": rows, "node_counts": [0, 16], "costs": costs[rows]} for rows in (4, 16)]
    said = {"node_counts": [0, 16], "costs": costs[1], "batches": batches}
    (tmp_path / "curve.json").write_text(json.dumps(said))
    curve = ["--cost-curve", str(tmp_path / "curve.json")]
    plain, shared = replayed(capsys, *files)["all"], replayed(capsys, *files, *curve, "--processes", "2")
    facts = shared["all"]
    one, four, sixteen = facts["batches"]
    assert (one["rows"], four["rows"], sixteen["rows"]) == (1, 4, 16)
    length = plain["tokens"] / plain["steps"]
    assert one["projected_speedup_of_full_trees"] == pytest.approx(length)
    assert one["projected_speedup"] == facts["projected_speedup"] > four["projected_speedup"] > 1.0
    assert one["nodes_a_step"] >= four["nodes_a_step"] > sixteen["nodes_a_step"] == 0.0
    assert (sixteen["projected_speedup"], sixteen["mean_acceptance_length"]) == (1.0, 1.0)
    assert sixteen["projected_speedup_of_full_trees"] < 0.5
    assert (facts["break_even_rows"], facts["break_even_rows_of_full_trees"]) == (4, 1)
    assert main(["replay", *files, *curve]) == 0
    assert "drafting pays up to 4 rows, full trees up to 1" in capsys.readouterr().out


def test_memory_is_told(files, capsys):
    told = replayed(capsys, *files)
    memory = [facts["memory"] for facts in told["families"].values()]
    assert all(one["session_bytes"] > 0 and one["learned_bytes"] > 0 for one in memory)
    assert told["all"]["memory"]["learned_bytes"] == sum(one["learned_bytes"] for one in memory)
    assert told["all"]["memory"]["session_bytes"] == max(one["session_bytes"] for one in memory)
    assert told["datastore_bytes"] == 0


def test_several_rows_are_measured(capsys):
    measure = [
        "measure-cost",
        "--model",
        MODEL,
        "--nodes",
        "0",
        "8",
        "--rounds",
        "1",
        "--context-tokens",
        "9",
    ]
    assert main([*measure, "--batch-sizes", "1,3", "--json"]) == 0
    (batch,) = json.loads(capsys.readouterr().out)["batches"]
    assert (batch["rows"], batch["node_counts"]) == (3, [0, 8])
    assert 0 < batch["costs"][0] <= batch["costs"][1]
    assert main([*measure, "--batch-sizes", "2"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "0"],
        ["1", "8"],
        ["2", "0"],
        ["2", "8"],
    ]


@pytest.mark.parametrize(
    "arguments", [["--nodes", "-1"], ["--batch-sizes", "0"], ["--rounds", "0"], ["--context-tokens", "0"]]
)
def test_nothing_to_measure_is_said(arguments, capsys):
    assert (
        main(["measure-cost", "--model", str(REPOSITORY / "retrieval_spec" / "demo_model"), *arguments]) == 2
    )
    assert "nothing to measure" in capsys.readouterr().err
