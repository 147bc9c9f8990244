"""Draws with position-keyed noise: reproducible, and of the target's own distribution."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
stats = pytest.importorskip("scipy.stats")
# ruff: noqa: E402
from retrieval_spec.errors import UnsupportedModel
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier import NoDrafts, TreeVerifier, generate
from retrieval_spec.verifier.sampling import KeyedSampler, greedy, highest
from tests.exactness.sources import FakeSource
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.row("L4")

# Seeds are fixed, so a test cannot flake; were they fresh, one right sampler in a million would fail.
FALSE_ALARM = 1e-6
NUM_DRAWS = 5_000


def chi_square_p(counts: np.ndarray, probs: np.ndarray) -> float:
    """The p-value of the counts, cells that expect fewer than 8 merged into one."""
    expected = probs * counts.sum()
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        assert observed[-1] == 0, "a token without probability was drawn"
        observed, expected = observed[:-1], expected[:-1]
    return float(stats.chisquare(observed, expected).pvalue)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    return exponentials / exponentials.sum()


def drawn_counts(draw, scores: np.ndarray) -> np.ndarray:
    """How often each token was drawn over many positions and several seeds."""
    counts = np.zeros(scores.size, np.int64)
    for position in range(NUM_DRAWS):
        counts[draw(scores, position)] += 1
    return counts


def scores_of(seed: int, processed: bool) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32)
    if processed:
        scores[scores < 0.5] = -np.inf
    return scores


@pytest.mark.parametrize("processed", [False, True], ids=["whole vocabulary", "after top-k"])
def test_draws_over_positions_follow_the_softmax(processed):
    scores = scores_of(1, processed)
    counts = drawn_counts(KeyedSampler(7).draw, scores)
    assert chi_square_p(counts, softmax(scores)) > FALSE_ALARM


def test_draws_over_seeds_follow_the_softmax():
    scores = scores_of(2, processed=False)
    counts = np.zeros(scores.size, np.int64)
    for seed in range(NUM_DRAWS // 2):
        counts[KeyedSampler(seed).draw(scores, 11)] += 1
    assert chi_square_p(counts, softmax(scores)) > FALSE_ALARM


def test_draws_at_neighbouring_positions_are_independent():
    scores = np.zeros(6, np.float32)
    draws = [KeyedSampler(3).draw(scores, position) for position in range(NUM_DRAWS)]
    pairs = np.array(draws[::2]) * 6 + np.array(draws[1::2])
    assert chi_square_p(np.bincount(pairs, minlength=36), np.full(36, 1 / 36)) > FALSE_ALARM


def hotter(scores, position):
    return KeyedSampler(7).draw(scores / np.float32(1.25), position)


def contaminated(scores, position):
    return position % scores.size if position % 10 == 0 else KeyedSampler(7).draw(scores, position)


def second_try(scores, position):
    first = KeyedSampler(7).draw(scores, position)
    return first if first != 3 else KeyedSampler(8).draw(scores, position)


@pytest.mark.parametrize("biased", [hotter, contaminated, second_try], ids=lambda biased: biased.__name__)
def test_the_test_notices_a_biased_sampler(biased):
    scores = np.random.default_rng(3).normal(0, 1, 12).astype(np.float32)
    assert chi_square_p(drawn_counts(biased, scores), softmax(scores)) < FALSE_ALARM


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), st.lists(st.integers(0, 2**31), min_size=1))
def test_noise_is_a_pure_function_and_never_infinite(seed, position, token_ids):
    tokens = np.array(token_ids, np.int64)
    uniforms = KeyedSampler(seed).uniforms(position, tokens)
    assert np.all((uniforms > 0) & (uniforms < 1))
    assert np.array_equal(uniforms, KeyedSampler(seed).uniforms(position, tokens))
    assert uniforms[0] == KeyedSampler(seed).uniforms(position, tokens[:1])[0]
    assert uniforms[0] != KeyedSampler(seed).uniforms(position + 1, tokens[:1])[0]
    assert uniforms[0] != KeyedSampler(seed + 1).uniforms(position, tokens[:1])[0]


@given(st.integers(0, 10_000))
def test_a_rounding_error_rarely_moves_a_draw(position):
    rng = np.random.default_rng(position)
    scores = rng.normal(0, 1, 500).astype(np.float32)
    nudged = scores + rng.normal(0, 1e-7, 500).astype(np.float32)
    assert KeyedSampler(0).draw(scores, position) == KeyedSampler(0).draw(nudged, position)


@pytest.mark.parametrize("scores", [np.full(5, -np.inf), np.full(5, np.nan), np.array([0, np.nan, 0.0])])
def test_scores_that_are_no_distribution_are_refused(scores):
    with pytest.raises(UnsupportedModel, match="no token has a finite score"):
        KeyedSampler(0).draw(scores.astype(np.float32), 0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12))
def test_greedy_takes_the_first_of_equals_as_the_host_does(values):
    scores = torch.tensor([values, values[::-1]])
    assert highest(scores) == torch.argmax(scores, dim=-1).tolist()
    assert greedy(scores[:1], 0) == values.index(max(values))


class OnADevice:
    """Scores that do not lie in the process's own memory: asked for an array, they refuse as torch does."""

    def __init__(self, scores):
        self.scores, self.device = scores, torch.device("cuda")

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def argmax(self, dim):
        return self.scores.argmax(dim)


