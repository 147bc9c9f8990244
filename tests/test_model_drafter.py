"""The source `model` and the presets made with one, against their twins; a model that fails costs no step."""

from __future__ import annotations

import logging
from itertools import chain

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.published.models import opt_tree as opt_tree_preset
from retrieval_spec.drafters.published.models import rasd as rasd_preset
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidDistribution, InvalidRequest
from retrieval_spec.fusion import Pruning
from tests.pseudo_models import PseudoModel, hashed_law, repeating_law
from tests.reference.acceptance import drafted_paths
from tests.reference.fusion import paths_of
from tests.reference.opt_tree import opt_tree
from tests.reference.rasd import rasd
from tests.replay import random_streams, recorded, replayed
from tests.stores import write_corpus

VOCAB_SIZE = 9


def ids(values):
    return np.array(values, np.int32)


def with_small_ids(prompt, output):
    """The same text with ids from 0, so that a pseudo model's distributions stay short."""
    names = {token: small for small, token in enumerate(dict.fromkeys([*prompt, *output]))}
    return [names[token] for token in prompt], [names[token] for token in output], len(names)


def some_traces(data_dir, num_traces=20):
    families = sorted(path.stem for path in (data_dir / "tok_qwen2").glob("*.jsonl"))
    for index in range(num_traces):
        prompt, output = recorded(data_dir, families[index % len(families)], 1, skip=index // len(families))[
            0
        ]
        yield with_small_ids(prompt[-200:], output[:60])


def test_opt_tree_drafts_what_its_twin_drafts_on_random_contexts():
    law = hashed_law(VOCAB_SIZE, 1.0)
    engine = Engine(VOCAB_SIZE, preset=opt_tree_preset(PseudoModel(VOCAB_SIZE, law)))
    depths = set()
    for index, pieces in enumerate(random_streams(100, seed=1)):  # 100 streams of 6 commits
        session, context = engine.open_session([]), []
        for piece in pieces:
            session.commit(piece)
            context += piece
            max_nodes = (3, 16, 60)[index % 3]
            tree = session.draft(max_nodes)
            if not context:
                assert len(tree) == 0
                continue
            assert drafted_paths(tree) == set(opt_tree(law, context, max_nodes))
            depths.add(int(tree.depths().max()))
    assert {1, 2, 3} <= depths


def test_opt_tree_drafts_what_its_twin_drafts_on_recorded_outputs(data_dir):
    accepted = []
    for prompt, output, vocab_size in some_traces(data_dir):
        law = repeating_law(vocab_size, smoothing=0)
        engine = Engine(vocab_size, preset=opt_tree_preset(PseudoModel(vocab_size, law)))
        session = engine.open_session(prompt)
        accepted += replayed(
            session, prompt, output, lambda context, law=law: set(opt_tree(law, context, 24)), 24
        )
    assert np.mean(accepted) > 0.2


class Retrieval:
    """The sources that RASD judges, asked one by one."""

    def __init__(self, prompt, corpus_dir, vocab_size):
        drafters = [SessionDrafter.open(vocab_size), CorpusDrafter.open(vocab_size, corpus_dir)]
        self.cursors = [drafter.start(ids(prompt)) for drafter in drafters]
        self.length = len(prompt)

    def trees(self, context, max_nodes):
        for cursor in self.cursors:
            cursor.observe(ids(context[self.length :]))
        self.length = len(context)
        trees = [cursor.propose(Budget(max_nodes)) for cursor in self.cursors]
        return [{path: prob for path, (prob, _) in paths_of(tree).items()} for tree in trees]


def test_rasd_drafts_what_its_twin_drafts_on_random_contexts(tmp_path):
    law = hashed_law(VOCAB_SIZE, 1.0)
    streams = (list(chain.from_iterable(pieces)) for pieces in random_streams(8, seed=7))
    documents = [stream for stream in streams if stream]
    store = write_corpus(tmp_path / "store", documents, VOCAB_SIZE)
    pruning = Pruning(top_k=3)
    preset = rasd_preset(PseudoModel(VOCAB_SIZE, law), pruning)
    engine = Engine(VOCAB_SIZE, preset=preset, datastores=[store])
    from_both = 0
    for pieces in random_streams(100, seed=2):
        session, context = engine.open_session([]), []
        retrieval = Retrieval([], store, VOCAB_SIZE)
        for piece in pieces:
            session.commit(piece)
            context += piece
            tree = session.draft(16)
            retrieved = retrieval.trees(context, 16)
            expected = rasd(retrieved, law, context, 16, top_k=3) if context else []
            assert drafted_paths(tree) == set(expected)
            from_both += bool(set(tree.sources.tolist()) & {5, 6, 7})
            assert all(name in tree.source_names for name in ("session", "model"))
    assert from_both > 100


