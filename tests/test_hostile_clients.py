"""Real server processes among hostile, broken and merely other clients."""

from __future__ import annotations

import os
import random
import re
import socket
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.floods import HANGING, PREFACE, Flood, column, flood, hang, step_of
from tests.service_process import VOCAB_SIZE, server_process

SERVING = health_pb2.HealthCheckResponse.SERVING


@contextmanager
def served(tmp_path, engine, **config):
    with (
        server_process(f"unix:{tmp_path}/s.sock", engine, **config) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        yield process, DraftServiceStub(channel), channel


def health(channel):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status


def resident_bytes(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Script:
    """A generation with a text of its own, step by step; `answers` are what the server said."""

    def __init__(self, stub, seed, namespace, metadata=()):
        self._stub, self._metadata = stub, metadata
        self._rng = random.Random(seed)
        self._phrases = [[self._rng.randrange(200) for _ in range(6)] for _ in range(8)]
        self._namespace = namespace
        self._open()
        self.answers = []

    def _open(self):
        prompt = self._phrases[0] + self._phrases[1]
        request = pb.OpenSessionRequest(prompt_token_ids=column(prompt), namespace=self._namespace)
        self._id = self._stub.OpenSession(request, metadata=self._metadata).session_id
        self._length = len(prompt)

    def step(self):
        """Commits a few tokens and drafts; now and then goes back, or ends the session and begins anew."""
        dice = self._rng.random()
        if dice < 0.02:
            self._stub.CloseSession(
                pb.CloseSessionRequest(session_id=self._id, context_length=self._length),
                metadata=self._metadata,
            )
            self._open()
        elif dice < 0.05:
            cut = pb.TruncateSessionRequest(
                session_id=self._id, context_length=self._length, kept_length=self._length // 2
            )
            self._stub.TruncateSession(cut, metadata=self._metadata)
            self._length //= 2
        commit = self._rng.choice(self._phrases)[: self._rng.randint(1, 6)]
        request = pb.DraftRequest(step=step_of(self._id, self._length, commit))
        result = self._stub.Draft(request, metadata=self._metadata).result
        self._length += len(commit)
        result.incarnation = 0
        self.answers.append(result.SerializeToString(deterministic=True))


def replay(tmp_path, scripts, steps, others):
    tmp_path.mkdir()
    with served(tmp_path, "default") as (_, stub, _):
        for seed in range(scripts):
            mine = Script(stub, seed, "a")
            beside = [Script(stub, seed + 1_000 * (1 + number), f"b{number}") for number in range(others)]
            # Texts of others that share all of ours: what leaked would show.
            beside += [Script(stub, seed, "twin")] if others else []
            for _ in range(steps):
                for script in (*beside, mine):
                    script.step()
            yield mine.answers


@pytest.mark.row("T1")
@pytest.mark.parametrize(
    ("scripts", "steps"), [(2, 80), pytest.param(20, 200, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_a_tenants_replies_do_not_depend_on_other_tenants(tmp_path, scripts, steps):
    alone = list(replay(tmp_path / "alone", scripts, steps, others=0))
    among = list(replay(tmp_path / "among", scripts, steps, others=1))
    assert alone == among
    sizes = [len(answer) for answers in alone for answer in answers]
    assert np.mean(np.array(sizes) > 60) > 0.5, "most steps draft"


CANARIES = range(61_000, 61_064)
A, B = "a-token-of-tenant-a", "b-token-of-tenant-b"


@pytest.mark.row("T2", "T3")
def test_canaries_of_a_tenant_show_up_nowhere_else(tmp_path):
    (tmp_path / "tokens").write_text(f"alpha {A}\nbravo {B}\n")
    (tmp_path / "tokens").chmod(0o600)
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {"tokens": str(tmp_path / "tokens"), "metrics_address": metrics_address}
    with log.open("w") as errors, served(tmp_path, "default", log=errors, **config) as (_, stub, _):
        as_a, as_b = [(("authorization", f"Bearer {token}"),) for token in (A, B)]
        rng = random.Random(0)
        starts = [rng.sample(range(50), 3) for _ in range(40)]
        seen = {as_a: set(), as_b: set()}
        for start in starts:
            secret = start + rng.sample(CANARIES, 8) + start
            opened = stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=column(secret)), metadata=as_b)
            close = pb.CloseSessionRequest(
                session_id=opened.session_id, context_length=len(secret), commit_token_ids=column(secret)
            )
            stub.CloseSession(close, metadata=as_b)
        for start in starts:
            for who in (as_a, as_b):
                opened = stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=column(start)), metadata=who)
                result = stub.Draft(pb.DraftRequest(step=step_of(opened.session_id, 3)), metadata=who).result
                seen[who] |= set(np.frombuffer(result.token_ids, "<i4").tolist())
        assert len(seen[as_b] & set(CANARIES)) > 20, "they can be drafted"
        assert not seen[as_a] & set(CANARIES)
        with suppress(grpc.RpcError):
            stub.OpenSession(pb.OpenSessionRequest(namespace="secret-name/x"), metadata=as_b)
        with suppress(grpc.RpcError):
            prompt = column([CANARIES[0], VOCAB_SIZE + CANARIES[1]])
            stub.OpenSession(
                pb.OpenSessionRequest(prompt_token_ids=prompt, namespace="secret-name"), metadata=as_b
            )
        with suppress(grpc.RpcError):
            stub.OpenSession(pb.OpenSessionRequest(), metadata=(("authorization", f"Bearer {B}x"),))
        stub.Draft(pb.DraftRequest(step=step_of(CANARIES[2], 5, [CANARIES[3]])), metadata=as_b)
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as answer:
            told = answer.read().decode()
        assert 'retrieval_spec_errors_total{status="UNAUTHENTICATED"} 1.0' in told
    told += log.read_text()
    assert '"event": "serving at' in told
    assert [word for word in (A, B, "alpha", "bravo", "secret-name") if word in told] == []
    # Whole words: a time in seconds may have any digits behind its point.
    numbers = {word.strip(".") for word in re.findall(r"[\w.]+", told)}
    assert not numbers & set(map(str, CANARIES))


@pytest.mark.row("C2/C3")
@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.long)])
def test_garbage_harms_nobody(tmp_path, count):
    log = tmp_path / "log"
    with (
        log.open("w") as said,
        served(tmp_path, "capped", log=said) as (process, stub, channel),
        flood("mutated", address(tmp_path)) as garbage,
    ):
        beside = Beside(Script(stub, 0, "mine"), garbage)
        before = resident_bytes(process)
        codes = beside.run(count)
        assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "RESOURCE_EXHAUSTED"}
        assert len(codes) >= 3
        beside.expect_calm()
        assert log.read_text().count("error") == 0, "nobody can fill the log with garbage"
        assert process.poll() is None
        assert health(channel) == SERVING
        # What the others' steps teach is theirs to keep.
        assert resident_bytes(process) - before < 24 * 2**20 + 200 * beside.num_flooded


