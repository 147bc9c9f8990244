"""Acceptance with drawn and fixed children: the target's own law, as often as the bound allows."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("torch")
pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.errors import InvalidDistribution
from retrieval_spec.fusion import Pruning
from retrieval_spec.model_tree import Proposal, without_replacement
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier import Draws, FusedSource, TreeVerifier, generate
from retrieval_spec.verifier.mixed import MixedSampler, ratio_tests
from tests.exactness.sources import FakeSession, FakeSource
from tests.pseudo_models import PseudoModel, hashed_law
from tests.test_verifier_sampling import (
    FALSE_ALARM,
    OPTIONS,
    PROMPT,
    VOCAB_SIZE,
    PreparedOnce,
    chi_square_p,
    exact_joint,
    softmax,
    toy_model,
)

pytestmark = pytest.mark.row("L4")

torch = pytest.importorskip("torch")
NUM_SAMPLES = 200_000
NUM_TOKENS = 8


class Setting(NamedTuple):
    """One node: target law, draft law, how many children are drawn, which are fixed."""

    p: np.ndarray
    q: np.ndarray
    num_drawn: int
    fixed: tuple[int, ...]


def setting_of(kind: str, num_drawn: int, num_fixed: int) -> Setting:
    rng = np.random.default_rng([num_drawn, num_fixed, len(kind)])
    logits = rng.normal(0, 1.2, NUM_TOKENS)
    p = softmax(logits)
    if kind == "near":
        q = softmax(logits + rng.normal(0, 0.4, NUM_TOKENS))
    elif kind == "far":
        q = softmax(-logits)
    else:  # processors cut both to other sets of tokens
        p, q = p.copy(), softmax(rng.normal(0, 1, NUM_TOKENS))
        p[rng.choice(NUM_TOKENS, 3, replace=False)] = 0
        q[rng.choice(NUM_TOKENS, 3, replace=False)] = 0
        p, q = p / p.sum(), q / q.sum()
    fixed = rng.choice(NUM_TOKENS, num_fixed, replace=False)
    return Setting(p, q, num_drawn, tuple(sorted(fixed.tolist())))


SETTINGS = {
    f"{kind}-{num_drawn} drawn-{num_fixed} fixed": setting_of(kind, num_drawn, num_fixed)
    for kind, num_drawn, num_fixed in itertools.product(("near", "far", "cut"), (0, 1, 2, 3), (0, 2))
}


def drawn_children(setting: Setting, rng) -> np.ndarray:
    """int[n, k], every row drawn without replacement from q."""
    keys = np.log(setting.q, where=setting.q > 0, out=np.full(NUM_TOKENS, -np.inf))
    noisy = keys + rng.gumbel(size=(NUM_SAMPLES, NUM_TOKENS))
    return np.argsort(-noisy, axis=1)[:, : setting.num_drawn]


def drawn_from(laws: np.ndarray, rng) -> np.ndarray:
    """One token a row of float64[n, v], by inverting the distribution function."""
    edges = laws.cumsum(axis=1)
    return (rng.random((len(laws), 1)) * edges[:, -1:] >= edges).sum(axis=1)


def right(setting: Setting, drawn: np.ndarray, rng, tests=ratio_tests) -> np.ndarray:
    """The token of every sample; it is accepted if it is among the fixed or drawn children."""
    laws = (np.broadcast_to(law, (NUM_SAMPLES, NUM_TOKENS)) for law in (setting.p, setting.q))
    passed, residual = tests(*laws, drawn, rng.random(drawn.shape))
    return np.where(passed >= 0, passed, drawn_from(residual, rng))


def samples(setting: Setting, decide, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and whether they were accepted."""
    rng = np.random.default_rng(seed)
    drawn = drawn_children(setting, rng)
    token_ids = decide(setting, drawn, rng)
    accepted = np.isin(token_ids, setting.fixed) | (token_ids[:, None] == drawn).any(axis=1)
    return token_ids, accepted


def law_p(setting: Setting, decide) -> float:
    token_ids, _ = samples(setting, decide)
    return chi_square_p(np.bincount(token_ids, minlength=NUM_TOKENS), setting.p)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_output_follows_the_target_s_law(name):
    assert law_p(SETTINGS[name], right) > FALSE_ALARM