def test_rasd_drafts_what_its_twin_drafts_on_recorded_outputs(data_dir, tmp_path):
    accepted = []
    for index, (prompt, output, vocab_size) in enumerate(some_traces(data_dir)):
        law = repeating_law(vocab_size, smoothing=0)
        store = write_corpus(tmp_path / str(index), [prompt[: 1 + len(prompt) // 2]], vocab_size)
        preset = rasd_preset(PseudoModel(vocab_size, law))
        engine = Engine(vocab_size, preset=preset, datastores=[store])
        retrieval = Retrieval(prompt, store, vocab_size)

        def twin(context, law=law, retrieval=retrieval):
            return set(rasd(retrieval.trees(context, 24), law, context, 24))

        accepted += replayed(engine.open_session(prompt), prompt, output, twin, 24)
    assert np.mean(accepted) > 0.2


class BrokenModel(PseudoModel):
    """Right for some calls, then nonsense."""

    def __init__(self, num_right_calls, answer):
        super().__init__(VOCAB_SIZE, repeating_law(VOCAB_SIZE))
        self.num_right_calls, self.answer = num_right_calls, answer

    def start(self):
        predictions = super().start()
        right = predictions.next_probs

        def next_probs(paths):
            self.num_right_calls -= 1
            return right(paths) if self.num_right_calls >= 0 else np.stack([self.answer] * len(paths))

        predictions.next_probs = next_probs
        return predictions


NONSENSE = {
    "no sum of 1": np.full(VOCAB_SIZE, 0.5),
    "not a number": np.full(VOCAB_SIZE, np.nan),
    "another size": np.full(VOCAB_SIZE + 1, 1 / (VOCAB_SIZE + 1)),
}
TEXT = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("name", NONSENSE)
def test_the_source_alone_says_what_is_wrong(name):
    drafter = Engine(VOCAB_SIZE, preset=opt_tree_preset(BrokenModel(0, NONSENSE[name]))).drafters["model"]
    with pytest.raises(InvalidDistribution):
        drafter.start(ids(TEXT)).propose(Budget(8))


@pytest.mark.parametrize("preset", [opt_tree_preset, rasd_preset], ids=lambda preset: preset.__name__)
@pytest.mark.parametrize("num_calls", [0, 1, 5])
@pytest.mark.parametrize("name", NONSENSE)
def test_a_session_goes_on_with_its_other_sources(preset, num_calls, name, caplog):
    model = BrokenModel(num_calls, NONSENSE[name])
    session = Engine(VOCAB_SIZE, preset=preset(model)).open_session(TEXT)
    alone = Engine(VOCAB_SIZE, preset="session").open_session(TEXT)
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        trees = []
        for token in (3, 4, 1):
            trees.append(session.draft(8))
            session.commit([token])
            alone.commit([token])
        after = session.draft(8)
    assert len(caplog.records) == 1
    if preset is rasd_preset:
        assert len(trees[0]) > 0
        assert drafted_paths(after) == drafted_paths(alone.draft(8))
    else:
        assert len(after) == 0
    session.close()


def test_a_source_that_fails_after_it_helped_leaves_the_others_whole():
    """The model answers the first layer and fails in the second: nothing of the step is lost."""
    model = BrokenModel(1, NONSENSE["not a number"])
    tree = Engine(VOCAB_SIZE, preset=rasd_preset(model)).open_session(TEXT).draft(8)
    alone = Engine(VOCAB_SIZE, preset="session").open_session(TEXT).draft(8)
    assert drafted_paths(tree) == drafted_paths(alone)


@pytest.mark.parametrize("name", ["opt-tree", "rasd"])
def test_without_a_model_the_preset_says_what_it_needs(name):
    with pytest.raises(InvalidRequest, match="needs a draft model"):
        Engine(VOCAB_SIZE, preset=name)


def test_a_model_with_a_larger_vocabulary_is_refused():
    with pytest.raises(InvalidRequest, match="larger vocabulary"):
        Engine(VOCAB_SIZE, preset=opt_tree_preset(PseudoModel(VOCAB_SIZE + 1, repeating_law(VOCAB_SIZE + 1))))


def test_going_back_asks_the_model_about_the_shorter_context():
    law = hashed_law(VOCAB_SIZE, 1.0)
    engine = Engine(VOCAB_SIZE, preset=opt_tree_preset(PseudoModel(VOCAB_SIZE, law)))
    session = engine.open_session([1, 2])
    session.commit([3, 4])
    session.truncate(3)
    assert drafted_paths(session.draft(12)) == set(opt_tree(law, [1, 2, 3], 12))
