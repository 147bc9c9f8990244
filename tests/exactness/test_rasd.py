"""The shipped models: fused with retrieval they accept more than either alone, and never another token."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.client import LocalClient
from retrieval_spec.commands.demo import DECODING, prompt_texts
from retrieval_spec.demo_model import demo_draft_model_dir, demo_model_dir
from retrieval_spec.drafters.published.models import opt_tree, rasd
from retrieval_spec.engine import Engine
from retrieval_spec.verifier import Draws, FusedSource, HuggingFaceDraftModel, NoDrafts, generate

VOCAB_SIZE = 4096
NUM_PROMPTS, NEW_TOKENS = 8, 128
MAX_NODES = 8


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the shape
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def target():
    return load(demo_model_dir())


@pytest.fixture(scope="module")
def draft_model():
    return HuggingFaceDraftModel(load(demo_draft_model_dir()))


@pytest.fixture(scope="module")
def outputs(target):
    """Prompts of the demo and what plain decoding makes of them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir())
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in prompt_texts(NUM_PROMPTS)]
    options = {**DECODING, "max_new_tokens": NEW_TOKENS}
    return [
        (prompt[0].tolist(), target.generate(prompt, **options)[0].tolist()[prompt.shape[1] :])
        for prompt in prompts
    ]


def session_source():
    return LocalClient(Engine(VOCAB_SIZE, preset="session"))


def sources(draft_model):
    return {
        "retrieval": session_source(),
        "model": FusedSource([], draft_model),
        "fused": FusedSource([session_source()], draft_model),
    }


def replayed_mean_acceptance(source, outputs) -> float:
    """What greedy verification accepts follows from the output alone: no pass of the target is needed."""
    steps = accepted_tokens = 0
    for prompt, output in outputs:
        session, at = source.open_session(prompt), 1
        session.commit(output[:1])  # the prompt's own pass decides it
        while at < len(output):
            children = session.draft(min(MAX_NODES, len(output) - at)).children()
            node, begin = -1, at
            while at < len(output) - 1 and output[at] in children.get(node, {}):
                node, at = children[node][output[at]], at + 1
            at += 1
            session.commit(output[begin:at])
            accepted_tokens += at - begin - 1
            steps += 1
        session.close()
    return 1 + accepted_tokens / steps


def test_fused_it_accepts_more_than_retrieval_and_more_than_the_model(draft_model, outputs):
    found = {name: replayed_mean_acceptance(source, outputs) for name, source in sources(draft_model).items()}
    assert found["fused"] > found["model"] > 1.5
    assert found["fused"] > found["retrieval"] > 1.5


def test_the_engine_s_presets_draft_what_the_fused_source_drafts(draft_model, outputs):
    prompt, output = outputs[0]
    pairs = (
        (rasd(draft_model), FusedSource([session_source()], draft_model)),
        (opt_tree(draft_model), FusedSource([], draft_model)),
    )
    for preset, fused in pairs:
        engine = Engine(VOCAB_SIZE, preset=preset).open_session(prompt)
        verifier = fused.open_session(prompt)
        for token in output[:10]:
            first, second = engine.draft(MAX_NODES), verifier.draft(MAX_NODES)
            assert np.array_equal(first.token_ids, second.token_ids)
            assert np.array_equal(first.parents, second.parents)
            engine.commit([token])
            verifier.commit([token])


@pytest.mark.row("L1")
@pytest.mark.parametrize("index", range(3))
def test_the_output_is_that_of_plain_decoding(target, draft_model, outputs, index):
    prompt, output = outputs[index]
    for source in sources(draft_model).values():
        options = {**DECODING, "max_nodes": MAX_NODES, "max_new_tokens": 48}
        found = generate(target, prompt, source, **options)
        assert found.output_ids.tolist() == output[:48]
        assert found.accepted_tokens > 0


@pytest.mark.row("L1")
def test_sampled_output_is_that_of_the_plain_draw_unless_children_are_drawn(target, draft_model, outputs):
    prompt, _ = outputs[0]
    options = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 32, "seed": 5}
    plain = generate(target, prompt, NoDrafts(VOCAB_SIZE), **options).token_ids.tolist()
    fused = FusedSource([session_source()], draft_model)
    assert generate(target, prompt, fused, **options).token_ids.tolist() == plain
    drawn = FusedSource([session_source()], draft_model, draws=Draws())
    first, again = (generate(target, prompt, drawn, **options).token_ids.tolist() for _ in range(2))
    assert first == again
