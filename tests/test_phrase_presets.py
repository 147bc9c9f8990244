"""The presets with pools of phrases against their twins, with feedback as a verifier would send it."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import pytest

from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from retrieval_spec.feedback import Feedback
from tests.reference.phrases import (
    ReferenceCounts,
    ReferenceOuroboros,
    ReferencePool,
    hierarchy_rows,
    prefixes,
)
from tests.reference.rest import ReferenceRest
from tests.replay import recorded
from tests.stores import write_corpus

VOCAB_SIZE = 151_936
FAMILIES = ("code", "rag", "chat", "agent_tools")


class Lookahead:
    """Per session a pool that the client's n-grams alone fill."""

    level, needs_store = 5, False

    def open(self, prompt):
        self.pool = ReferencePool(level=5, size=7)

    def rows(self, context):
        return self.pool.guesses(context)

    def step(self, context, verified, committed, ngrams):
        for ngram in ngrams:
            self.pool.insert(ngram)

    def close(self, output):
        pass


class Ouroboros(ReferenceOuroboros):
    level, needs_store = 7, False

    def open(self, prompt):
        pass

    def close(self, output):
        pass


class Hierarchy:
    level, needs_store = 5, True

    def __init__(self, documents):
        self.corpus, self.model = ReferenceRest(documents), ReferenceCounts()

    def open(self, prompt):
        self.own = ReferencePool(level=5, size=7)
        self.learn([], prompt)

    def learn(self, context, news):
        text = [*context, *news]
        for end in range(len(context) + 1, len(text) + 1):
            self.own.insert(tuple(text[max(end - 5, 0) : end]))

    def rows(self, context):
        return hierarchy_rows(context, self.own, self.model, self.corpus)

    def step(self, context, verified, committed, ngrams):
        for ngram in ngrams:
            self.own.insert(ngram)
        self.learn(context, committed)

    def close(self, output):
        self.model.learn(output)


TWINS = {"lookahead-pool": Lookahead, "ouroboros-pool": Ouroboros, "hierarchy": Hierarchy}


def paths_in_order(tree):
    return [tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))]


def feedback_of(tree, root, verified, ngrams):
    argmax = np.array(list(verified.values()), np.int32)[:, None]
    nodes = np.concatenate([[root], tree.token_ids]).astype(np.int32)
    parents = np.concatenate([[-1], tree.parents + 1]).astype(np.int32)
    return Feedback(nodes, parents, argmax, phrases=np.array(ngrams, np.int32))


def generate(session, twin, context, num_tokens, target, jacobi):
    """Decodes greedily with `target`, comparing every draft; returns drafted nodes and accepted tokens."""
    num_nodes = num_accepted = 0
    stop = len(context) + num_tokens
    while len(context) < stop:
        tree = session.draft(64)
        paths = paths_in_order(tree)
        assert set(paths) == prefixes(twin.rows(context))
        verified = {path: target([*context, *path]) for path in [(), *paths]}
        committed = [verified[()]]
        while tuple(committed) in verified:
            committed.append(verified[tuple(committed)])
        ngrams = jacobi(context)
        session.commit(committed, feedback_of(tree, context[-1], verified, ngrams))
        twin.step(context, verified, committed, ngrams)
        context = context + committed
        num_nodes += len(tree)
        num_accepted += len(committed) - 1
    return num_nodes, num_accepted


def hashed(tokens):
    return zlib.crc32(np.array(tokens, np.int64).tobytes())


def pseudo_model(alphabet, seed):
    """The next token hangs on the last two and, now and then, on how long the text is."""

    def target(tokens):
        key = hashed([seed, *tokens[-2:]])
        return (hashed([key, len(tokens)]) if key % 3 == 0 else key) % alphabet

    return target


def window(target, level, alphabet):
    """Three n-grams a step, guessed from starts that the context decides."""

    def jacobi(context):
        rows = [[context[-1]], [hashed(context) % alphabet], [hashed([1, *context]) % alphabet]]
        for row in rows:
            while len(row) < level:
                row.append(target([*context, *row]))
        return [tuple(row) for row in rows]

    return jacobi


