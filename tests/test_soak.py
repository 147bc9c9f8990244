"""Load that goes on: threads that do everything at once, texts that grow under readers, memory that runs out,
and a server that must be after an hour what it was after a minute.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest

from retrieval_spec.client import DraftClient
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import LimitExceeded
from retrieval_spec.limits import MIB, Limits
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.floods import HANGING, hang
from tests.service_process import server_process
from tests.strategies import as_int32
from tests.threads import in_threads

NO_TOKENS = as_int32([])


@contextmanager
def watchdog(seconds: float):
    """Ends the process with the stacks of all threads if what is inside hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def phrases_of(rng: np.random.Generator, vocab_size: int) -> list[np.ndarray]:
    return [rng.integers(0, vocab_size, 8).astype(np.int32) for _ in range(6)]


class Sessions:
    """What one thread does to an engine, at random."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = np.random.default_rng(seed)
        self.phrases = phrases_of(np.random.default_rng(seed % 3), engine.vocab_size)
        self.open = []
        self.counts: Counter[str] = Counter()

    def run(self, until_s: float) -> Counter:
        while time.monotonic() < until_s:
            self.step()
        for session in self.open:
            session.close()
        return self.counts

    def step(self) -> None:
        if not self.open or (len(self.open) < 3 and self.rng.random() < 0.2):
            self.begin()
            return
        session = self.open[self.rng.integers(len(self.open))]
        tree = session.draft(16).check(self.engine.vocab_size)
        self.counts["nodes"] += len(tree)
        self.counts["steps"] += 1
        dice = self.rng.random()
        try:
            session.commit(self.phrases[self.rng.integers(6)][: self.rng.integers(1, 8)])
        except LimitExceeded:
            dice = 0.0
        if dice < 0.05:
            self.open.remove(session)
            session.close()
        elif dice < 0.1:
            session.truncate(session.context_length // 2)

    def begin(self) -> None:
        try:
            namespace = f"t{self.rng.integers(3)}/n{self.rng.integers(2)}"
            self.open.append(self.engine.open_session(self.phrases[0], namespace))
            self.counts["opened"] += 1
        except LimitExceeded:
            self.counts["refused"] += 1


@pytest.mark.row("K2")
@pytest.mark.parametrize(
    "seconds",
    [2, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
    ids=["short", "long"],
)
def test_threads_that_do_everything_at_once(seconds):
    limits = Limits(max_sessions=30, max_tenant_sessions=12, max_learned_bytes=24 * MIB)
    engine = Engine(5_000, limits=limits)
    with watchdog(250):  # whatever has to be compiled is compiled before the threads begin
        Sessions(engine, 0).run(time.monotonic() + 0.5)
    with watchdog(seconds + 120):
        until_s = time.monotonic() + seconds
        counts = sum(in_threads(lambda seed: Sessions(engine, seed).run(until_s), range(16)), Counter())
    print(dict(counts), engine.memory.num_forgotten)
    assert counts["steps"] > 100
    assert counts["nodes"] > counts["steps"]
    assert engine.num_sessions == 0
    assert engine.ledger.num_bytes == 0
    assert engine.memory.num_bytes <= 2 * limits.max_learned_bytes


@pytest.mark.row("K1")
@pytest.mark.parametrize(
    "tokens",
    [100_000, pytest.param(4_000_000, marks=[pytest.mark.long, pytest.mark.timeout(1_200)])],
    ids=["short", "long"],
)
def test_readers_beside_a_text_that_grows(tokens):
    """A text that stays says the same to its readers, whatever is written beside it in the same namespace."""
    rng = np.random.default_rng(0)
    drafter = HistoryDrafter.open(1_000_000, max_bytes=2**31)
    known = rng.integers(0, 50_000, 2_000).astype(np.int32)
    teacher = drafter.start(NO_TOKENS)
    teacher.observe(known)
    teacher.close()
    starts = rng.integers(0, len(known) - 40, 50)
    stop, checked = threading.Event(), []

    def read(number: int) -> None:
        count = 0
        while not stop.is_set() or count == 0:
            for start in starts:
                cursor = drafter.start(known[start : start + 8])
                found = cursor.propose(Budget(6, 6)).token_ids.tolist()
                assert found == known[start + 8 : start + 14].tolist()
                count += 1
        checked.append(count)

    def write(number: int) -> None:
        try:
            for begin in range(0, tokens, 5_000):
                cursor = drafter.start(NO_TOKENS)
                # Other ids than those of the readers' text: what they are told must not change.
                cursor.observe(np.random.default_rng(begin).integers(60_000, 900_000, 5_000).astype(np.int32))
                cursor.close()
        finally:
            stop.set()

    with watchdog(900):
        in_threads(lambda part: (write if part == 2 else read)(part), range(3))
    assert min(checked) >= len(starts)


class Failing:
    """Raises MemoryError in place of the count-th allocation of an array."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.real = {name: getattr(np, name) for name in ("empty", "zeros", "concatenate")}

    def of(self, name: str):
        def allocate(*arguments, **options):
            self.count -= 1
            if self.count == 0:
                raise MemoryError("no more")
            return self.real[name](*arguments, **options)

        return allocate