def upper_bound(setting: Setting) -> float:
    """p(D) + the sum over tokens outside D of min(p, q): what no lossless rule exceeds with one draw."""
    is_fixed = np.isin(np.arange(NUM_TOKENS), setting.fixed)
    overlap = np.minimum(setting.p, setting.q) if setting.num_drawn else np.zeros(NUM_TOKENS)
    return float(np.where(is_fixed, setting.p, overlap).sum())


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.num_drawn <= 1])
def test_with_one_drawn_child_it_accepts_as_often_as_any_lossless_rule_can(name):
    setting = SETTINGS[name]
    _, accepted = samples(setting, right)
    bound = upper_bound(setting)
    assert abs(accepted.mean() - bound) <= 5 * np.sqrt(bound * (1 - bound) / NUM_SAMPLES) + 1e-12


@pytest.mark.parametrize(("kind", "num_fixed"), list(itertools.product(("near", "far", "cut"), (0, 2))))
def test_more_drawn_children_are_accepted_more_often(kind, num_fixed):
    one = SETTINGS[f"{kind}-1 drawn-{num_fixed} fixed"]
    rates = [samples(one._replace(num_drawn=k), right)[1].mean() for k in (0, 1, 2, 3)]
    assert rates[0] < rates[1] < rates[2] < rates[3]


# --- Rules that are wrong, two of them released: the same checks must catch each.


def own_try_for_every_path(setting, drawn, rng):
    """REST: every path draws for itself, a shared child gets several tries; a failure draws anew from p."""
    paths = [token for token in setting.fixed for _ in range(3)]
    token_ids = np.full(NUM_SAMPLES, -1)
    laws = np.broadcast_to(setting.p, (NUM_SAMPLES, NUM_TOKENS))
    for token in paths:
        token_ids[(token_ids < 0) & (drawn_from(laws, rng) == token)] = token
    return np.where(token_ids >= 0, token_ids, drawn_from(laws, rng))


def frequency_taken_for_q(setting, drawn, rng):
    """A fixed child tested as if it had been drawn with its share of a corpus, 0.6."""
    share = np.full(NUM_TOKENS, 0.4 / (NUM_TOKENS - 1))
    share[setting.fixed[0]] = 0.6
    child = np.full((NUM_SAMPLES, 1), setting.fixed[0])
    return right(setting._replace(q=share), child, rng)


def nothing_subtracted(setting, drawn, rng):
    def wrong(p, q, drawn, uniforms):
        passed, _ = ratio_tests(p, q, drawn, uniforms)
        return passed, p

    return right(setting, drawn, rng, wrong)


def draft_law_not_scaled(setting, drawn, rng):
    """Second and later tests against the q of the first draw, as with replacement."""

    def wrong(p, q, drawn, uniforms):
        passed = np.full(len(drawn), -1)
        for turn in range(drawn.shape[1]):
            once, p = ratio_tests(p, q, drawn[:, [turn]], uniforms[:, [turn]])
            passed = np.where(passed < 0, once, passed)
        return passed, p

    return right(setting, drawn, rng, wrong)


def fixed_children_first(setting, drawn, rng):
    """A draw from p accepted if it is fixed, and only then the ratio tests, with the whole p again."""
    first = drawn_from(np.broadcast_to(setting.p, (NUM_SAMPLES, NUM_TOKENS)), rng)
    return np.where(np.isin(first, setting.fixed), first, right(setting, drawn, rng))


def drawn_test_reversed(setting, drawn, rng):
    def wrong(p, q, drawn, uniforms):
        return ratio_tests(p, q, drawn, uniforms**2)

    return right(setting, drawn, rng, wrong)


