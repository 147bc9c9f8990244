"""llama-cpp-python itself, running the shipped model from a GGUF file: see docs/llama_cpp.md for how."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_spec.build import build_datastore
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.commands.demo import prompt_texts, standard_library
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.engine import Engine
from retrieval_spec.integrations.llama_cpp import RetrievalDraftModel, vocab_size_of
from tests.conftest import REPOSITORY
from tests.service_process import server_thread

pytestmark = pytest.mark.long
llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python gguf safetensors")
gguf = pytest.importorskip("gguf", reason="pip install gguf safetensors")
lookup = pytest.importorskip("llama_cpp.llama_speculative")

NUM_PROMPTS, NEW_TOKENS, CONTEXT_TOKENS = 8, 128, 1_024
VOCAB_SIZE = 4_096


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    spec = importlib.util.spec_from_file_location("export_gguf", REPOSITORY / "tools" / "export_gguf.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    tool.write_gguf(demo_model_dir(), path)
    return path


@pytest.fixture(scope="module")
def datastore(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "stdlib"
    return build_datastore(Corpus(standard_library()), tokenizer=demo_model_dir(), out=out)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(demo_model_dir())
    return [ids.tolist() for ids in tokenizer.encode_batch(prompt_texts(NUM_PROMPTS))]


class Run:
    """All prompts decoded by the host: what it wrote, in how many calls of its own, and how fast."""

    def __init__(self, path: Path, prompts: list[list[int]], draft_model: Any = None) -> None:
        llama = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT_TOKENS,
            draft_model=draft_model,
            logits_all=draft_model is not None,  # else it keeps room for one batch alone
            n_threads=1,
            n_threads_batch=1,
            verbose=False,
        )
        self.num_evals, plain_eval = 0, llama.eval

        def counted(tokens):
            self.num_evals += 1
            return plain_eval(tokens)

        llama.eval = counted
        began = time.perf_counter()
        # As in the demo, the penalty keeps so small a model from writing one line for ever.
        options = {"top_k": 1, "temp": 0.0, "repeat_penalty": 1.2}
        self.outputs = []
        for prompt in prompts:
            tokens = llama.generate(prompt, **options)
            self.outputs.append([token for token, _ in zip(tokens, range(NEW_TOKENS), strict=False)])
            tokens.close()
        self.seconds = time.perf_counter() - began
        llama.close()


def said(name: str, run: Run) -> None:
    tokens = sum(map(len, run.outputs))
    print(f"{name:28} {run.num_evals:5} evaluations {tokens / run.num_evals:6.2f} tokens each", end=" ")
    print(f"{tokens / run.seconds:7.1f} tokens/s")


def test_the_file_holds_the_model(model_file, prompts):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)
    assert vocab_size_of(model_file) == VOCAB_SIZE
    llama = llama_cpp.Llama(str(model_file), n_ctx=CONTEXT_TOKENS, logits_all=True, verbose=False)
    with torch.inference_mode():
        expected = model(torch.tensor([prompts[0]])).logits[0].numpy()
    llama.eval(prompts[0])
    found = llama.scores[: len(prompts[0])]
    assert np.abs(found - expected).max() < 0.1  # the host multiplies in half precision
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.99
    assert llama.detokenize(prompts[0]) == prompt_texts(1)[0].encode()
    llama.close()


def test_the_output_is_the_hosts_own_in_fewer_evaluations_than_with_its_own_lookup(
    model_file, datastore, prompts, tmp_path
):
    plain = Run(model_file, prompts)
    said("plain", plain)
    theirs = Run(model_file, prompts, lookup.LlamaPromptLookupDecoding(num_pred_tokens=10))
    said("LlamaPromptLookupDecoding", theirs)
    engines = {"context and history": (), "and a datastore": [datastore]}
    for name, datastores in engines.items():
        source = LocalClient(Engine(VOCAB_SIZE, datastores=datastores))
        ours = Run(model_file, prompts, RetrievalDraftModel(source, vocab_size_of(model_file)))
        said(name, ours)
        assert ours.outputs == plain.outputs
        assert ours.num_evals < theirs.num_evals < plain.num_evals
    with server_thread(f"unix:{tmp_path}/s.sock", Engine(VOCAB_SIZE, datastores=[datastore])) as address:
        client = DraftClient(address, timeout_s=1.0)
        remote = Run(model_file, prompts, RetrievalDraftModel(client, VOCAB_SIZE))
        client.close()
    said("the same from a server", remote)
    assert remote.outputs == plain.outputs
    assert remote.num_evals == ours.num_evals
    assert theirs.outputs == plain.outputs
