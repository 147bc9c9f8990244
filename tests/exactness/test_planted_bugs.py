"""Bugs planted into the verifier: the equality checks of this folder must notice every one of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
# ruff: noqa: E402
from transformers.generation import StoppingCriteria

from retrieval_spec.verifier import NoDrafts, cache, generate, layout, loop, mask, sampling, stopping, target
from retrieval_spec.verifier.acceptance import Outcome
from tests.exactness.sources import FakeSource, bushy, oracle, partly_wrong
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.row("L5")

VOCAB_SIZE = 37
PROMPT = [5, 9, 17, 3, 5, 9, 17, 8]
GREEDY = {"do_sample": False, "max_new_tokens": 16}


class AtMultiplesOfThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 3 == 0


RUNS = (
    GREEDY,
    {**GREEDY, "repetition_penalty": 1.5},
    {**GREEDY, "eos_token_id": [0, 3, 6, 9, 12]},
    {**GREEDY, "stopping_criteria": [AtMultiplesOfThree()]},
    {"do_sample": True, "max_new_tokens": 16},
)


def model_with(attention):
    return tiny_model("Llama", attention=attention, vocab_size=VOCAB_SIZE, initializer_range=0.15)


def expected_output(model, options):
    if options["do_sample"]:
        return generate(model, PROMPT, NoDrafts(VOCAB_SIZE), **options).token_ids.tolist()
    return model.generate(torch.tensor([PROMPT]), **options)[0].tolist()


@pytest.fixture(scope="module")
def cases():
    """What is right, computed before anything is broken."""
    found = []
    for attention, options in itertools.product(("sdpa", "eager"), RUNS):
        model = model_with(attention)
        right = expected_output(model, options)
        # Drafts that know how it would go on without an end: they reach beyond it.
        known = (
            expected_output(model, {**GREEDY, "max_new_tokens": 24}) if "eos_token_id" in options else right
        )
        found.append((model, options, right, known))
    return found


def is_right(model, options, right, known, maker) -> bool:
    source = FakeSource(VOCAB_SIZE, maker(known, VOCAB_SIZE))
    try:
        return generate(model, PROMPT, source, **options).token_ids.tolist() == right
    except (RuntimeError, IndexError):
        return False


def all_right(cases) -> bool:
    makers = (bushy, partly_wrong, oracle)
    return all(is_right(*case, maker) for maker in makers for case in cases)


def siblings_see_each_other(patch):
    patch.setattr(mask, "ancestors", lambda parents: np.tri(len(parents), dtype=np.bool_))


def nodes_see_only_their_parent(patch):
    def parents_only(parents):
        visible = np.eye(len(parents), dtype=np.bool_)
        visible[range(1, len(parents)), parents[1:]] = True
        return visible

    patch.setattr(mask, "ancestors", parents_only)


def positions_by_index(patch):
    def wrong(*arguments):
        laid_out = layout.lay_out(*arguments)
        laid_out.depths[:] = range(len(laid_out))
        return laid_out

    patch.setattr(loop, "lay_out", wrong)


def positions_one_too_high(patch):
    def wrong(*arguments):
        laid_out = layout.lay_out(*arguments)
        laid_out.depths[:] = [depth + (depth > 0) for depth in laid_out.depths]
        return laid_out

    patch.setattr(loop, "lay_out", wrong)


def boolean_mask_for_eager(patch):
    patch.setattr(target, "additive", lambda mask, dtype: mask.to(dtype))


def cache_without_compaction(patch):
    patch.setattr(cache, "_moves", lambda *arguments: [])
    patch.setattr(cache.PathCache, "_cut", lambda *arguments: None)


def cache_cut_but_not_gathered(patch):
    patch.setattr(cache, "_moves", lambda *arguments: [])


def cache_of_the_sibling(patch):
    right = cache.PathCache.keep

    def wrong(self, paths, num_nodes, finished):
        wrong_paths = [path and [*path[:-1], min(path[-1] + 1, num_nodes - 1)] for path in paths]
        right(self, wrong_paths, num_nodes, finished)

    patch.setattr(cache.PathCache, "keep", wrong)


def bonus_from_the_parent(patch):
    right = loop.accept

    def wrong(laid_out, choose, stops):
        return right(laid_out, lambda node: choose(max(laid_out.parents[node], 0)), stops)

    patch.setattr(loop, "accept", wrong)


def first_child_always_accepted(patch):
    def wrong(laid_out, choose, stops):
        node, tokens, path = 0, [], [0]
        while laid_out.children[node]:
            token_id, node = next(iter(laid_out.children[node].items()))
            tokens.append(token_id)
            if stops(token_id):
                return Outcome(tokens, path, len(tokens))
            path.append(node)
        tokens.append(choose(node))
        stops(tokens[-1])
        return Outcome(tokens, path, len(tokens) - 1)

    patch.setattr(loop, "accept", wrong)


def stop_looked_for_after_the_step(patch):
    right = loop.accept

    def wrong(laid_out, choose, stops):
        return right(laid_out, choose, lambda token_id: stops(token_id) and False)

    patch.setattr(loop, "accept", wrong)


def length_off_by_one(patch):
    right = stopping.StopRule.__init__

    def wrong(self, criteria):
        right(self, criteria)
        self.max_length_tokens += 1

    patch.setattr(stopping.StopRule, "__init__", wrong)


def processors_see_the_step_s_beginning(patch):
    right = loop.Chooser.at

    def wrong(self, logits):
        stale = self._context.ids()
        processors = self._processors
        self._processors = lambda ids, scores: processors(stale, scores)
        choices = [right(self, logits)(node) for node in range(logits.shape[0])]
        self._processors = processors
        return choices.__getitem__

    patch.setattr(loop.Chooser, "at", wrong)


def noise_by_draw_instead_of_position(patch):
    draws = itertools.count()
    right = sampling.KeyedSampler.draw
    patch.setattr(sampling.KeyedSampler, "draw", lambda self, scores, _: right(self, scores, next(draws)))


BUGS = (
    siblings_see_each_other,
    nodes_see_only_their_parent,
    positions_by_index,
    positions_one_too_high,
    boolean_mask_for_eager,
    cache_without_compaction,
    cache_cut_but_not_gathered,
    cache_of_the_sibling,
    bonus_from_the_parent,
    first_child_always_accepted,
    stop_looked_for_after_the_step,
    length_off_by_one,
    processors_see_the_step_s_beginning,
    noise_by_draw_instead_of_position,
)


def test_without_a_bug_all_is_equal(cases):
    assert all_right(cases)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_noticed(bug, cases, monkeypatch):
    bug(monkeypatch)
    assert not all_right(cases)
