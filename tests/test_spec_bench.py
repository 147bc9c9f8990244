"""Spec-Bench with the shipped model and questions made up here: metrics, answers, exactness."""

from __future__ import annotations

import json
import sys

import pytest

from retrieval_spec.demo_model import demo_model_dir
from tests.conftest import REPOSITORY

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(REPOSITORY / "tools"))
import spec_bench as tool  # noqa: E402

QUESTIONS = [
    {"question_id": 81, "category": "coding", "turns": ["def add(a, b):", "def subtract(a, b):"]},
    {"question_id": 7, "category": "rag", "turns": ["import os\nimport sys\nimport"], "reference": "x"},
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n")
    return path


def test_both_ways_are_run_compared_and_written_down(tmp_path, questions, capsys, monkeypatch):
    monkeypatch.setattr(tool, "WARM_UPS", 1)
    options = ["--model", str(demo_model_dir()), "--questions", str(questions), "--model-id", "demo"]
    sizes = ["--max-new-tokens", "24", "--node-budget", "full", "--out", str(tmp_path / "answers")]
    assert tool.main([*options, *sizes, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["differing"], report["left_out"]) == (0, 0)
    assert list(report["tasks"]) == ["mt_bench", "rag"]
    plain, drafted = (
        list(map(json.loads, (tmp_path / "answers" / f"demo-{way}.jsonl").read_text().splitlines()))
        for way in ("vanilla", "retrieval_spec")
    )
    lengths = []
    for question, one, other in zip(QUESTIONS, plain, drafted, strict=True):
        assert (one["question_id"], one["model_id"]) == (question["question_id"], "demo-vanilla")
        (ours,), (theirs,) = other["choices"], one["choices"]
        assert len(ours["turns"]) == len(question["turns"])
        assert (ours["turns"], ours["new_tokens"]) == (theirs["turns"], theirs["new_tokens"])
        # The prompt's own pass decides a token of each turn.
        assert sum(ours["accept_lengths"]) == sum(ours["new_tokens"]) - len(ours["turns"])
        assert sum(ours["decoding_steps"]) == len(ours["accept_lengths"]) < len(theirs["accept_lengths"])
        assert all(seconds > 0 for seconds in ours["wall_time"])
        lengths += ours["accept_lengths"]
    overall = report["overall"]
    assert overall["mean_accepted_tokens"] == sum(lengths) / len(lengths) > 1.0
    assert overall["speedup"] == overall["tokens_per_s"] / overall["baseline_tokens_per_s"]
    assert "| demo | " in tool.table_of(report)


def test_a_second_turn_follows_on_the_first_answer():
    tokenizer = tool.load_model(demo_model_dir())[1]
    bench = tool.Bench.__new__(tool.Bench)
    bench._tokenizer, bench._model = tokenizer, torch.zeros(0)
    text = tokenizer.decode(bench._prompt(["one?", "two?"], ["an answer"])[0], skip_special_tokens=True)
    assert "USER: one? ASSISTANT: an answer" in text
    assert text.endswith("USER: two? ASSISTANT:")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    text = tokenizer.decode(bench._prompt(["one?", "two?"], ["an answer"])[0])
    assert text == "[user]one?[assistant]an answer[user]two?[assistant]"


def test_a_limit_takes_the_first_of_each_task():
    categories = ["writing", "writing", "coding", "rag", "rag", "qa"]
    questions = [{"question_id": at, "category": name} for at, name in enumerate(categories)]
    assert [one["question_id"] for one in tool.limited(questions, 2)] == [0, 2, 3, 4, 5]
    assert tool.limited(questions, None) == questions


def test_bad_input_is_said(tmp_path, questions, capsys):
    assert tool.main(["--model", str(tmp_path), "--questions", str(questions)]) == 2
    assert "no model folder" in capsys.readouterr().err
    questions.write_text("{}\n")
    assert tool.main(["--model", str(demo_model_dir()), "--questions", str(questions)]) == 2
    assert "holds no questions" in capsys.readouterr().err
    questions.write_text(json.dumps({**QUESTIONS[1], "turns": ["x " * 5_000]}))
    assert tool.main(["--model", str(demo_model_dir()), "--questions", str(questions)]) == 2
    assert "no question fits" in capsys.readouterr().err
