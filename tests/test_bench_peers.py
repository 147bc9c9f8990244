"""The comparison with other systems: its protocol, its ratios, its page, and runners."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench_peers"
VOCAB_SIZE = 50
MISSING = {"vllm_ngram": "not installed: no such package"}
PEERS = {
    "arctic": {"depth": 64, "factor": 4, "use_tree": True},
    "transformers_lookup": {},
    "vllm_ngram": {"min_tokens": 2, "max_tokens": 4},
    "llama_cpp_lookup": {},
}


@pytest.fixture(scope="module")
def bench():
    """The tool's modules, by name."""
    names = ("replaying", "figures", "page", "losses", "catalogue", "environments")
    before = set(sys.modules)
    sys.path.insert(0, str(TOOL))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in names})
    finally:
        sys.path.remove(str(TOOL))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(TOOL)):
                del sys.modules[name]


@pytest.fixture
def recordings(tmp_path):
    """Outputs that repeat their prompts, in two families."""
    traces = [
        {
            "family": family,
            "prompt_ids": list(range(begin, begin + 30)),
            "output_ids": list(range(begin, begin + 20)),
        }
        for family, begin in (("one", 1), ("one", 3), ("two", 5))
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    return path


def answers(python: str, environment: str, *orders: dict) -> list[dict]:
    command = [python, str(TOOL / "worker.py"), environment]
    given = "".join(json.dumps(order) + "\n" for order in orders)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=200)
    return [json.loads(line) for line in done.stdout.splitlines()]


def order(recordings: Path, **options) -> dict:
    return {
        "do": "replay",
        "traces": str(recordings),
        "vocab_size": VOCAB_SIZE,
        "max_nodes": 4,
        "store": None,
        "options": options,
    }


def replay_of(accepted: float, p50_us: float) -> dict:
    return {
        "accepted": str(accepted),
        "acceptance": {"some": accepted, "other": accepted},
        "nodes": 3.0,
        "draft_p50_us": p50_us,
        "draft_p99_us": 2 * p50_us,
        "token_us": 3 * p50_us,
    }


class Echo:
    """Drafts, of a recording that counts up, two wrong siblings and a path of two right tokens."""

    def held(self, token_ids):
        return token_ids

    def open(self, prompt):
        self.seen = list(prompt)

    def draft(self, context):
        assert context == self.seen
        return context[-1]

    def commit(self, tokens):
        self.seen += tokens

    def close(self):
        self.seen = []

    def tree(self, last):
        return [99, last + 1, 98, last + 2], [-1, -1, 1, 1]


def test_a_step_accepts_the_longest_path_and_commits_one_token_more(bench):
    trace = {"family": "count", "prompt_ids": [0], "output_ids": list(range(1, 10))}
    found = bench.replaying.replay(Echo, [trace], 4)
    assert found["steps"] == 3
    assert found["acceptance"] == {"count": 3.0}
    assert found["nodes"] == 4
    with pytest.raises(ValueError, match="4 nodes, where 3"):
        bench.replaying.replay(Echo, [trace], 3)


def test_repeats_that_accept_different_tokens_are_refused(bench):
    same = [replay_of(2.0, 5.0), replay_of(2.0, 9.0)]
    bench.figures.check_repeats("x", same)
    with pytest.raises(bench.figures.RepeatsDiffer):
        bench.figures.check_repeats("x", [*same, replay_of(2.1, 5.0)])


def test_a_ratio_is_taken_repeat_by_repeat_and_says_how_far_another_run_may_be(bench):
    table = {
        "default": [replay_of(2.0, us) for us in (10.0, 20.0, 40.0)],
        "other": [replay_of(2.0, us) for us in (5.0, 10.0, 28.0)],
    }
    ratio = bench.figures.ratio(table, "other", "default", "draft_p50_us")
    assert ratio.value == 0.5
    assert ratio.spread == pytest.approx(1.5 * 0.4)
    assert str(ratio) == "0.50 ±60 %"
    assert bench.figures.Ratio.of([2.0, 2.0, 2.0]).spread == bench.figures.LEAST_SPREAD
    assert ratio.agrees(bench.figures.Ratio(0.79, 0.1))
    assert not ratio.agrees(bench.figures.Ratio(0.81, 0.1))


