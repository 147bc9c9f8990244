"""The loop of docs/your_own_loop.md, as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.engine import Engine
from retrieval_spec.verifier import NoDrafts
from tests.conftest import REPOSITORY
from tests.service_process import server_thread
from tests.tiny_models import VOCAB_SIZE, tiny_model

PROMPT = [7, 8, 9, 10, 7, 8, 9]
NEW_TOKENS = 48


class Counted:
    """A model that counts its forward passes."""

    def __init__(self, model: Any) -> None:
        self.model, self.config, self.passes = model, model.config, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.passes += 1
        return self.model(*arguments, **options)


def documented_loop() -> Any:
    text = (REPOSITORY / "docs" / "your_own_loop.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(block.strip().splitlines()) <= 32
    found: dict[str, Any] = {}
    exec(block, found)
    return found["generate"]


def plain(model: Any, prompt: list[int], **options: Any) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return output[0].tolist()


def local() -> LocalClient:
    return LocalClient(Engine(VOCAB_SIZE))


def test_its_output_is_plain_decoding_in_fewer_passes():
    model = tiny_model("Llama", "float64")
    source, counts = local(), []
    for _ in range(2):
        counted = Counted(model)
        assert documented_loop()(counted, PROMPT, source, NEW_TOKENS) == plain(model, PROMPT)
        counts.append(counted.passes)
    assert counts[0] < NEW_TOKENS
    assert counts[1] < NEW_TOKENS / 3  # its own output, which closing the session has taught


def test_over_grpc_it_is_the_same_loop(tmp_path):
    model = tiny_model("Llama", "float64")
    with server_thread(f"unix:{tmp_path}/s.sock", Engine(VOCAB_SIZE)) as address:
        source = DraftClient(address, timeout_s=5.0)
        counted = Counted(model)
        found = [documented_loop()(counted, PROMPT, source, NEW_TOKENS) for _ in range(2)]
        source.close()
    assert found == [plain(model, PROMPT)] * 2
    assert counted.passes < 1.5 * NEW_TOKENS


def test_without_drafts_it_takes_a_pass_for_each_token():
    counted = Counted(tiny_model("Llama", "float64"))
    output = documented_loop()(counted, PROMPT, NoDrafts(VOCAB_SIZE), NEW_TOKENS)
    assert output == plain(counted.model, PROMPT)
    assert counted.passes == NEW_TOKENS


def test_it_ends_where_the_model_ends(monkeypatch):
    model = tiny_model("Llama", "float64")
    whole, source = plain(model, PROMPT), local()
    generate = documented_loop()
    generate(model, PROMPT, source, NEW_TOKENS)  # now a step may decide many tokens, the end among them
    for end in sorted(set(whole[len(PROMPT) :]))[::6]:
        monkeypatch.setattr(model.config, "eos_token_id", end)
        assert generate(model, PROMPT, source, NEW_TOKENS) == plain(model, PROMPT, eos_token_id=end)