@pytest.mark.row("C5")
def test_connections_that_hang_leave_others_their_drafts(tmp_path):
    with (
        served(tmp_path, "capped") as (process, stub, channel),
        flood("connections", address(tmp_path)) as connections,
    ):
        beside = Beside(Script(stub, 0, "mine"), connections)
        assert beside.run(25, at_least=1_000) == {"connections": 8 * 25}
        beside.expect_calm()
        assert process.poll() is None
        assert health(channel) == SERVING


@pytest.mark.row("C5")
def test_clients_that_hang_or_crawl_hold_up_nobody(tmp_path):
    with served(tmp_path, "capped") as (process, stub, channel), ExitStack() as stack:
        mine = Script(stub, 0, "mine")
        opened = [
            stack.enter_context(hang(f"{tmp_path}/s.sock", kind)) for kind in HANGING for _ in range(25)
        ]
        unread = [stub.DraftStream(pb.DraftStreamRequest() for _ in range(5_000)) for _ in range(5)]
        begin = time.monotonic()
        for _ in range(50):
            mine.step()
        assert time.monotonic() - begin < 10
        assert health(channel) == SERVING
        crawling = hang(f"{tmp_path}/s.sock", "silent")
        for byte in PREFACE[:5]:
            crawling.send(bytes([byte]))
            mine.step()
        crawling.close()
        # Whoever sent no whole preface is closed after the handshake's time, an idle connection before.
        idle = [
            one for one, kind in zip(opened[::25], HANGING, strict=True) if kind in ("garbage", "half-closed")
        ]
        for connection in idle:
            connection.settimeout(20)
            with suppress(ConnectionError):
                while connection.recv(65_536):
                    pass
        for stream in unread:
            stream.cancel()
        assert process.poll() is None
        mine.step()


@pytest.mark.row("C4")
@pytest.mark.parametrize(
    ("engine", "cap", "count"),
    [("roomy", 200, 260), pytest.param("capped", 1_000, 10_000, marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_a_flood_of_sessions_stops_at_the_cap_and_leaves_others_their_drafts(tmp_path, engine, cap, count):
    with served(tmp_path, engine) as (process, stub, channel), flood("opens", address(tmp_path)) as opens:
        mine = Script(stub, 0, "mine")
        beside = Beside(mine, opens)
        opened = beside.run(count)
        assert sum(opened.values()) == count
        assert set(opened) <= {"OK", "RESOURCE_EXHAUSTED"}
        # After 10 s, sessions that nobody uses make room for others of the same tenant.
        assert opened["OK"] == cap if count < 1_000 else opened["OK"] >= cap
        beside.expect_calm()
        assert process.poll() is None
        assert health(channel) == SERVING


class Beside:
    """A generation's steps, alone and while a flood comes in."""

    def __init__(self, script: Script, flooding: Flood) -> None:
        self._script, self._flooding = script, flooding
        times(script, 50)
        self._quiet_ms = times(script, 400)
        self._flooded_ms: list[float] = []

    def run(self, count, at_least=0):
        """Lets the flood make so many requests, and returns what it says came of them."""
        self._flooding.begin(count)
        while not self._flooding.has_ended() or len(self._flooded_ms) < at_least:
            self._flooded_ms += times(self._script, 10)
        self._quiet_ms += times(self._script, 400)
        return self._flooding.end()

    @property
    def num_flooded(self):
        """Steps beside the flood."""
        return len(self._flooded_ms)

    def expect_calm(self):
        """Others than the flood go on as before; cores are shared with the flood itself."""
        quiet, flooded = [np.percentile(found, [50, 99]) for found in (self._quiet_ms, self._flooded_ms)]
        text = "%s: median %.2f ms, p99 %.2f ms, %d steps"
        print(text % ("quiet", *quiet, len(self._quiet_ms)))
        print(text % ("flooded", *flooded, len(self._flooded_ms)))
        assert flooded[0] < 3 * quiet[0]
        # Few steps, some of them while it begins, say little of the slowest.
        allowed = 3 * quiet[1] if len(self._flooded_ms) > 5_000 else max(10 * quiet[1], 60)
        assert flooded[1] < allowed


def address(tmp_path):
    return f"unix:{tmp_path}/s.sock"


def times(script, count):
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        script.step()
        found.append(1_000 * (time.perf_counter() - begin))
    return found
