"""The verifier's door: what it cannot do is refused by name, and small things around `generate`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec import verifier
from retrieval_spec.client import DraftSession, DraftSource
from retrieval_spec.errors import InvalidRequest, UnsupportedModel
from retrieval_spec.verifier import NoDrafts, TreeVerifier, generate
from retrieval_spec.verifier.costs import measure_step_costs
from tests.exactness.sources import FakeSource, bushy
from tests.tiny_models import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.row("L2")

PROMPT = [5, 9, 17, 3]
PLAIN = NoDrafts(VOCAB_SIZE)


def refused(error, match, *, model=None, prompt=PROMPT, **options):
    options.setdefault("max_new_tokens", 4)
    with pytest.raises(error, match=match):
        generate(model or tiny_model(), prompt, PLAIN, **options)


REQUESTS = {
    "several prompts": ({"prompt": [PROMPT, PROMPT]}, "one sequence at a time"),
    "several outputs": ({"num_return_sequences": 2, "do_sample": True}, "one sequence at a time"),
    "beams": ({"num_beams": 3}, "beam_search"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive_search"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
    "no cache": ({"use_cache": False}, "key-value cache"),
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    "hidden states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden"),
    "another loop": ({"custom_generate": print}, "custom_generate"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_drafts_cannot_serve(name):
    options, match = REQUESTS[name]
    refused(InvalidRequest, match, **options)


def test_an_assistant_model_is_refused():
    refused(InvalidRequest, "assistant_model", assistant_model=tiny_model("Qwen2"))


def test_embeddings_in_place_of_tokens_are_refused():
    model = tiny_model()
    verifier = TreeVerifier(PLAIN)
    options = {"inputs_embeds": torch.zeros(1, 4, 32), "max_new_tokens": 3, "custom_generate": verifier}
    with pytest.raises(InvalidRequest, match="inputs_embeds"):
        model.generate(torch.tensor([PROMPT]), **options)


def test_a_cache_without_its_prompt_is_refused():
    model = tiny_model()
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(torch.tensor([PROMPT]), past_key_values=cache, use_cache=True)
    refused(InvalidRequest, "whole prompt", prompt=[3], past_key_values=cache)


@pytest.mark.parametrize("implementation", ["offloaded"])
def test_caches_that_cannot_be_cut_are_refused(implementation):
    refused(UnsupportedModel, "plain cache", cache_implementation=implementation)


def test_a_layer_of_a_form_that_is_not_known_is_refused():
    class Compressed(transformers.cache_utils.DynamicLayer):
        pass

    cache = transformers.DynamicCache()
    cache.layers = [transformers.cache_utils.DynamicLayer(), Compressed()]
    refused(UnsupportedModel, "layer 1 cannot be cut back .* got Compressed", past_key_values=cache)


def test_a_model_that_attends_within_chunks_drafts_within_the_first():
    changes = {"attention_chunk_size": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
    changes |= {"intermediate_size_mlp": 32, "layer_types": ("chunked_attention", "full_attention")}
    model = tiny_model("Llama4", **changes)
    too_long = {"model": model, "max_new_tokens": 13}
    refused(UnsupportedModel, "attends within chunks .* got 17 tokens; expected <= 16", **too_long)
    options = {"max_new_tokens": 12, "do_sample": False}
    truth = model.generate(torch.tensor([PROMPT]), **options)[0].tolist()
    source = FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE))
    assert generate(model, PROMPT, source, **options).token_ids.tolist() == truth


def test_a_model_without_positions_of_its_tokens_is_refused():
    config = transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=16, n_layer=1, n_head=2)
    refused(UnsupportedModel, "no plain position ids", model=transformers.BloomForCausalLM(config))


def test_other_attention_code_is_refused_with_the_remedy():
    model = tiny_model(num_hidden_layers=1)
    model.config._attn_implementation = "flex_attention"
    try:
        refused(UnsupportedModel, 'flex_attention.*attn_implementation="sdpa"', model=model)
    finally:
        model.config._attn_implementation = "sdpa"


def test_an_encoder_is_refused():
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, decoder_start_token_id=0
    )
    refused(UnsupportedModel, "encoder", model=transformers.T5ForConditionalGeneration(config))


def test_recurrent_state_is_refused():
    config = transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    refused(UnsupportedModel, "recurrent state", model=transformers.MambaForCausalLM(config))


def test_layers_of_linear_attention_are_refused():
    changes = {"layer_types": ("linear_attention", "full_attention")}
    changes |= {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    changes |= {"linear_value_head_dim": 8, "num_experts": 2, "moe_intermediate_size": 16}
    changes |= {"num_experts_per_tok": 1, "shared_expert_intermediate_size": 16}
    refused(
        UnsupportedModel, "recurrent state|LinearAttentionLayer", model=tiny_model("Qwen3Next", **changes)
    )


WINDOW = 24
WINDOWED = {
    "Mistral": {"sliding_window": WINDOW},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": ("sliding_attention", "full_attention")},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_a_window_is_exact_before_and_behind_its_border(architecture, attention):
    model = tiny_model(architecture, attention=attention, **WINDOWED[architecture])
    for prompt, new_tokens in ((PROMPT, WINDOW - len(PROMPT)), (PROMPT, 40), (PROMPT * 9, 20)):
        options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": new_tokens}
        truth = model.generate(torch.tensor([prompt]), **options)[0].tolist()
        found = generate(model, prompt, FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE)), **options)
        assert found.token_ids.tolist() == truth
        assert found.accepted_tokens > 3


def test_a_change_of_the_position_encoding_is_refused_where_it_happens():
    border = 12
    rotation = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": border}
    rotation |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
    model = tiny_model.__wrapped__("Llama", rope_parameters=rotation)
    for prompt in (PROMPT, PROMPT * 4):
        options = {"do_sample": False, "max_new_tokens": 8}
        truth = model.generate(torch.tensor([prompt]), **options)[0].tolist()
        found = generate(model, prompt, FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE)), **options)
        assert found.token_ids.tolist() == truth
        assert found.accepted_tokens > 0
    refused(UnsupportedModel, "position encoding", model=model, max_new_tokens=9)
    refused(UnsupportedModel, "position encoding", model=model, prompt=PROMPT * 3, max_new_tokens=1)


def test_the_output_is_an_ordinary_tensor_of_its_own():
    verifier = TreeVerifier(PLAIN)
    options = {"do_sample": False, "max_new_tokens": 80}
    output = tiny_model().generate(torch.tensor([PROMPT]), custom_generate=verifier, **options)
    output[0, 0] = 7
    assert output.untyped_storage().nbytes() == output.numel() * 8


def test_drafts_end_where_the_model_s_positions_end():
    """The host goes on beyond them with a warning of its own; so does the loop, without drafts."""
    model = tiny_model(max_position_embeddings=16)
    options = {"do_sample": False, "max_new_tokens": 20}
    truth = model.generate(torch.tensor([PROMPT]), **options)[0].tolist()
    seen: list[int] = []
    right = bushy(truth, VOCAB_SIZE)

    def noting(context, max_nodes):
        seen.append(len(context))
        return right(context, max_nodes)

    found = generate(model, PROMPT, FakeSource(VOCAB_SIZE, noting), **options)
    assert found.token_ids.tolist() == truth
    assert max(seen) < 16


@pytest.mark.parametrize(
    "prompt",
    [PROMPT, tuple(PROMPT), np.array(PROMPT, np.uint16), torch.tensor(PROMPT), torch.tensor([PROMPT])],
)
def test_a_prompt_may_be_a_sequence_an_array_or_a_tensor(prompt):
    found = generate(tiny_model(), prompt, PLAIN, max_new_tokens=3, do_sample=False)
    assert found.token_ids.dtype == np.int32
    assert found.token_ids[:4].tolist() == PROMPT
    assert found.output_ids.tolist() == found.token_ids[4:].tolist()
    assert len(found.output_ids) == 3
    assert found.prompt_length == 4


def test_statistics_count_what_went_through_the_model():
    model = tiny_model()
    options = {"do_sample": False, "max_new_tokens": 9}
    truth = generate(model, PROMPT, PLAIN, **options).token_ids.tolist()
    source = FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE))
    found = generate(model, PROMPT, source, max_nodes=3, **options)
    # One node in three is right, so two tokens a step after the prompt's own.
    assert found.steps == 4
    assert found.accepted_tokens == 4
    assert found.mean_acceptance_length == 2.0
    assert found.drafted_nodes == 12
    one = generate(model, PROMPT, source, do_sample=False, max_new_tokens=1)
    assert (one.steps, one.mean_acceptance_length) == (0, 1.0)


def test_no_drafts_keeps_the_contract_of_a_source():
    source = NoDrafts(7)
    session = source.open_session([1, 2])
    assert isinstance(source, DraftSource)
    assert isinstance(session, DraftSession)
    session.commit([3])
    assert session.context_length == 3
    assert len(session.draft(5)) == 0
    session.truncate(1)
    assert session.context_length == 1
    assert [len(tree) for tree in source.draft_batch([session], 9)] == [0]
    session.close()
    source.close()


def test_what_else_is_missing_is_not_called_torch(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors.torch")

    monkeypatch.setattr(verifier, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        _ = verifier.Generation


def test_torch_loads_when_first_used_and_its_absence_says_what_to_install():
    code = (
        "import sys, retrieval_spec.verifier as v; v.NoDrafts; print('torch' in sys.modules)\n"
        "sys.modules['torch'] = None\n"
        "try: v.generate\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("False\nMissingDependency the verifier needs torch")
    assert "retrieval-spec[torch]" in done.stdout


@pytest.mark.parametrize(
    ("changes", "num_nodes", "said"),
    [
        ({"vocab_size": 32}, 33, "no tree of different tokens has as many nodes; got 33; expected <= 32"),
        ({"max_position_embeddings": 40}, 8, r"no step had as many nodes; got \[8\]"),
    ],
)
def test_trees_that_a_model_cannot_be_given_are_not_measured(changes, num_nodes, said):
    with pytest.raises(InvalidRequest, match=said):
        measure_step_costs(tiny_model(**changes), [num_nodes], context_tokens=100, rounds=1)
