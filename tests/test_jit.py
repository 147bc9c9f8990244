"""The compile cache: keyed on all kernel sources, private, and never a reason not to start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_spec.kernels import jit

pytestmark = pytest.mark.row("N1")

CALL = """
import logging; logging.basicConfig()
import numpy as np
from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels.fusion import insert
columns = np.array([4], np.int32), np.array([-1], np.int32), np.ones(1, np.float32), np.ones(1, np.uint16)
trie = np.zeros((TRIE_ROWS, 2), np.int32)
print(insert(trie, 1, *columns, 0), trie[0].tolist())
"""


def start(cache: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, jit.CACHE_DIR_VARIABLE: str(cache), **environment}
    return subprocess.run(
        [sys.executable, "-c", CALL], cwd=cache, env=variables, capture_output=True, text=True, timeout=120
    )


def folder_of(cache: Path) -> Path:
    return cache / "retrieval_spec" / f"kernels-{jit.source_key()}"


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    assert start(cache).stdout == "2 [0, 4]\n"
    return cache


def test_the_cache_is_private_and_filled(warm_cache):
    folder = folder_of(warm_cache)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("**/*.nbi"))


def test_a_copy_of_the_same_sources_compiles_nothing(warm_cache, tmp_path):
    shutil.copytree(Path(jit.__file__).parent.parent, tmp_path / "retrieval_spec")
    before = {path: path.stat().st_mtime_ns for path in warm_cache.glob("**/*.nb?")}
    assert start(warm_cache, PYTHONPATH=str(tmp_path)).stdout == "2 [0, 4]\n"
    assert {path: path.stat().st_mtime_ns for path in warm_cache.glob("**/*.nb?")} == before


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_cache_file_is_thrown_away(warm_cache, suffix, size):
    damaged = sorted(folder_of(warm_cache).glob(f"**/*.{suffix}"))
    for path in damaged:
        os.truncate(path, size)
    done = start(warm_cache)
    assert done.stdout == "2 [0, 4]\n", done.stderr
    assert all(path.stat().st_size > 100 for path in folder_of(warm_cache).glob(f"**/*.{suffix}"))


def test_a_cache_that_others_could_write_is_not_used(tmp_path):
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    (folder / "planted.nbi").write_bytes(b"anything")
    folder.chmod(0o777)
    done = start(tmp_path)
    assert done.stdout == "2 [0, 4]\n"
    assert "not used" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["planted.nbi"]


def test_a_cache_folder_that_cannot_be_made_is_not_needed(tmp_path):
    (tmp_path / "retrieval_spec").write_text("a file stands in the way")
    done = start(tmp_path)
    assert done.stdout == "2 [0, 4]\n"
    assert "not used" in done.stderr


def test_the_key_follows_every_kernel_source(monkeypatch, tmp_path):
    copies = tmp_path / "kernels"
    copies.mkdir()
    (copies / "one.py").write_text("a = 1")
    monkeypatch.setattr(jit, "_SOURCES", (copies,))
    before = jit.source_key()
    (copies / "one.py").write_text("a = 2")
    assert jit.source_key() != before


def test_without_the_compiler_kernels_are_plain_python(tmp_path):
    assert start(tmp_path, NUMBA_DISABLE_JIT="1").stdout == "2 [0, 4]\n"