def results(accepted: float, p50_us: float) -> dict:
    replays = {
        str(budget): {"default": [replay_of(2.0, 10.0)] * 3, "Arctic tree": [replay_of(accepted, p50_us)] * 3}
        for budget in (8, 16, 64)
    }
    static = {
        str(budget): {"corpus": [replay_of(2.0, 10.0)] * 3, "infini-gram": [replay_of(1.5, 90.0)] * 3}
        for budget in (8, 16, 64)
    }
    built = {"tokens": 100, "seconds": 2.0, "bytes": 800}
    return {
        "date": "2000-01-01",
        "machine": {"cpu": "some", "cores": "2", "system": "Some", "python": "3.0"},
        "command": "make bench",
        "repeats": 3,
        "seconds": 90.0,
        "versions": {"retrieval_spec": "0", "arctic-inference": "1"},
        "missing": MISSING,
        "sets": [
            {
                "facts": {
                    **dict.fromkeys(("items", "output_tokens", "static_tokens", "fed_tokens"), 5),
                    "corpus_tokens": 100,
                    "name": "library",
                },
                "missing": MISSING,
                "replays": replays,
                "static": static,
                "fed": {"default": [built], "Arctic tree": [{**built, "bytes": None}]},
                "built": {"corpus": [built], "infini-gram": [{**built, "seconds": 0.8, "bytes": 300}]},
            }
        ],
    }


def test_the_page_names_what_is_missing_and_where_we_lose(bench):
    page = bench.page.page(results(2.5, 4.0), None)
    assert "`vLLM n-gram`" in page
    assert "| vLLM n-gram | not installed: no such package | - | - |" in page
    assert "| Arctic tree | **2.500** | **2.500** | **2.500** |" in page
    assert "Arctic tree accepts more than `default` at 16 nodes: the mean of all families" in page
    assert "some (2.50, ours 2.00)" in page
    assert "Arctic tree: a draft takes less time than of `default`, 0.40 ±50 % at 8 nodes" in page
    assert "infini-gram: building is 2.50 ±50 % times as fast as of `corpus`." in page
    assert "infini-gram: building takes 0.38 ±50 % of the bytes a token of `corpus`." in page
    assert "infini-gram accepts" not in page
    assert "set RETRIEVAL_SPEC_DATA" in page


def test_a_second_run_is_held_against_the_first_one(bench):
    first, same, other = results(2.5, 4.0), results(2.5, 4.8), results(2.6, 6.2)
    agreeing = bench.figures.Comparison.of(first, same)
    assert (agreeing.num_acceptances, agreeing.changed, agreeing.strayed) == (24, [], [])
    differing = bench.figures.Comparison.of(first, other)
    assert len(differing.changed) == 6
    assert len(differing.strayed) == 6
    page = bench.page.page(other, differing)
    assert "Of 24 acceptance figures 6 differ from the run before" in page
    assert "library, replays, Arctic tree, draft_p50_us @8: 0.40 ±50 %, then 0.62" in page


def test_our_runner_replays_and_feeds_and_answers_what_it_cannot_do(recordings):
    asked, unknown = order(recordings, preset="session"), order(recordings, preset="no such preset")
    versions, first, wrong, second, fed = answers(
        sys.executable, "ours", asked, unknown, asked, {**asked, "do": "feed"}
    )
    assert "retrieval_spec" in versions["versions"]
    assert first["accepted"] == second["accepted"]
    assert first["tokens"] == 60
    assert min(first["acceptance"].values()) > 2
    assert "unknown preset" in wrong["error"]
    assert fed["tokens"] == 150
    assert fed["seconds"] > 0


def test_a_runner_that_cannot_be_imported_says_so():
    (missing,) = answers(sys.executable, "no_such_system")
    assert "ModuleNotFoundError" in missing["error"]


def test_a_system_that_cannot_be_installed_leaves_a_reason_without_places(bench, monkeypatch, tmp_path):
    def fails(folder, environment):
        folder.mkdir()
        raise bench.environments.NotInstalled("no match in https://some.index/simple for some-package")

    monkeypatch.setattr(bench.environments, "FOLDER", tmp_path)
    monkeypatch.setattr(bench.environments, "_make", fails)
    with pytest.raises(bench.environments.NotInstalled, match=r"^no match in for some-package$"):
        bench.environments.python_of("arctic")
    assert not (tmp_path / "arctic").exists()


@pytest.mark.long
@pytest.mark.parametrize("environment", PEERS)
def test_the_runner_of_another_system_accepts_the_same_twice(bench, recordings, environment):
    if not (bench.environments.FOLDER / environment / "made").exists():
        pytest.skip("not installed: make bench installs it")
    asked = order(recordings, **PEERS[environment])
    versions, first, second = answers(bench.environments.python_of(environment), environment, asked, asked)
    assert versions["versions"]
    assert first["accepted"] == second["accepted"]
    assert min(first["acceptance"].values()) > 2
