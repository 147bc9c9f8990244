"""Short versions of `tools/bench_degradation.py`: a server in trouble never slows a generation down much.

Ratios are of plain decoding in the same run. The bars of the tool are for a quiet machine; here each has a
margin of 0.1 and twice what plain decoding itself differed by, which a client that waits in every step would
miss by far. That no token differs is exact.
"""

from __future__ import annotations

import signal
import time

import pytest

from retrieval_spec.client import DraftClient
from retrieval_spec.verifier.drafts import NoDrafts
from tests import standin
from tests.fault_proxy import fault_proxy
from tests.service_process import server_process

pytestmark = pytest.mark.row("V1")

STEP_S = 0.005
MARGIN = 0.1
USELESS = standin.some_text(128, 0.0)
USEFUL = standin.some_text(128, 0.8)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("degradation")
    with (
        server_process(f"unix:{folder}/s.sock") as (process, address),
        fault_proxy(folder / "p.sock", address) as proxy,
    ):
        yield process, address, proxy


def ratio(client, text, fault=lambda: None):
    """Plain time by time, and what the ratio may fall short of its bar by."""
    plain = NoDrafts(70_000)
    before = standin.generate(plain, text, STEP_S)
    run = standin.generate(client, text, STEP_S, after_opening=fault)
    after = standin.generate(plain, text, STEP_S)
    assert run.output == before.output == after.output == text
    noise = abs(before.seconds / after.seconds - 1.0)
    return (before.seconds + after.seconds) / 2 / run.seconds, MARGIN + 2 * noise


def test_nobody_listens(tmp_path):
    with DraftClient(f"unix:{tmp_path}/none.sock") as client:
        found, margin = ratio(client, USELESS)
    assert found >= 0.98 - margin


def test_connections_are_lost_and_come_back(servers):
    _, _, proxy = servers
    with DraftClient(proxy.address) as client:
        found, margin = ratio(client, USEFUL, lambda: proxy.tell("drop"))
        assert found >= 0.98 - margin
        proxy.tell("pass")
        session, token = client.open_session([1]), 1
        began_s = time.monotonic()
        while not len(session.draft(2)):
            assert time.monotonic() - began_s < 5.0
            time.sleep(STEP_S)
            token += 1
            session.commit([token])  # as drafted, which is how a client sees that drafts are worth it again


def test_a_stopped_server(servers):
    process, address, _ = servers
    try:
        with DraftClient(address) as client:
            found, margin = ratio(client, USEFUL, lambda: process.send_signal(signal.SIGSTOP))
            assert client.counters.asked <= 1, "one answer is waited for in vain, and no other question asked"
    finally:
        process.send_signal(signal.SIGCONT)
    assert found >= 0.97 - margin


def test_a_slow_server(servers):
    _, _, proxy = servers
    try:
        with DraftClient(proxy.address) as client:
            found, margin = ratio(client, USELESS, lambda: proxy.tell("slow 50"))
            assert client.counters.asked <= 8
    finally:
        proxy.tell("pass")
    assert found >= 0.97 - margin


def test_useless_drafts(servers):
    _, address, _ = servers
    with DraftClient(address) as client:
        found, margin = ratio(client, USELESS)
        assert client.counters.asked <= 30
        assert client.counters.rested >= 70
    assert found >= 0.95 - margin


def test_useful_drafts_are_worth_it(servers):
    """Else all of the above could be had by never asking."""
    _, address, _ = servers
    with DraftClient(address) as client:
        found, margin = ratio(client, USEFUL)
        assert client.counters.asked >= 5
    assert found >= 1.3 - margin
