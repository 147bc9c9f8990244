"""Every generation option of the host over draft trees: prepared by the host, applied along the path only."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.generation import LogitsProcessor, StoppingCriteria, WatermarkingConfig

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier import NoDrafts, TreeVerifier, generate
from tests.exactness.sources import FakeSource, bushy, oracle
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.row("L2")

# Few tokens, so that penalties and n-gram rules bite in every step.
VOCAB_SIZE = 37
PROMPT = [5, 9, 17, 3, 5, 9, 17, 8]
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def model():
    return tiny_model("Llama", vocab_size=VOCAB_SIZE, initializer_range=0.15)


def host(model, **options):
    return model.generate(torch.tensor([PROMPT]), **options)[0].tolist()


def drafted(model, truth, maker, **options):
    return generate(model, PROMPT, FakeSource(VOCAB_SIZE, maker(truth, VOCAB_SIZE)), seed=5, **options)


def assert_equal_everywhere(model, **options):
    """Greedy: equal to the host. Sampled: equal to the plain draw. Returns the greedy truth."""
    options.setdefault("max_new_tokens", NEW_TOKENS)
    truth = host(model, do_sample=False, **options)
    # Stops by rejection too: a source that knows what would come without the option.
    free = host(model, do_sample=False, max_new_tokens=NEW_TOKENS + 8)
    for maker, known in ((oracle, truth), (oracle, free), (bushy, truth)):
        found = drafted(model, known, maker, do_sample=False, **options)
        assert found.token_ids.tolist() == truth
    plain = generate(model, PROMPT, NoDrafts(VOCAB_SIZE), seed=5, do_sample=True, **options)
    found = drafted(model, plain.token_ids.tolist(), bushy, do_sample=True, **options)
    assert found.token_ids.tolist() == plain.token_ids.tolist()
    assert_greedy_plain_equals_host(model, truth, options)
    return truth


def assert_greedy_plain_equals_host(model, truth, options):
    plain = generate(model, PROMPT, NoDrafts(VOCAB_SIZE), do_sample=False, **options)
    assert plain.token_ids.tolist() == truth
    assert plain.mean_acceptance_length == 1.0


class EveryThird(LogitsProcessor):
    """Keeps state: every third call forbids the best token. One call too many and all goes wrong."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls % 3 == 0:
            scores = scores.scatter(1, scores.argmax(-1, keepdim=True), -float("inf"))
        return scores


PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram": {"encoder_no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[3], [9, 17], [8, 5, 1]]},
    "sequence_bias": {"sequence_bias": [[[7], 2.0], [[9, 17], -6.0], [[4, 4], 5.0]]},
    "suppress": {"suppress_tokens": [2, 11, 29]},
    "begin_suppress": {"begin_suppress_tokens": list(range(18))},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(20))},
    "min_length": {"min_length": 14, "eos_token_id": list(range(20))},
    "forced_eos": {"forced_eos_token_id": 6, "eos_token_id": 6},
    "decay": {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": 6},
    "prefix_allowed": {"prefix_allowed_tokens_fn": lambda _, ids: [int(ids[-1]) // 2, 30, len(ids) % 37]},
    "guidance": {"guidance_scale": 1.5},
    "watermark": {"watermarking_config": WatermarkingConfig(context_width=1)},
    "renormalise": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "typical": {"typical_p": 0.9},
    "eta": {"eta_cutoff": 1e-3, "epsilon_cutoff": 1e-3},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_logits_options(model, name):
    assert_equal_everywhere(model, **PROCESSORS[name])


def test_a_processor_with_state_is_called_once_a_token(model):
    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS, logits_processor=[EveryThird()])
    processor = EveryThird()
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "logits_processor": [processor]}
    assert drafted(model, truth, bushy, **options).token_ids.tolist() == truth
    assert processor.calls == NEW_TOKENS


@pytest.mark.parametrize("new_tokens", [1, 6, 7, 8, 15])
def test_the_length_limit_inside_an_accepted_run(model, new_tokens):
    truth = assert_equal_everywhere(model, max_new_tokens=new_tokens)
    assert len(truth) == len(PROMPT) + new_tokens


def test_max_length_counts_the_prompt(model):
    truth = assert_equal_everywhere(model, max_length=13, max_new_tokens=None)
    assert len(truth) == 13


@pytest.mark.parametrize("index", [0, 1, 4, 6])
def test_an_end_of_sequence_token_inside_an_accepted_run(model, index):
    free = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    end_id = free[len(PROMPT) + index]
    truth = assert_equal_everywhere(model, eos_token_id=end_id)
    assert truth[-1] == end_id
    assert len(truth) <= len(PROMPT) + index + 1


def test_several_end_of_sequence_tokens(model):
    free = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    ends = [free[-1], free[len(PROMPT) + 4], 36]
    assert assert_equal_everywhere(model, eos_token_id=ends)[-1] in ends


def test_a_tree_full_of_ends_is_left_out(model):
    def ends(truth, vocab_size):
        return lambda context, max_nodes: DraftTree.from_lists([6, 7, 6, 1], [-1, 0, 1, 0])

    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=[6, 7])
    found = drafted(model, truth, ends, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=[6, 7])
    assert found.token_ids.tolist() == truth
    assert found.drafted_nodes == 0


PAIRS = ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi", "ij", "jk", "kl"]
TEXT_OF = [chr(97 + letter) for letter in range(26)] + PAIRS


@pytest.fixture(scope="module")
def tokenizer():
    """Letters and pairs of letters, so that stop strings begin and end inside of tokens."""
    vocabulary = {text: token_id for token_id, text in enumerate(TEXT_OF)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in PAIRS]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(("first", "num_characters"), [(1, 1), (3, 2), (4, 3), (6, 4)])
