"""The presets that draft from counted n-grams give the drafts of their twins, on random and on real text."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from tests.reference.aded import ReferenceAded
from tests.reference.ngram import ReferenceAnpd, ReferenceCache
from tests.replay import drafted_paths, num_accepted, recorded
from tests.stores import write_corpus

VOCAB_SIZE = 151_936
TWINS = {"anpd": ReferenceAnpd, "aded": ReferenceAded, "llamacpp-cache": ReferenceCache}
MAX_NODES = {"anpd": 6, "aded": 64, "llamacpp-cache": 16}
WITH_A_CORPUS = {"aded", "llamacpp-cache"}
CASES = [(name, False) for name in TWINS] + [(name, True) for name in sorted(WITH_A_CORPUS)]


def engine_and_twin(name, documents, folder):
    """A preset and its twin; both know the documents, if there are any."""
    if not documents:
        return Engine(VOCAB_SIZE, preset=name), TWINS[name]()
    store = write_corpus(folder / "store", documents, VOCAB_SIZE)
    return Engine(VOCAB_SIZE, preset=name, datastores=[store]), TWINS[name](documents)


@pytest.mark.parametrize(("name", "has_corpus"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_random_contexts_give_the_drafts_of_the_twin(name, has_corpus, seed, tmp_path):
    rng = np.random.default_rng(seed)
    alphabet = (2, 3, 5, 9, 30)[seed]
    documents = [rng.integers(0, alphabet, 60).tolist() for _ in range(8 * has_corpus)]
    engine, twin = engine_and_twin(name, documents, tmp_path)
    num_nodes = 0
    for _ in range(100):  # with 5 seeds: 500 contexts
        prompt = rng.integers(0, alphabet, rng.integers(0, 40)).tolist()
        prompt += prompt[: rng.integers(0, 9)]  # so that much of it repeats, however large the alphabet
        session = engine.open_session(prompt)
        twin.start(prompt)
        for _ in range(4):
            tree = session.draft(64).check(VOCAB_SIZE)
            assert drafted_paths(tree) == twin.draft()
            num_nodes += len(tree)
            tokens = rng.integers(0, alphabet, rng.integers(1, 8)).tolist()
            session.commit(tokens)
            twin.commit(tokens)
        session.close()
        twin.close()
    assert num_nodes > 300


def traces_of(data_dir):
    """20 recorded outputs of three kinds, cut to what a quick test replays, and others for a corpus."""
    replayed, documents = [], []
    for family, num_items in (("code", 8), ("agent_tools", 6), ("maths", 6)):
        traces = recorded(data_dir, family, 30)
        replayed += [(prompt[-300:], output[:300]) for prompt, output in traces[:num_items]]
        documents += [output for _, output in traces[num_items:]]
    return replayed, documents


@pytest.mark.parametrize(("name", "has_corpus"), CASES)
def test_real_traces_give_the_drafts_of_the_twin(name, has_corpus, data_dir, tmp_path):
    replayed, documents = traces_of(data_dir)
    engine, twin = engine_and_twin(name, documents if has_corpus else [], tmp_path)
    num_steps = num_drafted = num_right = 0
    for prompt, output in replayed:
        session = engine.open_session(prompt)
        twin.start(prompt)
        while output:
            paths = drafted_paths(session.draft(64).check(VOCAB_SIZE))
            assert paths == twin.draft()
            accepted = num_accepted(paths, output)
            session.commit(output[: accepted + 1])
            twin.commit(output[: accepted + 1])
            output = output[accepted + 1 :]
            num_steps, num_right = num_steps + 1, num_right + accepted
            num_drafted += len(paths) > 0
        session.close()
        twin.close()
    assert num_drafted > 500
    assert num_right > 0.25 * num_steps


@pytest.mark.parametrize("name", TWINS)
def test_a_preset_drafts_no_more_than_was_published(name):
    assert preset(name).max_nodes == MAX_NODES[name]


@pytest.mark.parametrize("name", TWINS)
def test_what_one_namespace_wrote_is_not_drafted_in_another(name):
    engine = Engine(VOCAB_SIZE, preset=name)
    text = [7, 8, 9, 10, 11, 12] * 4
    for namespace in ("first", "second"):
        session = engine.open_session([], namespace)
        assert len(session.draft(64)) == 0
        if namespace == "first":
            session.commit(text)
            session.close()
    same = engine.open_session([], "first")
    same.commit(text[:4])
    assert len(same.draft(64)) > 0
    other = engine.open_session([], "second")
    other.commit(text[:4])
    assert len(other.draft(64)) == 0
