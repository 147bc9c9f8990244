"""What tenants share on purpose: n-grams that enough of them wrote, until one of them is forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.commands.arguments import new_parser
from retrieval_spec.commands.serve import preset_with_groups
from retrieval_spec.commands.settings import settings_of
from retrieval_spec.drafters import group as module
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.group import GroupDrafter, members_of
from retrieval_spec.drafters.presets import default, with_groups
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.limits import tenant_of
from tests.strategies import as_int32
from tests.threads import in_threads

VOCAB_SIZE = 1_000
PASSAGE = list(range(100, 120))
MEMBERS = {"a": "makers", "b": "makers", "c": "makers", "d": "makers", "other/docs": "writers"}


def opened(**params):
    return GroupDrafter.open(VOCAB_SIZE, **{"members": MEMBERS, **params})


def write(drafter, namespace, output=PASSAGE, prompt=()):
    cursor = drafter.start(as_int32(list(prompt)), namespace)
    cursor.observe(as_int32(output))
    cursor.close()
    cursor.close()


def drafted(drafter, namespace, context=PASSAGE[:8], max_nodes=4):
    return drafter.start(as_int32(context), namespace).propose(Budget(max_nodes)).check(VOCAB_SIZE)


def test_what_enough_tenants_wrote_is_drafted_for_the_members_alone():
    drafter = opened()
    for namespace in ("a/x", "b"):
        write(drafter, namespace)
        assert all(len(drafted(drafter, reader)) == 0 for reader in ("a/x", "b", "d/y"))
    write(drafter, "c/z")
    for reader in ("a/x", "b", "c/new", "d/y"):
        assert drafted(drafter, reader).token_ids.tolist() == PASSAGE[8:12]
    for stranger in ("other/docs", "other/code", "e", "default"):
        assert len(drafted(drafter, stranger)) == 0


def test_one_tenant_counts_once_however_many_namespaces_it_has():
    drafter = opened()
    for name in ("a/1", "a/2", "a/3", "a/4", "b/1"):
        write(drafter, name)
    assert len(drafted(drafter, "a/1")) == 0


def test_prompts_and_what_strangers_wrote_are_not_shared():
    drafter = opened(min_tenants=2)
    write(drafter, "a/x", [1] * 3, prompt=PASSAGE)
    write(drafter, "b/x", [1] * 3, prompt=PASSAGE)
    write(drafter, "e")
    write(drafter, "other/docs")
    write(drafter, "c/x")
    assert len(drafted(drafter, "a/x")) == 0


@pytest.mark.row("T2")
def test_what_a_forgotten_tenant_wrote_counts_no_longer_and_its_open_sessions_add_nothing():
    drafter = opened()
    for namespace in ("a/x", "b/x", "c/x"):
        write(drafter, namespace)
    running = drafter.start(as_int32([]), "c/x")
    running.observe(as_int32(PASSAGE))
    drafter.namespaces.forget("c/x")
    assert len(drafted(drafter, "a/x")) == 0
    running.close()
    assert len(drafted(drafter, "a/x")) == 0
    write(drafter, "d/x")
    assert len(drafted(drafter, "a/x")) == 4
    for namespace in ("a/x", "b/x", "d/x"):
        drafter.namespaces.forget(namespace)
    group = drafter._groups["makers"]
    assert (len(group._writers), len(group._shared)) == (0, 0)


def supports(written, ngram_tokens, min_tenants):
    """The n-grams that are shared, and how many tenants wrote them: by looking through everything."""
    writers = {}
    for namespace, outputs in written.items():
        for output in outputs:
            for begin in range(len(output) - ngram_tokens + 1):
                ngram = tuple(output[begin : begin + ngram_tokens])
                writers.setdefault(ngram, set()).add(tenant_of(namespace))
    return {ngram: len(tenants) for ngram, tenants in writers.items() if len(tenants) >= min_tenants}


EVENTS = st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.lists(st.integers(0, 2), max_size=9))


@given(st.lists(st.one_of(EVENTS, st.sampled_from(["a/x", "b/y", "c/x"])), max_size=25), st.integers(1, 4))
@settings(deadline=None)
def test_shared_n_grams_are_those_that_a_look_through_everything_finds(events, min_tenants):
    drafter, written = opened(min_tenants=min_tenants, ngram_tokens=3), {}
    for event in events:
        if isinstance(event, str):
            drafter.namespaces.forget(event)
            written.pop(event, None)
        else:
            tenant, name, output = event
            write(drafter, f"{tenant}/{name}", output)
            written.setdefault(f"{tenant}/{name}", []).append(output)
    found = {
        (*np.frombuffer(first, np.int32).tolist(), last): num_tenants
        for first, following in drafter._groups["makers"]._shared.items()
        for last, num_tenants in following.items()
    }
    assert found == supports(written, 3, min_tenants)


def test_equal_states_give_equal_trees_and_most_tenants_go_first():
    first, second = opened(min_tenants=2, ngram_tokens=3), opened(min_tenants=2, ngram_tokens=3)
    texts = {"a/x": [1, 2, 3, 1, 2, 4], "b/x": [1, 2, 4, 1, 2, 3], "c/x": [1, 2, 4], "d/x": [1, 2, 5]}
    for name in texts:
        write(first, name, texts[name])
    for name in reversed(texts):
        write(second, name, texts[name])
    tree = drafted(first, "d/x", [1, 2], max_nodes=8)
    assert tree == drafted(second, "d/x", [1, 2], max_nodes=8)
    roots = tree.token_ids[tree.parents == -1].tolist()
    assert roots == [4, 3]


def test_memory_is_bounded_and_told(monkeypatch):
    monkeypatch.setattr(module, "MAX_NGRAMS", 100)
    drafter = opened(min_tenants=2)
    rng = np.random.default_rng(0)
    for number in range(20):
        write(drafter, f"{'ab'[number % 2]}/x", rng.integers(0, VOCAB_SIZE, 90).tolist())
    write(drafter, "a/x")
    write(drafter, "b/x")
    assert len(drafted(drafter, "c/x")) == 4  # the newest stay
    assert len(drafter._groups["makers"]._writers) <= 100
    sizes = drafter.namespaces.sizes()
    assert drafter.namespaces.num_bytes == sum(sizes.values()) > 0
    assert max(sizes.values()) <= 100 * 450


@pytest.mark.row("K2")
def test_threads_share_one_group():
    drafter = opened(min_tenants=2, ngram_tokens=3)

    def run(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            name = f"{'abcd'[seed]}/{rng.integers(0, 3)}"
            write(drafter, name, rng.integers(0, 4, 20).tolist())
            drafted(drafter, name, [1, 2], max_nodes=16)
            if rng.integers(0, 4) == 0:
                drafter.namespaces.forget(name)

    in_threads(run, range(4))


def engine(**params):
    return Engine(VOCAB_SIZE, preset=with_groups(default(), {**MEMBERS, **params}, 3))


def trees(engine, namespace):
    session = engine.open_session(PASSAGE[:8], namespace)
    found = []
    for token in PASSAGE[8:12]:
        found.append(session.draft(8))
        session.commit([token])
    session.discard()
    return found


def teach(engine, namespace):
    session = engine.open_session([1], namespace)
    session.commit(PASSAGE)
    session.close()


@pytest.mark.row("T1")
def test_an_engine_blends_what_is_shared_and_strangers_get_the_same_as_without():
    shared, alone = engine(), engine()
    for namespace in ("a/x", "b/x", "c/x"):
        teach(shared, namespace)
    for stranger in ("e/x", "other/docs"):
        assert trees(shared, stranger) == trees(alone, stranger)
    tree = trees(shared, "d/x")[0]
    assert tree.token_ids.tolist()[:3] == PASSAGE[8:11]
    assert tree.source_names[-1] == "group"
    assert PASSAGE[8] not in trees(alone, "d/x")[0].token_ids
    shared.memory.forget("a/x")
    assert trees(shared, "d/y") == trees(alone, "d/y")


def test_texts_name_groups_and_mistakes_are_told():
    assert members_of(("g=a, b/x,c", "h=d")) == {"a": "g", "b/x": "g", "c": "g", "d": "h"}
    for wrong in (("g",), ("=a",), ("g=",), ("g=a,,b",), ("g=a", "h=a")):
        with pytest.raises(InvalidRequest, match="group"):
            members_of(wrong)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--group", "nonsense"), "malformed group"),
        (("--group", "g=a,b", "--group-min-tenants", "1"), "too few tenants"),
        (("--group", "g=a,b", "--preset", "pld"), "preset default"),
    ],
)
def test_groups_that_make_no_sense_are_refused(flags, words):
    said, _ = settings_of(new_parser().parse_args(["serve", *flags]))
    with pytest.raises(InvalidRequest, match=words):
        preset_with_groups(said)
    assert preset_with_groups(settings_of(new_parser().parse_args(["serve"]))[0]) == "default"


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_tenants": 0},
        {"ngram_tokens": 1},
        {"members": {str(number): str(number) for number in range(17)}},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(InvalidRequest):
        opened(**wrong)
