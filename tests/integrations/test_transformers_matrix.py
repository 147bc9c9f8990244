"""Over 300 generations under the host's `generate`, alone and in batches: never another token."""

from __future__ import annotations

import functools
import itertools

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.client import LocalClient
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, UnsupportedModel
from retrieval_spec.integrations.transformers import generate
from retrieval_spec.step_costs import BatchCostMeter, StepCostMeter
from retrieval_spec.verifier import NoDrafts
from retrieval_spec.verifier.statistics import Statistics
from tests.exactness.sources import FakeSource, bushy, oracle, partly_wrong, random_trees
from tests.tiny_models import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.row("L2")

WINDOW = 14
NEW_TOKENS = 16
# Unequal lengths, and a prompt longer than the window.
PROMPTS = [[5, 9, 17, 3, 5, 9, 17, 8, 44, 5, 9], [7, 8, 9], [30] * 6, list(range(1, 2 * WINDOW))]
MODELS = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma3": {
        "sliding_window": WINDOW,
        "layer_types": ("sliding_attention", "full_attention"),
        "tie_word_embeddings": False,  # tied random weights repeat one token for ever
        "query_pre_attn_scalar": 8,
    },
}
MODES = {
    "greedy": {"do_sample": False},
    "penalty": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.95},
}
MAKERS = (bushy, partly_wrong, random_trees)
ASSISTED = {"none": False, "assistant": True}
SHIPPED = "shipped"
CASES = list(itertools.product([*MODELS, SHIPPED], MODES))


class Known(FakeSource):
    """Knows what comes in every row; rows are asked for in their order."""

    def __init__(self, maker, truths, vocab_size):
        super().__init__(vocab_size, None)
        self._makers = [maker(truth, vocab_size) for truth in truths]

    def open_session(self, prompt_ids, namespace="default"):
        self.make = self._makers[len(self.sessions)]
        return super().open_session(prompt_ids, namespace)


@functools.cache
def model_of(name):
    if name == SHIPPED:
        return transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32).eval()
    return tiny_model(name, **MODELS[name])


@functools.cache
def assistant_of(name):
    """A draft model that is often right: the target itself, with fewer layers where it has many."""
    if name == SHIPPED:
        return transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir() / "draft").eval()
    return tiny_model("Llama")


def padded(prompts):
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": ids, "attention_mask": torch.tensor(mask)}


def run(model, prompts, source, **options):
    return model.generate(
        **padded(prompts), custom_generate=generate, draft_source=source, seed=7, pad_token_id=0, **options
    )


def truth_of(model, prompts, options):
    """The host's own output, or where it draws: what the same loop draws without drafts."""
    if options["do_sample"]:
        return run(model, prompts, NoDrafts(model.config.vocab_size), **options)
    return model.generate(**padded(prompts), pad_token_id=0, **options)