def outcome_without_memory(count: int) -> tuple[bool, int]:
    """A session in which one allocation fails: whether it did, and nodes drafted when it was tried again."""
    engine = Engine(1_000, preset="default")
    prompt = [1, 2, 3, 4, 5, 6] * 40
    engine.open_session(prompt).close()
    failing = Failing(count)
    with pytest.MonkeyPatch.context() as patch:
        for name in failing.real:
            patch.setattr(np, name, failing.of(name))
        session = None
        try:
            session = engine.open_session(prompt)
            session.commit([1, 2, 3] * 300)
            session.draft(16)
        except MemoryError:
            pass
        if session is not None:
            with_memory = engine.num_sessions
            assert with_memory == 1
    if session is not None:
        session.close()
    assert engine.num_sessions == 0
    again = engine.open_session(prompt)
    nodes = len(again.draft(16).check(1_000))
    again.close()
    assert engine.ledger.num_bytes == 0
    return failing.count <= 0, nodes


@pytest.mark.quick
@pytest.mark.row("K4")
def test_after_memory_ran_out_at_any_allocation_a_session_can_be_tried_again():
    failed = 0
    for count in range(1, 400):
        has_failed, nodes = outcome_without_memory(count)
        assert nodes > 0
        failed += has_failed
        if not has_failed:
            break
    print(failed, "allocations failed")
    assert failed >= 5
    assert not has_failed, "every allocation was tried"


def of_process(pid: int) -> dict[str, float]:
    with open(f"/proc/{pid}/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return {
        "mib": resident / MIB,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


class Load:
    """What clients do to a server in a round: generations, sessions left open, garbage, clients that hang."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.rng = np.random.default_rng(0)
        self.client = DraftClient(address, timeout_s=5.0)
        self.sessions = []
        self.steps = self.nodes = 0

    def round(self) -> None:
        with suppress(LimitExceeded):  # those that were left are dropped after a while
            while len(self.sessions) < 64:
                prompt = np.tile(self.rng.integers(0, 2_000, 12), 3)
                self.sessions.append(self.client.open_session(prompt, f"n{self.rng.integers(40)}"))
        for _ in range(4):
            trees = self.client.draft_batch(self.sessions, 400)
            for session, tree in zip(self.sessions, trees, strict=True):
                decided = tree.token_ids[:1].tolist() + self.rng.integers(0, 2_000, 2).tolist()
                session.commit(decided)
                self.nodes += len(tree)
            self.steps += 1
        self.sessions, ended = self.sessions[8:], self.sessions[:8]
        for session in ended[:6]:
            session.close()  # the others are left for the server to find

    def faults(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
            stub = DraftServiceStub(channel)
            for request in (b"\xff" * 40, b"", bytes(9)):
                call = channel.unary_unary("/retrieval_spec.v1.DraftService/OpenSession")
                call.future(request).exception()
            with suppress(grpc.RpcError):
                stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=bytes(400), namespace="left"))
        for kind in HANGING:
            hang(self.address.removeprefix("unix:"), kind).close()


@pytest.mark.row("S1")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "seconds",
    [2, pytest.param(1_200, marks=[pytest.mark.long, pytest.mark.timeout(1_500)])],
    ids=["short", "long"],
)
def test_a_server_stays_what_it_is_under_load(tmp_path, seconds):
    with server_process(f"unix:{tmp_path}/s.sock", "soaked") as (process, address):
        load = Load(address)
        began_s, seen = time.monotonic(), []
        while (passed_s := time.monotonic() - began_s) < seconds or len(seen) < 8:
            load.round()
            load.faults()
            seen.append((passed_s, of_process(process.pid)))
        load.client.close()
        assert process.poll() is None
    settled = [values for _, values in seen[len(seen) // 2 :]]
    print(f"{load.steps} steps, {load.nodes} nodes; {seen[0][1]} then {settled[0]} to {settled[-1]}")
    assert load.nodes > load.steps
    assert load.client.counters.bugs == load.client.counters.bad_answers == 0
    growth_mib = settled[-1]["mib"] - settled[0]["mib"]
    assert settled[-1]["mib"] <= seen[0][1]["mib"] + 200, "budgets of memory and what comes with 300 sessions"
    if seconds > 60:  # before that, budgets are still being filled
        assert growth_mib <= max(16.0, 0.02 * settled[0]["mib"])
    for what in ("descriptors", "threads"):
        values = [one[what] for one in settled]
        assert max(values) <= min(values) + 12, what
