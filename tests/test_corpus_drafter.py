from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters import corpus
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, MissingPath, TokenizerMismatch
from retrieval_spec.structures.context_array import ContextArray
from tests.stores import write_corpus
from tests.strategies import as_int32 as ids
from tests.threads import in_threads

VOCAB_SIZE = 151_936
DOCUMENTS = [[5, 6, 7, 8, 5, 6, 9], [70_000, 5, 6, 7, 151_935], [], [1, 2]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "store", DOCUMENTS, VOCAB_SIZE)


@pytest.fixture(scope="module")
def drafter(store):
    return CorpusDrafter.open(VOCAB_SIZE, store)


def test_an_opened_datastore_drafts_like_the_array_in_memory(drafter):
    separator = 2**31 - 1
    text = [token for document in DOCUMENTS for token in (*document, separator)]
    in_memory = CorpusDrafter(ContextArray.build(ids(text)))
    for context in ([5], [5, 6], [70_000, 5, 6], [1], [9, 9, 5, 6, 7]):
        tree = drafter.start(ids(context)).propose(Budget(16)).check(VOCAB_SIZE)
        assert len(tree) > 0
        assert tree == in_memory.start(ids(context)).propose(Budget(16))


def test_a_larger_vocabulary_of_the_target_model_is_fine(store):
    assert len(CorpusDrafter.open(VOCAB_SIZE + 1, store).start(ids([5])).propose(Budget(4)))


def test_a_smaller_vocabulary_of_the_target_model_is_refused(store):
    with pytest.raises(TokenizerMismatch, match="151936 token ids; expected at most 151935"):
        CorpusDrafter.open(VOCAB_SIZE - 1, store)


def test_a_missing_datastore_is_refused(tmp_path):
    with pytest.raises(MissingPath):
        CorpusDrafter.open(VOCAB_SIZE, tmp_path / "nowhere")


@dataclass
class Facts:
    kind: str = "context_array"
    vocab_size: int = 3
    depth_tokens: int = 32


@dataclass
class Store:
    manifest: Facts
    columns: dict[str, Any]
    path: str = "store"

    @property
    def only(self) -> Store:
        return self

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self,)


@pytest.mark.parametrize(
    ("facts", "largest_id", "error"),
    [
        (Facts(kind="dense"), 2, InvalidRequest),
        (Facts(depth_tokens=10**9), 2, InvalidRequest),
        (Facts(vocab_size=3), 9, TokenizerMismatch),  # the manifest says less than the corpus holds
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(facts, largest_id, error, monkeypatch):
    columns = ContextArray.build(ids([1, largest_id])).columns()
    monkeypatch.setattr(corpus, "open_segments", lambda path: Store(facts, columns))
    # The largest id has no continuation here, yet it may be drafted: the directory has to cover it.
    with pytest.raises(error):
        CorpusDrafter.open(5, "store")


def test_missing_columns_are_refused(monkeypatch):
    monkeypatch.setattr(corpus, "open_segments", lambda path: Store(Facts(), {}))
    with pytest.raises(DatastoreCorrupt):
        CorpusDrafter.open(5, "store")


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=50), max_size=6), st.integers(1, 40))
def test_tokens_observed_one_by_one_or_at_once_give_the_same_draft(parts, depth):
    text = np.random.default_rng(0).integers(0, 4, 3_000).astype(np.int32)
    drafter = CorpusDrafter(ContextArray.build(text, depth_tokens=depth))
    stepwise = drafter.start(ids([]))
    for part in parts:
        stepwise.observe(ids(part))
    whole = ids([token for part in parts for token in part])
    assert stepwise.propose(Budget(32)) == drafter.start(whole).propose(Budget(32))
    assert stepwise.propose(Budget(32)) == drafter.start(whole[-depth:]).propose(Budget(32))


def test_a_long_prompt_is_read_at_its_end_only(drafter):
    prompt = np.full(200_000, 3, np.int32)
    prompt[-2:] = [5, 6]
    assert drafter.start(prompt).propose(Budget(8)) == drafter.start(ids([3, 5, 6])).propose(Budget(8))


def test_the_callers_tokens_may_change_afterwards(drafter):
    context = ids([70_000, 5, 6] * 20)
    cursor = drafter.start(context)
    before = cursor.propose(Budget(8))
    context[:] = 0
    assert cursor.propose(Budget(8)) == before


@pytest.mark.parametrize("context", [[], [4], [2**31 - 1], [151_934]])
def test_no_match_means_no_draft(drafter, context):
    assert len(drafter.start(ids(context)).propose(Budget(8))) == 0


def test_budgets_bound_nodes_and_depth(drafter):
    cursor = drafter.start(ids([5]))
    assert len(cursor.propose(Budget(0))) == 0
    assert len(cursor.propose(Budget(3))) == 3
    assert cursor.propose(Budget(64, max_depth_nodes=1)).parents.tolist() == [-1] * 1
    assert len(cursor.propose(Budget(64, max_depth_nodes=0))) == 0


@pytest.mark.row("K1")
def test_threads_share_one_drafter():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 6, 50_000).astype(np.int32)
    drafter = CorpusDrafter(ContextArray.build(text))
    contexts = [text[i : i + 20] for i in range(0, 4_000, 20)]
    expected = [drafter.start(context).propose(Budget(16)) for context in contexts]

    def answers(_):
        return [drafter.start(context).propose(Budget(16)) for context in contexts]

    assert in_threads(answers, range(4)) == [expected] * 4
