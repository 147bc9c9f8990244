"""What a server tells of itself: health while it hangs, metrics that come true, logs without text."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
import urllib.request
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.errors import ServiceUnavailable
from retrieval_spec.limits import Limits
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.logs import JsonFormatter
from retrieval_spec.service.meter import Meter
from retrieval_spec.service.metrics import ERRORS, HISTOGRAM, INFO, METRICS, PREFIX
from retrieval_spec.service.pulse import STALL_S, HealthListener, Pulse
from retrieval_spec.service.server import SERVICE_NAME
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.fake_drafters import CountingDrafter
from tests.service_process import server_thread

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
VOCAB_SIZE = 10_000


def engine(drafter=None, **limits):
    return Engine(VOCAB_SIZE, {"counting": drafter or CountingDrafter(VOCAB_SIZE)}, limits=Limits(**limits))


@contextmanager
def served(tmp_path, served_engine=None, **config):
    servers = []
    with (
        server_thread(
            f"unix:{tmp_path}/s.sock", served_engine or engine(), ServerConfig(**config), servers
        ) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield servers[0], DraftServiceStub(channel), channel


def health(address, service=""):
    with grpc.insecure_channel(address) as channel:
        return check(channel, service)


def check(channel, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


def draft(stub, session_id, length, commit=(), max_nodes=4):
    step = pb.DraftStep()
    wire.write_step(
        step, [wire.SessionStep(session_id, length, np.array(commit, np.int32), max_nodes)], max_nodes
    )
    return stub.Draft(pb.DraftRequest(step=step)).result


def metrics(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    }


class Hanging(CountingDrafter):
    """Hangs the event loop when a prompt is long."""

    def start(self, context, namespace="default"):
        if context.size == 7:
            time.sleep(3 * STALL_S)
        return super().start(context)


@pytest.mark.row("H1")
def test_a_hanging_event_loop_is_not_serving_and_says_so(tmp_path, caplog):
    with served(tmp_path, engine(Hanging(VOCAB_SIZE)), health_address="127.0.0.1:0") as (
        server,
        stub,
        channel,
    ):
        assert [health(server.health_address, name) for name in ("", SERVICE_NAME)] == [SERVING] * 2
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        opening = stub.OpenSession.future(pb.OpenSessionRequest(prompt_token_ids=bytes(28)))
        begin = time.monotonic()
        while health(server.health_address) == SERVING:
            assert time.monotonic() < begin + 3 * STALL_S
            time.sleep(0.05)
        assert time.monotonic() - begin < 2.5 * STALL_S, "told while it hangs"
        opening.result(timeout=20)
        assert [next(watch).status for _ in range(2)] == [NOT_SERVING, SERVING], "those who watch hear of it"
        assert health(server.health_address) == SERVING
        assert server._pulse.num_stalls == 1
        assert "time.sleep(3 * STALL_S)" in caplog.text, "the log says where"
        with pytest.raises(grpc.RpcError, match="no such service"):
            health(server.health_address, "nobody")
    with pytest.raises(grpc.RpcError):
        health(server.health_address)


@pytest.mark.row("H1")
def test_a_pulse_is_serving_between_warm_up_and_drain():
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    assert not pulse.is_serving
    pulse.is_ready = True
    now[0] = STALL_S
    assert pulse.is_serving
    assert not pulse.beat()
    now[0] += STALL_S + 0.1
    assert not pulse.is_serving
    assert pulse.beat()
    assert pulse.is_serving


def test_a_taken_health_address_is_refused(tmp_path):
    with (
        served(tmp_path, health_address="127.0.0.1:0") as (server, _, _),
        pytest.raises(ServiceUnavailable, match="health"),
    ):
        HealthListener(Pulse(), ("",)).start(server.health_address)


def test_metrics_count_what_happened(tmp_path):
    with served(tmp_path, metrics_address="127.0.0.1:0") as (server, stub, _):
        before = metrics(server)
        assert before[f"{PREFIX}steps_total"] == 0, "the warm-up is nobody's traffic"
        opened = stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=np.array([1], "<i4").tobytes()))
        draft(stub, opened.session_id, 1)
        draft(stub, opened.session_id, 1, [2, 3, 9])  # two drafted nodes, and the target's own token
        draft(stub, opened.session_id, 4, [1])
        draft(stub, opened.session_id, 99)
        draft(stub, 12345, 0)
        with pytest.raises(grpc.RpcError):
            stub.CloseSession(pb.CloseSessionRequest(session_id=12345))
        after = metrics(server)
        expected = {
            "steps_total": 5,
            "drafts_total": 3,
            "drafted_nodes_total": 12,
            "accepted_nodes_total": 2,
            "committed_tokens_total": 4,
            "sessions_opened_total": 1,
            "sessions": 1,
            "streams": 0,
            "ready": 1,
        }
        assert {name: after[PREFIX + name] for name in expected} == expected
        assert after[f'{ERRORS}{{status="ABORTED"}}'] == 1
        assert after[f'{ERRORS}{{status="NOT_FOUND"}}'] == 2
        assert after[f'{HISTOGRAM}_bucket{{le="+Inf"}}'] == after[f"{HISTOGRAM}_count"] == 5
        assert 0 < after[f"{HISTOGRAM}_sum"] < 5
        assert after[f"{PREFIX}session_bytes"] > 0
        assert any(name.startswith(INFO) for name in after)


def test_every_metric_is_there_with_a_unit_or_a_count(tmp_path):
    with served(tmp_path, metrics_address="127.0.0.1:0") as (server, _, _):
        found = metrics(server)
    assert {PREFIX + metric.name for metric in METRICS} <= set(found)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)
    assert all(metric.meaning for metric in METRICS)


@pytest.mark.row("S2")
def test_a_meter_does_not_remember_sessions_for_ever(monkeypatch):
    monkeypatch.setattr("retrieval_spec.service.meter._MAX_AWAITED", 3)
    meter = Meter()
    for session_id in range(10):
        meter.answered([session_id], [2], [DraftTree.chain([1])], 0.001)
    assert len(meter._awaited) <= 3
    assert (meter.drafts, meter.committed_tokens, meter.accepted_nodes) == (10, 20, 0)


def test_no_more_nodes_are_accepted_than_were_drafted():
    meter = Meter()
    for commit, drafted in (([1], 3), ([5, 6, 7, 8, 9, 9], 0), ([1, 2], 2)):
        meter.answered([1], [len(commit)], [DraftTree.chain(range(drafted))], 0.001)
    assert meter.accepted_nodes == 3
    meter.closed(1, 3)
    meter.closed(1, 3)
    assert (meter.accepted_nodes, meter.committed_tokens) == (5, 15)


@pytest.mark.row("T3")
def test_logs_are_one_object_a_line_and_say_no_values():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("retrieval_spec.some")
    logger.addHandler(handler)
    logger.warning("dropped %d\nunused sessions", 3)
    value = "-".join(["se", "cret"])
    try:
        int(value)
    except ValueError:
        logger.exception("a call failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"]) == ("warning", "retrieval_spec.some")
    assert first["event"] == "dropped 3\nunused sessions"
    assert first["time"].endswith("+00:00")
    assert second["error"] == "ValueError"
    assert "int(value)" in second["stack"]
    assert "se-cret" not in stream.getvalue()


def test_calls_become_spans_and_health_checks_do_not(tmp_path, monkeypatch):
    pytest.importorskip("opentelemetry.instrumentation.grpc")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    # One that waits for the end of the process starts threads in whatever a later test forks.
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with served(tmp_path, traces=True) as (_, stub, channel):
        check(channel)
        opened = stub.OpenSession(pb.OpenSessionRequest(namespace="who"))
        step = pb.DraftStep()
        wire.write_step(step, [wire.SessionStep(opened.session_id, 0, np.zeros(0, np.int32), 4)], 4)
        answers = list(stub.DraftStream(pb.DraftStreamRequest(step=step) for _ in range(3)))
        assert len(answers) == 3
    found = [span.to_json() for span in spans.get_finished_spans()]
    assert len(found) == 2
    assert SERVICE_NAME in found[0]
    assert "DraftStream" in found[1]
    assert not any("who" in text for text in found)


@pytest.mark.row("C5")
def test_streams_end_at_their_number_and_when_nothing_moves(tmp_path):
    with served(tmp_path, engine(max_streams=2, max_stream_idle_s=1)) as (server, stub, _):
        released = threading.Event()
        waiting = [stub.DraftStream(silence(released)) for _ in range(2)]
        while server._servicer.num_streams < 2:
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.DraftStream(silence(released)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [list(stream) for stream in waiting] == [[], []], "idle streams end without an error"
        next(stub.DraftStream(iter([pb.DraftStreamRequest()])))
        released.set()


def test_a_stream_that_has_ended_makes_room_for_another(tmp_path):
    with served(tmp_path, engine(max_streams=1)) as (server, stub, _):
        for _ in range(3):
            assert len(list(stub.DraftStream(iter([pb.DraftStreamRequest()])))) == 1
            deadline_s = time.monotonic() + 10
            while server._servicer.num_streams:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)


def silence(released):
    """Sends nothing until it ends."""
    released.wait(30)
    yield from ()
