"""Connections on which nobody asks for long: both sides ping each other, and neither takes offence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from retrieval_spec.client import DraftClient, transport
from retrieval_spec.limits import Limits
from retrieval_spec.service import admin, server
from tests.service_process import counting_engine, server_thread

OPTIONS = {*dict(server._options(Limits())), *dict(admin._OPTIONS), *dict(transport._OPTIONS)}


@pytest.fixture(scope="module")
def library() -> bytes:
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_are_spelled_as_grpc_reads_them(library, name):
    """It passes over names that it does not know."""
    assert name.encode() + b"\0" in library


@pytest.mark.long
def test_a_client_that_asks_nothing_for_minutes_keeps_its_connection():
    with (
        server_thread("127.0.0.1:0", counting_engine()) as address,
        DraftClient(address, timeout_s=1.0) as client,
    ):
        session = client.open_session([1])
        assert len(session.draft(2)) == 2
        time.sleep(100)  # several pings of both sides
        assert len(session.draft(2)) == 2
        assert (client.counters.failures, client.counters.answered) == (0, 2)
