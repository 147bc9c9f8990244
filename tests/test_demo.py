"""The demo as a person runs it, and that its word `exact` can be false."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from retrieval_spec import verifier
from retrieval_spec.commands.demo import compare, prompt_texts
from retrieval_spec.commands.generate import load_model
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.verifier import NoDrafts

FIELDS = {
    "exact",
    "prompts",
    "tokens",
    "mean_acceptance_length",
    "plain_tokens_per_s",
    "draft_tokens_per_s",
    "speedup",
    "server_pid",
}


def test_the_demo_builds_serves_generates_and_compares():
    command = [
        sys.executable,
        "-m",
        "retrieval_spec.cli",
        "demo",
        "--json",
        "--prompts",
        "2",
        "--max-new-tokens",
        "32",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        result = json.loads(process.communicate(timeout=240)[0])
    assert process.returncode == 0
    assert set(result) == FIELDS
    assert result["exact"] is True
    assert (result["prompts"], result["tokens"]) == (2, 64)
    assert result["mean_acceptance_length"] > 1.2
    assert result["server_pid"] not in (process.pid, os.getpid())
    with pytest.raises(ProcessLookupError):
        os.kill(result["server_pid"], 0)


def test_one_wrong_token_makes_the_comparison_say_so(monkeypatch):
    model, tokenizer = load_model(demo_model_dir())
    generate = verifier.generate

    def wrong(*arguments, **options):
        result = generate(*arguments, **options)
        token_ids = result.token_ids.copy()
        token_ids[-1] ^= 1
        return dataclasses.replace(result, token_ids=token_ids)

    results = {}
    for name, function in (("right", generate), ("wrong", wrong)):
        monkeypatch.setattr(verifier, "generate", function, raising=False)
        with progress_bar() as progress:
            source = NoDrafts(model.config.vocab_size)
            results[name] = compare(model, tokenizer, source, prompt_texts(1), 8, 4, progress)
    assert (results["right"]["exact"], results["wrong"]["exact"]) == (True, False)
    assert results["right"]["mean_acceptance_length"] == 1.0