@pytest.mark.parametrize(("name", "mode"), CASES, ids=["-".join(case) for case in CASES])
def test_no_draft_changes_a_token_alone_or_in_a_batch(name, mode):
    model = model_of(name)
    options = {**MODES[mode], "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    assert any(len(set(row[-NEW_TOKENS:].tolist())) > 6 for row in truth)
    vocab_size = model.config.vocab_size
    for maker in MAKERS:
        statistics = Statistics()
        source = Known(maker, truth.tolist(), vocab_size)
        found = run(model, PROMPTS, source, statistics=statistics, **options)
        assert torch.equal(found, truth), maker.__name__
        assert [session.context for session in source.sessions] == truth.tolist()
        assert statistics.accepted_tokens > 0
    alone = truth_of(model, PROMPTS[:1], options)
    for maker in MAKERS[:2]:
        found = run(model, PROMPTS[:1], Known(maker, alone.tolist(), vocab_size), **options)
        assert torch.equal(found, alone), maker.__name__
    real = run(model, PROMPTS, LocalClient(Engine(vocab_size)), **options)
    assert torch.equal(real, truth)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", SHIPPED])
def test_no_draft_model_changes_a_token(name, mode):
    model = model_of(name)
    options = {**MODES[mode], "max_new_tokens": 10, "eos_token_id": None}
    for prompts in (PROMPTS[:1], PROMPTS):
        truth = truth_of(model, prompts, options)
        statistics = Statistics()
        source = Known(partly_wrong, truth.tolist(), model.config.vocab_size)
        found = run(model, prompts, source, draft_model=assistant_of(name), statistics=statistics, **options)
        assert torch.equal(found, truth)
        assert statistics.drafted_nodes > 8


def test_the_matrix_holds_more_than_300_generations():
    with_drafts = len(CASES) * (len(PROMPTS) * (len(MAKERS) + 1) + 2)
    with_a_draft_model = 8 * (len(PROMPTS) + 1)
    assert with_drafts + with_a_draft_model >= 300


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3"])
def test_rows_end_one_by_one_at_their_own_end_of_sequence(name):
    model = model_of(name)
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    free = truth_of(model, PROMPTS, options)
    first = free.shape[1] - NEW_TOKENS
    options["eos_token_id"] = [int(free[0, first + 5]), int(free[1, first + 1]), int(free[2, first])]
    truth = truth_of(model, PROMPTS, options)
    assert (truth[:3, -1] == 0).any()
    for maker in (bushy, oracle):
        found = run(model, PROMPTS, Known(maker, free.tolist(), VOCAB_SIZE), **options)
        assert torch.equal(found, truth)


@pytest.mark.parametrize("num_prompts", [1, 4])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma3"])
def test_a_static_cache(name, num_prompts):
    changes = {"sliding_window": 60} if "sliding_window" in MODELS[name] else {}
    model = tiny_model(name, **{**MODELS[name], **changes})
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    truth = truth_of(model, PROMPTS[:num_prompts], options)
    for maker in (bushy, partly_wrong):
        source = Known(maker, truth.tolist(), VOCAB_SIZE)
        found = run(model, PROMPTS[:num_prompts], source, cache_implementation="static", **options)
        assert torch.equal(found, truth)
    if num_prompts > 1:
        with pytest.raises(InvalidRequest, match=r"static cache.*return_dict_in_generate"):
            run(
                model, PROMPTS, source, cache_implementation="static", return_dict_in_generate=True, **options
            )


def test_a_static_cache_that_would_forget_keys_is_refused():
    with pytest.raises(UnsupportedModel, match=r"static cache forgets.*cache_implementation"):
        run(
            model_of("Mistral"),
            PROMPTS,
            NoDrafts(VOCAB_SIZE),
            cache_implementation="static",
            max_new_tokens=9,
        )


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3"])
@pytest.mark.parametrize("num_prompts", [1, 4])
def test_the_returned_cache_and_scores_are_the_host_s(name, num_prompts):
    model, prompts = model_of(name), PROMPTS[:num_prompts]
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(**padded(prompts), **options)
    del options["pad_token_id"]
    found = run(model, prompts, Known(bushy, expected.sequences.tolist(), VOCAB_SIZE), **options)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores + found.logits, expected.scores + expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    # Going on from the cache gives what going on from the host's gives.
    mask = padded(prompts)["attention_mask"]
    mask = torch.cat([mask, mask.new_ones(len(prompts), NEW_TOKENS)], dim=1)
    more = [
        model.generate(
            output.sequences,
            attention_mask=mask,
            past_key_values=output.past_key_values,
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
        )
        for output in (found, expected)
    ]
    assert torch.equal(*more)


def test_a_returned_cache_is_as_long_as_the_host_s_where_rows_ended_apart():
    model, prompts = model_of("Mistral"), PROMPTS[:2]
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    free = truth_of(model, prompts, options)
    options |= {"eos_token_id": [int(free[0, -NEW_TOKENS + 3])], "return_dict_in_generate": True}
    expected = truth_of(model, prompts, options)
    found = run(model, prompts, Known(bushy, free.tolist(), VOCAB_SIZE), **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert (expected.sequences[0] == 0).sum() > (padded(prompts)["input_ids"][0] == 0).sum()
    shapes = [[layer.keys.shape for layer in one.past_key_values.layers] for one in (found, expected)]
    assert shapes[0] == shapes[1]


ROW_OPTIONS = {
    "encoder penalty": {"encoder_repetition_penalty": 1.5},
    "encoder n-grams": {"encoder_no_repeat_ngram_size": 2},
    "prefixes": {"prefix_allowed_tokens_fn": lambda row, ids: [row + 1, int(ids[-1]) // 2 + 1, len(ids), 99]},
    "biases": {"sequence_bias": [[[7], 2.0], [[9, 17], -6.0]], "suppress_tokens": [2, 11]},
    "lengths": {"min_new_tokens": 6, "eos_token_id": list(range(0, 300, 2))},
    "decay": {"exponential_decay_length_penalty": (3, 1.6), "eos_token_id": [6, 8]},
    "forced": {"forced_eos_token_id": 6, "eos_token_id": 6},
}


@pytest.mark.parametrize("name", ROW_OPTIONS)
def test_options_that_see_the_rows_of_a_batch(name):
    model = model_of("Llama")
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, **ROW_OPTIONS[name]}
    truth = truth_of(model, PROMPTS, options)
    found = run(model, PROMPTS, Known(bushy, truth.tolist(), VOCAB_SIZE), **options)
    assert torch.equal(found, truth)


def test_several_outputs_of_a_prompt_are_drawn_apart():
    model = model_of("Llama")
    options = {**MODES["sampled"], "max_new_tokens": NEW_TOKENS, "num_return_sequences": 4}
    truth = run(model, PROMPTS[:1], NoDrafts(VOCAB_SIZE), **options)
    found = run(model, PROMPTS[:1], Known(partly_wrong, truth.tolist(), VOCAB_SIZE), **options)
    assert torch.equal(found, truth)
    assert len(set(map(tuple, truth.tolist()))) == 4
    alone = {**options, "num_return_sequences": 1}
    assert run(model, PROMPTS[:1], NoDrafts(VOCAB_SIZE), **alone)[0].tolist() == truth[0].tolist()


class OneQuestionAStep(Known):
    """Counts questions; a session asked on its own would be one too many."""

    questions = 0

    def draft_batch(self, sessions, total_nodes, cost_curve=None):
        self.questions += 1
        return super().draft_batch(sessions, total_nodes, cost_curve)


def test_a_step_of_a_batch_is_one_question():
    model = model_of("Llama")
    options = {"do_sample": False, "max_new_tokens": 1 + 2 * 7, "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    source, passes = OneQuestionAStep(oracle, truth.tolist(), VOCAB_SIZE), []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    run(model, PROMPTS, source, step_costs=None, max_nodes=6, **options)
    handle.remove()
    assert len(passes) == 3
    assert source.questions == 2


def test_beside_a_draft_model_a_step_of_a_batch_is_one_question_too():
    model = model_of("Llama")
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    source, statistics = OneQuestionAStep(partly_wrong, truth.tolist(), VOCAB_SIZE), Statistics()
    run(model, PROMPTS, source, draft_model=tiny_model("Qwen2"), statistics=statistics, **options)
    assert 0 < source.questions < NEW_TOKENS


def test_a_meter_of_batches_learns_and_one_of_single_steps_is_refused():
    model = model_of("Llama")
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    source = Known(bushy, truth.tolist(), VOCAB_SIZE)
    assert torch.equal(run(model, PROMPTS, source, step_costs=BatchCostMeter(), **options), truth)
    with pytest.raises(InvalidRequest, match="BatchCostMeter"):
        run(model, PROMPTS, source, step_costs=StepCostMeter(), **options)


class Own(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


BATCH_REFUSALS = {
    "streamer": ({"draft_streamer": type("Streamer", (), {"put": lambda *_: None})()}, "one sequence"),
    "own processor": ({"logits_processor": [Own()]}, "Own.*is_row_wise"),
    "guidance": ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance"),
    "time": ({"max_time": 9.0}, "MaxTimeCriteria"),
}


@pytest.mark.parametrize("name", BATCH_REFUSALS)
def test_what_rows_that_go_different_ways_cannot_have_is_refused(name):
    options, match = BATCH_REFUSALS[name]
    with pytest.raises(InvalidRequest, match=match):
        run(model_of("Llama"), PROMPTS, NoDrafts(VOCAB_SIZE), max_new_tokens=4, **options)


class Never(transformers.StoppingCriteria):
    is_row_wise = True

    def __call__(self, input_ids, scores, **_):
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def test_rows_that_a_host_would_let_run_on_after_their_end_are_refused():
    options = {"max_new_tokens": 4, "stopping_criteria": [Never()], "eos_token_id": None}
    with pytest.raises(InvalidRequest, match="run on after their end; give eos_token_id"):
        run(model_of("Llama"), PROMPTS, NoDrafts(VOCAB_SIZE), **options)


def test_a_penalty_without_a_prompt_to_leave_out_is_each_row_s_own():
    model = model_of("Llama")
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    options = {"do_sample": False, "max_new_tokens": 8, "logits_processor": [penalty], "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    assert not torch.equal(truth, truth_of(model, PROMPTS, {**options, "logits_processor": []}))
    assert torch.equal(run(model, PROMPTS, Known(bushy, truth.tolist(), VOCAB_SIZE), **options), truth)


def test_an_own_processor_that_says_it_sees_one_row_is_taken():
    model, processor = model_of("Llama"), Own()
    processor.is_row_wise = True
    options = {"do_sample": False, "max_new_tokens": 8, "logits_processor": [processor], "eos_token_id": None}
    truth = truth_of(model, PROMPTS, options)
    assert torch.equal(run(model, PROMPTS, Known(bushy, truth.tolist(), VOCAB_SIZE), **options), truth)
