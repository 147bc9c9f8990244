"""Limits in the core: each from both sides, what they cost, and memory that stays within its budget."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest

from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.namespaces import MAX_NAMESPACES, Namespaces
from retrieval_spec.drafters.registry import drafter_class
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidFeedback, InvalidRequest, LimitExceeded, UnknownSession
from retrieval_spec.feedback import Feedback
from retrieval_spec.limits import MIB, Limits
from retrieval_spec.memory import LearnedMemory
from retrieval_spec.service.sessions import SPARE_S, SessionTable
from tests.fake_drafters import CountingDrafter

pytestmark = pytest.mark.row("C1")

NO_TOKENS = np.zeros(0, np.int32)


def engine(vocab_size=1_000, preset=None, **limits):
    drafters = {"counting": CountingDrafter(vocab_size)} if preset is None else None
    return Engine(vocab_size, drafters, preset or "default", limits=Limits(**limits))


@pytest.mark.quick
@pytest.mark.parametrize("entry", fields(Limits), ids=lambda entry: entry.name)
def test_every_limit_has_a_range_and_a_meaning(entry):
    highest = entry.metadata["highest"]
    assert getattr(Limits(**{entry.name: highest}), entry.name) == highest
    assert 1 <= entry.default <= highest
    for wrong in (0, -1, highest + 1, 1.5, True, "4"):
        with pytest.raises(InvalidRequest, match=entry.name):
            Limits(**{entry.name: wrong})
    assert entry.metadata["meaning"]


@pytest.mark.quick
def test_contexts_and_commits_end_at_their_limits():
    session = engine(max_context_tokens=8, max_append_tokens=3).open_session([1] * 4)
    session.commit([1, 2, 3])
    with pytest.raises(LimitExceeded, match="one commit"):
        session.commit([1, 2, 3, 4])
    with pytest.raises(LimitExceeded, match="max_context_tokens"):
        session.commit([1, 2])
    session.commit([1])
    assert session.context_length == 8
    with pytest.raises(LimitExceeded):
        engine(max_context_tokens=8).open_session([1] * 9)


@pytest.mark.quick
def test_draft_parameters_are_clamped():
    session = engine(max_nodes=6, max_depth_nodes=64).open_session([1])
    assert len(session.draft(1_000_000)) == 6
    deep = Engine(100, preset="session", limits=Limits(max_depth_nodes=3)).open_session(
        [1, 2, 3, 4, 5, 6] * 5
    )
    tree = deep.draft(32)
    assert len(tree)
    assert tree.depths().max() == 3


@pytest.mark.quick
def test_feedback_ends_at_its_limit():
    narrow = engine(max_topk=2).open_session([1])
    root, parent = np.array([1], np.int32), np.array([-1], np.int32)
    narrow.commit([2], Feedback(root, parent, np.array([[1, 2]], np.int32)))
    with pytest.raises(InvalidFeedback, match="<= 2"):
        narrow.commit([3], Feedback(root, parent, np.array([[1, 2, 3]], np.int32)))


@pytest.mark.quick
@pytest.mark.row("C1", "C4")
def test_sessions_are_counted_for_all_and_for_each_tenant():
    small = engine(max_sessions=3, max_tenant_sessions=2)
    first = small.open_session([1], "a/x")
    small.open_session([1], "a/y")
    with pytest.raises(LimitExceeded, match="one tenant"):
        small.open_session([1], "a/z")
    small.open_session([1], "b")
    with pytest.raises(LimitExceeded, match="too many open sessions;"):
        small.open_session([1], "c")
    first.close()
    first.close()
    small.open_session([1], "a/z")
    assert small.num_sessions == 3


def test_a_failed_opening_leaves_nothing_counted():
    small = engine()
    for prompt in ([1_000], [-1]):
        with pytest.raises(Exception, match="vocabulary"):
            small.open_session(prompt)
    assert (small.num_sessions, small.ledger.num_bytes) == (0, 0)
    small.drafters["counting"].start = None  # a bug in a source
    with pytest.raises(TypeError):
        small.open_session([1])
    assert (small.num_sessions, small.ledger.num_bytes) == (0, 0)


def test_a_source_that_fails_as_a_session_opens_leaves_nothing_counted():
    class Failing(CountingDrafter):
        def start(self, context, namespace="default"):
            raise RuntimeError("no memory for a cursor")

    small = Engine(1_000, {"failing": Failing(1_000)}, limits=Limits(max_sessions=1, max_tenant_sessions=1))
    for _ in range(3):  # more often than sessions fit
        with pytest.raises(RuntimeError, match="no memory for a cursor"):
            small.open_session([1, 2, 3])
    assert (small.num_sessions, small.ledger.num_bytes) == (0, 0)


@pytest.mark.row("S2")
def test_sessions_give_back_the_memory_that_they_are_counted_with():
    default = engine(preset="default")
    rng = np.random.default_rng(0)
    sessions = [default.open_session(rng.integers(0, 1_000, size)) for size in (0, 10, 5_000)]
    before = default.ledger.num_bytes
    assert 5_000 * 40 < before < 5_000 * 200
    sessions[0].commit(rng.integers(0, 1_000, 20_000))
    grown = default.ledger.num_bytes
    assert grown > before + 20_000 * 40
    sessions[0].truncate(0)
    assert default.ledger.num_bytes < grown
    for session in sessions:
        session.close()
    assert default.ledger.num_bytes == 0


@pytest.mark.row("C1", "S2")
def test_no_session_grows_beyond_the_memory_of_all():
    tight = engine(preset="default", max_session_bytes=MIB)
    with pytest.raises(LimitExceeded, match="memory"):
        tight.open_session(np.zeros(20_000, np.int32))
    session = tight.open_session([1])
    rng = np.random.default_rng(0)
    commits = iter(lambda: session.commit(rng.integers(0, 1_000, 500)), "never")
    with pytest.raises(LimitExceeded, match="max_session_bytes"):
        list(islice(commits, 100))
    assert tight.ledger.num_bytes <= 1.25 * MIB
    length = session.context_length
    assert len(session.draft()), "drafts go on"
    assert session.context_length == length


@pytest.mark.row("C4")
def test_a_refused_session_costs_less_than_a_millisecond():
    full = engine(max_sessions=1)
    full.open_session([])
    prompt = np.zeros(1_000_000, np.int32)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        with pytest.raises(LimitExceeded):
            full.open_session(prompt)
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 1e-3


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.row("C4")
def test_only_a_tenants_own_unused_session_makes_room_for_it():
    clock = Clock()
    table = SessionTable(engine(max_sessions=2), clock)
    a, b = table.open(NO_TOKENS, "a/x"), table.open(NO_TOKENS, "b/x")
    with pytest.raises(LimitExceeded):
        table.open(NO_TOKENS, "a/x")
    clock.now = SPARE_S + 1
    table.get(b)
    with pytest.raises(LimitExceeded):
        table.open(NO_TOKENS, "b/x")
    with pytest.raises(LimitExceeded):
        table.open(NO_TOKENS, "c/x")
    new = table.open(NO_TOKENS, "a/x")
    assert table.get(new).is_open
    with pytest.raises(Exception, match="no session"):
        table.get(a)
    assert (len(table), table.num_dropped) == (2, 1)


@pytest.mark.row("T1")
def test_sessions_answer_their_owner_alone():
    table = SessionTable(engine())
    mine = table.open(NO_TOKENS, "a/x")
    assert table.get(mine, "a") is table.get(mine)
    with pytest.raises(Exception, match="no session"):
        table.get(mine, "b")
    table.close(mine, "b")
    assert len(table) == 1
    table.close(mine, "a")
    assert len(table) == 0


def test_discarding_a_namespace_ends_no_other_session_of_its_tenant():
    table = SessionTable(engine())
    gone, kept = table.open(NO_TOKENS, "a/x"), table.open(NO_TOKENS, "a/y")
    assert table.discard("a/x") == 1
    assert table.get(kept).is_open
    with pytest.raises(UnknownSession):
        table.get(gone)


def test_a_cost_curve_is_told_and_followed_for_its_owner_alone():
    table = SessionTable(engine())
    mine = table.open(NO_TOKENS, "a/x")
    cheap, dear = CostCurve.linear(0.01), CostCurve.linear(0.5)
    table.follow([mine], cheap, "a")
    table.follow([mine], dear, "b")
    assert table.followed([mine], "b") is None
    assert table.followed([mine], "a") is cheap


class Learned:
    def __init__(self, num_bytes=100):
        self.num_bytes = num_bytes


@pytest.mark.row("C4")
def test_a_tenant_with_many_namespaces_forgets_its_own():
    namespaces = Namespaces(Learned)
    kept = namespaces.of("quiet/one")
    for number in range(2 * MAX_NAMESPACES):
        namespaces.of(f"loud/{number}")
    assert namespaces.of("quiet/one") is kept
    assert len(namespaces.sizes()) == MAX_NAMESPACES


@pytest.mark.row("S2")
def test_what_only_open_sessions_hold_is_counted_until_they_close():
    namespaces = Namespaces(Learned)
    held = namespaces.of("a")
    namespaces.forget("a")
    namespaces.forget("a")
    assert namespaces.num_bytes == 100
    del held
    assert namespaces.num_bytes == 0


def test_what_only_open_sessions_hold_is_waited_for_and_not_forgotten_for_ever():
    class Learning(CountingDrafter):
        namespaces = Namespaces(Learned)

    source = Learning(1_000)
    held = source.namespaces.of("a")
    source.namespaces.of("b")
    memory = LearnedMemory([source], [], max_bytes=50)
    memory.learned(10**9)
    assert (memory.num_forgotten, memory.num_bytes) == (2, 100)  # `held` is beyond its reach
    memory.learned(10**9)
    assert memory.num_forgotten == 2
    del held
    assert memory.num_bytes == 0


@pytest.mark.row("S2")
def test_open_sessions_do_not_keep_the_memory_of_what_is_forgotten():
    budget = 8 * MIB
    engine = Engine(50_000, limits=Limits(max_learned_bytes=budget))
    rng = np.random.default_rng(0)
    opened = []
    for _ in range(24):  # without a way to give it back, each would hold a state of its namespace of then
        opened.append(engine.open_session(rng.integers(0, 50_000, 100), "one"))
        teacher = engine.open_session(rng.integers(0, 50_000, 15_000), "one")
        teacher.commit(rng.integers(0, 50_000, 15_000))
        teacher.close()
    assert engine.memory.num_forgotten >= 4
    assert engine.memory.num_bytes <= 2 * budget, "one is being filled while the other is full"
    for session in opened:
        session.draft()
        session.commit([1, 2, 3])
        session.draft()
        session.close()


@pytest.mark.row("T2")
def test_a_forgotten_history_drafts_nothing_and_learns_nothing():
    drafter = HistoryDrafter.open(1_000)
    text = np.arange(100, dtype=np.int32)
    teacher, late, open_one = drafter.start(NO_TOKENS), drafter.start(NO_TOKENS), drafter.start(NO_TOKENS)
    teacher.observe(text)
    teacher.close()
    open_one.observe(text[:5])
    assert open_one.propose(Budget(4, 4)).token_ids.tolist() == [5, 6, 7, 8]
    forgotten = drafter.namespaces.of("default")
    drafter.namespaces.forget("default")
    assert (len(open_one.propose(Budget(4, 4))), forgotten.num_bytes) == (0, 0)
    late.observe(text)
    late.close()
    assert forgotten.texts.automaton.num_tokens == 0
    assert forgotten.texts.automaton.allocated_bytes < 1_024
    open_one.observe(text[5:7])
    assert len(open_one.propose(Budget(4, 4))) == 0
    fresh = drafter.start(text[:5])
    assert len(fresh.propose(Budget(4, 4))) == 0, "what nobody may draft from is nowhere"


@pytest.mark.row("S2")
def test_the_largest_tenant_forgets_first_and_its_oldest_namespace():
    class Source:
        namespaces = Namespaces(Learned)

    for name in ("a/1", "b/1", "b/2", "a/2", "b/3"):
        Source.namespaces.of(name)
    memory = LearnedMemory([], [Source(), object()], max_bytes=320)
    memory.learned(1_000_000)
    assert list(Source.namespaces.sizes()) == ["b/2", "a/2", "b/3"] or memory.num_bytes <= 320
    assert "a/2" in Source.namespaces.sizes()
    assert memory.num_forgotten == 2


@pytest.mark.row("S2")
def test_the_history_says_what_it_holds():
    drafter = HistoryDrafter.open(1_000)
    cursor = drafter.start(NO_TOKENS)
    before = drafter.namespaces.num_bytes
    cursor.observe(np.random.default_rng(0).integers(0, 1_000, 50_000).astype(np.int32))
    assert cursor.num_bytes >= 200_000
    cursor.close()
    assert drafter.namespaces.num_bytes > before + 50_000 * 40


FILL = """
import json, resource, sys
import numpy as np
from retrieval_spec.engine import Engine
from retrieval_spec.errors import LimitExceeded
from retrieval_spec.limits import MIB, Limits

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

