"""Fixtures that many test files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.rows import pytest_addoption, pytest_collection_modifyitems, pytest_terminal_summary

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_terminal_summary"]

REPOSITORY = Path(__file__).resolve().parent.parent
IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30

# Tests write thousands of small stores, and kill the writers, not the machine: a disk that every fsync waits
# for takes a tenth of the suite's time and shows nothing.
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real traces, corpora and tokenizers; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RETRIEVAL_SPEC_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no folder of real traces and corpora: set RETRIEVAL_SPEC_DATA")
    return folder
