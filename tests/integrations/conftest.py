"""One server for all tests of hosts."""

from __future__ import annotations

import pytest

from tests.service_process import server_process


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    with server_process(f"unix:{tmp_path_factory.mktemp('hosts')}/s.sock", "default") as (_, address):
        yield address


@pytest.fixture(params=["local", "remote"])
def settings(request, address):
    """Where drafts come from; a test waits for each draft, however busy the machine is."""
    if request.param == "local":
        return {"server": "local"}
    namespace = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]
    return {"server": address, "namespace": namespace, "timeout_s": 20.0}