def test_a_stop_string_inside_an_accepted_run(model, tokenizer, first, num_characters):
    free = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    text = "".join(TEXT_OF[token] for token in free[len(PROMPT) + first :])
    # From the second character on: it may begin in the middle of a token.
    options = {"stop_strings": [text[1 : 1 + num_characters]], "tokenizer": tokenizer}
    truth = assert_equal_everywhere(model, **options)
    assert len(truth) < len(free)


def test_stop_strings_of_a_generation_config(model, tokenizer):
    config = transformers.GenerationConfig(stop_strings=["ab", "ca"], max_new_tokens=20, pad_token_id=0)
    truth = host(model, generation_config=config, tokenizer=tokenizer)
    found = drafted(model, truth, oracle, generation_config=config, tokenizer=tokenizer)
    assert found.token_ids.tolist() == truth
    with pytest.raises(InvalidRequest, match="tokenizer"):
        drafted(model, truth, oracle, generation_config=config)


class AfterThree(StoppingCriteria):
    """Stops at the first multiple of three; notes what it saw."""

    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([int(input_ids[0, -1]) % 3 == 0])


def test_a_stopping_criterion_sees_every_token_in_order(model):
    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS, stopping_criteria=[AfterThree()])
    criterion = AfterThree()
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "stopping_criteria": [criterion]}
    source = FakeSource(VOCAB_SIZE, oracle(host(model, do_sample=False, max_new_tokens=60), VOCAB_SIZE))
    found = generate(model, PROMPT, source, **options)
    assert found.token_ids.tolist() == truth
    assert criterion.lengths == list(range(len(PROMPT) + 1, len(truth) + 1))
    # What the drafts held beyond the stop is never learned.
    assert source.sessions[0].context == truth


def test_a_padded_prompt(model):
    padded = torch.tensor([[0, 0, 0, *PROMPT]])
    options = {"attention_mask": (padded != 0).long(), "do_sample": False, "max_new_tokens": NEW_TOKENS}
    truth = model.generate(padded, **options)[0].tolist()
    assert truth[3:] == host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    for attention in ("sdpa", "eager"):
        twin = tiny_model("Llama", attention=attention, vocab_size=VOCAB_SIZE, initializer_range=0.15)
        source = FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE))
        found = generate(twin, padded, source, **options)
        assert found.token_ids.tolist() == truth
        assert found.accepted_tokens > 10


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_a_prompt_forwarded_in_chunks(model, chunk):
    assert_equal_everywhere(model, prefill_chunk_size=chunk, max_new_tokens=10)


@pytest.mark.parametrize("cached_tokens", [1, 5, 7])
def test_a_prompt_that_is_partly_in_the_cache(model, cached_tokens):
    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(torch.tensor([PROMPT[:cached_tokens]]), past_key_values=cache, use_cache=True)
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "past_key_values": cache}
    assert drafted(model, truth, bushy, **options).token_ids.tolist() == truth


def test_scores_and_logits_are_those_of_the_host(model):
    options = {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.3}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(torch.tensor([PROMPT]), **options)
    verifier = TreeVerifier(FakeSource(VOCAB_SIZE, bushy(expected.sequences[0].tolist(), VOCAB_SIZE)))
    found = model.generate(torch.tensor([PROMPT]), custom_generate=verifier, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) == len(found.logits) == 12
    for ours, theirs in zip(found.scores + found.logits, expected.scores + expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()


class InPlace(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores[:, 7] = 50.0
        return scores


def test_raw_logits_show_no_processor_s_work_even_if_it_works_in_place(model):
    options = {
        "do_sample": False,
        "max_new_tokens": 1,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected = model.generate(torch.tensor([PROMPT]), **options)
    verifier = TreeVerifier(FakeSource(VOCAB_SIZE, bushy([*PROMPT, 7], VOCAB_SIZE)))
    options |= {"custom_generate": verifier, "logits_processor": [InPlace()]}
    found = model.generate(torch.tensor([PROMPT]), **options)
    assert found.sequences[0].tolist() == [*PROMPT, 7]
    torch.testing.assert_close(found.logits[0], expected.logits[0], atol=1e-5, rtol=0)


class Recorder:
    def __init__(self):
        self.pieces = []
        self.is_ended = False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.is_ended = True


def test_a_streamer_gets_the_prompt_and_then_every_token(model):
    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    recorder = Recorder()
    drafted(model, truth, oracle, do_sample=False, max_new_tokens=NEW_TOKENS, streamer=recorder)
    assert recorder.pieces == [PROMPT, *([token] for token in truth[len(PROMPT) :])]
    assert recorder.is_ended


@pytest.mark.parametrize("emit_every", [1, 2, 5, 1_000])
def test_pieces_that_are_streamed_have_one_size_whatever_was_accepted(model, emit_every):
    truth = host(model, do_sample=False, max_new_tokens=NEW_TOKENS)
    output = truth[len(PROMPT) :]
    recorder = Recorder()
    options = {
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "streamer": recorder,
        "emit_every": emit_every,
    }
    assert drafted(model, truth, oracle, **options).token_ids.tolist() == truth
    pieces = [output[begin : begin + emit_every] for begin in range(0, len(output), emit_every)]
    assert recorder.pieces == [PROMPT, *pieces]
    assert recorder.is_ended


def test_pieces_of_no_token_are_refused(model):
    with pytest.raises(InvalidRequest, match="emit_every"):
        drafted(model, PROMPT, oracle, max_new_tokens=1, emit_every=0)