budget = 48 * MIB
engine = Engine(50_000, limits=Limits(max_session_bytes=budget // 2, max_learned_bytes=budget // 2))
rng = np.random.default_rng(0)
warm = engine.open_session(rng.integers(0, 50_000, 2_000)); warm.commit([1]); warm.draft(); warm.close()
base, most, opened, refused, asked = resident(), 0, [], 0, 0
while asked < 10 * budget:
    prompt = rng.integers(0, 50_000, 8_000)
    asked += 2 * 80 * prompt.size
    try:
        session = engine.open_session(prompt, f"tenant-{rng.integers(40)}")
        session.commit(rng.integers(0, 50_000, 8_000))
        opened.append(session)
    except LimitExceeded:
        refused += 1
        for session in opened[::2]:
            session.close()
        opened = opened[1::2]
    most = max(most, resident())
print(json.dumps([budget, most - base, refused, engine.memory.num_bytes]))
"""


@pytest.mark.row("S2")
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_ten_times_the_budget_fits_in_the_budget():
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True)
    budget, grown, refused, learned = json.loads(done.stdout)
    assert refused > 5
    assert learned > 0
    assert grown <= 1.25 * budget + 64 * MIB, (grown / MIB, learned / MIB)


@pytest.mark.row("S2")
@pytest.mark.parametrize("kind", ["frequent", "phrases"])
@pytest.mark.parametrize("num_ids", [300, 100_000])
def test_phrases_are_counted_as_what_they_take(kind, num_ids):
    rng = np.random.default_rng(0)
    source = drafter_class(kind).open(vocab_size=num_ids)
    texts = [rng.integers(300, 300 + num_ids, 8_000).astype(np.int32) for _ in range(3)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for text in texts:
            cursor = source.start(text[:0], "one")
            cursor.observe(text)
            cursor.close()
        del cursor
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * taken < source.namespaces.num_bytes < 2 * taken
    source.namespaces.forget("one")
    assert source.namespaces.num_bytes == 0
