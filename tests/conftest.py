"""Fixtures that many test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real traces, corpora and tokenizers; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RETRIEVAL_SPEC_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no folder of real traces and corpora: set RETRIEVAL_SPEC_DATA")
    return folder