WRONG = {
    own_try_for_every_path: "near-0 drawn-2 fixed",
    frequency_taken_for_q: "near-0 drawn-2 fixed",
    nothing_subtracted: "near-1 drawn-0 fixed",
    draft_law_not_scaled: "far-2 drawn-0 fixed",
    fixed_children_first: "near-1 drawn-2 fixed",
    drawn_test_reversed: "near-1 drawn-0 fixed",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_rule_is_noticed(wrong):
    assert law_p(SETTINGS[WRONG[wrong]], wrong) < FALSE_ALARM


TEMPERATURE = 0.5


def pairs_p(bonus_temperature: float) -> float:
    """The p-value of two tokens, the second one drawn as a bonus where the first was an accepted leaf."""
    rng = np.random.default_rng(5)
    logits = np.random.default_rng(6).normal(0, 1, (NUM_TOKENS + 1, NUM_TOKENS))
    root, *below = [softmax(row / TEMPERATURE) for row in logits]
    bonus = [softmax(row / bonus_temperature) for row in logits[1:]]
    setting = Setting(root, root, 0, (int(root.argmax()),))
    first, accepted = samples(setting, right)
    laws = np.where(accepted[:, None], np.array(bonus)[first], np.array(below)[first])
    counts = np.bincount(first * NUM_TOKENS + drawn_from(laws, rng), minlength=NUM_TOKENS**2)
    return chi_square_p(counts, (root[:, None] * np.array(below)).ravel())


def test_the_bonus_token_keeps_the_temperature():
    assert pairs_p(TEMPERATURE) > FALSE_ALARM


def test_a_bonus_without_temperature_after_full_acceptance_is_noticed():
    assert pairs_p(1.0) < FALSE_ALARM  # SAM-Decoding's


# --- The shipped pieces, one node at a time.


def test_draws_without_replacement_have_their_own_law():
    q = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(1)
    counts = np.zeros((5, 5), np.int64)
    for _ in range(20_000):
        first, second = without_replacement(q, 2, rng).tolist()
        counts[first, second] += 1
    expected = q[:, None] * q[None, :] / (1 - q[:, None])
    expected[np.arange(5), np.arange(5)] = 0
    assert chi_square_p(counts.ravel(), (expected / expected.sum()).ravel()) > FALSE_ALARM
    assert without_replacement(q, 9, rng).size == 4


def sampler_p(num_drawn: int, noise) -> float:
    """The p-value of `MixedSampler`'s tokens where the children are drawn by `noise`."""
    setting = SETTINGS[f"near-{num_drawn} drawn-0 fixed"]
    scores = torch.tensor(np.log(setting.p)[None]).float()
    q = setting.q.astype(np.float32)
    counts = np.zeros(NUM_TOKENS, np.int64)
    sampler = MixedSampler(3)
    for position in range(4_000):
        proposal = Proposal(noise(q, num_drawn, position), q)
        counts[sampler(scores, position, proposal)] += 1
    return chi_square_p(counts, setting.p)


@pytest.mark.parametrize("num_drawn", [1, 2])
def test_the_sampler_s_law_is_the_target_s(num_drawn):
    rng = np.random.default_rng(2)
    assert sampler_p(num_drawn, lambda q, k, position: without_replacement(q, k, rng)) > FALSE_ALARM


def test_the_sampler_s_test_notices_children_that_were_not_drawn():
    assert sampler_p(1, lambda q, k, position: np.array([q.argmax()], np.int32)) < FALSE_ALARM


def proposal(token_ids, q):
    return Proposal(np.array(token_ids, np.int32), np.array(q, np.float32))


BROKEN = {
    "no sum of 1": proposal([0], [0.5, 0.2, 0.1]),
    "not a number": proposal([0], [0.5, np.nan, 0.5]),
    "negative": proposal([0], [1.5, -0.5, 0.0]),
    "too long": proposal([0], [0.25] * 4),
    "two dimensions": proposal([0], [[1.0]]),
    "token twice": proposal([0, 0], [0.5, 0.5, 0]),
    "token past the end": proposal([3], [0.5, 0.5, 0]),
    "token before the start": proposal([-1], [0.5, 0.5, 0]),
    "never drawn": proposal([2], [0.5, 0.5, 0]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_proposal_that_cannot_have_been_drawn_is_refused(name):
    with pytest.raises(InvalidDistribution):
        BROKEN[name].check(3)


def test_a_shorter_q_is_one_without_the_last_tokens():
    assert proposal([0], [0.5, 0.5]).check(3).q.size == 2
    scores = torch.tensor([[-9.0, -9.0, 9.0]])
    assert MixedSampler(0)(scores, 1, proposal([0], [0.5, 0.5])) == 2


# --- In the loop.


class DrawingSession(FakeSession):
    """Draws two children of the context and one of each from a law of its own, fixed children beside them."""

    def __init__(self, context, seed, say_so=True):
        super().__init__(None, context)
        self.rng = np.random.default_rng([9, seed])
        self.say_so = say_so
        self.proposals = {}

    def q_after(self, path):
        scores = np.random.default_rng([len(self.context), *path]).normal(0, 1, VOCAB_SIZE)
        return softmax(scores).astype(np.float32)

    def drawn(self, path, k):
        q = self.q_after(path)
        token_ids = without_replacement(q, k, self.rng)
        if self.say_so:
            self.proposals[path] = Proposal(token_ids, q)
        return token_ids.tolist()

    def draft(self, max_nodes=16):
        self.proposals = {}
        tokens, parents = [], []
        for token in self.drawn((), 2):
            parent = len(tokens)
            below = self.drawn((token,), 1)
            tokens += [token, *below]
            parents += [-1, *[parent] * len(below)]
        for token in (2, 5):  # fixed ones
            if token not in [tokens[node] for node in range(len(tokens)) if parents[node] < 0]:
                tokens.append(token)
                parents.append(-1)
        return DraftTree.from_lists(tokens, parents)


class DrawingSource(FakeSource):
    def __init__(self, seed, say_so=True):
        super().__init__(VOCAB_SIZE, None)
        self.seed, self.say_so = seed, say_so

    def open_session(self, prompt_ids, namespace="default"):
        self.sessions.append(DrawingSession(list(prompt_ids), self.seed, self.say_so))
        return self.sessions[-1]


NUM_RUNS = 300


def joint_and_accepted(source_of, num_runs=NUM_RUNS) -> tuple[float, float]:
    prepared = PreparedOnce()
    toy_model().generate(torch.tensor([PROMPT]), custom_generate=prepared, **OPTIONS)
    counts = np.zeros(VOCAB_SIZE**3, np.int64)
    accepted_tokens = 0
    for seed in range(num_runs):
        verifier = TreeVerifier(source_of(seed), seed=seed)
        first, second, third = prepared.run(verifier)[len(PROMPT) :]
        accepted_tokens += verifier.accepted_tokens
        counts[(first * VOCAB_SIZE + second) * VOCAB_SIZE + third] += 1
    return chi_square_p(counts, exact_joint()), accepted_tokens / num_runs


def test_the_loop_s_joint_is_the_target_s_and_ratio_tests_accept_more_than_the_plain_draw():
    told, accepted_told = joint_and_accepted(DrawingSource)
    untold, accepted_untold = joint_and_accepted(lambda seed: DrawingSource(seed, say_so=False), 150)
    assert told > FALSE_ALARM
    assert untold > FALSE_ALARM  # a draw from p is lossless whatever the children are
    assert accepted_told > accepted_untold


def test_the_joint_over_retrieval_fused_with_a_drawing_model_is_the_target_s():
    fixed = FakeSource(VOCAB_SIZE, lambda context, n: DraftTree.from_lists([2, 0, 5], [-1, -1, 0]))
    model = PseudoModel(VOCAB_SIZE, hashed_law(VOCAB_SIZE, 0.5))
    p_value, accepted = joint_and_accepted(
        lambda seed: FusedSource([fixed], model, pruning=Pruning(top_k=4), draws=Draws((2, 1), seed))
    )
    assert p_value > FALSE_ALARM
    assert accepted > 0.5


def test_the_loop_s_joint_test_notices_a_q_that_was_not_drawn_from(monkeypatch):
    monkeypatch.setattr(
        DrawingSession, "q_after", lambda self, path: np.full(VOCAB_SIZE, 1 / VOCAB_SIZE, np.float32)
    )
    monkeypatch.setattr(
        "tests.test_verifier_mixed.without_replacement",
        lambda q, k, rng: np.array([3, 1][:k], np.int32),
    )
    assert joint_and_accepted(DrawingSource)[0] < FALSE_ALARM


class FirstStepSession(DrawingSession):
    """Draws nothing after its first draft."""

    def draft(self, max_nodes=16):
        tree = super().draft(max_nodes)
        if len(self.context) > len(PROMPT) + 1:
            self.proposals = {}
        return tree


def test_a_token_is_tested_against_the_draws_of_its_own_step_alone(monkeypatch):
    tested, real = [], MixedSampler.__call__

    def noted(self, scores, position, proposal):
        tested.append(position)
        return real(self, scores, position, proposal)

    monkeypatch.setattr(MixedSampler, "__call__", noted)
    monkeypatch.setattr("tests.test_verifier_mixed.DrawingSession", FirstStepSession)
    generate(toy_model(), PROMPT, DrawingSource(0), do_sample=True, max_new_tokens=10)
    first = len(PROMPT) + 1
    assert first in tested
    assert set(tested) <= {first, first + 1}


def test_greedy_output_does_not_depend_on_proposals():
    options = {"do_sample": False, "max_new_tokens": 10}
    truth = toy_model().generate(torch.tensor([PROMPT]), **options)[0].tolist()
    assert generate(toy_model(), PROMPT, DrawingSource(0), **options).token_ids.tolist() == truth


def test_equal_seeds_and_equal_drafts_give_equal_tokens():
    options = {"do_sample": True, "max_new_tokens": 10}
    first, again, other = (
        generate(toy_model(), PROMPT, DrawingSource(0), seed=seed, **options).token_ids.tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_broken_proposal_costs_the_session_its_drafts_and_no_token(monkeypatch):
    monkeypatch.setattr(DrawingSession, "q_after", lambda self, path: np.full(VOCAB_SIZE, 0.5, np.float32))
    options = {"do_sample": True, "max_new_tokens": 10}
    generation = generate(toy_model(), PROMPT, DrawingSource(0), **options)
    assert generation.output_ids.size == 10
    assert generation.drafted_nodes == 0