@pytest.mark.parametrize("name", TWINS)
def test_random_contexts_give_the_drafts_of_the_twin(name, tmp_path):
    num_nodes = num_accepted = 0
    for seed in range(20):  # 20 seeds, 5 sessions of 5 and more steps: more than 500 contexts
        rng = np.random.default_rng(seed)
        alphabet = int(rng.integers(2, 9))
        documents = [rng.integers(0, alphabet, rng.integers(0, 12)).tolist() for _ in range(8)]
        stores = [write_corpus(tmp_path / f"store{seed}", documents, VOCAB_SIZE)]
        needs_store = TWINS[name].needs_store
        engine = Engine(VOCAB_SIZE, preset=name, datastores=stores if needs_store else [])
        twin = TWINS[name](documents) if needs_store else TWINS[name]()
        target = pseudo_model(alphabet, seed)
        jacobi = window(target, twin.level, alphabet)
        for _ in range(5):
            prompt = rng.integers(0, alphabet, rng.integers(1, 15)).tolist()
            session = engine.open_session(prompt)
            twin.open(prompt)
            nodes, accepted = generate(session, twin, prompt, 40, target, jacobi)
            output = session.context[len(prompt) :].tolist()
            session.close()
            twin.close(output)
            num_nodes, num_accepted = num_nodes + nodes, num_accepted + accepted
    assert num_nodes > 5_000
    assert num_accepted > 500


def recording(prompt, output):
    """The recorded text as a target: off the record it says what followed the last token at its end."""
    text = prompt + output
    following = dict(pairwise(text))

    def target(tokens):
        on_record = tokens == text[: len(tokens)] and len(tokens) < len(text)
        return text[len(tokens)] if on_record else following.get(tokens[-1], text[0])

    return target


def ahead_of(text, level):
    """Two n-grams a step: one that comes soon, and one with a wrong token in it."""

    def jacobi(context):
        at = len(context) + hashed(context[-3:]) % 6
        right, wrong = text[at : at + level], text[len(context) - 1 : len(context) - 1 + level]
        wrong = [*wrong[:2], 7, *wrong[3:]]
        return [tuple(row) for row in (right, wrong) if len(row) == len(wrong) == level]

    return jacobi


@pytest.mark.parametrize("name", TWINS)
def test_real_traces_give_the_drafts_of_the_twin(name, data_dir, tmp_path):
    traces = [trace for family in FAMILIES for trace in recorded(data_dir, family, 5)]
    documents = [output for family in FAMILIES for _, output in recorded(data_dir, family, 20, skip=5)]
    needs_store = TWINS[name].needs_store
    stores = [write_corpus(tmp_path / "store", documents, VOCAB_SIZE)] if needs_store else []
    engine = Engine(VOCAB_SIZE, preset=name, datastores=stores)
    twin = TWINS[name](documents) if needs_store else TWINS[name]()
    num_nodes = num_accepted = 0
    for prompt, output in traces:
        prompt, output = prompt[-100:], output[:120]
        session = engine.open_session(prompt)
        twin.open(prompt)
        jacobi = ahead_of(prompt + output, twin.level)
        nodes, accepted = generate(session, twin, prompt, len(output), recording(prompt, output), jacobi)
        written = session.context[len(prompt) :].tolist()
        session.close()
        twin.close(written)
        num_nodes, num_accepted = num_nodes + nodes, num_accepted + accepted
    assert num_nodes > 2_000
    assert num_accepted > 300


def test_the_presets_have_the_published_parameters():
    lookahead = preset("lookahead-pool").sources[0].params["rule"]
    assert (lookahead.key_tokens, lookahead.phrase_tokens, lookahead.max_phrases) == (1, 4, 7)
    assert (lookahead.from_text, lookahead.from_rejected, lookahead.scope) == (False, False, "session")
    ouroboros = preset("ouroboros-pool").sources[0].params["rule"]
    assert (ouroboros.key_tokens, ouroboros.phrase_tokens, ouroboros.max_phrases) == (1, 6, 20)
    assert (ouroboros.suffixes.chain_tokens, ouroboros.suffixes.num_phrases) == (12, 3)
    assert ouroboros.min_phrase_tokens == 6
    hierarchy = preset("hierarchy")
    assert [source.kind for source in hierarchy.sources] == ["phrases", "frequent", "corpus"]
    assert (hierarchy.combine.max_rows, hierarchy.combine.row_tokens) == (7, 4)
    assert hierarchy.sources[2].params["rule"].span_tokens == 2