def test_scores_on_a_device_stay_there_until_the_best_is_found():
    scores = torch.tensor([[0.5, 2.0, 2.0], [-1.0, -3.0, -2.0]])
    assert highest(OnADevice(scores)) == highest(scores) == [1, 0]


VOCAB_SIZE = 6
PROMPT = [1, 4]
DEPTH_TOKENS = 3
OPTIONS = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": DEPTH_TOKENS}
NUM_RUNS = 300


@functools.cache
def toy_model():
    return tiny_model(
        "Llama", vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, initializer_range=0.12
    )


def exact_joint() -> np.ndarray:
    """The probability of every output of three tokens: the host's own processors, all prefixes enumerated."""
    prefixes = [list(path) for path in itertools.product(range(VOCAB_SIZE), repeat=DEPTH_TOKENS)]
    with torch.inference_mode():
        logits = toy_model()(torch.tensor([PROMPT + path for path in prefixes])).logits.double() / 0.7
    logits = logits[:, len(PROMPT) - 1 : -1]
    lowest = logits.topk(5, dim=-1).values[..., -1:]
    probs = logits.masked_fill(logits < lowest, -float("inf")).softmax(-1)
    chosen = probs.gather(-1, torch.tensor(prefixes)[..., None])[..., 0]
    return chosen.prod(-1).numpy()


def some_tree(context, max_nodes):
    """The same tree for every seed: fixed before any randomness, as retrieval is."""
    return DraftTree.from_lists([2, 0, 5, 2, 1, 3], [-1, -1, 0, 0, 1, 2])


class PreparedOnce:
    """What the host prepares for a call, caught once: preparing it anew takes longer than the run."""

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        self.arguments = (model, input_ids, logits_processor, stopping_criteria, generation_config)
        self.inputs = inputs
        return input_ids

    def run(self, verifier) -> list[int]:
        cache = transformers.DynamicCache(config=toy_model().config)
        return verifier(*self.arguments, **{**self.inputs, "past_key_values": cache})[0].tolist()


def joint_p(num_runs: int) -> float:
    """The p-value of the outputs of many seeds over one tree against the exact joint."""
    prepared = PreparedOnce()
    toy_model().generate(torch.tensor([PROMPT]), custom_generate=prepared, **OPTIONS)
    counts = np.zeros(VOCAB_SIZE**DEPTH_TOKENS, np.int64)
    accepted_tokens = 0
    for seed in range(num_runs):
        verifier = TreeVerifier(FakeSource(VOCAB_SIZE, some_tree), seed=seed)
        first, second, third = prepared.run(verifier)[len(PROMPT) :]
        accepted_tokens += verifier.accepted_tokens
        counts[(first * VOCAB_SIZE + second) * VOCAB_SIZE + third] += 1
    assert accepted_tokens > num_runs / 4
    return chi_square_p(counts, exact_joint())


@pytest.mark.parametrize(
    "num_runs", [NUM_RUNS, pytest.param(30_000, marks=[pytest.mark.long, pytest.mark.timeout(1_800)])]
)
def test_the_joint_of_three_tokens_over_draft_trees_is_the_target_s(num_runs):
    assert joint_p(num_runs) > FALSE_ALARM


def test_the_joint_test_notices_drafts_that_are_accepted_too_often(monkeypatch):
    right = KeyedSampler.draw

    def favours_the_tree(self, scores, position):
        token_id = right(self, scores, position)
        return token_id if token_id in (0, 2) else right(self, scores, position + 10**6)

    monkeypatch.setattr(KeyedSampler, "draw", favours_the_tree)
    assert joint_p(NUM_RUNS) < FALSE_ALARM


def test_the_same_seed_gives_the_same_output_and_another_seed_another():
    options = {"do_sample": True, "max_new_tokens": 12}
    plain = [generate(toy_model(), PROMPT, NoDrafts(VOCAB_SIZE), seed=seed, **options) for seed in (1, 1, 2)]
    first, again, other = (generation.output_ids.tolist() for generation in plain)
    assert first == again != other
